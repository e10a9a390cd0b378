"""What is wrong with a data set, record by record, and what follows from it.

Every reader and checker makes :class:`Problem` records, and a :class:`Report` sums them up. A report is complete:
each image and each box in the files is either used or counted in a problem, so that

    ``boxes_in == boxes_kept + boxes_left_out``  and  ``images_in == images_kept + images_left_out``.

A problem is *refused* if strict reading, the default, stops because of it. Other problems are notes: they change
nothing, or a box by less than one pixel.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from drloss.data.annotations import Annotations
from drloss.errors import DataError, UserError, printable, reason_of, shown
from drloss.io.atomic import json_of, write_json

BOX_LEFT_OUT = "box left out"
IMAGE_LEFT_OUT = "image left out"
BOX_CLIPPED = "box clipped"
NOTE = "note"
CONSEQUENCES = (BOX_LEFT_OUT, IMAGE_LEFT_OUT, BOX_CLIPPED, NOTE)

SHOWN_PER_KIND = 20
"""Number of problems of one kind that the terminal lists; the JSON report has all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one record of a file.

    Attributes:
        file: the file that has it.
        record: where in the file: ``"annotation 17"``, ``"line 3"``, ``"object 2"``, or ``""`` for the whole file.
        kind: the same few words for all problems of a kind.
        value: what was found, shortened.
        allowed: what would have been right.
        consequence: one of :data:`CONSEQUENCES`.
        refused: whether strict reading stops because of it.
        boxes: number of boxes left out because of it: 1 for a box, all boxes of an image for an image.
        count: number of records that it stands for, because notes of one kind become one.
        reason: the full message of the error in reading the file.
    """

    file: str
    record: str
    kind: str
    value: str
    allowed: str
    consequence: str
    refused: bool = True
    boxes: int = 0
    count: int = 1
    reason: str = ""

    @property
    def message(self) -> str:
        """One line: file, record, what is wrong, the reason or value, what is allowed."""
        where = ": ".join(printable(part) for part in (self.file, self.record) if part)
        value = f": {printable(self.reason)}" if self.reason else f", got {self.value}" if self.value else ""
        said = not self.allowed or "; allowed: " in self.reason
        allowed = "" if said else f"; allowed: {printable(self.allowed)}"
        more = f" (and {self.count - 1:,} more)" if self.count > 1 else ""
        return f"{where}: {self.kind}{value}{allowed}{more}"

    def to_json(self) -> dict[str, Any]:
        """All attributes, and :attr:`message`, as plain values."""
        return asdict(self) | {"message": self.message}


MAX_PROBLEMS = 200_000
"""Number of problems of one split after which reading stops, clipped boxes not counted."""


class ProblemLog:
    """The problems of a split while it is read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._notes: dict[str, int] = {}
        self._clipped = 0
        self._last_clipped = 0

    def add(
        self, file: str, record: str, kind: str, *, value: object, allowed: str, consequence: str, **more: Any
    ) -> int:
        """Add a problem and return its position.

        ``value`` is shortened for the message and left out if it is None; of an error, the full message is taken.
        Clipped boxes do not stop the reading. The first :data:`MAX_PROBLEMS` of them are listed; the last of these
        also counts all further ones.
        """
        if consequence == BOX_CLIPPED:
            if self._clipped >= MAX_PROBLEMS:
                self._count(self._last_clipped)
                return self._last_clipped
            self._clipped += 1
            self._last_clipped = len(self.problems)
        elif len(self.problems) - self._clipped >= MAX_PROBLEMS:
            raise DataError(
                f"{printable(file)}: more than {MAX_PROBLEMS:,} problems: is it a file of another kind? The first: "
                f"{self.problems[0].message}"
            )
        text = "" if value is None else shown(value)
        if isinstance(value, DataError):
            text, more["reason"] = "", reason_of(value, file)
        self.problems.append(Problem(file, record, kind, text, allowed, consequence, **more))
        return len(self.problems) - 1

    def note(self, file: str, record: str, kind: str, value: object = None, consequence: str = NOTE) -> None:
        """Add a problem that is not refused; the first note of a kind counts all others."""
        position = self._notes.get(kind)
        if position is None:
            self._notes[kind] = self.add(
                file, record, kind, value=value, allowed="", consequence=consequence, refused=False
            )
        else:
            self._count(position)

    def _count(self, position: int) -> None:
        self.problems[position] = replace(self.problems[position], count=self.problems[position].count + 1)

    def set_boxes(self, position: int, boxes: int) -> None:
        """Set the number of boxes left out with the image of a problem."""
        self.problems[position] = replace(self.problems[position], boxes=boxes)


@dataclass(frozen=True)
class Report:
    """The sums of one split, and what is wrong with it.

    Attributes:
        name: name of the split in messages.
        images_in, images_kept: number of images in the files, and of those used.
        boxes_in, boxes_kept: the same for boxes; crowd regions and difficult objects count.
        problems: in the order of the files.
        classes: class name to number of boxes used, for every class.
        ignored: number of boxes used as neither target nor background.
        empty_images: number of images used that have no box.
        image_sizes: smallest and largest (height, width) by area; None without images.
        box_sides: quantiles 0, 5, 50, 95 and 100 % of sqrt(width * height) in pixels; None without boxes.
    """

    name: str
    images_in: int
    images_kept: int
    boxes_in: int
    boxes_kept: int
    problems: tuple[Problem, ...]
    classes: dict[str, int]
    ignored: int
    empty_images: int
    image_sizes: tuple[tuple[int, int], tuple[int, int]] | None
    box_sides: tuple[float, float, float, float, float] | None

    @property
    def boxes_left_out(self) -> int:
        """Number of boxes left out, each counted in a problem."""
        return sum(p.boxes for p in self.problems)

    @property
    def images_left_out(self) -> int:
        """Number of images left out, each counted in a problem."""
        return sum(p.count for p in self.problems if p.consequence == IMAGE_LEFT_OUT)

    @property
    def refused(self) -> tuple[Problem, ...]:
        """The problems because of which strict reading stops."""
        return tuple(p for p in self.problems if p.refused)

    def to_json(self) -> dict[str, Any]:
        """All attributes and sums, as plain values."""
        values = {k: v for k, v in vars(self).items() if k != "problems"}
        sums = {"images_left_out": self.images_left_out, "boxes_left_out": self.boxes_left_out}
        return values | sums | {"problems": [p.to_json() for p in self.problems]}

    def write(self, path: Path) -> None:
        """Write :meth:`to_json` to a file, atomically; see :func:`require_place`."""
        require_place(path)
        write_json(path, self.to_json())

    def text(self, report_path: str | Path = "the JSON report of drloss data") -> str:
        """Text for the terminal: the sums, then the problems by kind, shortened.

        Args:
            report_path: the file with the full list, which shortened lists name.
        """
        return "\n".join([self.summary(), *problem_lines(self.problems, report_path)])

    def summary(self) -> str:
        """The number of images and boxes used, in one line."""
        return (
            f"{printable(self.name)}: {self.images_kept:,} of {self.images_in:,} images kept, "
            f"{self.boxes_kept:,} of {self.boxes_in:,} boxes kept"
        )

    def refuse(self) -> None:
        """Raise :class:`DataError` for the first refused problem, if there is one."""
        refused = self.refused
        if not refused:
            return
        count = sum(p.count for p in refused)
        which = "the only problem" if count == 1 else f"the first of {count:,} problems"
        raise DataError(
            f"{refused[0].message}\n{which} in {printable(self.name)}; run `drloss data DATA` for all of "
            "them, or pass --skip-bad to go on without these boxes and images"
        )


def require_place(path: Path) -> None:
    """Raise UserError if ``path`` exists and is not a :class:`Report`, which would be overwritten."""
    there = json_of(path)
    if path.exists() and not (isinstance(there, dict) and {"images_in", "problems"} <= there.keys()):
        raise UserError(
            f"{path}: is there and no report of drloss, and would be overwritten with what is left out of the data; "
            "name another --out"
        )


def report_of(
    annotations: Annotations,
    problems: Iterable[Problem] = (),
    *,
    images_in: int | None = None,
    boxes_in: int | None = None,
) -> Report:
    """The report of annotations.

    Args:
        annotations: the split without what was left out.
        problems: what is wrong with the split.
        images_in, boxes_in: number of images and boxes in the files; by default, as many as are used.
    """
    counts = np.bincount(annotations.labels, minlength=len(annotations.class_names) + 1)[1:]
    boxes, sizes = annotations.boxes, annotations.sizes
    quantiles = image_sizes = None
    if len(boxes):
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        q = [round(float(v), 2) for v in np.quantile(sides, (0, 0.05, 0.5, 0.95, 1))]
        quantiles = (q[0], q[1], q[2], q[3], q[4])
    if len(sizes):
        area = sizes[:, 0].astype(np.int64) * sizes[:, 1]
        least, most = sizes[area.argmin()].tolist(), sizes[area.argmax()].tolist()
        image_sizes = ((least[0], least[1]), (most[0], most[1]))
    return Report(
        name=annotations.name,
        images_in=len(annotations) if images_in is None else images_in,
        images_kept=len(annotations),
        boxes_in=len(boxes) if boxes_in is None else boxes_in,
        boxes_kept=len(boxes),
        problems=tuple(problems),
        classes=dict(zip(annotations.class_names, counts.tolist(), strict=True)),
        ignored=int(annotations.ignore.sum()),
        empty_images=int((np.diff(annotations.first_box) == 0).sum()),
        image_sizes=image_sizes,
        box_sides=quantiles,
    )


def without_images(
    annotations: Annotations, report: Report, found: Sequence[tuple[int, Problem]], notes: Sequence[Problem] = ()
) -> tuple[Annotations, Report]:
    """Leave out images, and count their boxes in the problems.

    Args:
        annotations: N images.
        report: their report.
        found: position of each image to leave out, and its problem, in which ``boxes`` is set here.
        notes: further problems, which leave nothing out.
    """
    keep = np.ones(len(annotations), dtype=np.bool_)
    problems = [*report.problems, *notes]
    for index, problem in found:
        own = annotations.boxes_of(index)
        keep[index] = False
        problems.append(replace(problem, consequence=IMAGE_LEFT_OUT, boxes=own.stop - own.start))
    good = annotations if keep.all() else annotations.select(keep)
    return good, report_of(good, problems, images_in=report.images_in, boxes_in=report.boxes_in)


def problem_lines(problems: Sequence[Problem], report_path: str | Path) -> list[str]:
    """Lines for the terminal: each kind with its number, then at most :data:`SHOWN_PER_KIND` problems of it."""
    totals: Counter[tuple[str, str]] = Counter()
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        key = (problem.kind, problem.consequence)
        totals[key] += problem.count
        groups.setdefault(key, []).append(problem)
    lines = []
    for (kind, consequence), group in groups.items():
        lines.append(f"  {totals[kind, consequence]:,} x {kind} ({consequence})")
        lines += [f"    {p.message}" for p in group[:SHOWN_PER_KIND]]
        if len(group) > SHOWN_PER_KIND:
            lines.append(f"    ... and {len(group) - SHOWN_PER_KIND:,} more, all in {report_path}")
    return lines
