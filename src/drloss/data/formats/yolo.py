"""YOLO data sets: a ``data.yaml``, folders or lists of images, and one text file of labels per image.

Rules:

- ``names`` is a list, or a dict of 0..K-1; ``nc``, if given, must agree. ``path`` is relative to the YAML file, and
  ``train``, ``val`` (also ``valid``, ``validation``) and ``test`` to ``path``; each is a folder (read with its
  subfolders), a ``.txt`` list of images, or a list of those. Other keys are passed over: nothing is downloaded or
  executed.
- The labels of ``.../images/x.jpg`` are ``.../labels/x.txt`` (the last folder named ``images`` counts), or ``x.txt``
  beside the image. No such file: an image without objects, which is noted. No label file for any image is an error.
- In a folder of images, a label file (by its content) that no image takes is refused with its boxes: no image of that
  name, or another label file of it taken before. Files that are no images by their suffix, and folders that are
  links, are noted.
- ``train: ../train/images`` is what exports of Roboflow write for the folder ``train/images`` in the data set. It is
  taken if it is there, which is noted where the folder beside the data set is there as well.
- Of the splits that the YAML file names, those that are read have to be there.
- A line is ``class cx cy w h``, in shares of the image's width and height, within 0..1. A longer line is a polygon,
  ``class x1 y1 x2 y2 x3 y3 ...``; its bounding box is taken, which is noted. Where the YAML file has ``kpt_shape``,
  K keypoints of 2 or 3 numbers, a longer line is a pose: they follow the four numbers of the box and are passed over,
  which is noted. ``kpt_shape: [0, 0]`` says that longer lines are polygons.
- Without ``kpt_shape``, a split whose longer lines may all be poses is refused, because a pose read as a polygon is a
  wrong box. A line may be one if the first four numbers are a box within the image and all further points lie in it
  (to 0.01; missing ones at 0 0 aside). A split may if three in four of its longer lines do, with the same number of
  columns. About one polygon in four passes for a pose, so that hardly ever three in four of a split do. A line of an
  even number of columns is no polygon, and a pose of 3 numbers a keypoint if it may be one.
- Sizes come from the image headers, after EXIF rotation.
- The YAML file is at most 1 MB, without anchors, aliases or tags. Label files are at most 10 MB.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import Box
from drloss.data.checks.problems import Report
from drloss.data.files.paths import (
    Inside,
    Listing,
    clean_name,
    common_folder,
    list_files,
    passed_over,
    require_inside,
    suffix_of,
)
from drloss.data.files.reading import Most, read_lines
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.formats.yolo_yaml import YoloData
from drloss.data.images.decoding import header_size, quiet
from drloss.errors import DataError, printable

_MAX_LABEL_BYTES = 10 * 1024**2
_MAX_LIST_BYTES = 256 * 1024**2
_MAX_LINES = {b"\n": Most(2_000_000), b"\r": Most(2_000_000)}
"""Of a list of images."""
_AT_ONCE = 10_000
"""Images whose headers are asked for at a time."""
_TOLERANCE = 1e-6
"""By which a share may pass 0 or 1: files have about six digits."""
_SLACK, _MOST = 0.01, 0.75
"""Of what may be a pose: by how much points may leave the box, and the box the image; the share of the lines."""


def read_yolo(name: str, data: YoloData, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
    """Read one split.

    Args:
        name: what messages call it.
        data: from :func:`drloss.data.formats.yolo_yaml.open_yolo`.
        split: a key of ``data.splits``.
        strict: raise at the first problem once everything is read, instead of leaving bad records out.

    Raises:
        DataError: if a list cannot be read, if no image has labels, or as ``strict`` says.
    """
    sources = data.splits[split]
    folders = [_folder(path, data.root) for path in sources]
    root = common_folder([data.root, *folders])
    ids = range(len(data.class_names))
    builder = AnnotationsBuilder(name, data.class_names, ids, root, str(data.file))
    reader = _Reader(builder, root, data.keypoints)
    for kind, value in data.notes.get(split, ()):
        builder.note(str(data.file), split, kind, value)
    listings: list[tuple[Path, Listing]] = []
    for source, folder in zip(sources, folders, strict=True):
        reader.named = common_folder([source]) if source.is_dir() else folder
        listing = Listing() if source.is_file() else list_files(source)
        entries = _listed(source, data.root) if source.is_file() else _in_folder(source, listing.images)
        with quiet(), ThreadPoolExecutor(8) as pool:
            while part := list(islice(entries, _AT_ONCE)):
                sizes = pool.map(partial(_header, Inside(folder)), part)
                for (file, record, image), size in zip(part, sizes, strict=True):
                    reader.image(file, record, folder, image, size)
        listings.append((source, listing))
    for source, listing in listings:
        if not source.is_file():
            reader.account(common_folder([source]), listing)
    if reader.images and not reader.labelled:
        raise DataError(
            f"{printable(name)}: no label file for any of {reader.images:,} images, looked for {reader.looked_for}; "
            "allowed: labels/x.txt for images/x.jpg, or x.txt beside x.jpg"
        )
    reader.refuse_poses(data.file)
    return builder.finish(strict=strict)


def _folder(source: Path, root: Path) -> Path:
    """The folder of a source's images; where it is a link out of ``root``, the one that is meant."""
    folder = common_folder([source if source.is_dir() else root])
    try:
        require_inside(folder, root)
    except DataError:
        return Path(os.path.realpath(folder))
    return folder


_Entry = tuple[str, str, str]
"""File and record that list an image, and its name relative to its folder (as it stands, unchecked)."""


def _in_folder(folder: Path, names: list[str]) -> Iterator[_Entry]:
    if not names:
        raise DataError(f"{printable(str(folder))}: no image file in this folder or below")
    return ((str(folder / name), "", name) for name in names)


def _listed(path: Path, root: Path) -> Iterator[_Entry]:
    """Lines of a list: relative to the list's folder or to ``root``, or absolute below ``root``."""
    file = str(path)
    for k, line in enumerate(read_lines(path, _MAX_LIST_BYTES, _MAX_LINES), start=1):
        text = line.strip()
        if not text:
            continue
        name = text
        if text.startswith("/") and "\0" not in text:
            name = text.removeprefix(f"{common_folder([root])}/")
        elif path.parent != root and _is_file(path.parent, text) and not _is_file(root, text):
            name = (common_folder([path.parent]) / text).as_posix().removeprefix(f"{common_folder([root])}/")
        yield file, f"line {k}", name


def _is_file(folder: Path, name: str) -> bool:
    try:
        return os.path.isfile(folder / clean_name(name))
    except ValueError:
        return False


def _header(inside: Inside, entry: _Entry) -> tuple[int, int] | DataError | None:
    """Height and width, or why there are none; None for names that lead elsewhere, which the builder refuses."""
    try:
        clean = clean_name(entry[2])
        return header_size(inside.root / clean) if inside(clean) else None
    except ValueError:
        return None
    except DataError as error:
        return error


class _Reader:
    """Hands images and their labels to the builder."""

    def __init__(self, builder: AnnotationsBuilder, root: Path, keypoints: int | None) -> None:
        self.builder = builder
        self.root = root
        self.named = root  # the folder of the images as it is named, by which their labels are found
        self.keypoints = keypoints
        self.images = 0
        self.labelled = 0
        self.looked_for: Path | None = None
        self.taken: dict[str, str] = {}  # label file to the image that took it first
        self.long_lines = 0
        self.poses: Counter[int] = Counter()
        self.first_pose: dict[int, str] = {}

    def image(
        self, file: str, record: str, folder: Path, name: str, size: tuple[int, int] | DataError | None
    ) -> None:
        self.images += 1
        key = self.images
        bad: tuple[str, object, str] | None = None
        if isinstance(size, DataError):
            bad = ("image not readable", size, "an image file")
        height, width = size if isinstance(size, tuple) else (1, 1)
        lines: list[str] = []
        label: Path | None = None
        refused = False
        try:
            label = self._label_file(clean_name(name))
            if label is not None:
                lines = read_lines(label, _MAX_LABEL_BYTES)
        except ValueError:  # the builder refuses the name
            refused = True
        except DataError as error:
            bad = bad or ("label file not readable", error, "a text file")
        add = self.builder.add_image
        add(file, record, key=key, name=name, height=height, width=width, folder=folder, bad=bad)
        if label is None and bad is None and not refused:
            self.builder.note(file, record, "image without a label file, taken as without objects")
        self.labelled += label is not None or bad is not None
        for k, line in enumerate(lines, start=1):
            if line.strip():
                self._line(str(label), f"line {k}", key, line.split(), size=(height, width))

    def _label_file(self, name: str) -> Path | None:
        path = self.named / name
        candidates = [p.with_suffix(suffix) for p in (_of_labels(path), path) if p for suffix in (".txt", ".TXT")]
        self.looked_for = self.looked_for or candidates[0]
        found = next((c for c in candidates if os.path.isfile(c)), None)
        if found is not None:
            if self.taken.setdefault(str(found), name) != name:
                self.builder.note(str(found), "", "label file of several images", name)
            base = self.root if found.is_relative_to(self.root) else found.parent
            if not Inside(base)(found.relative_to(base).as_posix()):
                raise DataError(f"{printable(str(found))}: a link out of {printable(str(base))}")
        return found

    def account(self, folder: Path, listing: Listing) -> None:
        """Account for what a folder of images, and that of its labels, have and no image took."""
        note = self.builder.note
        for name in listing.links:
            note(str(folder / name), "", "folder that is a link, not searched")
        for name in listing.others:
            if suffix_of(name) != ".txt":
                note(str(folder / name), "", passed_over(name))
        places = [(folder, listing)]
        labels = _of_labels(folder / "x")
        if labels is not None:
            places.append((labels.parent, list_files(labels.parent)))
        for place, files in places:
            for name in files.with_suffix(".txt"):
                path = place / name
                if str(path) not in self.taken:
                    self.taken[str(path)] = ""
                    self._not_taken(path)

    def _not_taken(self, path: Path) -> None:
        base = self.root if path.is_relative_to(self.root) else path.parent
        try:
            if not Inside(base)(path.relative_to(base).as_posix()):
                raise DataError("a link out of the data set")
            rows = [words for line in read_lines(path, _MAX_LABEL_BYTES) if (words := line.split())]
        except DataError as error:
            self.builder.note(str(path), "", "label file that no image takes, not readable", error)
            return
        if not rows:
            self.builder.note(str(path), "", "label file without a line that no image takes")
        elif any(len(row) >= 5 and all(_number(word) is not None for word in row) for row in rows):
            kind, allowed = "label file that no image takes", "an image of that name, and one label file for each"
            self.builder.drop_box(str(path), "", kind, f"{len(rows):,} lines", allowed, boxes=len(rows))

    def refuse_poses(self, data_file: Path) -> None:
        """Raise if longer lines may be polygons as well as poses, by the module's rule."""
        columns = max(self.poses, key=self.poses.__getitem__, default=0)
        if columns and self.poses[columns] >= _MOST * self.long_lines:
            file, rest = printable(str(data_file)), columns - 5
            shapes = [f"[{rest // size}, {size}]" for size in (3, 2) if rest % size == 0]
            raise DataError(
                f"{self.first_pose[columns]}: a pose or a polygon, got {columns} columns, as in "
                f"{self.poses[columns]:,} such lines: they look like poses, a box and keypoints in it, and the key "
                f"kpt_shape is missing; allowed: either, with kpt_shape in {file}: {' or '.join(shapes)} for poses, "
                "[0, 0] for polygons"
            )

    def _line(self, file: str, record: str, key: int, words: list[str], *, size: tuple[int, int]) -> None:
        drop = self.builder.drop_box
        if self.keypoints and len(words) == 5 + self.keypoints:
            self.builder.note(file, record, "keypoints, which are not read")
            words = words[:5]
        allowed = "class cx cy w h, or class and at least three points; for poses, kpt_shape in the data file"
        if self.keypoints is None and len(words) > 5:
            self._count_long(f"{printable(file)}: {record}", words)
        if self.keypoints:
            allowed = f"class cx cy w h, and {self.keypoints} numbers of keypoints or none, by kpt_shape"
        if len(words) != 5 and (self.keypoints or len(words) < 7 or len(words) % 2 == 0):
            drop(file, record, "number of columns", f"{len(words)} columns", allowed)
            return
        values = [_number(word) for word in words]
        for word, value in zip(words, values, strict=True):
            if value is None or not isfinite(value):
                drop(file, record, "not a number", word, "finite numbers")
                return
        numbers = [v for v in values if v is not None]
        category, shares = numbers[0], numbers[1:]
        outside = next((v for v in shares if not -_TOLERANCE <= v <= 1 + _TOLERANCE), None)
        if outside is not None:
            drop(file, record, "coordinate outside 0..1", outside, "shares of the image's width and height")
            return
        if len(shares) > 4:
            self.builder.note(file, record, "polygon, of which the bounding box is taken")
        box = _xyxy(shares, *size)
        self.builder.add_box(file, record, key=key, category=category, box=box)

    def _count_long(self, where: str, words: list[str]) -> None:
        """Count a line that may be a polygon or a pose."""
        shares = [value for word in words[1:] if (value := _number(word)) is not None and isfinite(value)]
        if len(shares) != len(words) - 1 or len(shares) < 6:
            return
        pose = _may_be_pose(shares)
        self.long_lines += pose or len(words) % 2
        if pose:
            self.poses[len(words)] += 1
            self.first_pose.setdefault(len(words), where)


def _of_labels(path: Path) -> Path | None:
    """``path`` with ``labels`` for the last folder named ``images``, if there is one."""
    parts = path.parts
    if "images" not in parts[:-1]:
        return None
    last = len(parts) - 2 - parts[:-1][::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _may_be_pose(shares: Sequence[float]) -> bool:
    """Whether the first four numbers are a box within the image that holds all points after them."""
    x, y, w, h = shares[:4]
    left, right, top, bottom = x - w / 2 - _SLACK, x + w / 2 + _SLACK, y - h / 2 - _SLACK, y + h / 2 + _SLACK
    if min(w, h) <= 0 or min(left, top) < -2 * _SLACK or max(right, bottom) > 1 + 2 * _SLACK:
        return False
    rest = shares[4:]
    for size in (2, 3):
        if len(rest) % size == 0 and (size == 2 or {0, 1, 2}.issuperset(rest[2::3])):
            points = zip(rest[::size], rest[1::size], strict=True)
            if all((left <= px <= right and top <= py <= bottom) or px == py == 0 for px, py in points):
                return True
    return False


def _number(word: str) -> float | None:
    if not word.isascii() or "_" in word:
        return None
    try:
        return float(word)
    except ValueError:
        return None


def _xyxy(shares: Sequence[float], height: int, width: int) -> Box:
    """Pixels from cx, cy, w, h or from the points of a polygon."""
    if len(shares) == 4:
        x, y, w, h = shares
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        xs, ys = shares[::2], shares[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return x1 * width, y1 * height, x2 * width, y2 * height
