"""A YOLO data set's ``data.yaml``: where its splits are, and the names of its classes.

The rules are those of :mod:`drloss.data.formats.yolo`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drloss.data.files.paths import require_inside
from drloss.data.files.survey import split_of_folder
from drloss.data.files.yaml import Plain, read_yaml
from drloss.data.source import VAL_NAMES
from drloss.errors import AbsentError, DataError, printable, shown, shown_path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class YoloData:
    """The content of a ``data.yaml``.

    Attributes:
        file: the YAML file, or the data file that says the same.
        root: the folder that relative paths in lists start from.
        class_names: K names.
        splits: split to its image folders and lists.
        absent: split to the message that its folder or list does not exist.
        notes: split to (kind, value) of the notes on how its folder was found.
        labels: split to the folder of the label files of each of its image folders, where it is not the usual one.
        keypoints: number of values that follow each box in a line, and are not read. 0 if longer lines are polygons,
            None if the file does not say.
    """

    file: Path
    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]
    keypoints: int | None = None
    absent: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    labels: dict[str, tuple[Path, ...]] = field(default_factory=dict)


def read_data_yaml(path: Path) -> YoloData:
    """Read a ``data.yaml``.

    Raises:
        DataError: with the key, the value and what is allowed, if the file cannot be used; or if no split exists.
    """
    content = read_yaml(path)
    file = printable(str(path))
    base = _string(file, content, "path")
    root = _root(path.parent, base) if base else path.parent
    splits: dict[str, tuple[Path, ...]] = {}
    absent: dict[str, str] = {}
    notes: dict[str, tuple[tuple[str, str], ...]] = {}
    for split in SPLITS:
        keys = [key for key in (VAL_NAMES if split == "val" else (split,)) if content.get(key)]
        value = content[keys[0]] if keys else None
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str) and v for v in values):
            raise DataError(f"{file}: {split}, got {shown(value)}; allowed: a path or a list of paths")
        try:
            found = [_existing(file, keys[0], root, path.parent, str(v)) for v in values]
        except AbsentError as error:
            absent[split] = str(error)
            continue
        splits[split] = tuple(p for p, _ in found)
        beside = [note for _, note in found if note]
        notes[split] = tuple(beside + [(f"key passed over, {keys[0]} is taken", key) for key in keys[1:]])
    if not splits:
        none = f"{file}: none of the keys {', '.join(SPLITS)}; allowed: at least one, with a path"
        raise DataError(next(iter(absent.values()), none))
    numbers = keypoint_numbers(file, content.get("kpt_shape"))
    return YoloData(path, root, _names(file, content), splits, numbers, absent, notes)


def keypoint_numbers(file: str, shape: object) -> int | None:
    """How many numbers the keypoints of a line have, from ``kpt_shape``: (K, 2) or (K, 3); None without it."""
    if shape is None:
        return None
    if isinstance(shape, list) and len(shape) == 2:
        sides = [int(s) if re.fullmatch("[0-9]{1,4}", s) else -1 for s in map(str, shape)]
        if sides == [0, 0] or (sides[0] > 0 and sides[1] in (2, 3)):
            return sides[0] * sides[1]
    allowed = "the number of keypoints, and 2 or 3; 0 and 0 for polygons"
    raise DataError(f"{file}: kpt_shape, got {shown(shape)}; allowed: {allowed}")


def _string(file: str, content: dict[str, Plain], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{file}: {key}, got {shown(value)}; allowed: a string")
    return value


def _root(folder: Path, base: str) -> Path:
    """The folder that ``path`` names, relative to the YAML file's.

    If there is none and ``path`` leads elsewhere, it is of another machine: then the longest end of it that is a
    folder in the YAML file's folder or beside it, or else the YAML file's folder.
    """
    elsewhere = base.startswith(("/", "\\", "..")) or base[1:2] == ":"
    if os.path.isdir(folder / base) or not elsewhere:
        return folder / base
    return next((found for found in _ends(base, folder, several=False) if os.path.isdir(found)), folder)


def _ends(value: str, folder: Path, *, several: bool) -> Iterator[Path]:
    """The ends of a path, the longest first, each in the folder and beside it.

    If ``several``, the last part alone is not enough, unless it is the name of a split.
    """
    parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for first in range(len(parts)):
        if several and first == len(parts) - 1 and not split_of_folder(parts[-1]):
            return
        for base in (folder, Path(os.path.abspath(folder)).parent):
            yield base.joinpath(*parts[first:])


def _existing(file: str, key: str, root: Path, folder: Path, value: str) -> tuple[Path, tuple[str, str] | None]:
    """The folder or list of a split; and a note, if it was found in a place that the file does not name.

    See the format's rules on ``../train/images`` and on paths of other machines.
    """
    candidates = [root / value]
    if value.startswith("../") and not value.startswith("../.."):
        candidates.insert(0, root / value[3:])
    there = [path for path in candidates if os.path.exists(path)]  # Path.exists raises on names that are too long
    if there:
        require_inside(there[0], root)
        beside = "folder in the data set, not the one beside it, is taken"
        return there[0], (beside, value) if len(there) > 1 else None
    for path in (*_ends(value, root, several=True), *_ends(value, folder, several=True)):
        if os.path.exists(path):
            require_inside(path, root)
            return path, ("path of another place, found by its end", value)
    looked = " or ".join(map(shown_path, candidates))
    raise AbsentError(f"{file}: {key}, got {shown(value)}; allowed: a folder or list that exists (not {looked})")


def _names(file: str, content: dict[str, Plain]) -> tuple[str, ...]:
    names, nc = content.get("names"), _string(file, content, "nc")
    if isinstance(names, dict):
        order = [str(k) for k in range(len(names))]
        if set(names) != set(order):
            raise DataError(f"{file}: keys of names, got {shown(list(names))}; allowed: 0 to {len(names) - 1}")
        names = [names[k] for k in order]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise DataError(f"{file}: names, got {shown(names)}; allowed: a list of class names, or a dict of 0..K-1")
    if nc is not None and nc != str(len(names)):
        raise DataError(f"{file}: nc, got {shown(nc)}; allowed: {len(names)}, the number of names")
    return tuple(str(n) for n in names)
