"""A loss function as a module: a weight, the function's options, and the probability its classifier starts from."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from drloss.losses.call_log import unwatched, weighed
from drloss.losses.inputs import Levels
from drloss.losses.parameters import require_positive

_PER_BATCH = ("ignore", "quality")  # what belongs to the images and is given with them


class ImageLoss(nn.Module):
    """``cls_weight`` · ``function``, with the function's keyword options kept.

    A subclass names its ``function``; its signature is taken from there, so that a default is written once.

    Args:
        cls_weight: weight beside the box loss, positive.
        options: keyword options of ``function``. A tensor becomes a buffer and moves with the module.
    Raises:
        TypeError: if an option is unknown.
        ValueError: if a value is out of range.
    """

    function: ClassVar[Callable[..., Tensor]]
    prior_probability: ClassVar[float]
    """Score that the classifier starts from."""
    defaults: ClassVar[dict[str, Any]]
    """The function's options with their defaults."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        weight = inspect.signature(cls.__init__).parameters["cls_weight"]
        options = [
            p
            for p in inspect.signature(cls.function).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in _PER_BATCH
        ]
        cls.defaults = {p.name: p.default for p in options}
        cls.__signature__ = inspect.Signature([weight, *options])  # type: ignore[attr-defined]

    def __init__(self, cls_weight: float = 1.0, **options: Any) -> None:
        super().__init__()
        for name in options:
            if name not in self.defaults:
                raise TypeError(
                    f"{type(self).__name__} has no option {name!r}; it has cls_weight, {', '.join(self.defaults)}"
                )
        require_positive(cls_weight=cls_weight)
        self.cls_weight = cls_weight
        for name, value in (self.defaults | options).items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        numbers = {k: None if isinstance(v, Tensor) else v for k, v in self.options.items()}
        with unwatched():
            self.function(
                torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.int64), **numbers
            )  # raises for a bad one

    @property
    def options(self) -> dict[str, Any]:
        """The function's options by name, as they are now."""
        return {name: getattr(self, name) for name in self.defaults}

    def forward(self, logits: Levels, labels: Levels, **per_batch: Any) -> Tensor:
        """Weighted loss; ``logits``, ``labels``, what may be given per batch and the result as in ``function``."""
        return weighed(type(self).function(logits, labels, **(self.options | per_batch)), self.cls_weight)

    def extra_repr(self) -> str:
        """Parameters as they are shown by ``print(module)``."""
        shown = {"cls_weight": self.cls_weight} | {k: v for k, v in self.options.items() if v is not None}
        return ", ".join(
            f"{k}={tuple(v.shape) if isinstance(v, Tensor) else f'{v:.6g}' if isinstance(v, float) else repr(v)}"
            for k, v in shown.items()
        )
