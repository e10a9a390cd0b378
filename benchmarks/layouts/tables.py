"""CSV tables as tools lay them out."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.layouts.pictures import Layout, Picture, WriteSplit, in_one, in_splits, put, save_images

TENSORFLOW = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_FLAGS = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
OPEN_IMAGES = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", *_FLAGS)


def _put_csv(path: Path, rows: Iterable[Sequence[Any]], delimiter: str = ",") -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    put(path, text.getvalue())


def _tensorflow(table: str, images: str, delimiter: str = ",") -> WriteSplit:
    """Writes a table with TensorFlow's columns, and the images; ``{}`` in their names is the split."""

    def write(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
        save_images(folder / images.format(split), pictures)
        rows = [(p.name, p.width, p.height, *box) for p in pictures for box in p.boxes]
        _put_csv(folder / table.format(split), [TENSORFLOW, *rows], delimiter)

    return write


def _retinanet(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
    save_images(folder / "images", pictures)
    rows: list[Sequence[Any]] = []
    for picture in pictures:
        path = f"images/{picture.name}"
        rows += [(path, x1, y1, x2, y2, name) for name, x1, y1, x2, y2 in picture.boxes] or [(path, *[""] * 5)]
    _put_csv(folder / f"{split}.csv", rows)


def _retinanet_classes(folder: Path, classes: list[str]) -> None:
    _put_csv(folder / "classes.csv", [(name, k) for k, name in enumerate(classes)])


def _open_images(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
    save_images(folder / split, pictures)
    rows = []
    for p in pictures:
        for name, x1, y1, x2, y2 in p.boxes:
            shares = (x1 / p.width, x2 / p.width, y1 / p.height, y2 / p.height)
            rows.append((p.stem, "xclick", _machine_id(classes, name), 1, *shares, *[0] * len(_FLAGS)))
    _put_csv(folder / f"{split}-annotations-bbox.csv", [OPEN_IMAGES, *rows])


def _open_images_classes(folder: Path, classes: list[str]) -> None:
    _put_csv(folder / "class-descriptions-boxable.csv", [(_machine_id(classes, name), name) for name in classes])


def _machine_id(classes: list[str], name: str) -> str:
    """What Open Images calls a class in its tables."""
    return f"/m/01b{classes.index(name)}x"


TABLES: dict[str, Layout] = {
    "csv-tensorflow": in_splits(
        _tensorflow("{}_labels.csv", "images/{}"),
        "train_labels.csv, images/train (TensorFlow's tutorial)",
        keeps_empty=False,
    ),
    "csv-data": in_splits(
        _tensorflow("data/{}_labels.csv", "images"),
        "data/train_labels.csv, images/ with all images (TensorFlow's tutorial)",
        keeps_empty=False,
    ),
    "csv-labels": in_one(_tensorflow("data/labels.csv", "images"), "data/labels.csv, images/", keeps_empty=False),
    "csv-roboflow": in_splits(
        _tensorflow("{}/_annotations.csv", "{}"),
        "train/_annotations.csv beside the images (Roboflow)",
        val="valid",
        keeps_empty=False,
    ),
    "csv-semicolons": in_one(
        _tensorflow("labels.csv", "images", ";"), "labels.csv with semicolons, images/", keeps_empty=False
    ),
    "csv-retinanet": in_splits(
        _retinanet,
        "train.csv without header and with rows for empty pictures, classes.csv, images/ (keras-retinanet)",
        once=_retinanet_classes,
    ),
    "csv-open-images": in_splits(
        _open_images,
        "train-annotations-bbox.csv, class-descriptions-boxable.csv, train/, validation/ (Open Images)",
        val="validation",
        keeps_empty=False,
        once=_open_images_classes,
    ),
}
