"""Checks of a loss's parameters, and their error messages."""

from collections.abc import Collection
from math import inf
from typing import Any


def require_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise ValueError unless ``value`` is one of the ``allowed`` strings."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def require_positive(**parameters: Any) -> None:
    """Raise ValueError for the first parameter that is not a positive, finite number."""
    for name, value in parameters.items():
        if not (_is_number(value) and 0 < value < inf):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")


def require_not_negative(**parameters: Any) -> None:
    """Raise ValueError for the first parameter that is not a finite number of at least 0."""
    for name, value in parameters.items():
        if not (_is_number(value) and 0 <= value < inf):
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")


def require_finite(**parameters: Any) -> None:
    """Raise ValueError for the first parameter that is not a finite number."""
    for name, value in parameters.items():
        if not (_is_number(value) and -inf < value < inf):
            raise ValueError(f"{name} must be finite, got {value!r}")


def require_share(**parameters: Any) -> None:
    """Raise ValueError for the first parameter that is not a number in (0, 1]."""
    for name, value in parameters.items():
        if not (_is_number(value) and 0 < value <= 1):
            raise ValueError(f"{name} must lie in (0, 1], got {value!r}")


def require_count(**parameters: Any) -> None:
    """Raise ValueError for the first parameter that is not an integer of at least 1."""
    for name, value in parameters.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _MOST:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r:.40}")


_MOST = 2**63
"""Integers from here on do not fit into 64 bits."""


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return -_MOST < value < _MOST
    return isinstance(value, float)
