"""Seeing how a loss is called from inside somebody else's training step."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Call:
    """One call of a loss function.

    Attributes:
        logits, labels: as they were given.
        options: keyword options.
        value: what it returned, without a module's weight.
        weight: the module's, None where no module made the call.
    """

    logits: Any
    labels: Any
    options: dict[str, Any]
    value: Tensor
    weight: float | None = None


_watchers: list[tuple[list[Call], set[int]]] = []
"""Lists of calls, each with the threads whose calls are none of its business."""
_this_thread = threading.local()


@contextmanager
def watch() -> Iterator[list[Call]]:
    """Collect the calls of :func:`drloss.dr_loss` in a list until the context ends.

    Those of this thread and of threads that begin in the meantime, such as ``DataParallel``'s; others have begun what
    they do before, and it is another's step.
    """
    calls: list[Call] = []
    others = {thread.ident for thread in threading.enumerate() if thread.ident is not None}
    _watchers.append((calls, others - {threading.get_ident()}))
    try:
        yield calls
    finally:
        del _watchers[[id(own) for own, _ in _watchers].index(id(calls))]


@contextmanager
def unwatched() -> Iterator[None]:
    """Hide calls that are no part of a training step from whoever watches."""
    before = _hidden()
    _this_thread.hidden = True
    try:
        yield
    finally:
        _this_thread.hidden = before


def _hidden() -> bool:
    return getattr(_this_thread, "hidden", False)


def _seen_by() -> list[list[Call]]:
    """The lists that a call of now belongs to."""
    if not _watchers or _hidden():
        return []
    return [calls for calls, others in _watchers if threading.get_ident() not in others]


def told(logits: Any, labels: Any, options: dict[str, Any], value: Tensor) -> Tensor:
    """Hand a call to whoever watches, and return its value."""
    for calls in _seen_by():
        calls.append(Call(logits, labels, options, value))
    return value


def weighed(value: Tensor, weight: float) -> Tensor:
    """Hand the weight of a module to whoever watches, and return the value times the weight."""
    for calls in _seen_by():
        for call in calls:
            if call.value is value:
                call.weight = float(weight)
    return weight * value
