"""YOLO's text files as tools lay them out. Shares of the image's size have six digits, as most tools write them."""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.layouts.coco import in_scripts
from benchmarks.layouts.pictures import (
    Layout,
    Picture,
    Pictures,
    WriteSplit,
    class_names,
    in_one,
    in_splits,
    put,
    put_json,
    put_lines,
    renamed,
    save_images,
)

Shape = Callable[[float, float, float, float], tuple[float, ...]]
"""From x1, y1, x2, y2 as shares of the image's size to the numbers after the class."""


def centred(x1: float, y1: float, x2: float, y2: float) -> tuple[float, ...]:
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def with_confidence(x1: float, y1: float, x2: float, y2: float) -> tuple[float, ...]:
    return *centred(x1, y1, x2, y2), 0.9


def corners(x1: float, y1: float, x2: float, y2: float) -> tuple[float, ...]:
    return x1, y1, x2, y1, x2, y2, x1, y2


def yolo(picture: Picture, classes: list[str], shape: Shape = centred) -> list[str]:
    """The lines of one picture."""
    lines = []
    for name, x1, y1, x2, y2 in picture.boxes:
        numbers = shape(x1 / picture.width, y1 / picture.height, x2 / picture.width, y2 / picture.height)
        lines.append(" ".join([str(classes.index(name)), *(f"{number:.6f}" for number in numbers)]))
    return lines


def _files(
    labels: str, images: str, names: str = "", listing: str = "", shape: Shape = centred, has_empty: bool = True
) -> WriteSplit:
    """Writes the folders of labels and images and maybe more; ``{}`` in their names is the split.

    Args:
        names: a file with one class name a line.
        listing: a file with one image a line, ``data/`` before each, as darknet is run one folder above.
        has_empty: a picture without boxes has an empty file; else none.
    """

    def write(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
        save_images(folder / images.format(split), pictures)
        for picture in pictures:
            if picture.boxes or has_empty:
                put_lines(folder / labels.format(split) / f"{picture.stem}.txt", yolo(picture, classes, shape))
        if names:
            put_lines(folder / names.format(split), classes)
        if listing:
            put_lines(folder / listing.format(split), [f"data/{images.format(split)}/{p.name}" for p in pictures])

    return write


def _label_studio(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
    _files("labels", "images", names="classes.txt")(folder, split, pictures, classes)
    info = {"year": 2025, "version": "1.0", "contributor": "Label Studio"}
    put_json(
        folder / "notes.json", {"categories": [{"id": k, "name": n} for k, n in enumerate(classes)], "info": info}
    )


def _cvat_lists(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
    _SPLITS(folder, split, pictures, classes)
    put_lines(folder / f"{split}.txt", [f"images/{split}/{picture.name}" for picture in pictures])


def _yaml(
    *lines: str, as_dict: bool = False, name: str = "data.yaml", windows: bool = False
) -> Callable[[Path, list[str]], None]:
    """Writes the YAML file: these lines, in which ``{}`` is the folder's name, and the class names behind them.

    Args:
        as_dict: the class names are a dict, not a list.
        windows: the file starts with a byte order mark, and its lines end with CR LF.
    """

    def write(folder: Path, classes: list[str]) -> None:
        quoted = [json.dumps(label, ensure_ascii=False) for label in classes]
        if as_dict:
            names = ["names:", *(f"  {k}: {label}" for k, label in enumerate(quoted))]
        else:
            names = [f"nc: {len(classes)}", f"names: [{', '.join(quoted)}]"]
        text = "\n".join([*(line.format(folder.name) for line in lines), "", *names, ""])
        put(folder / name, "\ufeff" + text.replace("\n", "\r\n") if windows else text)

    return write


def _darknet(folder: Path, classes: list[str]) -> None:
    put_lines(folder / "obj.names", classes)
    lists = [f"{split} = data/{split}.txt" for split in ("train", "valid")]
    lines = [f"classes = {len(classes)}", *lists, "names = data/obj.names", "backup = backup/"]
    put_lines(folder / "obj.data", lines)


def _cvat_task(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
    _files("obj_train_data", "obj_train_data", names="obj.names", listing="train.txt")(
        folder, split, pictures, classes
    )
    lines = [f"classes = {len(classes)}", "train = data/train.txt", "names = data/obj.names", "backup = backup/"]
    put_lines(folder / "obj.data", lines)


def _numbered(pictures: Pictures) -> Pictures:
    """The pictures with the numbers of the classes, from 0, instead of their names."""
    return renamed(pictures, classes={name: str(k) for k, name in enumerate(class_names(pictures))})


_SPLITS = _files("labels/{}", "images/{}")
_ROBOFLOW = _files("{}/labels", "{}/images")
_FOLDERS = ("train: images/train", "val: images/val")
_PLAIN = _yaml(*_FOLDERS)

YOLO: dict[str, Layout] = {
    "yolo-splits": in_splits(_SPLITS, "images/train, labels/train, data.yaml with a list of names", once=_PLAIN),
    "yolo-roboflow": in_splits(
        _ROBOFLOW,
        "train/images, train/labels, data.yaml with train: ../train/images (Roboflow)",
        val="valid",
        once=_yaml("train: ../train/images", "val: ../valid/images", "test: ../test/images"),
    ),
    "yolo-roboflow-project": in_splits(
        _ROBOFLOW,
        "as yolo-roboflow, with train: My-Project-40/train/images (Roboflow in a notebook)",
        val="valid",
        once=_yaml("train: My-Project-40/train/images", "val: My-Project-40/valid/images"),
    ),
    "yolo-elsewhere": in_splits(
        _files("labels/{}", "images/{}", has_empty=False),
        "path: of another machine, a dict of names, no file of labels for empty pictures (Ultralytics)",
        once=_yaml("path: /home/someone/datasets/mine", *_FOLDERS, as_dict=True),
    ),
    "yolo-datasets": in_splits(
        _SPLITS,
        "path: ../datasets/ and the folder's name, a file that is not called data.yaml (Ultralytics)",
        once=_yaml("path: ../datasets/{}", *_FOLDERS, as_dict=True, name="mine.yaml"),
    ),
    "yolo-cvat-lists": in_splits(
        _cvat_lists,
        "data.yaml with lists, train.txt of images/train/... (CVAT, Ultralytics YOLO)",
        once=_yaml("path: ./", "train: train.txt", "val: val.txt", as_dict=True),
    ),
    "yolo-label-studio": in_one(_label_studio, "images/, labels/, classes.txt, notes.json (Label Studio)"),
    "yolo-labelimg": in_one(
        _files(".", ".", names="classes.txt"), "text files beside the images, classes.txt (labelImg)"
    ),
    "yolo-darknet": in_splits(
        _files("obj_train_data", "obj_train_data", listing="{}.txt"),
        "obj.data, obj.names, train.txt, valid.txt, all images in obj_train_data/ (darknet)",
        val="valid",
        once=_darknet,
    ),
    "yolo-cvat": in_splits(
        _files("obj_{}_data", "obj_{}_data", listing="{}.txt"),
        "obj.data, obj.names, train.txt, valid.txt, obj_train_data/, obj_valid_data/ (CVAT, YOLO 1.1, a project)",
        val="valid",
        once=_darknet,
    ),
    "yolo-cvat-task": in_one(
        _cvat_task, "obj.data, obj.names, train.txt of all images, obj_train_data/ (CVAT, YOLO 1.1, a task)"
    ),
    "yolo-roboflow-darknet": in_splits(
        _files("{}", "{}", names="{}/_darknet.labels"),
        "train/, valid/ with text files beside the images and _darknet.labels (Roboflow)",
        val="valid",
    ),
    "yolo-no-names": in_splits(
        _SPLITS,
        "images/train, labels/train and nothing else: the names of classes are not known",
        knows_names=False,
        as_written=_numbered,
    ),
    "yolo-confidence": in_splits(
        _files("labels/{}", "images/{}", shape=with_confidence),
        "as yolo-splits, lines with a confidence behind (predictions of Ultralytics)",
        once=_PLAIN,
    ),
    "yolo-polygons": in_splits(
        _files("labels/{}", "images/{}", shape=corners), "as yolo-splits, lines of four corners", once=_PLAIN
    ),
    "yolo-windows": in_splits(
        _SPLITS, "as yolo-splits, YAML with byte order mark and CR LF", once=_yaml(*_FOLDERS, windows=True)
    ),
    "yolo-scripts": in_splits(
        _SPLITS, "as yolo-splits, with names in several scripts and with spaces", once=_PLAIN, as_written=in_scripts
    ),
}
