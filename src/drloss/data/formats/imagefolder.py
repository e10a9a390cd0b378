"""Hugging Face's imagefolder: ``metadata.jsonl``, one line for each image, beside the images.

Rules:

- A line is ``{"file_name": ..., "objects": {"bbox": [[x, y, width, height], ...], "categories": [...]}}``, in pixels.
  ``category``, ``label`` or ``labels`` may stand for ``categories``, and ``bboxes`` for ``bbox``. A line without
  ``objects`` is an image without objects.
- Classes are names, or numbers, whose text is then the name: the file has no names for them, which is noted.
- The split is in the folder's name: ``train/metadata.jsonl``.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from drloss.data.checks.boxes import integer_or_none, number_or_none
from drloss.data.files.reading import Limit, read_lines
from drloss.data.files.survey import Survey
from drloss.data.formats.items import Item, ItemBox, ItemFiles
from drloss.data.formats.layout import CERTAIN, Layout, grouped_by_split, head

MAX_BYTES = 1024**3
_LIMITS = {b"\n": Limit(5_000_000), b"[": Limit(40_000_000), b"{": Limit(20_000_000)}
_LIMITS |= {b",": Limit(1_000_000, each=10), b":": Limit(1_000_000, each=10)}
_BOXES, _CLASSES = ("bbox", "bboxes", "boxes"), ("categories", "category", "labels", "label")


def find_imagefolder(survey: Survey) -> Layout | None:
    """Imagefolder's files in a folder, as a data set."""
    places = [*survey.folder.glob("metadata.jsonl"), *survey.folder.glob("*/metadata.jsonl")]
    found = sorted(os.path.relpath(path, survey.folder).replace(os.sep, "/") for path in places if _has_boxes(path))
    if not found:
        return None
    files = ItemFiles("imagefolder", survey, grouped_by_split(found), parse)
    return Layout("imagefolder", CERTAIN, f"metadata.jsonl in {len(found)} folder(s)", files.source)


def _has_boxes(path: Path) -> bool:
    """Whether the first lines of a file have objects; those of captions or classes of whole images have none."""
    start = head(path)
    return b'"objects"' in start and any(f'"{key}"'.encode() in start for key in _BOXES)


def parse(path: Path, split: str) -> Iterator[Item]:
    """The items of one annotation file."""
    file = str(path)
    for number, line in enumerate(read_lines(path, MAX_BYTES, _LIMITS, (b"[",)), start=1):
        where = f"line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Item(file, where, "", bad=("not JSON", str(error), "an object with file_name and objects"))
            continue
        if not isinstance(record, dict):
            yield Item(file, where, "", bad=("line not an object", record, "an object with file_name and objects"))
            continue
        objects = record.get("objects", {})
        boxes = _first(objects, _BOXES)
        kinds = _first(objects, _CLASSES)
        if not isinstance(boxes, list) or not isinstance(kinds, list) or len(boxes) != len(kinds):
            allowed = "bbox and categories, two lists of one length"
            yield Item(file, where, record.get("file_name"), bad=("objects not usable", objects, allowed))
            continue
        numbers = any(integer_or_none(kind) is not None for kind in kinds)
        notes = [("classes are numbers, which become their names", None)] if numbers else []
        pairs = enumerate(zip(boxes, kinds, strict=True), start=1)
        items = [_box(f"object {k}", box, kind) for k, (box, kind) in pairs]
        yield Item(file, where, record.get("file_name"), boxes=items, notes=notes)


def _first(objects: object, keys: tuple[str, ...]) -> object:
    if objects is None or objects == {}:
        return []
    return next((objects[key] for key in keys if key in objects), None) if isinstance(objects, dict) else None


def _box(record: str, box: object, kind: object) -> ItemBox:
    numbers = [number_or_none(v) for v in box] if isinstance(box, list) else []
    if len(numbers) != 4 or any(n is None for n in numbers):
        return ItemBox(record, "", (), bad=("bbox not usable", box, "four numbers: x, y, width, height"))
    x, y, width, height = (n or 0.0 for n in numbers)
    number = integer_or_none(kind)
    return ItemBox(record, kind if number is None else str(number), (x, y, x + width, y + height))
