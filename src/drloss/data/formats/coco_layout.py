"""Where COCO's annotation files and their images are in a folder, and which splits they are."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import Report
from drloss.data.files.paths import require_inside
from drloss.data.files.survey import Survey, split_of_file, split_of_folder
from drloss.data.formats.coco import CocoPart, image_folder, read_coco
from drloss.data.formats.coco_stream import load_coco
from drloss.data.formats.layout import CERTAIN, LIKELY, Layout, grouped_by_split, head
from drloss.data.formats.sniffing import json_kind
from drloss.data.source import FileSource, Places, Read
from drloss.errors import DataError, printable

_MOST_FOLDERS = 200
"""Number of folders of images in which those of a file are looked for."""
_KNOWN_SPLIT = re.compile(r"(?:^|.*[_-])((?:train|val|valid|validation|test|trainval|minival)(?:20\d\d)?)")
_YEAR = re.compile(r"(?<=[a-z])20\d\d$")


def find_coco(survey: Survey) -> Layout | None:
    """COCO's annotation files under their usual names, as a data set."""
    parts = _find_parts(survey.folder)
    return _layout(survey, parts, CERTAIN) if parts else None


def find_loose_coco(survey: Survey) -> Layout | None:
    """COCO's annotation files of any name, as a data set."""
    found = [name for name in survey.named(".json") if json_kind(survey.folder / name) == "coco"]
    # Reading says what is wrong with a damaged file that is called as one of the splits.
    splits = {split_of_file(name) for name in found}
    for name in survey.named(".json"):
        other = split_of_file(name.rpartition("/")[2]) not in {"", *splits}
        if other and not json_kind(survey.folder / name) and b'"images"' in head(survey.folder / name):
            found.append(name)
    return loose_coco(survey, sorted(found)) if found and splits else None


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
            "images": [image_folder(part, load_coco(part.annotations))],
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
        usual = [survey.folder / place for place in places if (survey.folder / place).is_dir()]
        others = [survey.folder / folder for folder in survey.images.folders[:_MOST_FOLDERS]]
        found[split] = CocoPart(survey.folder / names[0], tuple(dict.fromkeys([*usual, *others])), len(usual))
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
