"""COCO JSON: ``images``, ``annotations``, ``categories``.

Rules:

- Categories sorted by id become labels 1..K; gaps between the ids are fine.
- ``bbox`` is x, y, width, height in pixels. ``area`` is kept where it is a positive number, because COCO's small,
  medium and large go by the area of the segmentation; elsewhere it is width times height, which is noted.
- ``iscrowd``, and ``difficult`` where a converter kept it, mark a box to ignore.
- Ids of annotations are not used: the evaluator numbers boxes anew. Missing, repeated or odd ids are noted, id 0
  is fine. The same annotation twice (same id, image, class and box) is a problem, and the second is left out.
- ``width``, ``height``, ``id`` and ``file_name`` of images are required. Where ``file_name`` is missing, as in LVIS,
  the end of ``coco_url`` takes its place, which is noted: its last two parts if there is such a file, else the last.
  Segmentations and captions are not read; an annotation that has nothing else is a box left out.
- The file is UTF-8, with or without byte order mark, at most 2 GiB, with at most 5 million objects and 20 million
  lists. What is no data set is refused before it is parsed: an image has a ``"file_name"`` and an annotation a
  ``"bbox"``, and beyond 32 MB, half a million objects and a million lists there may be 1 MB, 4 and 20 more for each
  of these keys; likewise with commas and colons. COCO's own files have 450 bytes, 1 object and 3 lists for each. A
  file that has these keys is taken for data, and needs two and a half times its size in memory.
"""

import codecs
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import flag, number, whole
from drloss.data.checks.problems import Report
from drloss.data.files.paths import clean_name, common_folder
from drloss.data.files.reading import Most, read_bytes
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.errors import DataError, printable, shown

MAX_BYTES = 2 * 1024**3
MAX_MARKS = {
    b"": Most(32 * 1024**2, each=1024**2),
    b"{": Most(500_000, each=4, in_all=5_000_000),
    b"[": Most(1_000_000, each=20, in_all=20_000_000),
    b",": Most(3_000_000, each=10_000),
    b":": Most(1_000_000, each=200),
}
"""Bytes, objects, lists, values and keys in a file: in all five times what COCO's largest has."""
RECORDS = (b'"bbox"', b'"file_name"')
_TWICE = "\0key given twice"
_SEGMENTED = "\0a segmentation"
_UNUSED = ("segmentation", "keypoints", "caption")
_PROBED = 20
"""Image names tried when the folder of the images has to be found."""


@dataclass(frozen=True)
class CocoPart:
    """One annotation file and where its images may be: the first folder that has one of them is taken."""

    annotations: Path
    images: tuple[Path, ...]


def read_coco(name: str, parts: Sequence[CocoPart], *, strict: bool = True) -> tuple[Annotations, Report]:
    """Read one split.

    Args:
        name: what messages call it.
        parts: its annotation files; with more than one, images are numbered anew and classes must agree.
        strict: raise at the first problem once everything is read, instead of leaving bad records out.

    Raises:
        DataError: if a file cannot be read as COCO JSON, or as ``strict`` says.
    """
    files = [load_json(part.annotations) for part in parts]
    classes = [_classes(str(part.annotations), content) for part, content in zip(parts, files, strict=True)]
    for part, other in zip(parts, classes, strict=True):
        if other != classes[0]:
            first, own = (printable(str(p.annotations)) for p in (parts[0], part))
            raise DataError(f"{own}: categories differ from those of {first}")
    folders = [_image_folder(part, content) for part, content in zip(parts, files, strict=True)]
    if len(parts) > 1:  # below a common root, of which none may be a link out
        folders = [Path(os.path.realpath(folder)) for folder in folders]
    root = folders[0] if len(parts) == 1 else common_folder(folders)
    ids, names = [c for c, _ in classes[0]], [n for _, n in classes[0]]
    builder = AnnotationsBuilder(name, names, ids, root, str(parts[0].annotations))
    for k, (part, content, folder) in enumerate(zip(parts, files, folders, strict=True)):
        reader = _Part(builder, str(part.annotations), folder, k if len(parts) > 1 else None)
        for position, record in enumerate(_list(str(part.annotations), content, "images")):
            reader.image(position, record)
        for position, record in enumerate(_list(str(part.annotations), content, "annotations")):
            reader.annotation(position, record)
        content.clear()
    return builder.finish(strict=strict)


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; NaN and infinities stay numbers, for the checks to name where they stand.

    Raises:
        DataError: with line and column where there is one.
    """
    data = read_bytes(path, MAX_BYTES, MAX_MARKS, RECORDS)
    name = printable(str(path))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        raise DataError(f"{name}: encoding, got UTF-16 or UTF-32; allowed: UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start:,} is not UTF-8; allowed: a file saved as UTF-8") from None
    del data
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno:,}, column {error.colno:,}"
        raise DataError(f"{name}: {where}: not JSON ({error.msg}); is the file complete?") from None
    except RecursionError:
        raise DataError(f"{name}: nested too deeply to be COCO JSON") from None
    except ValueError as error:
        raise DataError(f"{name}: not JSON ({error})") from None
    except MemoryError:
        raise DataError(f"{name}: does not fit into this machine's memory") from None
    if not isinstance(content, dict):
        raise DataError(f"{name}: top level, got {shown(content)}; allowed: an object with images and annotations")
    if _TWICE in content:
        raise DataError(f"{name}: key given twice, got {shown(content[_TWICE])}; allowed: each once")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without what is not used, marked if a key comes twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        result[_TWICE] = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
    if "segmentation" in result and "bbox" not in result:
        result[_SEGMENTED] = True
    for key in _UNUSED:
        result.pop(key, None)
    return result


def _list(file: str, content: dict[str, Any], key: str) -> list[Any]:
    file, records = printable(file), content.get(key)
    if not isinstance(records, list):
        found = shown(records) if key in content else "no such key"
        raise DataError(f"{file}: {key}, got {found}; allowed: a list, as COCO JSON has it")
    return records


def _classes(file: str, content: dict[str, Any]) -> list[tuple[int, str]]:
    """(id, name), sorted by id."""
    classes = []
    for position, record in enumerate(_list(file, content, "categories")):
        where = f"{printable(file)}: category {position + 1}"
        if not isinstance(record, dict) or _TWICE in record:
            raise DataError(f"{where}: got {shown(record)}; allowed: an object with id and name, each key once")
        number_, text = record.get("id"), record.get("name")
        category = whole(number_)
        if category is None:
            raise DataError(f"{where}: id, got {shown(number_)}; allowed: an integer")
        if not isinstance(text, str):
            raise DataError(f"{where}: name, got {shown(text)}; allowed: a string")
        classes.append((category, text))
    return sorted(classes)


def _image_folder(part: CocoPart, content: dict[str, Any]) -> Path:
    """The first candidate that holds one of the first images; the first of all if none does."""
    if len(part.images) == 1:
        return part.images[0]
    names = []
    for record in content["images"][:_PROBED] if isinstance(content.get("images"), list) else []:
        for name in _names(record) if isinstance(record, dict) else ():
            with suppress(ValueError):
                names.append(clean_name(name))
    return next((f for f in part.images if any(os.path.isfile(f / n) for n in names)), part.images[0])


def _names(record: dict[str, Any]) -> list[object]:
    """What the file of an image may be called: its ``file_name``, else by the end of ``coco_url``."""
    url = record.get("coco_url")
    if "file_name" in record or not isinstance(url, str) or "/" not in url:
        return [record.get("file_name")]
    return ["/".join(url.split("/")[-2:]), url.rpartition("/")[2]]


class _Part:
    """Hands the records of one file to the builder."""

    def __init__(self, builder: AnnotationsBuilder, file: str, folder: Path, number_: int | None) -> None:
        self.builder = builder
        self.file = file
        self.folder = folder
        self.number = number_
        self.seen: dict[int, tuple[Any, ...]] = {}

    def key(self, image_id: int) -> Any:
        return image_id if self.number is None else (self.number, image_id)

    def image(self, position: int, record: Any) -> None:
        bad: tuple[str, object, str] | None = None
        if not isinstance(record, dict):
            bad, record = ("image record not an object", record, "an object"), {}
        elif _TWICE in record:
            bad = ("key given twice", record[_TWICE], "each once")
        own = whole(record.get("id"))
        where = f"image {own}" if own is not None else f"images[{position}]"
        if bad is None and own is None:
            kind = "image id not an integer" if "id" in record else "image id missing"
            bad = (kind, record.get("id"), "an integer")
        self.builder.add_image(
            self.file,
            where,
            key=None if own is None else self.key(own),
            name=self._name(where, record) if bad is None else None,
            height=record.get("height"),
            width=record.get("width"),
            image_id=own if self.number is None and own is not None else None,
            folder=self.folder,
            bad=bad,
        )

    def _name(self, where: str, record: dict[str, Any]) -> object:
        *first, name = _names(record)
        if first:
            self.builder.note(self.file, where, "file_name missing, the end of coco_url instead", record["coco_url"])
            with suppress(ValueError):
                name = first[0] if os.path.isfile(self.folder / clean_name(first[0])) else name
        return name

    def annotation(self, position: int, record: Any) -> None:
        where = f"annotations[{position}]"
        drop = self.builder.drop_box
        if not isinstance(record, dict):
            drop(self.file, where, "annotation not an object", record, "an object")
            return
        own = whole(record.get("id"))
        where = where if own is None else f"annotation {own}"
        if _TWICE in record:
            drop(self.file, where, "key given twice", record[_TWICE], "each once")
            return
        image, category = whole(record.get("image_id")), whole(record.get("category_id"))
        for key, value in (("image_id", image), ("category_id", category)):
            if value is None:
                what = "not an integer" if key in record else "missing"
                drop(self.file, where, f"{key} {what}", record.get(key), "an integer")
                return
        box = _xywh(record.get("bbox"))
        if box is None:
            what = "bbox not usable" if "bbox" in record else "bbox missing"
            what += " (there is a segmentation, which is not read)" if _SEGMENTED in record else ""
            drop(self.file, where, what, record.get("bbox"), "four numbers: x, y, width, height")
            return
        if self._repeated(where, own, record, (image, category, box)):
            return
        x, y, width, height = box
        self.builder.add_box(
            self.file,
            where,
            key=self.key(image),  # type: ignore[arg-type]  # not None, by the loop above
            category=category,
            box=(x, y, x + width, y + height),
            ignore=self._flag(where, record, "iscrowd") or self._flag(where, record, "difficult"),
            area=self._area(where, record),
            written=(x, y, x + width, y + height),
        )

    def _repeated(self, where: str, own: int | None, record: dict[str, Any], what: tuple[Any, ...]) -> bool:
        if own is None:
            kind = "annotation id not an integer" if "id" in record else "annotation id missing"
            self.builder.note(self.file, where, f"{kind} (ids of annotations are not used)")
        elif self.seen.setdefault(own, what) is not what:
            if self.seen[own] == what:
                allowed = "each annotation once"
                self.builder.drop_box(self.file, where, "annotation given twice", list(what[2]), allowed)
                return True
            kind = "annotation id given to several boxes (ids of annotations are not used)"
            self.builder.note(self.file, where, kind)
        return False

    def _flag(self, where: str, record: dict[str, Any], key: str) -> bool:
        value = record.get(key)
        is_set, usual = flag(value)
        if not usual:
            self.builder.note(self.file, where, f"{key} neither 0 nor 1 (taken as 0 if it says so, else as 1)", value)
        return is_set

    def _area(self, where: str, record: dict[str, Any]) -> float | None:
        value = number(record.get("area"))
        if value is not None and isfinite(value) and value > 0:
            return value
        if "area" in record:
            self.builder.note(self.file, where, "area not a positive number, width x height instead", record["area"])
        return None


def _xywh(value: object) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = (number(v) for v in value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height
