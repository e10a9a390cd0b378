"""Scalars of a run, to CSV files and TensorBoard, and read back from the CSV files."""

import csv
import os
from collections.abc import Mapping
from math import isnan
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from drloss.errors import UserError, first_line
from drloss.io.atomic import unwritable, write_text
from drloss.training.run_folder import BOARD, EVALUATIONS_FILE, METRICS_FILE
from drloss.training.trackers import Trackers


class ScalarLog:
    """Writes scalars by iteration to ``metrics.csv``, ``evaluations.csv``, TensorBoard and trackers.

    Attributes:
        trackers: what else gets the scalars; None for nothing.
        finished: whether the run has reached its end, for the trackers.

    Args:
        folder: run folder.
        start: iterations already done; rows of later iterations are dropped, because the run repeats them.
        evaluated: whether the evaluation that is due after ``start`` is done, or none is due.
    """

    def __init__(self, folder: Path, start: int, *, evaluated: bool = True) -> None:
        self.folder = folder
        self.trackers: Trackers | None = None
        self.finished = False
        _keep_rows(folder / METRICS_FILE, start)
        _keep_rows(folder / EVALUATIONS_FILE, start if evaluated else start - 1)
        try:
            self.board = SummaryWriter(str(folder / BOARD), purge_step=start + 1 if start else None)
        except OSError as error:
            raise unwritable(folder / BOARD, error) from None

    def write(self, name: str, iteration: int, values: Mapping[str, float]) -> None:
        """Append a row to ``name``, one of the two CSV files; NaN becomes an empty cell.

        A file that an earlier drloss began keeps the columns that it has.
        """
        path = self.folder / name
        try:
            columns = _columns(path)
            with path.open("a", newline="") as file:
                writer = csv.writer(file)
                if not columns:
                    columns = ["iteration", *values]
                    writer.writerow(columns)
                row = {name: "" if isnan(value) else f"{value:.8g}" for name, value in values.items()}
                writer.writerow([iteration, *(row.get(name, "") for name in columns[1:])])
                file.flush()
                os.fsync(file.fileno())  # the next checkpoint relies on this row
        except OSError as error:
            raise unwritable(path, error) from None
        group = "val" if name == EVALUATIONS_FILE else "train"
        named = {f"{group}/{key}": value for key, value in values.items() if not isnan(value)}
        for key, value in named.items():
            self.board.add_scalar(key, value, iteration)
        if self.trackers is not None:
            self.trackers.write(iteration, named)

    def show(self, name: str, iteration: int, picture: Image.Image) -> None:
        """Add an RGB picture to TensorBoard."""
        self.board.add_image(name, np.asarray(picture), iteration, dataformats="HWC")

    def close(self) -> None:
        """Flush TensorBoard's file, and end the records of the trackers."""
        self.board.close()
        if self.trackers is not None:
            self.trackers.close(finished=self.finished)


def read_scalars(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Iterations and values of each column of a CSV file, without the empty cells; empty if there is no file."""
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


def _columns(path: Path) -> list[str]:
    """The columns of a CSV file; none if it is missing or empty."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def _keep_rows(path: Path, start: int) -> None:
    """Drop the rows of iterations after ``start``, and rows that were cut off."""
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
