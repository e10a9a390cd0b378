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
  ``"file_name"`` and ``"bbox"`` in it, up to the total. COCO's own takes 270 MB of memory while it is read
  (:mod:`drloss.data.formats.coco_stream`); a file in which much is odd up to two and a half times its size.

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
from pathlib import Path
from typing import Any

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import integer_or_none
from drloss.data.checks.problems import Report
from drloss.data.files.paths import clean_name, common_folder
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.formats.coco_json import TWICE
from drloss.data.formats.coco_records import RecordReader, file_names
from drloss.data.formats.coco_stream import load_coco, uncollected
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


@uncollected()
def read_coco(name: str, parts: Sequence[CocoPart], *, strict: bool = True) -> tuple[Annotations, Report]:
    """Read one split.

    Args:
        name: name of the split in messages.
        parts: its annotation files. If there are several, their classes must agree and images are renumbered.
        strict: read everything, then raise the first problem; otherwise leave out bad records.

    Raises:
        DataError: if a file cannot be read as COCO JSON, or as ``strict`` says.
    """
    files = [load_coco(part.annotations) for part in parts]
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
        reader = RecordReader(builder, str(part.annotations), folder, k if len(parts) > 1 else None)
        for position, record in enumerate(_list(str(part.annotations), content, "images")):
            reader.image(position, record)
        reader.annotations(_list(str(part.annotations), content, "annotations"))
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
        for name in file_names(record) if isinstance(record, dict) else ():
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
