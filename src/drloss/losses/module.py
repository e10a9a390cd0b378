"""A loss function as a module: a weight, the function's options, and the score that its classifier starts from."""

import inspect
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from drloss.errors import nearest
from drloss.losses.call_log import not_recorded, record_weight
from drloss.losses.inputs import Levels, join
from drloss.losses.parameters import require_positive

_PER_BATCH = ("ignore", "quality", "objects")  # options that belong to the images and are given with each batch


class ImageLoss(nn.Module):
    """``cls_weight`` · ``function``, with the function's keyword options kept.

    A subclass names its ``function`` and takes its signature from there, so that a default is written once.

    Args:
        cls_weight: weight beside the box loss, positive.
        options: keyword options of ``function``. A tensor of several numbers, or a list of tensors by level, becomes
            a buffer. It moves with the module but keeps its precision: ``half()`` would make counts infinite.
    Raises:
        TypeError: if an option is unknown.
        ValueError: if a value is out of range.
    """

    function: ClassVar[Callable[..., Tensor]]
    check_options: ClassVar[Callable[..., None] | None] = None
    """Raises ValueError for an option out of range. Without it, ``function`` is called on no anchors."""
    prior_probability: ClassVar[float]
    """Score that the classifier starts from."""
    defaults: ClassVar[dict[str, Any]]
    """The function's options with their defaults."""
    needs: tuple[str, ...] = ()
    """Options of a batch that each call must be given: ``"objects"``, ``"quality"``; see the function."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "function" in vars(cls) and "check_options" not in vars(cls):
            cls.check_options = None  # that of a base class is for another function
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
                    f"{type(self).__name__} has no option {name!r}{nearest(name, self.defaults)}; it has cls_weight, "
                    f"{', '.join(self.defaults)}"
                )
        cls_weight = _plain(cls_weight)
        require_positive(cls_weight=cls_weight)
        self.cls_weight = cls_weight
        for name, given in (self.defaults | options).items():
            levels = isinstance(given, (list, tuple)) and given and all(isinstance(part, Tensor) for part in given)
            value = join(name, given) if levels else _plain(given)
            if isinstance(value, Tensor) and value.ndim:
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        numbers = {k: None if k in self._buffers else v for k, v in self.options.items()}
        if self.check_options is not None:
            self.check_options(**numbers)
        else:
            with not_recorded():
                self.function(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.int64), **numbers)

    @property
    def options(self) -> dict[str, Any]:
        """Current values of the function's options, by name."""
        return {name: getattr(self, name) for name in self.defaults}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        given = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in given.items():
            moved: Tensor = getattr(self, name)
            if torch.promote_types(value.dtype, moved.dtype) != moved.dtype:
                self._buffers[name] = value.to(moved.device)
        return self

    def forward(self, logits: Levels, labels: Levels, **per_batch: Any) -> Tensor:
        """Weighted loss; logits, labels, options of this batch and the result are those of ``function``."""
        return record_weight(type(self).function(logits, labels, **{**self.options, **per_batch}), self.cls_weight)

    def extra_repr(self) -> str:
        """Weight and options, as ``print(module)`` shows them."""
        shown = {"cls_weight": self.cls_weight} | {k: v for k, v in self.options.items() if v is not None}
        return ", ".join(
            f"{k}={tuple(v.shape) if isinstance(v, Tensor) else f'{v:.6g}' if isinstance(v, float) else repr(v)}"
            for k, v in shown.items()
        )


def _plain(value: Any) -> Any:
    """The value; a number of another library, such as NumPy's, becomes a number of Python."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
