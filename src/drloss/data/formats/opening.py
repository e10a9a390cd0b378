"""What ``--data`` may name, and the splits it has.

- ``shapes`` or ``shapes:key=value,...``: generated (:mod:`drloss.data.formats.shapes`).
- A folder in one of these layouts:

  ======  =============================================================================================
  COCO    ``annotations/instances_{split}20xx.json`` with images in ``{split}20xx/``, ``images/{split}20xx/``
          or ``images/``; or ``{split}/_annotations.coco.json`` with the images beside it; or ``{split}.json``,
          ``coco_{split}.json``, ``{name}_{split}.json`` in the folder, with names relative to it or to ``images/``
  VOC     ``Annotations/``, ``JPEGImages/``, ``ImageSets/Main/{split}.txt``; or a devkit with such folders ``VOC20xx``
          (with several of them, the splits carry the year: ``trainval2007``)
  YOLO    one ``.yaml`` file with ``names`` and ``train``
  ======  =============================================================================================

  A folder with a ``data.toml`` is what that file says. A folder that looks like two formats is refused, and so are
  parts of it that are links out of it: a data file may name where they are.
- A ``.toml`` data file (:mod:`drloss.data.formats.toml`), or YOLO's ``.yaml`` file.

A split whose folder or list is not there can be opened with the others, and is refused when it is read.
Splits called ``valid`` or ``validation`` are shown as ``val``; any of the three names opens it.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import Report
from drloss.data.files.paths import require_inside
from drloss.data.formats.coco import CocoPart, read_coco
from drloss.data.formats.voc import PASCAL_TREE, VocTree, read_voc
from drloss.data.formats.yolo import read_yolo
from drloss.data.formats.yolo_yaml import SPLITS, VAL_NAMES, YoloData, open_yolo
from drloss.errors import AbsentError, DataError, UserError, printable, shown

DATA_FILE = "data.toml"
_KNOWN_SPLIT = re.compile(r"(?:^|.*[_-])((?:train|val|valid|validation|test|trainval|minival)(?:20\d\d)?)")
_YEAR = re.compile(r"(?<=[a-z])20\d\d$")

Read = Callable[[str, bool], tuple[Annotations, Report]]
"""Name and ``strict`` to the annotations and report of one split."""


class DataSource(Protocol):
    """A data set with its splits.

    Attributes:
        name: what messages call it; what ``--data`` named.
        format: ``"coco"``, ``"voc"``, ``"yolo"`` or ``"shapes"``.
        splits: names of its splits.
    """

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def splits(self) -> tuple[str, ...]: ...

    def read(self, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
        """Read a split.

        Args:
            split: one of :attr:`splits`.
            strict: raise at the first problem, once everything is read, instead of leaving bad records out.

        Raises:
            UserError: if there is no such split.
            AbsentError: if its folder or list is not there.
            DataError: if its files cannot be read, or as ``strict`` says.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """A :class:`DataSource` on disk; ``class_names`` where they are known before reading."""

    name: str
    format: str
    readers: dict[str, Read]
    class_names: tuple[str, ...] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.readers)

    def read(self, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
        """Read a split; see :meth:`DataSource.read`."""
        wanted = (split, *VAL_NAMES) if split in VAL_NAMES else (split,)
        own = next((name for name in wanted if name in self.readers), None)
        if own is None:
            raise UserError(f"{printable(self.name)}: split, got {shown(split)}; allowed: {', '.join(self.splits)}")
        try:
            return self.readers[own](f"{self.name} {own}", strict)
        except OSError as error:
            raise _unreadable(self.name, error) from None


def open_data(spec: str | Path) -> DataSource:
    """The data set that ``--data`` names; see the module's rules.

    Raises:
        UserError: if there is no such thing.
        DataError: if it is in no known layout, or in several.
    """
    if isinstance(spec, str) and (spec == "shapes" or spec.startswith("shapes:")):
        from drloss.data.formats.shapes import open_shapes

        return open_shapes(spec)
    path = Path(spec)
    name = printable(str(spec))
    if not str(spec) or not os.path.exists(path):
        raise UserError(f"{name or 'DATA'}: no such file or folder; allowed: shapes, a folder, a .toml or .yaml file")
    try:
        return _open_folder(path, str(spec)) if path.is_dir() else open_file(path, str(spec))
    except OSError as error:
        raise _unreadable(str(spec), error) from None


def _unreadable(name: str, error: OSError) -> DataError:
    """For a folder that may not be listed, a disk that fails, and the like."""
    return DataError(f"{printable(name)}: cannot be read ({printable(str(error))})")


def open_file(path: Path, name: str) -> FileSource:
    """A ``.toml`` or ``.yaml`` file."""
    if path.suffix.lower() == ".toml":
        from drloss.data.formats.toml import open_datafile

        return open_datafile(path, name)
    if path.suffix.lower() in (".yaml", ".yml"):
        return yolo_source(open_yolo(path), name)
    raise UserError(
        f"{printable(str(path))}: file type, got {path.suffix or 'none'}; "
        "allowed: .toml, .yaml, or the folder of a data set"
    )


def _open_folder(folder: Path, name: str) -> FileSource:
    if (folder / DATA_FILE).is_file():
        return open_file(folder / DATA_FILE, name)
    found: dict[str, Callable[[], FileSource]] = {}
    coco, trees, yamls = _coco_files(folder), _voc_trees(folder), _yolo_files(folder)
    if coco:
        found["COCO"] = lambda: FileSource(name, "coco", _splits(coco, folder))
    if trees:
        found["VOC"] = lambda: FileSource(name, "voc", voc_splits(trees))
    if yamls:
        found["YOLO"] = lambda: yolo_source(open_yolo(yamls[0]), name)
    if len(found) == 1 and len(yamls) < 2:
        return next(iter(found.values()))()
    shown_name = printable(name)
    if not found:
        raise DataError(
            f"{shown_name}: no data set found in this folder; allowed: a COCO, VOC or YOLO layout "
            "(annotations/instances_train.json, Annotations + JPEGImages, data.yaml), or a .toml data file"
        )
    seen = " and ".join(found) if len(found) > 1 else f"{len(yamls)} .yaml files"
    raise DataError(
        f"{shown_name}: looks like {seen}; choose with a .toml data file, or name the file or inner folder"
    )


def absent(message: str) -> Read:
    """Reader of a split that is not there."""

    def read(name: str, strict: bool) -> tuple[Annotations, Report]:
        raise AbsentError(message)

    return read


# ---------------------------------------------------------------------- COCO


def _coco_files(folder: Path) -> dict[str, CocoPart]:
    """Split, with its year, to annotation file and candidate image folders."""
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
            if match:
                split = match[1]
                if split in found:
                    both = " and ".join(printable(p.name) for p in (found[split].annotations, path))
                    raise DataError(
                        f"{printable(str(folder))}: split {split} in both {both}; choose with a .toml data file"
                    )
                images = (folder, folder / "images", folder / split, folder / "images" / split)
                found[split] = CocoPart(path, tuple(p for p in images if p.is_dir()))
        if found:
            break
    return found


def _splits(parts: dict[str, CocoPart], folder: Path) -> dict[str, Read]:
    """Readers by split: without the year where that is clear, ``val`` for its other names, train first."""
    bare = [_canonical(_YEAR.sub("", split)) for split in parts]
    names = {s: printable(b if bare.count(b) == 1 else s) for s, b in zip(parts, bare, strict=True)}
    order = {"train": 0, "val": 1}
    return {
        names[split]: partial(_read_coco, parts[split], folder)
        for split in sorted(parts, key=lambda s: order.get(names[s], 2))
    }


def _read_coco(part: CocoPart, folder: Path, name: str, strict: bool) -> tuple[Annotations, Report]:
    """A split of the data set in ``folder``, all of which has to be there."""
    for path in (part.annotations, *part.images):
        require_inside(path, folder)
    return read_coco(name, [part], strict=strict)


def _canonical(split: str) -> str:
    return "val" if split in VAL_NAMES else split


def coco_reader(parts: list[CocoPart]) -> Read:
    """Reader of one split."""
    return lambda name, strict: read_coco(name, parts, strict=strict)


# ---------------------------------------------------------------------- VOC


def is_tree(folder: Path) -> bool:
    """Whether a folder is a VOC tree."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _voc_trees(folder: Path) -> list[VocTree]:
    """The folder itself, or the ``VOC20xx`` trees in it or in its ``VOCdevkit``."""
    if is_tree(folder):
        return [VocTree(_named(folder))]
    for base in (folder, folder / "VOCdevkit"):
        if base.is_dir():
            trees = [p for p in sorted(base.iterdir()) if PASCAL_TREE.fullmatch(p.name) and is_tree(p)]
            for tree in trees:
                require_inside(tree, folder)
            if trees:
                return [VocTree(tree) for tree in trees]
    return []


def _named(folder: Path) -> Path:
    """The folder with a name of its own, where it was given as ``.`` or ``..``."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def voc_splits(
    trees: list[VocTree], classes: tuple[str, ...] | None = None, image_set: str | None = None
) -> dict[str, Read]:
    """Readers by split, with the year in the name if there are several trees; ``all`` where there are no lists."""
    readers: dict[str, Read] = {}
    for tree in trees:
        year = tree.folder.name.removeprefix("VOC") if len(trees) > 1 else ""
        sets = tree.lists() if image_set is None else [image_set]
        alike = [_canonical(chosen) for chosen in sets]
        for chosen in sets:
            split = _canonical(chosen) if alike.count(_canonical(chosen)) == 1 else chosen
            readers[printable(split + year)] = partial(_read_voc, [(tree, chosen)], classes)
        if not sets:
            readers["all" + year] = partial(_read_voc, [(tree, None)], classes)
    return readers


def _read_voc(
    sets: list[tuple[VocTree, str | None]], classes: tuple[str, ...] | None, name: str, strict: bool
) -> tuple[Annotations, Report]:
    return read_voc(name, sets, classes=classes, strict=strict)


def voc_reader(sets: list[tuple[VocTree, str | None]], classes: tuple[str, ...] | None) -> Read:
    """Reader of one split."""
    return partial(_read_voc, sets, classes)


# ---------------------------------------------------------------------- YOLO


def _yolo_files(folder: Path) -> list[Path]:
    """``data.yaml``, else every YAML file that could be one."""
    for usual in ("data.yaml", "data.yml"):
        if (folder / usual).is_file():
            return [folder / usual]
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        text = path.read_bytes()[:100_000] if path.is_file() else b""
        if re.search(rb"^names\s*:", text, re.M) and re.search(rb"^(train|val|test)\s*:", text, re.M):
            found.append(path)
    return found


def yolo_source(data: YoloData, name: str) -> FileSource:
    """The data set that a ``data.yaml`` describes."""
    readers = {
        split: absent(data.absent[split]) if split in data.absent else yolo_reader(data, split)
        for split in SPLITS
        if split in data.absent or split in data.splits
    }
    return FileSource(name, "yolo", readers, data.class_names)


def yolo_reader(data: YoloData, split: str) -> Read:
    """Reader of one split."""
    return partial(_read_yolo, data, split)


def _read_yolo(data: YoloData, split: str, name: str, strict: bool) -> tuple[Annotations, Report]:
    return read_yolo(name, data, split, strict=strict)
