"""COCO JSON: ``images``, ``annotations``, ``categories``.

Rules:

- Categories sorted by id become labels 1..K; gaps between the ids are allowed.
- ``bbox`` is x, y, width, height in pixels. ``area`` is used if it is a positive number: COCO sorts objects into
  small, medium and large by the area of the segmentation. Otherwise the area is width times height, which is noted.
- ``iscrowd``, and ``difficult``, which some converters write, mark a box to ignore.
- Ids of annotations are not used, because the evaluator numbers boxes itself. Missing, repeated or odd ids are noted;
  id 0 is allowed. An annotation given twice (same id, image, class and box) is a problem, and the second is left out.
- Images need ``width``, ``height``, ``id`` and ``file_name``. If ``file_name`` is missing, as in LVIS, the end of
  ``coco_url`` replaces it, which is noted: its last two parts if there is such a file, otherwise the last part.
- Segmentations and captions are not read. An annotation that has nothing else is a box left out.
- The file is UTF-8, with or without byte order mark. Its size is limited: a file may have the base, and more for each
  ``"file_name"`` and ``"bbox"`` in it, up to the total. Reading takes two and a half times the file's size in memory.

  =======  =========  ================================  ==========  ======================
  what     base       for each image and for each box   total       in COCO's own, of each
  =======  =========  ================================  ==========  ======================
  bytes    32 MiB     1 MiB                             2 GiB       450
  objects  500,000    4                                 5,000,000   1
  lists    1,000,000  20                                20,000,000  3
  commas   3,000,000  10,000
  colons   1,000,000  200
  =======  =========  ================================  ==========  ======================
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import flag_is_set, integer_or_none, number_or_none
from drloss.data.checks.problems import Report
from drloss.data.files.paths import clean_name, common_folder
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.formats.coco_json import SEGMENTED, TWICE, load_json
from drloss.data.source import Read
from drloss.errors import DataError, printable, shown

_PROBED = 20
"""Number of image names that are looked for in each folder that may hold the images."""


@dataclass(frozen=True)
class CocoPart:
    """An annotation file of a split.

    Attributes:
        annotations: the file.
        images: folders that may hold its images.
        named: number of these, the first ones, that go before all others by their place and name.
    """

    annotations: Path
    images: tuple[Path, ...]
    named: int = 1_000


def coco_reader(parts: Sequence[CocoPart]) -> Read:
    """The reader of a split with these annotation files."""
    return lambda name, strict: read_coco(name, parts, strict=strict)


def read_coco(name: str, parts: Sequence[CocoPart], *, strict: bool = True) -> tuple[Annotations, Report]:
    """Read one split.

    Args:
        name: name of the split in messages.
        parts: its annotation files. If there are several, their classes must agree and images are renumbered.
        strict: read everything, then raise the first problem; otherwise leave out bad records.

    Raises:
        DataError: if a file cannot be read as COCO JSON, or as ``strict`` says.
    """
    files = [load_json(part.annotations) for part in parts]
    classes = [_classes(str(part.annotations), content) for part, content in zip(parts, files, strict=True)]
    for part, other in zip(parts, classes, strict=True):
        if other != classes[0]:
            first, own = (printable(str(p.annotations)) for p in (parts[0], part))
            raise DataError(f"{own}: categories differ from those of {first}")
    folders = [image_folder(part, content) for part, content in zip(parts, files, strict=True)]
    if len(parts) > 1:
        # Links are resolved: a link among these folders would lead out of the folder that they have in common.
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
        if not isinstance(record, dict) or TWICE in record:
            raise DataError(f"{where}: got {shown(record)}; allowed: an object with id and name, each key once")
        given, text = record.get("id"), record.get("name")
        category = integer_or_none(given)
        if category is None:
            raise DataError(f"{where}: id, got {shown(given)}; allowed: an integer")
        if not isinstance(text, str):
            raise DataError(f"{where}: name, got {shown(text)}; allowed: a string")
        classes.append((category, text))
    return sorted(classes)


def image_folder(part: CocoPart, content: dict[str, Any]) -> Path:
    """The folder that has the most of the file's first images, of several the first.

    Raises:
        DataError: if several folders that nothing in the layout names have as many.
    """
    if len(part.images) == 1:
        return part.images[0]
    names = []
    for record in content["images"][:_PROBED] if isinstance(content.get("images"), list) else []:
        for name in _names(record) if isinstance(record, dict) else ():
            with suppress(ValueError):
                names.append(clean_name(name))
    found = [sum(os.path.isfile(folder / name) for name in names) for folder in part.images]
    best = found.index(max(found))
    if best >= part.named and found.count(found[best]) > 1 and found[best]:
        both = [printable(str(f)) for f, n in zip(part.images, found, strict=True) if n == found[best]][:2]
        raise DataError(
            f"{printable(str(part.annotations))}: folder of its images, got {' and '.join(both)} with the same "
            "names; allowed: one; a .toml data file says which"
        )
    return part.images[best]


def _names(record: dict[str, Any]) -> list[object]:
    """Possible file names of an image: its ``file_name``; without that, the two ends of ``coco_url``."""
    url = record.get("coco_url")
    if "file_name" in record or not isinstance(url, str) or "/" not in url:
        return [record.get("file_name")]
    return ["/".join(url.split("/")[-2:]), url.rpartition("/")[2]]


class _Part:
    """Passes the records of one file to the builder."""

    def __init__(self, builder: AnnotationsBuilder, file: str, folder: Path, part: int | None) -> None:
        self.builder = builder
        self.file = file
        self.folder = folder
        self.part = part  # number of the file, if the split has several: ids are unique in one file only
        self.seen: dict[int, tuple[Any, ...]] = {}

    def key(self, image_id: int) -> Any:
        return image_id if self.part is None else (self.part, image_id)

    def image(self, position: int, record: Any) -> None:
        """Pass the record at ``position`` of ``images`` to the builder, or what is wrong with it."""
        bad: tuple[str, object, str] | None = None
        if not isinstance(record, dict):
            bad, record = ("image record not an object", record, "an object"), {}
        elif TWICE in record:
            bad = ("key given twice", record[TWICE], "each once")
        own = integer_or_none(record.get("id"))
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
            image_id=own if self.part is None and own is not None else None,
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
        """Pass the record at ``position`` of ``annotations`` to the builder as a box, or what is wrong with it."""
        where = f"annotations[{position}]"
        drop = self.builder.drop_box
        if not isinstance(record, dict):
            drop(self.file, where, "annotation not an object", record, "an object")
            return
        own = integer_or_none(record.get("id"))
        where = where if own is None else f"annotation {own}"
        if TWICE in record:
            drop(self.file, where, "key given twice", record[TWICE], "each once")
            return
        image, category = integer_or_none(record.get("image_id")), integer_or_none(record.get("category_id"))
        for key, value in (("image_id", image), ("category_id", category)):
            if value is None:
                what = "not an integer" if key in record else "missing"
                drop(self.file, where, f"{key} {what}", record.get(key), "an integer")
                return
        box = _xywh(record.get("bbox"))
        if box is None:
            what = "bbox not usable" if "bbox" in record else "bbox missing"
            what += " (there is a segmentation, which is not read)" if SEGMENTED in record else ""
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
        """Whether an annotation was read before; odd ids are noted."""
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
        is_set, usual = flag_is_set(value)
        if not usual:
            self.builder.note(self.file, where, f"{key} neither 0 nor 1 (taken as 0 if it says so, else as 1)", value)
        return is_set

    def _area(self, where: str, record: dict[str, Any]) -> float | None:
        value = number_or_none(record.get("area"))
        if value is not None and isfinite(value) and value > 0:
            return value
        if "area" in record:
            self.builder.note(self.file, where, "area not a positive number, width x height instead", record["area"])
        return None


def _xywh(value: object) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = (number_or_none(v) for v in value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height
