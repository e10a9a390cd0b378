"""The run folder: the names of its files, whether a run may begin there, and the lock against a second run."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drloss.data.held_out import SPLITS_FILE
from drloss.errors import UserError
from drloss.io.atomic import json_of, unwritable
from drloss.training.checkpoints import CHECKPOINTS_KEPT, newest_first

CONFIG = "config.json"
"""File of the settings."""
ENVIRONMENT = "environment.json"
"""File of where and with what the run was computed, one record for each start."""
METRICS_FILE = "metrics.csv"
"""File of the losses by iteration."""
EVALUATIONS_FILE = "evaluations.csv"
"""File of the results on the validation split by iteration."""
THRESHOLD = "threshold"
"""Column of that file: the score from which detections have the best F1."""
TRACKERS_FILE = "trackers.json"
"""File of the ids under which Weights & Biases and MLflow know the run."""
BOARD = "tensorboard"
"""Folder of TensorBoard's files."""
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints."""
MODEL = "model.safetensors"
"""File of the exported detector, written when the run has ended."""
BEST = "best.safetensors"
"""File of the detector as it was at the best evaluation so far."""
PAGE = "report.html"
"""Page of a finished run: its evaluations, curves and pictures."""
LOCK = ".lock"
"""File that a running process locks."""


def require_new_run(out: Path) -> None:
    """Raise UserError if ``out`` holds a run, or a file or folder with a name that a run uses."""
    if settings_of(out) is not None:
        raise UserError(f"--out {out}: holds a run already; go on with --resume or name another folder")
    files = (CONFIG, ENVIRONMENT, MODEL, BEST, METRICS_FILE, EVALUATIONS_FILE, TRACKERS_FILE, PAGE, SPLITS_FILE)
    for name in (*files, CHECKPOINTS, BOARD):
        if os.path.lexists(out / name):
            raise UserError(f"--out {out}: {name} is there, which a run would write; name another folder")


def settings_of(out: Path) -> dict[str, Any] | None:
    """The settings of the run in ``out``, in JSON types; None if no run has begun there."""
    plain = json_of(out / CONFIG)
    begun = (
        isinstance(plain, dict) and isinstance(plain.get("detector"), dict) and {"loss", "max_iters"} <= plain.keys()
    )
    return plain if begun else None


def run_of(path: Path) -> Path | None:
    """The run folder that is named, be it by one of the detectors that the run left there; None for another file."""
    folder = path.parent if path.name in (MODEL, BEST) else path
    return folder if folder.is_dir() and settings_of(folder) is not None else None


def require_space(out: Path, size: int, detectors: int = 0) -> None:
    """Raise UserError unless the disk has room for three checkpoints and for the detectors that a run leaves behind.

    Two checkpoints are kept, and the next one is written before the older one is removed. The space of the files that
    exist counts.

    Args:
        out: run folder.
        size: bytes of a checkpoint.
        detectors: bytes of the exported detectors together.
    """
    there = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    files = [*newest_first(out / CHECKPOINTS), *(out / name for name in (MODEL, BEST) if detectors)]
    own = sum(path.stat().st_size for path in files if path.is_file())
    free, needed = shutil.disk_usage(there).free, (CHECKPOINTS_KEPT + 1) * size + detectors
    if free + own < needed:
        also = f" and its detectors of {detectors / 1e6:,.0f} MB" if detectors else ""
        raise UserError(
            f"--out {out}: no space: {free / 1e6:,.0f} MB are free on its disk, and the run needs "
            f"{(needed - own) / 1e6:,.0f} MB, for three checkpoints of {size / 1e6:,.0f} MB{also}"
        )


@contextmanager
def only_writer(out: Path, doing: str = "training") -> Iterator[None]:
    """Lock a folder of results against other processes; on a disk without locks this has no effect.

    Args:
        out: the folder, which is made if there is none.
        doing: what this process, and the other, writes there, for the message.
    Raises:
        UserError: if another process holds the folder, or the folder cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made a folder: {error.strerror}") from None
    try:
        lock = (out / LOCK).open("a")  # does not change the content of an existing file
    except OSError as error:
        raise unwritable(out / LOCK, error) from None
    with lock as file:
        try:
            # A record lock ends with this process, even if processes that were forked from it live on.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"--out {out}: another process is {doing} into it") from None
        yield
