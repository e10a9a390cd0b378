"""The folder of results: what is in it, what of it is done, and whether this command may go on there."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drloss.data.files.paths import clean_name
from drloss.errors import UserError, printable
from drloss.inference.predicting.formats import CLASSES, COLUMNS, csv_lines, stem_of, write_coco, yolo_lines
from drloss.inference.predicting.journal import Journal, Record, keep_records, records_in
from drloss.io.atomic import json_of, remove_unfinished, unwritable, write_atomic, write_json, write_text
from drloss.training.resume import describe_change
from drloss.training.run_folder import only_writer

SETTINGS = "predict.json"
"""File of the settings with which the results were begun."""
PREDICTIONS = "predictions.jsonl"
"""File of the results, one line an image or a frame of a video."""
FAILED = "failed.jsonl"
"""File of what could not be read or drawn, one line each."""
COCO, CSV = "results.json", "predictions.csv"
"""Files of other formats."""
PICTURES, CROPS, LABELS = "pictures", "crops", "labels"
"""Folders of the pictures, the cut out objects and YOLO's text files."""
PICTURE_SUFFIXES = (".jpg", ".mp4")
FORMAT = "drloss.predictions/1"


@dataclass(frozen=True)
class Classes:
    """The classes of the detector: names and category ids of the labels 1..K."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


class Results:
    """The results in a folder, which this process alone writes to. Made by :func:`open_results`.

    Attributes:
        out: the folder.
        stems: of what is done, by name.
        records: number of lines in the file of results.
        formats: in which the results are written.
        failed: number of images and videos that failed since this command began.
    """

    def __init__(self, out: Path, journal: Journal, formats: Sequence[str], classes: Classes) -> None:
        self.out = out
        self.journal = journal
        self._failures: Journal | None = None
        self.formats = formats
        self.classes = classes
        self.stems: dict[str, str] = {}
        self.records = 0
        self.failed = 0

    def begin(self) -> None:
        """Find what is done, and write it in the formats that are wanted now."""
        for record in records_in(self.journal.path):
            name, stem = record.get("image"), record.get("stem")
            if not (isinstance(name, str) and isinstance(stem, str)):
                raise UserError(f"{self.journal.path}: line {self.records + 1} is not of drloss predict")
            self.records += 1
            self.stems[name] = stem
            if "yolo" in self.formats and not self._label(record).exists():
                self.write_label(record)
        if "csv" in self.formats:
            write_atomic(self.out / CSV, self._write_csv)
        if (self.out / FAILED).exists():  # what could not be read is tried again, and what could not be drawn is not
            keep_records(self.out / FAILED, lambda failure: failure.get("image") in self.stems)
            if not (self.out / FAILED).stat().st_size:
                (self.out / FAILED).unlink()

    def add(self, records: Sequence[Record]) -> None:
        """Add lines to the results: once they are there, their images are done.

        Raises:
            NoSpaceError: if there is no room; none is added.
        """
        self.journal.append(records)
        self.records += len(records)
        if "csv" in self.formats:
            try:
                with (self.out / CSV).open("a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(csv_lines(records))
            except OSError as error:  # the next command writes it anew, from the lines
                raise unwritable(self.out / CSV, error) from None

    def write_label(self, record: Record) -> None:
        """Write the text file of a record for YOLO, if that format is wanted."""
        if "yolo" in self.formats:
            write_text(self._label(record), yolo_lines(record, self.classes.names), sync=False)

    def fail(self, name: str, reason: str) -> None:
        """Add a line to the file of failures."""
        self.failed += 1
        if self._failures is None:
            self._failures = Journal(self.out / FAILED)
        self._failures.append([{"image": name, "reason": reason}])

    def close(self) -> None:
        """Close the file of failures."""
        if self._failures is not None:
            self._failures.close()

    def finish(self, names: Sequence[str]) -> None:
        """Write the formats that are one whole, for images of these names and those that were done before."""
        if "coco" in self.formats:
            ids = dict(zip(self.classes.names, self.classes.ids, strict=True))
            everything = dict.fromkeys([*self.stems, *names])
            write_coco(self.out / COCO, records_in(self.journal.path), everything, ids)
        if "yolo" in self.formats:
            write_text(self.out / LABELS / f"{CLASSES}.txt", "".join(f"{name}\n" for name in self.classes.names))

    def _label(self, record: Record) -> Path:
        return self.out / LABELS / f"{stem_of(record)}.txt"

    def _write_csv(self, beside: Path) -> None:
        with beside.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(",".join(COLUMNS) + "\n")
            file.writelines(csv_lines([record]) for record in records_in(self.journal.path))


@contextmanager
def open_results(
    out: Path, settings: dict[str, Any], formats: Sequence[str], classes: Classes, *, overwrite: bool
) -> Iterator[Results]:
    """The results in a folder, new ones or those of a command that was stopped.

    Args:
        out: the folder.
        settings: what decides the results, in JSON types.
        formats: any of ``jsonl``, ``coco``, ``yolo`` and ``csv``; the lines of ``jsonl`` are written in any case, and
            so are the formats that earlier commands wrote there.
        classes: of the detector.
        overwrite: remove what an earlier command has written there, and begin anew.
    Raises:
        UserError: if there are files of other origin, results of other settings, a damaged line, or another process
            is at work there.
    """
    there = json_of(out / SETTINGS)
    own = isinstance(there, dict) and there.get("format") == FORMAT and isinstance(there.get("settings"), dict)
    if not own:
        _require_free(out)
    elif not overwrite:
        _require_same(out, there["settings"], settings)
    with ExitStack() as stack:
        stack.enter_context(only_writer(out, "predicting"))
        if overwrite and own:
            _remove_results(out)
        elif own:
            formats = [*formats, *_formats_of(there)]
        formats = sorted({"jsonl", *formats})
        _forget_unfinished_videos(out / PREDICTIONS)
        write_json(out / SETTINGS, {"format": FORMAT, "settings": settings, "formats": formats})
        for folder in (PICTURES, CROPS, LABELS):
            for inner, _, _ in os.walk(out / folder):
                remove_unfinished(Path(inner))
        remove_unfinished(out)
        journal = stack.enter_context(Journal(out / PREDICTIONS))
        results = Results(out, journal, formats, classes)
        stack.callback(results.close)
        results.begin()
        yield results


def _require_free(out: Path) -> None:
    for name in (SETTINGS, PREDICTIONS, FAILED, COCO, CSV, PICTURES, CROPS, LABELS):
        if os.path.lexists(out / name):
            raise UserError(
                f"--out {out}: {name} is there, not written by drloss predict, and might be overwritten; "
                "name another folder"
            )


def _require_same(out: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if was.get(name) != value:
            change = f"other settings: {describe_change(name.replace('_', '-'), was.get(name), value)}"
            others = "another detector" if name == "detector" else change
            where = f"--out {printable(str(out))}"
            raise UserError(f"{where}: holds results of {others}; name another folder, or --overwrite them")


def _formats_of(there: dict[str, Any]) -> list[str]:
    """The formats in which earlier commands wrote, as the file of settings has them."""
    formats = there.get("formats")
    return [name for name in formats if isinstance(name, str)] if isinstance(formats, list) else []


def _forget_unfinished_videos(path: Path) -> None:
    """Remove the frames of a video whose last frame is not there: it is read again from its beginning."""
    begun, ended = set(), set()
    for record in records_in(path):
        if "frame" in record:
            begun.add(record.get("image"))
            if record.get("last"):
                ended.add(record.get("image"))
    if unfinished := begun - ended:
        keep_records(path, lambda record: record.get("image") not in unfinished)


def _remove_results(out: Path) -> None:
    """Remove what the lines of the results name, then these; nothing else in the folder."""
    for record in records_in(out / PREDICTIONS, strict=False):
        for path in _files_of(out, record):
            path.unlink(missing_ok=True)
    for name in (f"{LABELS}/{CLASSES}.txt", COCO, CSV, FAILED, PREDICTIONS):
        (out / name).unlink(missing_ok=True)
    for folder in (PICTURES, CROPS, LABELS):
        for inner, _, _ in os.walk(out / folder, topdown=False):
            with suppress(OSError):  # something else is in it
                os.rmdir(inner)


def _files_of(out: Path, record: Record) -> Iterator[Path]:
    """The files that a record may have."""
    try:
        stem, label = clean_name(record["stem"]), clean_name(stem_of(record))
    except (KeyError, ValueError):  # not a line that drloss has written
        return
    for suffix in PICTURE_SUFFIXES:
        yield out / PICTURES / f"{stem}{suffix}"
    yield out / LABELS / f"{label}.txt"
    for folder in (out / CROPS).glob("*"):
        for number in range(1, len(record["detections"]) + 1):
            yield folder / f"{label}-{number}.jpg"
