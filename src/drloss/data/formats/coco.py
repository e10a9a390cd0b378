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
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import integer_or_none
from drloss.data.checks.problems import Report
from drloss.data.files.paths import clean_name, common_folder, require_inside
from drloss.data.files.survey import Survey, split_of_folder
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.formats.coco_json import TWICE
from drloss.data.formats.coco_records import RecordReader, file_names
from drloss.data.formats.coco_stream import load_coco, uncollected
from drloss.data.formats.layout import CERTAIN, LIKELY, Layout, grouped_by_split
from drloss.data.formats.sniffing import json_kind
from drloss.data.source import FileSource, Places, Read
from drloss.errors import DataError, printable, shown

_PROBED = 20
"""Number of image names that are looked for in each folder that may hold the images."""
_MOST_FOLDERS = 200
"""Number of folders of images in which those of a file are looked for."""
_KNOWN_SPLIT = re.compile(r"(?:^|.*[_-])((?:train|val|valid|validation|test|trainval|minival)(?:20\d\d)?)")
_YEAR = re.compile(r"(?<=[a-z])20\d\d$")


@dataclass(frozen=True)
class CocoPart:
    """An annotation file of a split.

    Attributes:
        annotations: the file.
        images: folders that may hold its images; the first that has one of them is taken.
    """

    annotations: Path
    images: tuple[Path, ...]


def find_coco(survey: Survey) -> Layout | None:
    """COCO's annotation files under their usual names, as a data set."""
    parts = _find_parts(survey.folder)
    return _layout(survey, parts, CERTAIN) if parts else None


def find_loose_coco(survey: Survey) -> Layout | None:
    """COCO's annotation files of any name, as a data set."""
    found = [name for name in survey.named(".json") if json_kind(survey.folder / name) == "coco"]
    return loose_coco(survey, found) if found else None


def loose_coco(survey: Survey, files: Sequence[str]) -> Layout:
    """These annotation files, of any name in any folder, as a data set."""
    return _layout(survey, _loose_parts(survey, files), LIKELY)


def _layout(survey: Survey, parts: dict[str, CocoPart], sure: int) -> Layout:
    says = ", ".join(printable(str(os.path.relpath(p.annotations, survey.folder))) for p in list(parts.values())[:3])
    readers, places = _readers(parts, survey.folder), partial(_places, parts)
    return Layout("coco", sure, says, lambda name: FileSource(name, "coco", readers, places=places))


def _places(parts: dict[str, CocoPart]) -> Places:
    names = _names_of(parts)
    return {
        names[split]: {
            "images": [_image_folder(part, load_coco(part.annotations))],
            "annotations": [part.annotations],
        }
        for split, part in parts.items()
    }


def _loose_parts(survey: Survey, files: Sequence[str]) -> dict[str, CocoPart]:
    """Split to its annotation file, for files of any name in any folder, and the folders that may hold its images.

    Raises:
        DataError: if several files are of one split.
    """
    found: dict[str, CocoPart] = {}
    for split, names in grouped_by_split(files).items():
        if len(names) > 1:
            raise _two_files(survey.folder, split, names[:2])
        own = names[0].rpartition("/")[0]
        inner = [own, *(f"{own}/{sub}" if own else sub for sub in ("images", "data", split, f"images/{split}"))]
        places = dict.fromkeys([*inner, split, f"images/{split}", f"{split}/images", "images", "data", ""])
        folders = [survey.folder / place for place in (*places, *survey.images.folders[:_MOST_FOLDERS])]
        found[split] = CocoPart(survey.folder / names[0], tuple(f for f in dict.fromkeys(folders) if f.is_dir()))
    return found


def _two_files(folder: Path, split: str, names: Sequence[str]) -> DataError:
    both = " and ".join(printable(name) for name in names)
    return DataError(f"{printable(str(folder))}: split {split} in both {both}; choose with a .toml data file")


def _find_parts(folder: Path) -> dict[str, CocoPart]:
    """Split, with its year, to its annotation file and the folders that may hold its images, by their usual names."""
    found: dict[str, CocoPart] = {}
    inner = folder / "annotations"
    for path in sorted(inner.glob("instances_*.json")):
        split = path.stem.removeprefix("instances_")
        images = (folder / split, folder / "images" / split, folder / "images", folder)
        found[split] = CocoPart(path, tuple(p for p in images if p.is_dir()))
    if found:
        return found
    for path in sorted(folder.glob("*/_annotations.coco.json")):
        found[path.parent.name] = CocoPart(path, (path.parent,))
    if found:
        return found
    for base in (folder, inner):
        for path in sorted(base.glob("*.json")):
            match = _KNOWN_SPLIT.fullmatch(path.stem)
            if match and json_kind(path) in ("coco", ""):
                split = match[1]
                if split in found:
                    raise _two_files(folder, split, [found[split].annotations.name, path.name])
                images = (folder, folder / "images", folder / split, folder / "images" / split)
                found[split] = CocoPart(path, tuple(p for p in images if p.is_dir()))
        if found:
            break
    return found


def _readers(parts: dict[str, CocoPart], folder: Path) -> dict[str, Read]:
    """Readers by split, train first."""
    names = _names_of(parts)
    order = {"train": 0, "val": 1}
    return {
        names[split]: partial(_read_inside, parts[split], folder)
        for split in sorted(parts, key=lambda s: order.get(names[s], 2))
    }


def _names_of(parts: Iterable[str]) -> dict[str, str]:
    """The names of splits as they are shown. The year is left out if no other split has the same name."""
    bare = [_YEAR.sub("", split_of_folder(split) or split) for split in parts]
    return {s: printable(b if bare.count(b) == 1 else s) for s, b in zip(parts, bare, strict=True)}


def _read_inside(part: CocoPart, folder: Path, name: str, strict: bool) -> tuple[Annotations, Report]:
    """Read a split whose files must all lie in ``folder``."""
    for path in (part.annotations, *part.images):
        require_inside(path, folder)
    return read_coco(name, [part], strict=strict)


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
    folders = [_image_folder(part, content) for part, content in zip(parts, files, strict=True)]
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


def _image_folder(part: CocoPart, content: dict[str, Any]) -> Path:
    """The first folder that has one of the file's first images; if none has, the first folder."""
    if len(part.images) == 1:
        return part.images[0]
    names = []
    for record in content["images"][:_PROBED] if isinstance(content.get("images"), list) else []:
        for name in file_names(record) if isinstance(record, dict) else ():
            with suppress(ValueError):
                names.append(clean_name(name))
    return next((f for f in part.images if any(os.path.isfile(f / n) for n in names)), part.images[0])
