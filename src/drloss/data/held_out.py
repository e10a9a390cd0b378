"""A validation split for a data set that has none: a part of its training split is held out.

Which part, :mod:`drloss.data.splitting` says. A run keeps it in ``splits.json``, so that a resumed run and
``drloss eval`` use the same images, whatever was added to the folder since.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import NOTE, Problem, Report, report_of
from drloss.data.files.survey import WHOLE
from drloss.data.source import VAL_NAMES, DataSource
from drloss.data.splitting import VAL_FRACTION, Splits, make_splits, select_splits
from drloss.errors import UserError, shown

SPLITS_FILE = "splits.json"
"""Name of the file, in a run's folder, that says which images were held out."""


def with_val(
    source: DataSource,
    fraction: float | None = None,
    splits: Path | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> DataSource:
    """The data set with splits ``train`` and ``val``.

    Args:
        source: the data set.
        fraction: share of the images to hold out; 0 for none. By default :data:`VAL_FRACTION`.
        splits: a run's :data:`SPLITS_FILE`, if it exists, which goes before ``fraction``.
        progress: called with the number of images looked at so far, and their number.

    Returns:
        ``source`` if it has both splits, or if nobody can tell which of its splits is for training.

    Raises:
        UserError: if a fraction is given and the data set has a validation split of its own.
    """
    if source.format == "shapes" or (any(name in source.splits for name in VAL_NAMES) and "train" in source.splits):
        if fraction:
            raise UserError(
                f"--val-fraction {fraction:g}: {source.name} has a validation split; allowed: data without one"
            )
        return source
    rest = [split for split in source.splits if split not in (*VAL_NAMES, "test")]
    base = "train" if "train" in rest else rest[0] if len(rest) == 1 else None
    if base is None or any(name in source.splits for name in VAL_NAMES):
        if fraction:
            raise UserError(
                f"--val-fraction {fraction:g}: {source.name} has no split to hold out from, as train would be"
            )
        return source
    made = Splits.from_json(splits) if splits is not None and splits.is_file() else None
    return HeldOut(source, base, VAL_FRACTION if fraction is None else fraction, made, progress)


class HeldOut:
    """A :class:`drloss.data.source.DataSource` of which ``val`` is a part of another split.

    Args:
        source: the data set.
        base: its split that becomes ``train`` and ``val``.
        fraction: share of the images in ``val``; 0 for no ``val``.
        made: the split that a run made of it before; None to make one.
        progress: as for :func:`with_val`.
    """

    def __init__(
        self,
        source: DataSource,
        base: str,
        fraction: float,
        made: Splits | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self.name, self.format, self.says = source.name, source.format, source.says
        self.source = source
        self.base = base
        self.fraction = fraction
        self._made = made
        self._progress = progress
        self._strict: bool | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``val``, and the data set's other splits."""
        own = ("train", "val") if self.fraction else ("train",)
        return (*own, *(split for split in self.source.splits if split not in (self.base, WHOLE)))

    @property
    def made(self) -> Splits | None:
        """Which images are held out; None before they are read, or if none are."""
        return self._made if self.fraction else None

    def read(self, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
        """Read a split; see :meth:`drloss.data.source.DataSource.read`."""
        val = split in VAL_NAMES
        if split == self.base and split != "train" and self.fraction:
            raise UserError(
                f"{self.name}: split, got {shown(split)}; allowed: train and val, its two parts, or --val-split none "
                "to train on all of it"
            )
        if not (val or split == "train"):
            return self.source.read(split, strict=strict)
        if not self.fraction:
            return self.source.read(self.base if not val else split, strict=strict)
        if self._strict is not strict:  # read once for both
            self.__dict__.pop("_whole", None)
            self._strict = strict
        report, train, held_out, others = self._whole
        if val:
            return held_out, report_of(held_out)
        out = held_out, others
        images = report.images_in - sum(map(len, out))
        boxes = report.boxes_in - sum(len(part.boxes) for part in out)
        problems = list(report.problems)
        if len(others):
            kind = "images that were added since the splits were made, in neither of them"
            first = Problem(others.image_path(0), "", kind, "", "", NOTE, refused=False, count=len(others))
            problems.append(first)
        return train, report_of(train, problems, images_in=images, boxes_in=boxes)

    @cached_property
    def _whole(self) -> tuple[Report, Annotations, Annotations, Annotations]:
        """The report of the split, its two parts, and what is in neither."""
        annotations, report = self.source.read(self.base, strict=bool(self._strict))
        if self._made is None:
            self._made = make_splits(annotations, self.fraction, progress=self._progress)
        train, val, others = select_splits(annotations, self._made)
        return report, train, replace(val, name=f"{val.name}, held out"), others

    def note(self) -> str:
        """Which images are held out and why, in words; after they are read."""
        made = self._made
        assert made is not None
        return (
            f"{self.name} has no split val: {len(made.val):,} of {len(made.train) + len(made.val):,} images of "
            f"{self.base} are held out to evaluate on. {made.rule} (--val-fraction changes the share, --val-split "
            "none trains on all)"
        )
