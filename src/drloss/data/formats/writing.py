"""Writing annotations as COCO, VOC or YOLO data sets, one split at a time, into one folder.

:func:`drloss.data.formats.opening.open_data` reads from the folder what was written. COCO has all of it. VOC and YOLO
have no areas and image ids. YOLO cannot mark objects to ignore, and has coordinates as shares of the image's size,
exact to about 1e-12 px. VOC coordinates are written unchanged, counted from 0.

Generated images are written as PNG, image files are copied, without the folder that all images of a split have in
common. Nothing is overwritten.
"""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from drloss.data.annotations import Annotations
from drloss.data.files.paths import clean_name
from drloss.data.formats.data_toml import DATA_FILE
from drloss.data.formats.voc_tree import PASCAL_TREE, VocTree
from drloss.data.formats.yolo_yaml import SPLITS
from drloss.errors import DataError, UserError, shown
from drloss.io.atomic import write_atomic, write_text


def write_coco(annotations: Annotations, folder: Path, split: str) -> None:
    """Write ``annotations/instances_{split}.json`` and ``{split}/`` with the images.

    Raises:
        DataError: if an image cannot be read, or a file to be written exists.
    """
    path = _new(folder / "annotations" / f"instances_{_split(split)}.json")
    names = _names(annotations)
    _write_images(annotations, folder / split, names)
    ids = annotations.category_ids.tolist()
    images, boxes = [], []
    for i in range(len(annotations)):
        height, width = annotations.sizes[i].tolist()
        image_id = int(annotations.image_ids[i])
        images.append({"id": image_id, "file_name": names[i], "width": width, "height": height})
        own = annotations.boxes_of(i)
        for j in range(own.start, own.stop):
            x1, y1, x2, y2 = annotations.boxes[j].tolist()
            boxes.append(
                {
                    "id": j + 1,
                    "image_id": image_id,
                    "category_id": ids[annotations.labels[j] - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(annotations.areas[j]),
                    "iscrowd": int(annotations.ignore[j]),
                }
            )
    categories = [{"id": k, "name": name} for k, name in zip(ids, annotations.class_names, strict=True)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    write_text(path, json.dumps(content, allow_nan=False))


def write_voc(annotations: Annotations, folder: Path, split: str) -> None:
    """Write a tree (``Annotations``, ``JPEGImages``, ``ImageSets/Main/{split}.txt``) and a data file with classes.

    An image ``a/b.png`` becomes ``a_b.png``: not every tool reads subfolders of this format. If another split has
    images of the same names, those of this one begin with its name.

    Raises:
        DataError: if an image cannot be read, or a file to be written exists.
        UserError: if the folder has the name of one of PASCAL's own trees.
    """
    if PASCAL_TREE.fullmatch(folder.resolve().name):
        raise UserError(f"{folder}: name of the folder, got one of PASCAL's trees; allowed: any other")
    listing = _new(folder / "ImageSets" / "Main" / f"{_split(split)}.txt")
    names = [name.replace("/", "_") for name in _names(annotations)]
    if any((folder / "Annotations" / f"{Path(name).stem}.xml").exists() for name in names):  # of another split
        names = [f"{split}_{name}" for name in names]
    for i, name in enumerate(_files(annotations, names)):
        path = _new(folder / "Annotations" / f"{Path(name).stem}.xml")
        write_text(path, _voc_xml(annotations, i, name))
    _write_images(annotations, folder / "JPEGImages", names)
    write_text(listing, "".join(f"{Path(name).stem}\n" for name in names))
    classes = ", ".join(quoted(name) for name in annotations.class_names)
    lines = ['format = "voc"', f"classes = [{classes}]", "one_based = false"]
    for known in VocTree(folder).lists():
        lines += [
            "",
            f"[splits.{quoted(known)}]",
            'trees = ["."]',
            f"image_set = {quoted(known)}",
        ]
    write_text(folder / DATA_FILE, "\n".join(lines) + "\n")


def write_yolo(annotations: Annotations, folder: Path, split: str) -> None:
    """Write ``images/{split}``, ``labels/{split}`` and ``data.yaml``.

    Raises:
        DataError: if an image cannot be read, a file to be written exists, or an object is to be ignored.
        UserError: if the format has no such split.
    """
    if split not in SPLITS:
        raise UserError(f"split of a YOLO data set, got {shown(split)}; allowed: {', '.join(SPLITS)}")
    if annotations.ignore.any():
        count = int(annotations.ignore.sum())
        raise DataError(f"{annotations.name}: objects to ignore, got {count:,}; allowed: none, YOLO cannot mark them")
    names = _names(annotations)
    if any("images" in name.split("/")[:-1] for name in names):  # the last folder of that name leads to the labels
        names = [name.replace("/", "_") for name in names]
    labels = folder / "labels" / split
    for i, name in enumerate(_files(annotations, names)):
        write_text(_new((labels / name).with_suffix(".txt")), _yolo_lines(annotations, i))
    _write_images(annotations, folder / "images" / split, names)
    lines = ["path: ."]
    lines += [f"{s}: images/{s}" for s in SPLITS if (folder / "images" / s).is_dir()]
    lines += [
        "names:",
        *(f"  {k}: {quoted(name)}" for k, name in enumerate(annotations.class_names)),
    ]
    write_text(folder / "data.yaml", "\n".join(lines) + "\n")


def quoted(text: str) -> str:
    """A string of JSON that is one of TOML and of YAML, too: without characters that are written as two halves."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _names(annotations: Annotations) -> list[str]:
    """The images' names, without the folder that all have in common."""
    names = [annotations.image_name(i) for i in range(len(annotations))]
    folders = [name.split("/")[:-1] for name in names]
    common = 0
    while folders and all(len(own) > common and own[common] == folders[0][common] for own in folders):
        common += 1
    return ["/".join(name.split("/")[common:]) for name in names]


def _split(split: str) -> str:
    try:
        if "/" not in split:
            return clean_name(split)
    except ValueError:
        pass
    raise UserError(f"split, got {shown(split)}; allowed: a name that a file can have")


def _new(path: Path) -> Path:
    """``path``, if it does not exist."""
    if path.exists():
        raise DataError(f"{path}: the file is there already; allowed: a folder without it")
    return path


def _files(annotations: Annotations, names: list[str]) -> Iterator[str]:
    """The names, after a check that no two of them would share a label file."""
    stems = {str(Path(name).with_suffix("")) for name in names}
    if len(stems) < len(names):
        raise DataError(f"{annotations.name}: names of images; allowed: names that differ without suffix and folder")
    return iter(names)


def _write_images(annotations: Annotations, folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        path = _new(folder / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if annotations.draw is None:
            assert annotations.image_root is not None
            shutil.copyfile(annotations.image_root / annotations.image_name(i), path)
        else:
            pixels = annotations.load_image(i).permute(1, 2, 0).numpy()
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            write_atomic(path, partial(picture.save, format="PNG"))


def _voc_xml(annotations: Annotations, index: int, name: str) -> str:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    height, width = annotations.sizes[index].tolist()
    for side, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value)
    own = annotations.boxes_of(index)
    for j in range(own.start, own.stop):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = annotations.class_names[annotations.labels[j] - 1]
        ElementTree.SubElement(item, "difficult").text = str(int(annotations.ignore[j]))
        box = ElementTree.SubElement(item, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), annotations.boxes[j].tolist(), strict=True):
            ElementTree.SubElement(box, side).text = repr(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _yolo_lines(annotations: Annotations, index: int) -> str:
    height, width = annotations.sizes[index].tolist()
    own = annotations.boxes_of(index)
    lines = []
    for label, box in zip(annotations.labels[own].tolist(), annotations.boxes[own].tolist(), strict=True):
        x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
        values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        lines.append(" ".join([str(label - 1), *(repr(v) for v in values)]) + "\n")
    return "".join(lines)
