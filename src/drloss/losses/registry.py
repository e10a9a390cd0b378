"""The losses by name, and the one place that reads a loss with its parameters from a string."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drloss.errors import nearest
from drloss.losses.ap import APLoss
from drloss.losses.dr import DRLoss
from drloss.losses.module import ImageLoss
from drloss.losses.pointwise import CrossEntropyLoss, FocalLoss, OHEMLoss, QualityFocalLoss

LOSSES: dict[str, type[ImageLoss]] = {
    "dr": DRLoss,
    "dr+": DRLoss,
    "focal": FocalLoss,
    "ce": CrossEntropyLoss,
    "ohem": OHEMLoss,
    "qfl": QualityFocalLoss,
    "ap": APLoss,
}
"""Loss modules by the name that the command line gives them."""
BEST_KNOWN: dict[str, dict[str, Any]] = {
    "dr+": {"pos_prior": "object"},
    **{name: {"scope": "pooled"} for name in ("focal", "ce", "qfl")},
}
"""Parameters that a loss made by name has in place of the defaults of its function.

``"dr"`` is the paper's loss. ``"dr+"`` (ours) is the paper's with the same mass for each object in place of the same
mass for each positive anchor (docs/comparisons.md).

Detectron, and the codebases after it, divide the focal loss of all images of a step by the number of all their
positives. Divided image by image, an image with one object counts as much as an image with many, and training is far
slower where images have few objects (docs/comparisons.md). ``"focal:scope=per_image"`` is torchvision's way.
"""

Parameter = int | float | str | bool


@dataclass(frozen=True)
class LossSpec:
    """A loss by its name and parameters, written as ``name`` or ``name:parameter=value,...``.

    Attributes:
        name: one of :data:`LOSSES`; :meth:`make` checks it.
        parameters: options of the loss that are not its best-known ones, by name.

    >>> spec = LossSpec.parse("dr: neg_lambda = 0.05, pairing=neg_only")
    >>> spec.name, spec.parameters
    ('dr', {'neg_lambda': 0.05, 'pairing': 'neg_only'})
    >>> str(spec)
    'dr:neg_lambda=0.05,pairing=neg_only'
    """

    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str) -> "LossSpec":
        """Read a specification; whether the loss has these parameters is left to :meth:`make`.

        Raises:
            TypeError: if it is no string.
            ValueError: if a parameter is given twice.
        """
        if not isinstance(text, str):
            raise TypeError(f"a loss must be named by a string such as 'dr', got {text!r}")
        name, _, options = text.partition(":")
        parameters: dict[str, Parameter] = {}
        for option in filter(None, options.split(",")):
            key, _, value = map(str.strip, option.partition("="))
            if key in parameters:
                raise ValueError(f"loss {text}: {key} is given twice")
            parameters[key] = _number_or_text(value)
        return cls(name, parameters)

    @property
    def assignments(self) -> list[str]:
        """The parameters as ``name=value``."""
        return [f"{name}={value}" for name, value in self.parameters.items()]

    def __str__(self) -> str:
        return ":".join(filter(None, (self.name, ",".join(self.assignments))))

    def complete(self) -> "LossSpec":
        """The specification with the parameters of :data:`BEST_KNOWN` written out."""
        # Without a normaliser the loss is a mean over images, and there is no count that images could share.
        divided = self.parameters.get("normalizer", "positives") == "positives"
        known = BEST_KNOWN.get(self.name, {}) if divided else {}
        return LossSpec(self.name, known | dict(self.parameters))

    def make(self) -> ImageLoss:
        """The loss module, with the parameters of :meth:`complete`.

        Raises:
            ValueError: if the loss or a parameter is unknown, or a value is out of range.
        """
        if self.name not in LOSSES:
            raise ValueError(
                f"loss must be one of {', '.join(LOSSES)}, got {self.name!r}{nearest(self.name, LOSSES)}"
            )
        parameters: dict[str, Any] = dict(self.complete().parameters)
        try:
            return LOSSES[self.name](**parameters)
        except (TypeError, ValueError) as error:
            raise ValueError(f"loss {self}: {error}") from None


def make_loss(spec: str) -> ImageLoss:
    """The loss module that ``name`` or ``name:parameter=value,...`` stands for, such as ``"dr:neg_lambda=0.05"``.

    Each loss has its best-known settings: those of :data:`BEST_KNOWN`, else its own defaults.

    Raises:
        TypeError: if it is no string.
        ValueError: if the loss or a parameter is unknown, a parameter is given twice or a value is out of range.
    """
    return LossSpec.parse(spec).make()


def _number_or_text(text: str) -> Parameter:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
