"""``drloss data``: read every split and every image, and say what is in them and what is wrong.

Reading is lenient here, so that one run finds everything. A split that does not exist is noted, unless it was asked
for. Remarks say what the data may not be good for (:mod:`drloss.data.checks.remarks`). All splits must have the same
classes. An image that is in two splits, byte for byte, is noted: a test on training images says little.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from drloss.data.annotations import Annotations
from drloss.data.checks.images import check_images
from drloss.data.checks.problems import SHOWN_PER_KIND, Problem, Report, problem_lines
from drloss.data.checks.remarks import InputSize, class_remarks, shape_remarks, size_remarks
from drloss.data.files.paths import IMAGE_SUFFIXES, suffix_of
from drloss.data.formats.opening import open_data
from drloss.data.source import DataSource
from drloss.errors import AbsentError, DataError, printable
from drloss.io.atomic import write_json

MOST_CLASSES_SHOWN = 30
REPORT = "the report that --report FILE.json writes"
BOX_SIDES = "box sides: sqrt(width x height) in pixels at 0, 5, 50, 95 and 100 %"


@dataclass(frozen=True)
class CheckResult:
    """What is in a data set and what is wrong with it.

    Attributes:
        name: name of the data set, as given.
        format, says: as in :class:`drloss.data.source.DataSource`.
        reports: split to its report.
        unreadable: split to the error that stopped its reading.
        twins: groups of the same image in several splits, each as ``"split: file"``.
        differing_classes: one message for each pair of neighbouring splits whose classes differ.
        unlisted: image files beside those of a COCO data set that are in no split.
        absent: split to the message that it does not exist, unless it was asked for.
        remarks: what the data may not be good for.
    """

    name: str
    format: str
    reports: dict[str, Report]
    unreadable: dict[str, str]
    twins: tuple[tuple[str, ...], ...]
    differing_classes: tuple[str, ...]
    unlisted: tuple[str, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    says: str = ""

    @property
    def ok(self) -> bool:
        """Whether strict reading succeeds; notes and remarks do not count."""
        return not (self.unreadable or self.differing_classes or any(r.refused for r in self.reports.values()))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of all splits."""
        return tuple(p for report in self.reports.values() for p in report.problems)

    def to_json(self) -> dict[str, Any]:
        """All attributes, as plain values."""
        values = {k: v for k, v in vars(self).items() if k != "reports"}
        return values | {"ok": self.ok, "splits": {s: r.to_json() for s, r in self.reports.items()}}

    def text(self, report_path: str | Path = REPORT) -> str:
        """Text for the terminal: a table of the splits, the boxes by class, then what is wrong.

        Args:
            report_path: the file with the full lists, which shortened lists name.
        """
        says = f" ({self.says})" if self.says else ""
        lines = [f"{printable(self.name)}: {self.format}{says}", *_aligned(self.split_rows()), f"  {BOX_SIDES}", ""]
        lines += _aligned(self.class_rows()[: MOST_CLASSES_SHOWN + 1])
        more = len(self.class_rows()) - 1 - MOST_CLASSES_SHOWN
        lines += [f"  ... and {more:,} more classes"] if more > 0 else []
        return "\n".join([*lines, *self.findings(report_path)])

    def findings(self, report_path: str | Path = REPORT) -> list[str]:
        """The lines after the tables: what is wrong, what to mind, and the conclusion."""
        lines = []
        for split, report in self.reports.items():
            if report.problems:
                lines += ["", f"{split}: {len(report.refused):,} problem(s), {_notes(report):,} note(s)"]
                lines += problem_lines(report.problems, report_path)
        for split, message in self.unreadable.items():
            lines += ["", f"{split}: cannot be read", f"  {message}"]
        for split, message in self.absent.items():
            lines += ["", f"{split}: not there (note)", f"  {message}"]
        lines += ["", *self.differing_classes] if self.differing_classes else []
        if self.twins:
            lines += ["", f"{len(self.twins):,} images are in several splits (note: a leak between them)"]
            lines += ["    " + " = ".join(printable(t) for t in twin) for twin in self.twins[:SHOWN_PER_KIND]]
            if len(self.twins) > SHOWN_PER_KIND:
                lines.append(f"    ... and {len(self.twins) - SHOWN_PER_KIND:,} more, all in {report_path}")
        if self.unlisted:
            more = len(self.unlisted) - SHOWN_PER_KIND
            lines += ["", f"{len(self.unlisted):,} image files beside those of the splits are in none of them (note)"]
            lines += [f"    {printable(path)}" for path in self.unlisted[:SHOWN_PER_KIND]]
            lines += [f"    ... and {more:,} more, all in {report_path}"] if more > 0 else []
        if self.remarks:
            lines += ["", "remarks", *(f"  {remark}" for remark in self.remarks)]
        return [*lines, "", self._conclusion()]

    def _conclusion(self) -> str:
        remarks = "remark above" if len(self.remarks) == 1 else f"{len(self.remarks)} remarks above"
        if self.ok:
            can = "strict reading takes all of it"
            return f"readable: {can}, but mind the {remarks}" if self.remarks else f"good: {can}"
        if self.unreadable or self.differing_classes:
            return "not good: see above"
        count = sum(p.count for r in self.reports.values() for p in r.refused)
        what = "the problem above" if count == 1 else f"the {count:,} problems above"
        also = f"; mind the {remarks}, too" if self.remarks else ""
        return f"not good: {what} would stop a training; --skip-bad goes on without these boxes and images{also}"

    def split_rows(self) -> list[tuple[str, ...]]:
        """A table of the splits: its head, then a row for each."""
        images, boxes = ("images", "empty", "images left out"), ("boxes", "ignored", "boxes left out")
        rows: list[tuple[str, ...]] = [("split", *images, *boxes, "image sizes (h x w)", "box sides")]
        for split, r in self.reports.items():
            sizes = " to ".join(dict.fromkeys(f"{h} x {w}" for h, w in r.image_sizes or ())) or "-"
            sides = "-" if r.box_sides is None else " / ".join(f"{s:.0f}" for s in r.box_sides)
            images = (f"{r.images_kept:,}", f"{r.empty_images:,}", f"{r.images_left_out:,}")
            boxes = (f"{r.boxes_kept:,}", f"{r.ignored:,}", f"{r.boxes_left_out:,}")
            rows.append((split, *images, *boxes, sizes, sides))
        return rows

    def class_rows(self) -> list[tuple[str, ...]]:
        """A table of the boxes of each class: its head, then a row for each."""
        names = list(dict.fromkeys(name for report in self.reports.values() for name in report.classes))
        rows = [("class", *self.reports)]
        return rows + [(name, *(f"{r.classes.get(name, 0):,}" for r in self.reports.values())) for name in names]


def _notes(report: Report) -> int:
    return sum(p.count for p in report.problems if not p.refused)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def check_data(
    spec: str | Path | DataSource,
    splits: Sequence[str] | None = None,
    *,
    decode: bool = True,
    size: InputSize | None = None,
    report_path: Path | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> CheckResult:
    """Read the splits of a data set leniently, check their images, and report everything that is wrong.

    Args:
        spec: as for :func:`drloss.data.formats.opening.open_data`, or the data set itself.
        splits: the splits to check; None for all.
        decode: read all pixels of every image; else the headers alone.
        size: settings of a detector; objects that are too small for it get a remark.
        report_path: file to which :meth:`CheckResult.to_json` is also written.
        progress: called with the split, the number of its images checked so far, and their number.

    Raises:
        UserError: if there is no such data set or split.
        DataError: if it is in no known layout.
    """
    source = open_data(spec) if isinstance(spec, str | Path) else spec
    read: dict[str, Annotations] = {}
    reports: dict[str, Report] = {}
    unreadable: dict[str, str] = {}
    absent: dict[str, str] = {}
    for split in source.splits if splits is None else splits:
        try:
            annotations, report = source.read(split, strict=False)
            step = None if progress is None else _named(progress, split)
            read[split], reports[split] = check_images(
                annotations, report, strict=False, decode=decode, progress=step
            )
        except AbsentError as error:
            (absent if splits is None else unreadable)[split] = str(error)
        except DataError as error:
            unreadable[split] = str(error)
    remarks = class_remarks(read)
    if size is not None and read:  # of the first split, which training uses
        first = next(iter(read.items()))
        remarks += size_remarks(*first, size) + shape_remarks(*first, size)
    result = CheckResult(
        name=source.name,
        format=source.format,
        reports=reports,
        unreadable=unreadable,
        twins=_twins(read),
        differing_classes=tuple(_differing(read)),
        unlisted=_unlisted(read, reports) if source.format == "coco" and splits is None and not unreadable else (),
        absent=absent,
        remarks=tuple(remarks),
        says=source.says,
    )
    if report_path is not None:
        write_json(report_path, result.to_json())
    return result


def _named(progress: Callable[[str, int, int], object], split: str) -> Callable[[int, int], object]:
    return lambda done, total: progress(split, done, total)


def _differing(read: dict[str, Annotations]) -> list[str]:
    """A message for each pair of neighbouring splits whose classes differ."""
    messages = []
    for (a, first), (b, second) in pairwise(read.items()):
        ours, theirs = set(first.class_names), set(second.class_names)
        if first.class_names != second.class_names:
            extra = sorted(ours ^ theirs)[:5]
            what = f"only in one of them: {', '.join(map(printable, extra))}" if extra else "their order differs"
            messages.append(f"classes of {a} and {b} differ; {what}")
        elif first.category_ids.tolist() != second.category_ids.tolist():
            messages.append(f"classes of {a} and {b} have the same names but other ids")
    return messages


def _twins(read: dict[str, Annotations]) -> tuple[tuple[str, ...], ...]:
    """Groups of files with the same content in different splits; a file listed in two splits is its own twin."""
    places: dict[bytes, list[tuple[str, str]]] = {}
    for split, annotations in read.items():
        if annotations.draw is not None or annotations.image_root is None:
            continue
        root = annotations.image_root
        names = [annotations.image_name(i) for i in range(len(annotations))]
        with ThreadPoolExecutor(8) as pool:
            digests = pool.map(lambda name, root=root: _sha256(root / name), names)
            for name, digest in zip(names, digests, strict=True):
                places.setdefault(digest, []).append((split, name))
    groups = (group for group in places.values() if _leaks({split for split, _ in group}))
    return tuple(tuple(f"{split}: {name}" for split, name in group) for group in groups)


def _unlisted(read: dict[str, Annotations], reports: dict[str, Report]) -> tuple[str, ...]:
    """Image files, in the folders of the splits' images, that are in no split and in no problem."""
    named = {p.file for report in reports.values() for p in report.problems}
    used: dict[str, set[str]] = {}
    for annotations in read.values():
        for i in range(len(annotations)):
            folder, name = os.path.split(annotations.image_path(i))
            used.setdefault(folder, set()).add(name)
    found = [f"{folder}/{name}" for folder, names in used.items() for name in set(os.listdir(folder)) - names]
    return tuple(sorted(f for f in found if suffix_of(f) in IMAGE_SUFFIXES and f not in named))


def _leaks(splits: set[str]) -> bool:
    """Whether an image must not be in all of these splits; it may be in ``trainval`` and one of its two parts."""
    bare = {split.rstrip("0123456789") for split in splits}
    return len(splits) > 1 and bare not in ({"trainval", "train"}, {"trainval", "val"})


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
