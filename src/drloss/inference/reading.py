"""From the name of a data set to the splits of a training or an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.data.checks.images import check_images, require_images
from drloss.data.checks.problems import Report
from drloss.data.formats.opening import open_data
from drloss.data.held_out import SPLITS_FILE, with_val
from drloss.distributed.ranks import Ranks
from drloss.errors import UserError

NO_SPLIT = "none"
"""What stands for no split to evaluate on."""


@dataclass(frozen=True)
class DataChoice:
    """Which images a training takes.

    Attributes:
        data: folder of a data set, one of its annotation files, a ``.toml`` data file, or ``shapes``.
        train_split: split to train on.
        val_split: split to evaluate on; ``"none"`` for no evaluation; None for ``val``, if there is any way to one.
        val_fraction: share of the images that is held out of data without a split ``val``; None for a fifth.
        skip_bad: whether bad boxes and images are left out and listed, and not an error.
    """

    data: str
    train_split: str = "train"
    val_split: str | None = None
    val_fraction: float | None = None
    skip_bad: bool = False


def open_source(choice: DataChoice, run: Path | None = None, *, ranks: Ranks | None = None) -> Any:
    """The data set, with a validation split if there is any way to one.

    Args:
        choice: which data.
        run: the folder of a run, whose split is used if it made one.
        ranks: this process among others, which it tells that it is still reading.
    """
    source = open_data(choice.data)
    if choice.val_split == NO_SPLIT and NO_SPLIT not in source.splits:
        if choice.val_fraction:
            raise UserError(f"--val-fraction {choice.val_fraction:g} with --val-split none; allowed: one of them")
        return with_val(source, 0.0)
    progress = None if ranks is None else _still_reading(ranks)
    return with_val(source, choice.val_fraction, None if run is None else run / SPLITS_FILE, progress=progress)


def read_splits(
    source: Any, choice: DataChoice, out: Path, console: Console, ranks: Ranks
) -> tuple[Annotations, Annotations | None, dict[str, Report]]:
    """The training split; the validation split or None; and the reports of what is left out of them, by file name.

    Args:
        source: of :func:`open_source`.
        choice: which splits.
        out: the folder that will hold the reports.
        console: where what is left out is said.
        ranks: this process among others.
    """
    splits, reports = {"train": choice.train_split, "val": choice.val_split or "val"}, {}
    if choice.val_split in (None, NO_SPLIT) and splits["val"] not in source.splits:
        if choice.val_split is None:
            console.print(
                f"{source.name} has no split val: training without evaluation (--val-split names one)",
                markup=False,
                soft_wrap=True,
            )
        del splits["val"]
    if source.says:
        console.print(f"{source.name}: {source.format}, {source.says}", markup=False, soft_wrap=True)
    found = {}
    for use, split in splits.items():
        found[use], report = read_split(source, split, choice.skip_bad, ranks)
        print_problems(report, out / report_name(split), console)
        if report.problems:
            reports[report_name(split)] = report
    if getattr(source, "made", None):
        console.print(source.note(), markup=False, soft_wrap=True)
    return found["train"], found.get("val"), reports


def read_split(source: Any, split: str, skip_bad: bool, ranks: Ranks | None = None) -> tuple[Annotations, Report]:
    """A split, and the report of what is left out of it.

    Tells the other processes of ``ranks`` every 500 images that this one is still reading.
    """
    going_on = None if ranks is None else _still_reading(ranks)
    annotations, report = source.read(split, strict=not skip_bad)
    if skip_bad:
        return check_images(annotations, report, strict=False, progress=going_on)
    return require_images(annotations, report, progress=going_on)


def print_problems(report: Report, path: Path, console: Console) -> None:
    """Print what was left out of a split, if anything. The full list will be at ``path``."""
    if report.problems:
        console.print(report.text(path), markup=False, soft_wrap=True)


def report_name(split: str) -> str:
    """Name of the file that lists what is left out of a split."""
    return f"data_{split}.json"


def _still_reading(ranks: Ranks) -> Callable[[int, int], object]:
    """Tells the other processes every 500 images that this one is still reading."""

    def going_on(done: int, total: int) -> None:
        if done % 500 == 0:
            ranks.at("checking images", slow=True)

    return going_on
