"""The names and ids of a data set's classes."""

from collections.abc import Iterable, Sequence

from drloss.errors import DataError, printable, shown

MAX_CLASSES = 20_000
_LONGEST = 200


def check_classes(file: str, names: Sequence[str], ids: Sequence[int]) -> None:
    """Check that there are classes, that their names can be printed, and that no name or id is given twice.

    Raises:
        DataError: naming ``file``, the value and what is allowed.
    """
    file = printable(file)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{file}: number of classes, got {len(names):,}; allowed: 1 to {MAX_CLASSES:,}")
    for kind, values in (("class name", names), ("class id", ids)):
        seen: set[object] = set()
        for value in values:
            if isinstance(value, str) and not (value.strip() and value.isprintable()):
                raise DataError(f"{file}: {kind}, got {shown(value)}; allowed: printable text that is not blank")
            if value in seen:
                raise DataError(f"{file}: {kind} given twice, got {shown(value)}; allowed: each once")
            seen.add(value)


def known_classes(classes: Iterable[str]) -> str:
    """The classes that a box may have, in one line of a message, shortened."""
    listed = ", ".join(classes)
    return listed if len(listed) <= _LONGEST else listed[:_LONGEST] + "..."
