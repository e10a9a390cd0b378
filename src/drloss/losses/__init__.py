"""The losses: §3 of the paper, and its rivals with the same signature."""

from typing import Any

from drloss.losses.ap import APLoss, ap_loss
from drloss.losses.diagnostics import DRStatistics, check_first_loss, dr_statistics, first_loss_problem
from drloss.losses.distribution import lambda_from_log_base
from drloss.losses.dr import DRLoss, dr_gradient, dr_loss
from drloss.losses.module import ImageLoss
from drloss.losses.pointwise import (
    CrossEntropyLoss,
    FocalLoss,
    OHEMLoss,
    QualityFocalLoss,
    cross_entropy_loss,
    focal_loss,
    ohem_loss,
    quality_focal_loss,
)

LOSSES: dict[str, type[ImageLoss]] = {
    "dr": DRLoss,
    "focal": FocalLoss,
    "ce": CrossEntropyLoss,
    "ohem": OHEMLoss,
    "qfl": QualityFocalLoss,
    "ap": APLoss,
}
"""Loss modules by the name that the command line knows them by."""
BEST_KNOWN: dict[str, dict[str, Any]] = {name: {"scope": "pooled"} for name in ("focal", "ce", "qfl")}
"""What a loss by name starts from in the place of its function's own default.

Detectron, and the codebases after it, divide the focal loss of all images of a step by the number of all their
positives. Divided image by image, one with a single object counts as much as one with many; that learns far more
slowly where images have few (docs/comparisons.md). ``"focal:scope=per_image"`` is torchvision's way.
"""


def make_loss(spec: str) -> ImageLoss:
    """The loss module that ``name`` or ``name:parameter=value,...`` stands for, such as ``"dr:neg_lambda=0.05"``.

    Each loss starts from its best-known settings: its own defaults, but for :data:`BEST_KNOWN`.

    Raises:
        TypeError: if it is no string.
        ValueError: if the loss or a parameter is unknown, a parameter is given twice or a value does not fit.
    """
    if not isinstance(spec, str):
        raise TypeError(f"a loss must be named by a string such as 'dr', got {spec!r}")
    name, _, options = spec.partition(":")
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    parameters: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, _, text = map(str.strip, option.partition("="))
        if key in parameters:
            raise ValueError(f"loss {spec}: {key} is given twice")
        parameters[key] = _number_or_text(text)
    if parameters.get("normalizer", "positives") == "positives":  # of what is divided by nothing, a mean over images
        parameters = BEST_KNOWN.get(name, {}) | parameters
    try:
        return LOSSES[name](**parameters)
    except (TypeError, ValueError) as error:
        raise ValueError(f"loss {spec}: {error}") from None


def _number_or_text(text: str) -> int | float | str | bool:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


__all__ = [
    "LOSSES",
    "APLoss",
    "CrossEntropyLoss",
    "DRLoss",
    "DRStatistics",
    "FocalLoss",
    "ImageLoss",
    "OHEMLoss",
    "QualityFocalLoss",
    "ap_loss",
    "check_first_loss",
    "cross_entropy_loss",
    "dr_gradient",
    "dr_loss",
    "dr_statistics",
    "first_loss_problem",
    "focal_loss",
    "lambda_from_log_base",
    "make_loss",
    "ohem_loss",
    "quality_focal_loss",
]
