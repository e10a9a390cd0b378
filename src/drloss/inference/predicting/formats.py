"""The record of an image, and the same in other formats: COCO results, YOLO's text files, CSV."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path

from drloss.inference.predicting.journal import Record
from drloss.inference.predicting.videos import is_video
from drloss.io.atomic import write_atomic
from drloss.structures import Detection

COLUMNS = ("image", "frame", "time", "height", "width", "class", "score", "left", "top", "right", "bottom")
"""Columns of the CSV file; ``frame`` and ``time`` are empty but for videos."""
CLASSES = "classes"
"""Stem of YOLO's list of the classes, ``labels/classes.txt``."""
LONGEST = 180
"""Most bytes of a stem. File systems allow names of 255, and a temporary name is longer than the final one."""


def record_of(
    name: str, stem: str, size: tuple[int, int], detection: Detection, class_names: Sequence[str], **more: object
) -> Record:
    """What the results say of one image, or of one frame of a video.

    Args:
        name: of the image or video.
        stem: what the files that are made of it begin with; no other image has it.
        size: height and width in pixels.
        detection: what was found; boxes in pixels.
        class_names: names of the labels 1..K.
        more: further entries, which stand before the detections.
    """
    rows = zip(*(detection[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
    return {
        "image": name,
        "stem": stem,
        "height": size[0],
        "width": size[1],
        **more,
        "detections": [
            {"class": class_names[label - 1], "score": round(score, 5), "box_xyxy": [round(v, 2) for v in box]}
            for box, score, label in rows
        ],
    }


def stem_of(record: Record) -> str:
    """What the files of a record begin with: that of the image, or of the video with the number of the frame."""
    return record["stem"] if "frame" not in record else f"{record['stem']}/{record['frame']:06d}"


def unique_stems(names: Iterable[str], taken: Mapping[str, str]) -> dict[str, str]:
    """A stem for each name, its own without the suffix if that is free: ``a`` for ``a.jpg``, ``a.png`` for the other.

    Two that differ in case only count as the same, because on some disks they are. What a frame of a video may have,
    such as ``a/000000`` of ``a.mp4``, no image has, nor ``classes``, whose labels would be YOLO's list of classes.

    Args:
        names: paths of images and videos, relative to one folder.
        taken: stems of other images and videos, by name.
    """
    stems, found = _Stems(), {}
    for name, stem in taken.items():
        stems.take(name, stem)
    for name in names:
        folder, _, file = name.rpartition("/")
        bare = file.rpartition(".")[0] or file
        choices = chain([bare, file], (f"{file}-{number}" for number in count(2)))
        inside = (f"{folder}/{choice}" if folder else choice for choice in map(_shortened, choices))
        found[name] = next(choice for choice in inside if stems.has_free(name, choice))
        stems.take(name, found[name])
    return found


class _Stems:
    """The stems that are taken, in lower case: all, those of videos, and the folders of frames that images have."""

    def __init__(self) -> None:
        self._all, self._videos, self._numbered = set[str](), set[str](), set[str]()

    def has_free(self, name: str, stem: str) -> bool:
        stem = stem.casefold()
        if is_video(name):
            return not (stem in self._numbered or stem in self._all)
        return not (stem == CLASSES or _folder_of_frame(stem) in self._videos or stem in self._all)

    def take(self, name: str, stem: str) -> None:
        stem = stem.casefold()
        self._all.add(stem)
        if is_video(name):
            self._videos.add(stem)
        elif folder := _folder_of_frame(stem):
            self._numbered.add(folder)


def _folder_of_frame(stem: str) -> str | None:
    """The stem of the video that has a frame of this stem, see :func:`stem_of`; None if none can."""
    match = re.fullmatch(r"(.+)/(?:[0-9]{6}|[1-9][0-9]{6,})", stem, re.DOTALL)
    return match[1] if match else None


def yolo_lines(record: Record, class_names: Sequence[str]) -> str:
    """One line a detection: class from 0, centre x and y, width and height as shares of the image's, score."""
    height, width = record["height"], record["width"]
    lines = []
    for found in record["detections"]:
        left, top, right, bottom = found["box_xyxy"]
        shares = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width)
        numbers = (*shares, (bottom - top) / height, found["score"])
        lines.append(" ".join([str(class_names.index(found["class"])), *(f"{number:.6g}" for number in numbers)]))
    return "".join(f"{line}\n" for line in lines)


def csv_lines(records: Iterable[Record]) -> str:
    """One line a detection, with the columns :data:`COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for record in records:
        image = [record.get(column, "") for column in COLUMNS[:5]]
        writer.writerows([*image, d["class"], d["score"], *d["box_xyxy"]] for d in record["detections"])
    return text.getvalue()


def write_coco(path: Path, records: Iterable[Record], names: Iterable[str], category_ids: dict[str, int]) -> None:
    """Write a list in COCO's results format.

    The id of an image is its number if all names are different numbers, as in COCO (``000000000139.jpg``), and none
    is a video's; else its name, with ``#`` and the number of the frame for a video's.

    Args:
        path: file to write.
        records: of the images, which are read once.
        names: of all images and videos.
        category_ids: by name of the class.
    """
    bare = {name: name.rpartition("/")[2].rpartition(".")[0] for name in names}
    numbers = [int(stem) for stem in bare.values() if stem.isascii() and stem.isdecimal()]
    numbered = len(set(numbers)) == len(bare) and not any(map(is_video, bare))

    def write(beside: Path) -> None:
        with beside.open("w", encoding="ascii") as file:
            start = "["
            for record in records:
                name, frame = record["image"], record.get("frame")
                image_id = f"{name}#{frame}" if frame is not None else int(bare[name]) if numbered else name
                for found in record["detections"]:
                    left, top, right, bottom = found["box_xyxy"]
                    box = [left, top, round(right - left, 2), round(bottom - top, 2)]
                    entry = {"image_id": image_id, "category_id": category_ids[found["class"]], "bbox": box}
                    file.write(f"{start}\n{json.dumps(entry | {'score': found['score']})}")
                    start = ","
            file.write("[]\n" if start == "[" else "\n]\n")

    write_atomic(path, write)


def _shortened(stem: str) -> str:
    """A name of a file that is not too long; a hash stands in the place of what is left out."""
    name = os.fsencode(stem)
    if len(name) <= LONGEST:
        return stem
    return f"{name[:LONGEST].decode('utf-8', 'ignore')}-{hashlib.sha256(name).hexdigest()[:16]}"
