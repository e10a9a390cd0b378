"""Pictures with boxes, and what every layout is written with.

A layout is made of functions that write one split; :func:`in_splits` and :func:`in_one` make the whole of them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

NAMES = ("blue", "green", "red")
_COLOURS = ((40, 60, 220), (40, 200, 60), (220, 50, 40))
_SIZES = ((96, 96), (80, 128), (112, 80))
"""Height and width of the pictures, in turn."""
_CELLS = 2
"""A picture has so many cells a side, and at most one box in each of them."""


@dataclass(frozen=True)
class Picture:
    """A picture with its boxes.

    Attributes:
        name: file name, e.g. ``"a01.jpg"``; no two pictures of a data set share it.
        pixels: (H, W, 3).
        boxes: class name and x1, y1, x2, y2 in whole pixels, counted from 0; at least one pixel from the border.
    """

    name: str
    pixels: npt.NDArray[np.uint8]
    boxes: list[tuple[str, int, int, int, int]]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


Pictures = dict[str, list[Picture]]
"""The pictures of the splits ``train`` and ``val``."""
WriteSplit = Callable[[Path, str, list[Picture], list[str]], None]
"""Writes one split: folder, the split's name in this layout, its pictures, all class names of the data set."""


def unchanged(pictures: Pictures) -> Pictures:
    return pictures


@dataclass(frozen=True)
class Layout:
    """One way to lay a data set out in files.

    Attributes:
        write: writes pictures into a new folder, and returns what ``--data`` is given.
        splits: ``"both"``: train and val can be told apart; ``"none"``: all pictures are one set.
        keeps_empty: pictures without boxes are written; else they are left out.
        says: what it is, and which tool writes it.
        knows_names: the files have the names of the classes.
        as_written: the pictures with the file and class names that the files have.
    """

    write: Callable[[Path, Pictures], Path]
    splits: Literal["both", "none"]
    keeps_empty: bool
    says: str
    knows_names: bool = True
    as_written: Callable[[Pictures], Pictures] = unchanged


def in_splits(
    write_split: WriteSplit,
    says: str,
    *,
    train: str = "train",
    val: str = "val",
    keeps_empty: bool = True,
    once: Callable[[Path, list[str]], None] | None = None,
    knows_names: bool = True,
    as_written: Callable[[Pictures], Pictures] = unchanged,
) -> Layout:
    """A layout that has the two splits apart.

    Args:
        write_split: writes one of them.
        train, val: what they are called.
        once: writes what the data set has once, of its folder and its class names.
    """
    called = {"train": train, "val": val}

    def write(folder: Path, pictures: Pictures) -> Path:
        pictures = as_written(pictures)
        classes = class_names(pictures)
        folder.mkdir(parents=True)
        for split, own in pictures.items():
            write_split(folder, called[split], _listed(own, keeps_empty), classes)
        if once:
            once(folder, classes)
        return folder

    return Layout(write, "both", keeps_empty, says, knows_names, as_written)


def in_one(
    write_all: WriteSplit,
    says: str,
    *,
    keeps_empty: bool = True,
    as_written: Callable[[Pictures], Pictures] = unchanged,
) -> Layout:
    """A layout without splits: ``write_all`` gets all pictures as the split ``all``."""

    def write(folder: Path, pictures: Pictures) -> Path:
        pictures = as_written(pictures)
        folder.mkdir(parents=True)
        every = [picture for own in pictures.values() for picture in own]
        write_all(folder, "all", _listed(every, keeps_empty), class_names(pictures))
        return folder

    return Layout(write, "none", keeps_empty, says, as_written=as_written)


def pictures(train: int = 12, val: int = 6) -> Pictures:
    """Coloured rectangles on noise, the same ones in every call.

    The first picture of a split has all classes, in another order than the alphabet's. The last one has no box.
    """
    return {"train": _split("a", train), "val": _split("b", val)}


def class_names(pictures: Pictures) -> list[str]:
    """The names of the classes that have boxes, in alphabetical order."""
    return sorted({name for own in pictures.values() for picture in own for name, *_ in picture.boxes})


def renamed(
    pictures: Pictures, *, name: Callable[[int, Picture], str] | None = None, classes: Mapping[str, str] | None = None
) -> Pictures:
    """The pictures under other names.

    Args:
        name: the new file name, of the picture's number in its split and the picture.
        classes: from the old to the new name of the classes that get one.
    """
    called = classes or {}
    return {
        split: [
            replace(
                p,
                name=name(i, p) if name else p.name,
                boxes=[(called.get(label, label), x1, y1, x2, y2) for label, x1, y1, x2, y2 in p.boxes],
            )
            for i, p in enumerate(own)
        ]
        for split, own in pictures.items()
    }


def save_images(folder: Path, pictures: Iterable[Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        Image.fromarray(picture.pixels).save(folder / picture.name, format="JPEG", quality=95)


def put(path: Path, text: str) -> None:
    """Write a text as UTF-8, with the line ends that it has, and make the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def put_lines(path: Path, lines: Iterable[str]) -> None:
    put(path, "".join(f"{line}\n" for line in lines))


def put_json(path: Path, content: Any) -> None:
    put(path, json.dumps(content, ensure_ascii=False))


def _listed(own: list[Picture], keeps_empty: bool) -> list[Picture]:
    return [picture for picture in own if keeps_empty or picture.boxes]


def _split(prefix: str, count: int) -> list[Picture]:
    return [_picture(f"{prefix}{i + 1:02}.jpg", ord(prefix), i, empty=i == count - 1) for i in range(count)]


def _picture(name: str, seed: int, index: int, empty: bool) -> Picture:
    rng = np.random.default_rng((seed, index))
    height, width = _SIZES[index % len(_SIZES)]
    pixels = rng.integers(90, 150, (height, width, 3), dtype=np.uint8)
    count = 0 if empty else len(NAMES) if index == 0 else int(rng.integers(1, _CELLS**2 + 1))
    boxes = []
    for j, cell in enumerate(rng.permutation(_CELLS**2)[:count].tolist()):
        row, column = divmod(cell, _CELLS)
        x1, x2 = _side(rng, column, width)
        y1, y2 = _side(rng, row, height)
        label = (2 + index + j) % len(NAMES)
        pixels[y1:y2, x1:x2] = _COLOURS[label]
        boxes.append((NAMES[label], x1, y1, x2, y2))
    return Picture(name, pixels, boxes)


def _side(rng: np.random.Generator, cell: int, length: int) -> tuple[int, int]:
    """Where a box starts and ends inside a cell, along a side of this length."""
    cell_length = length // _CELLS
    size = int(rng.integers(8, cell_length - 3))
    start = cell * cell_length + int(rng.integers(1, cell_length - size))
    return start, start + size
