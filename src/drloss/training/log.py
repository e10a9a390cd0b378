"""What a run writes down while it trains: scalars to CSV and TensorBoard, and where it ran."""

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

import drloss
from drloss.errors import UserError, first_line
from drloss.io.atomic import unwritable, write_text

METRICS = "metrics.csv"
EVALUATIONS = "evaluations.csv"
BOARD = "tensorboard"


class ScalarLog:
    """Scalars by iteration, to ``metrics.csv``, ``evaluations.csv`` and TensorBoard.

    Args:
        folder: run folder.
        start: iterations already done; later rows of an interrupted run are dropped, they come again.
        evaluated: whether the evaluation after ``start``, if there is one, is done.
    """

    def __init__(self, folder: Path, start: int, *, evaluated: bool = True) -> None:
        self.folder = folder
        _keep_rows(folder / METRICS, start)
        _keep_rows(folder / EVALUATIONS, start if evaluated else start - 1)
        try:
            self.board = SummaryWriter(str(folder / BOARD), purge_step=start + 1 if start else None)
        except OSError as error:
            raise unwritable(folder / BOARD, error) from None

    def write(self, name: str, iteration: int, values: Mapping[str, float]) -> None:
        """Append a row to ``name`` (one of the two CSV files); NaN becomes an empty cell."""
        path = self.folder / name
        try:
            fresh = not path.exists() or path.stat().st_size == 0
            with path.open("a", newline="") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["iteration", *values])
                writer.writerow([iteration, *("" if isnan(v) else f"{v:.8g}" for v in values.values())])
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint that counts on it
        except OSError as error:
            raise unwritable(path, error) from None
        group = "val" if name == EVALUATIONS else "train"
        for key, value in values.items():
            if not isnan(value):
                self.board.add_scalar(f"{group}/{key}", value, iteration)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self.board.close()


def read_scalars(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Curves of a CSV file by column: iterations and values, without the empty cells."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    if not path.exists():
        return curves
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for key, text in row.items():
                if key != "iteration" and text:
                    iterations, values = curves.setdefault(key, ([], []))
                    iterations.append(float(row["iteration"]))
                    values.append(float(text))
    return curves


def _keep_rows(path: Path, start: int) -> None:
    """Drop the rows after iteration ``start``, and a last row that was cut off."""
    if not path.exists():
        return
    if start == 0:
        path.unlink()
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text: {first_line(error)}; remove it to go on without it"
        ) from None
    if not lines:
        path.unlink()
        return
    header, *rows = lines
    columns = header.count(",")
    kept = [
        r for r in rows if r.count(",") == columns and r.split(",")[0].isdigit() and int(r.split(",")[0]) <= start
    ]
    write_text(path, "\n".join([header, *kept]) + "\n")


def environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """Where a run takes place, in plain JSON types: versions, device, commit, command line, time."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "drloss": drloss.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {p: _version(p) for p in ("torch", "torchvision", "numpy", "faster-coco-eval")},
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "processes": ranks,
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """Commit of the checkout that drloss runs from, with ``+`` where it has changes; None outside a checkout."""
    here = Path(drloss.__file__)
    try:
        # A checkout around an installed drloss is somebody else's: only one that tracks this file counts.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
