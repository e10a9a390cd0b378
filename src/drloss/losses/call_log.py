"""A record of the calls of a loss, made from outside of the training step that calls it."""

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
        logits, labels: arguments of the call.
        options: its keyword options.
        value: its result, without a module's weight.
        weight: weight of the module that made the call; None where no module did.
    """

    logits: Any
    labels: Any
    options: dict[str, Any]
    value: Tensor
    weight: float | None = None


_records: list[tuple[list[Call], set[int]]] = []
"""Lists of calls, each with the threads whose calls do not belong in it."""
_this_thread = threading.local()


@contextmanager
def record_calls() -> Iterator[list[Call]]:
    """Collect the calls of :func:`drloss.dr_loss` in a list until the context ends.

    The calls of this thread are recorded, and those of threads that start inside the context, such as
    ``DataParallel``'s. A thread that was running before works on another training step.
    """
    calls: list[Call] = []
    others = {thread.ident for thread in threading.enumerate() if thread.ident is not None}
    _records.append((calls, others - {threading.get_ident()}))
    try:
        yield calls
    finally:
        del _records[[id(own) for own, _ in _records].index(id(calls))]


@contextmanager
def not_recorded() -> Iterator[None]:
    """Leave this thread's calls out of every record: calls that are not part of a training step."""
    before = _is_hidden()
    _this_thread.hidden = True
    try:
        yield
    finally:
        _this_thread.hidden = before


def _is_hidden() -> bool:
    return getattr(_this_thread, "hidden", False)


def _open_records() -> list[list[Call]]:
    """The lists that a call of this thread belongs in."""
    if not _records or _is_hidden():
        return []
    return [calls for calls, others in _records if threading.get_ident() not in others]


def record_call(logits: Any, labels: Any, options: dict[str, Any], value: Tensor) -> Tensor:
    """Record a call, and return its value."""
    for calls in _open_records():
        calls.append(Call(logits, labels, options, value))
    return value


def record_weight(value: Tensor, weight: float) -> Tensor:
    """Record the weight of the module that made the call with this value, and return the value times the weight."""
    for calls in _open_records():
        for call in calls:
            if call.value is value:
                call.weight = float(weight)
    return weight * value
