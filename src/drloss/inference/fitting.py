"""Training on a data set that is named: what ``drloss train`` and ``Detector.fit`` do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.data.checks.remarks import InputSize, class_remarks, shape_remarks, size_remarks
from drloss.distributed.ranks import Ranks
from drloss.errors import UserError
from drloss.inference.reading import DataChoice, open_source, read_splits
from drloss.training.config import Config
from drloss.training.fit import fit
from drloss.training.run_folder import require_new_run


@dataclass(frozen=True)
class Fitted:
    """What a training did.

    Attributes:
        val: the split it was evaluated on, or None.
        trained: whether there was anything to do; False for a run that had ended already.
    """

    val: Annotations | None
    trained: bool


def fit_data(
    choice: DataChoice,
    config: Config,
    out: Path,
    ranks: Ranks,
    *,
    resume: bool = False,
    force: bool = False,
    trackers: Sequence[str] = (),
    console: Console,
    start: str = "the preset",
) -> Fitted:
    """Read a data set, say what it may not be good for, and train a detector on it in the folder ``out``.

    Args:
        choice: which images.
        config: settings.
        out: run folder.
        ranks: this process among the others.
        resume, force, trackers: as in :func:`drloss.training.fit.fit`.
        console: where rank 0 prints.
        start: what the remarks call the origin of the settings.
    Raises:
        UserError, NonFiniteLoss, Stopped: as :func:`drloss.training.fit.fit`.
    """
    if out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    if not resume:
        require_new_run(out)  # before the images are read, which may take minutes
    source = open_source(choice, out if resume else None, ranks=ranks)
    train, val, reports = read_splits(source, choice, out, console, ranks)
    split, size = choice.train_split, input_size(start, config)
    for remark in (
        class_remarks({split: train}) + size_remarks(split, train, size) + shape_remarks(split, train, size)
    ):
        console.print(f"remark: {remark}", markup=False, soft_wrap=True)
    splits = getattr(source, "made", None)
    how: dict[str, Any] = {"resume": resume, "force": force, "trackers": trackers, "console": console}
    return Fitted(val, fit(config, train, val, out, ranks, **how, reports=reports, splits=splits))


def input_size(name: str, config: Config) -> InputSize:
    """The sizes to which a training with this configuration brings images, and its smallest anchor.

    Args:
        name: what remarks call the configuration.
        config: settings.
    """
    detector = config.detector
    smallest = detector.strides[0] * detector.anchor_scale
    ratios = detector.anchor_ratios
    return InputSize(name, detector.short_side, detector.max_side, smallest, detector.positive_iou, ratios)
