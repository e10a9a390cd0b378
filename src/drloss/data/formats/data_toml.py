"""Data files (``data.toml``): a small TOML file that says where the splits of a data set are.

::

    format = "coco"                     # or "voc", "yolo"
    root = "/data/coco"                 # optional; paths are relative to it, or else to this file's folder

    [splits.train]
    images = "train2017"                # a folder, or a list of folders: one for each annotation file
    annotations = "annotations/instances_train2017.json"

VOC needs trees instead, or folders of XML files and of images. The classes are optional, and whether coordinates
count from 1::

    format = "voc"
    classes = ["cat", "dog"]            # optional
    one_based = false                   # optional; see drloss.data.formats.voc

    [splits.train]
    trees = ["VOC2007", "VOC2012"]
    image_set = "trainval"              # optional: without it all images of the trees
    images = ["/data/2007", "/data/12"] # optional: one folder for each tree, instead of its JPEGImages

    [splits.val]
    annotations = "val/xml"             # instead of trees: a folder of XML files, and that of their images
    images = "val/pictures"

YOLO needs image folders or lists, and the classes::

    format = "yolo"
    classes = ["cat", "dog"]
    kpt_shape = [17, 3]                 # optional: keypoints after each box; see drloss.data.formats.yolo

    [splits.train]
    images = ["images/train"]
    labels = ["texts/train"]            # optional: one folder for each, if the label files are in no usual place

The other formats (csv, labelme, createml, cvat, imagefolder) need annotation files, of LabelMe the folder of its
files, and image folders. The classes are optional::

    format = "csv"

    [splits.train]
    annotations = "boxes.csv"
    images = "photographs"

Without ``splits``, the folder ``root`` is recognised as ``open_data`` does, but in this format only.

Unknown keys are refused. A path that does not exist is an error for those who read its split, or if no split exists.
The paths may lead anywhere: this file is the user's own. It is at most 1 MB, with at most 5,000 dots.
"""

import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from drloss.data.files.paths import clean_name, common_folder, list_files
from drloss.data.files.reading import Limit, read_text
from drloss.data.files.survey import Survey
from drloss.data.formats import createml, csv_boxes, cvat, imagefolder, labelme
from drloss.data.formats.coco import CocoPart, coco_reader
from drloss.data.formats.items import Item, ItemFiles
from drloss.data.formats.voc import voc_reader
from drloss.data.formats.voc_tree import VocTree, is_tree
from drloss.data.formats.yolo import yolo_reader
from drloss.data.formats.yolo_yaml import YoloData, keypoint_numbers
from drloss.data.source import FileSource, Read, absent
from drloss.errors import AbsentError, DataError, printable, shown, shown_path

DATA_FILE = "data.toml"
"""Name of the data file that decides about the folder it is in."""
MAX_BYTES = 1024**2
LIMITS = {b".": Limit(5000)}
"""Dots in a file: a key takes time and memory that grow with the square of its number of parts."""
_PARSERS: dict[str, Callable[[Path, str], Iterator[Item]]] = {
    "csv": partial(csv_boxes.parse, {}),
    "labelme": labelme.parse,
    "createml": createml.parse,
    "cvat": cvat.parse,
    "imagefolder": imagefolder.parse,
}
_TOP_KEYS = {
    "coco": ("format", "root", "splits"),
    "voc": ("format", "root", "classes", "one_based", "splits"),
    "yolo": ("format", "root", "classes", "kpt_shape", "splits"),
    **dict.fromkeys(_PARSERS, ("format", "root", "classes", "splits")),
}
_SPLIT_KEYS = {
    "coco": ("images", "annotations"),
    "voc": ("trees", "annotations", "image_set", "images"),
    "yolo": ("images", "labels"),
    **dict.fromkeys(_PARSERS, ("images", "annotations")),
}
OpenAs = Callable[[str, Path, str], FileSource]
"""Opens a folder in a given format: (format, folder, name of the data set in messages)."""


def open_data_toml(path: Path, name: str, open_as: OpenAs) -> FileSource:
    """Read a data file.

    Args:
        path: the TOML file.
        name: name of the data set in messages.
        open_as: opens the folder of a file without splits.

    Raises:
        DataError: naming the file, the key, its value and what is allowed.
    """
    file = printable(str(path))
    try:
        content = tomllib.loads(read_text(path, MAX_BYTES, LIMITS))
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise DataError(f"{file}: not TOML ({error})") from None
    except RecursionError:
        raise DataError(f"{file}: not TOML (nested too deeply)") from None
    kind = content.get("format")
    if not isinstance(kind, str) or kind not in _TOP_KEYS:
        raise DataError(f"{file}: format, got {shown(kind)}; allowed: {', '.join(_TOP_KEYS)}")
    _only(file, "", content, _TOP_KEYS[kind])
    root = path.parent / _text(file, "root", content.get("root", "."))
    if "splits" not in content and not {"classes", "one_based", "kpt_shape"} & content.keys():
        return open_as(kind, root, name)
    splits = content.get("splits")
    if not isinstance(splits, dict) or not splits or not all(isinstance(s, dict) for s in splits.values()):
        raise DataError(f"{file}: splits, got {shown(splits)}; allowed: tables such as [splits.train]")
    splits = {printable(split): table for split, table in splits.items()}
    classes = _classes(file, kind, content)
    for split, table in splits.items():
        _only(file, f"splits.{split}.", table, _SPLIT_KEYS[kind])
    numbers = keypoint_numbers(file, content.get("kpt_shape"))
    one_based = content.get("one_based")
    if one_based is not None and not isinstance(one_based, bool):
        raise DataError(f"{file}: one_based, got {shown(one_based)}; allowed: true, false")
    if kind in _PARSERS:
        return _items(file, kind, splits, root, classes).source(name)
    readers: dict[str, Read] = {}
    missing: dict[str, AbsentError] = {}
    for split, table in splits.items():
        try:
            if kind == "coco":
                readers[split] = _coco(file, split, table, root)
            elif kind == "voc":
                readers[split] = _voc(file, split, table, root, one_based=one_based, classes=classes)
            else:
                assert classes is not None
                folders = tuple(_paths(file, f"splits.{split}.images", table.get("images"), root))
                labels = _labels(file, split, table, root, len(folders))
                readers[split] = yolo_reader(
                    YoloData(path, root, classes, {split: folders}, numbers, labels=labels), split
                )
        except AbsentError as error:
            missing[split] = error
            readers[split] = absent(str(error))
    if len(missing) == len(splits):
        raise next(iter(missing.values()))
    return FileSource(name, kind, readers, classes)


def _coco(file: str, split: str, table: dict[str, Any], root: Path) -> Read:
    key = f"splits.{split}."
    annotations = _paths(file, f"{key}annotations", table.get("annotations"), root)
    images = _paths(file, f"{key}images", table.get("images"), root)
    for folder in images:
        if not folder.is_dir():
            raise DataError(f"{file}: {key}images, got {shown_path(folder)}; allowed: a folder, or a list of folders")
    if len(images) != len(annotations):
        raise DataError(
            f"{file}: {key}images, got {len(images)} for {len(annotations)} annotations; allowed: one for each"
        )
    return coco_reader([CocoPart(a, (i,)) for a, i in zip(annotations, images, strict=True)])


def _voc(
    file: str,
    split: str,
    table: dict[str, Any],
    root: Path,
    *,
    one_based: bool | None,
    classes: tuple[str, ...] | None,
) -> Read:
    key = f"splits.{split}."
    if "annotations" in table:
        return _loose_voc(file, key, table, root, one_based=bool(one_based), classes=classes)
    trees = _paths(file, f"{key}trees", table.get("trees"), root)
    images: list[Path | None] = [None] * len(trees)
    if "images" in table:
        images = [*_paths(file, f"{key}images", table["images"], root)]
    if len(images) != len(trees):
        raise DataError(f"{file}: {key}images, got {len(images)} for {len(trees)} trees; allowed: one for each")
    for tree, own in zip(trees, images, strict=True):
        if not (is_tree(tree) if own is None else own.is_dir() and (tree / "Annotations").is_dir()):
            raise DataError(
                f"{file}: {key}trees, got {shown_path(tree)}; allowed: a folder with Annotations, JPEGImages"
            )
    image_set = table.get("image_set")
    if image_set is not None:
        try:
            image_set = clean_name(image_set)
        except ValueError as error:
            name = f"the name of a list in ImageSets/Main ({error})"
            raise DataError(f"{file}: {key}image_set, got {shown(image_set)}; allowed: {name}") from None
    return voc_reader([(VocTree(t, one_based, i), image_set) for t, i in zip(trees, images, strict=True)], classes)


def _loose_voc(
    file: str, key: str, table: dict[str, Any], root: Path, *, one_based: bool, classes: tuple[str, ...] | None
) -> Read:
    xmls = _paths(file, f"{key}annotations", table["annotations"], root)
    images = _paths(file, f"{key}images", table.get("images"), root)
    if len(images) != len(xmls) or "trees" in table or "image_set" in table:
        raise DataError(
            f"{file}: {key}annotations, got {len(xmls)} for {len(images)} images; allowed: one folder of XML files "
            "for each folder of images, and neither trees nor image_set"
        )
    deep = not any(a != b and a.is_relative_to(b) for a in xmls for b in xmls)
    trees = [VocTree(xml, one_based, image, xml, deep) for xml, image in zip(xmls, images, strict=True)]
    return voc_reader([(tree, None) for tree in trees], classes)


def _labels(file: str, split: str, table: dict[str, Any], root: Path, number: int) -> dict[str, tuple[Path, ...]]:
    if "labels" not in table:
        return {}
    key = f"splits.{split}.labels"
    labels = tuple(_paths(file, key, table["labels"], root))
    if len(labels) != number:
        raise DataError(f"{file}: {key}, got {len(labels)} for {number} images; allowed: one for each")
    return {split: labels}


def _items(
    file: str, kind: str, splits: dict[str, dict[str, Any]], root: Path, classes: tuple[str, ...] | None
) -> ItemFiles:
    files: dict[str, list[Path]] = {}
    images: dict[str, list[Path]] = {}
    for split, table in splits.items():
        key = f"splits.{split}."
        images[split] = _paths(file, f"{key}images", table.get("images"), root)
        files[split] = _paths(file, f"{key}annotations", table.get("annotations"), root)
        if kind == "labelme":
            inner = [f / n for f in files[split] for n in list_files(f).with_suffix(".json") if "/" not in n]
            files[split] = inner or files[split]
    base = common_folder([folder for own in images.values() for folder in own])
    if len(base.parts) < 3:  # the root of a disk, or a folder in it
        raise DataError(f"{file}: images of all splits, got folders in {base}; allowed: folders in one folder")
    names = {split: [os.path.relpath(f, base).replace(os.sep, "/") for f in own] for split, own in files.items()}
    near = {
        s: [os.path.relpath(f, base).replace(os.sep, "/").removeprefix(".") for f in own] for s, own in images.items()
    }
    parse = _PARSERS[kind]
    if kind == "csv":
        folders = {path.parent for own in files.values() for path in own}
        parse = partial(csv_boxes.parse, csv_boxes.descriptions(p for f in folders for p in sorted(f.glob("*.csv"))))
    return ItemFiles(kind, Survey(base), names, parse, classes, near)


def _only(file: str, prefix: str, table: dict[str, Any], allowed: Sequence[str]) -> None:
    for key in table:
        if key not in allowed:
            raise DataError(f"{file}: unknown key, got {shown(prefix + key)}; allowed: {', '.join(allowed)}")


def _text(file: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise DataError(f"{file}: {key}, got {shown(value)}; allowed: a string")
    return value


def _paths(file: str, key: str, value: object, root: Path) -> list[Path]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise DataError(f"{file}: {key}, got an empty list; allowed: a path or a list of paths")
    paths = [root / _text(file, key, v) for v in values]
    for path in paths:
        if not os.path.exists(path):  # Path.exists raises on names that are too long
            raise AbsentError(f"{file}: {key}, got {shown_path(path)}; allowed: a path that exists")
    return paths


def _classes(file: str, kind: str, content: dict[str, Any]) -> tuple[str, ...] | None:
    value = content.get("classes")
    if value is None and kind != "yolo":
        return None
    if not isinstance(value, list) or not value or not all(isinstance(c, str) for c in value):
        raise DataError(f"{file}: classes, got {shown(value)}; allowed: a list of class names")
    return tuple(value)
