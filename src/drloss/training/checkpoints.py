"""Checkpoints of a run: two are kept, and the older one is used if the newer one is damaged."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from drloss.errors import UserError, first_line
from drloss.io.atomic import remove_unfinished
from drloss.io.sealed import is_whole, read_sealed, write_sealed

CHECKPOINTS_KEPT = 2
"""Number of checkpoints that are kept."""
_NAME = re.compile(r"iteration_([0-9]{8}|[1-9][0-9]{8,})\.pt")


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Write ``state`` as the checkpoint of ``iteration``, and remove all earlier ones but the newest whole one.

    The new file is read back from the disk before it gets its name; only then the earlier ones are removed. Damaged
    checkpoints do not count. Those of later iterations stay: the run could not read them when it resumed.

    Args:
        folder: folder of the checkpoints.
        iteration: number of optimiser steps done.
        state: tensors and plain Python values that :func:`drloss.io.untrusted.read_pt` accepts.
    Raises:
        UserError: if the file cannot be written; the earlier checkpoints are left as they were.
    """
    path = folder / f"iteration_{iteration:08d}.pt"
    remove_unfinished(folder)  # from a run that was killed while it wrote
    write_sealed(path, state)
    earlier = [old for old in newest_first(folder) if _iteration(old) < iteration]
    kept = next((old for old in earlier if _is_usable(old)), None)
    for old in earlier if kept else ():
        if old != kept:
            old.unlink()
    return path


def _is_usable(path: Path) -> bool:
    with suppress(OSError):  # a bad sector
        return is_whole(path)
    return False


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The newest readable checkpoint, and a message for each newer one that is damaged; None if there is none.

    Raises:
        UserError: if there are checkpoints and none can be read.
    """
    damaged: list[str] = []
    for path in newest_first(folder):
        try:
            state = read_sealed(path)
            if not isinstance(state, dict):
                raise UserError(f"{path}: holds no state of a run")
            return state, damaged
        except (UserError, OSError) as error:
            damaged.append(f"damaged checkpoint {first_line(error)}")
    if damaged:
        raise UserError(f"no readable checkpoint in {folder}: {'; '.join(damaged)}")
    return None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the one of the latest iteration first; files of other names are left out."""
    found = (path for path in folder.glob("iteration_*.pt") if _NAME.fullmatch(path.name) and path.is_file())
    return sorted(found, key=_iteration, reverse=True)


def _iteration(path: Path) -> int:
    return int(path.stem.removeprefix("iteration_"))
