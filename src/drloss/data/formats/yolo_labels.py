"""YOLO's label files: which file belongs to an image, and what its lines mean.

The rules are those of :mod:`drloss.data.formats.yolo`.
"""

import os
from collections import Counter
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from drloss.data.checks.boxes import Box, number_in_text
from drloss.data.files.paths import Inside, Listing, clean_name, list_files, suffix_of, why_not_read
from drloss.data.files.reading import read_lines
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.errors import DataError, printable

_MAX_BYTES = 10 * 1024**2
_TOLERANCE = 1e-6
"""How far a share may lie outside 0..1: files have about six digits."""
_CONFIDENCE = "a sixth number, a confidence by its looks (are these a detector's boxes?), not read"
_POSE_SLACK = 0.01
"""How far, as a share, the points of a pose may lie outside its box, and the box outside the image."""
_POSE_SHARE = 0.75
"""A split is refused if at least this share of its longer lines look like poses."""


class LabelReader:
    """Passes the images of a split and the boxes of their label files to the builder.

    Args:
        builder: takes the images and boxes.
        root: the folder of the data set; label files in it may not be links that lead out of it.
        keypoints: as in :class:`drloss.data.formats.yolo_yaml.YoloData`.

    Attributes:
        image_folder: the folder that image names are relative to when their label files are looked for.
        label_folder: the folder of their label files, with the same subfolders, if it is not the usual one.
        images: number of images so far.
        labelled: number of images so far that have a label file or cannot be read.
        looked_for: the first label file that was looked for.
    """

    def __init__(self, builder: AnnotationsBuilder, root: Path, keypoints: int | None) -> None:
        self.builder = builder
        self.root = root
        self.image_folder = root
        self.label_folder: Path | None = None
        self.keypoints = keypoints
        self.images = 0
        self.labelled = 0
        self.looked_for: Path | None = None
        self._owner: dict[str, str] = {}  # label file to the first image that has it
        self._long_lines = 0
        self._poses: Counter[int] = Counter()  # number of columns to lines that look like poses
        self._first_pose: dict[int, str] = {}

    def image(
        self, file: str, record: str, folder: Path, name: str, size: tuple[int, int] | DataError | None
    ) -> None:
        """Add an image and the boxes of its label file.

        Args:
            file, record: where the image is listed.
            folder: folder of the image.
            name: its name, relative to ``folder``, unchecked.
            size: height and width in pixels, or why the image cannot be read; None if the name is not allowed.
        """
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
                lines = read_lines(label, _MAX_BYTES)
        except ValueError:  # the builder refuses the name
            refused = True
        except DataError as error:
            bad = bad or ("label file not readable", error.with_traceback(None), "a text file")
        add = self.builder.add_image
        add(file, record, key=key, name=name, height=height, width=width, folder=folder, bad=bad)
        if label is None and bad is None and not refused:
            self.builder.note(file, record, "image without a label file, taken as without objects")
        self.labelled += label is not None or bad is not None
        for k, line in enumerate(lines, start=1):
            if line.strip():
                self._line(str(label), f"line {k}", key, line.split(), size=(height, width))

    def _label_file(self, name: str) -> Path | None:
        path = self.image_folder / name
        places = (_of_labels(path), path) if self.label_folder is None else (self.label_folder / name,)
        candidates = [p.with_suffix(suffix) for p in places if p for suffix in (".txt", ".TXT")]
        self.looked_for = self.looked_for or candidates[0]
        found = next((c for c in candidates if os.path.isfile(c)), None)
        if found is not None:
            if self._owner.setdefault(str(found), name) != name:
                self.builder.note(str(found), "", "label file of several images", name)
            base = self.root if found.is_relative_to(self.root) else found.parent
            if not Inside(base)(found.relative_to(base).as_posix()):
                raise DataError(f"{printable(str(found))}: a link out of {printable(str(base))}")
        return found

    def report_unread(self, folder: Path, listing: Listing) -> None:
        """Report the files of a folder of images, and of the folder of their labels, that belong to no image."""
        note = self.builder.note
        for name in listing.links:
            note(str(folder / name), "", "folder that is a link, not searched")
        for name in listing.others:
            if suffix_of(name) != ".txt":
                note(str(folder / name), "", why_not_read(name))
        places = [(folder, listing)]
        usual = _of_labels(folder / "x")
        labels = self.label_folder if self.label_folder is not None else None if usual is None else usual.parent
        if labels is not None:
            places.append((labels, list_files(labels)))
        for place, files in places:
            for name in files.with_suffix(".txt"):
                path = place / name
                if str(path) not in self._owner:
                    self._owner[str(path)] = ""
                    self._without_image(path)

    def _without_image(self, path: Path) -> None:
        """Leave out the boxes of a text file that no image has, if it is a label file."""
        base = self.root if path.is_relative_to(self.root) else path.parent
        try:
            if not Inside(base)(path.relative_to(base).as_posix()):
                raise DataError("a link out of the data set")
            rows = [words for line in read_lines(path, _MAX_BYTES) if (words := line.split())]
        except DataError as error:
            self.builder.note(str(path), "", "label file that no image takes, not readable", error)
            return
        if not rows:
            self.builder.note(str(path), "", "label file without a line that no image takes")
        elif any(len(row) >= 5 and all(number_in_text(word) is not None for word in row) for row in rows):
            kind, allowed = "label file that no image takes", "an image of that name, and one label file for each"
            self.builder.drop_box(str(path), "", kind, f"{len(rows):,} lines", allowed, boxes=len(rows))

    def _line(self, file: str, record: str, key: int, words: list[str], *, size: tuple[int, int]) -> None:
        drop = self.builder.drop_box
        if self.keypoints and len(words) == 5 + self.keypoints:
            self.builder.note(file, record, "keypoints, which are not read")
            words = words[:5]
        if len(words) == 6 and _is_share(words[5]):
            self.builder.note(file, record, _CONFIDENCE)
            words = words[:5]
        allowed = "class cx cy w h, or class and at least three points; for poses, kpt_shape in the data file"
        if self.keypoints is None and len(words) > 5:
            self._count_long(f"{printable(file)}: {record}", words)
        if self.keypoints:
            allowed = f"class cx cy w h, and {self.keypoints} numbers of keypoints or none, by kpt_shape"
        if len(words) != 5 and (self.keypoints or len(words) < 7 or len(words) % 2 == 0):
            drop(file, record, "number of columns", f"{len(words)} columns", allowed)
            return
        values = [number_in_text(word) for word in words]
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

    # ------------------------------------------------------------------ polygons or poses

    def _count_long(self, where: str, words: list[str]) -> None:
        """Count a line that may be a polygon or a pose."""
        shares = [value for word in words[1:] if (value := number_in_text(word)) is not None and isfinite(value)]
        if len(shares) != len(words) - 1 or len(shares) < 6:
            return
        pose = _may_be_pose(shares)
        self._long_lines += pose or len(words) % 2
        if pose:
            self._poses[len(words)] += 1
            self._first_pose.setdefault(len(words), where)

    def refuse_poses(self, data_file: Path) -> None:
        """Raise :class:`DataError` if the longer lines may be poses as well as polygons, by the format's rule."""
        columns = max(self._poses, key=self._poses.__getitem__, default=0)
        if columns and self._poses[columns] >= _POSE_SHARE * self._long_lines:
            file, rest = printable(str(data_file)), columns - 5
            shapes = [f"[{rest // size}, {size}]" for size in (3, 2) if rest % size == 0]
            raise DataError(
                f"{self._first_pose[columns]}: a pose or a polygon, got {columns} columns, as in "
                f"{self._poses[columns]:,} such lines: they look like poses, a box and keypoints in it, and the key "
                f"kpt_shape is missing; allowed: either, with kpt_shape in {file}: {' or '.join(shapes)} for poses, "
                "[0, 0] for polygons"
            )


def _of_labels(path: Path) -> Path | None:
    """``path`` with ``labels`` in place of the last folder named ``images``; None if there is no such folder."""
    parts = path.parts
    if "images" not in parts[:-1]:
        return None
    last = len(parts) - 2 - parts[:-1][::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _is_share(word: str) -> bool:
    value = number_in_text(word)
    return value is not None and 0 <= value <= 1


def _may_be_pose(shares: Sequence[float]) -> bool:
    """Whether the first four numbers are a box within the image that holds all points after them."""
    x, y, w, h = shares[:4]
    left, right = x - w / 2 - _POSE_SLACK, x + w / 2 + _POSE_SLACK
    top, bottom = y - h / 2 - _POSE_SLACK, y + h / 2 + _POSE_SLACK
    if min(w, h) <= 0 or min(left, top) < -2 * _POSE_SLACK or max(right, bottom) > 1 + 2 * _POSE_SLACK:
        return False
    rest = shares[4:]
    for size in (2, 3):
        if len(rest) % size == 0 and (size == 2 or {0, 1, 2}.issuperset(rest[2::3])):
            points = zip(rest[::size], rest[1::size], strict=True)
            if all((left <= px <= right and top <= py <= bottom) or px == py == 0 for px, py in points):
                return True
    return False


def _xyxy(shares: Sequence[float], height: int, width: int) -> Box:
    """The box in pixels, from cx, cy, w, h or from the points of a polygon."""
    if len(shares) == 4:
        x, y, w, h = shares
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        xs, ys = shares[::2], shares[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return x1 * width, y1 * height, x2 * width, y2 * height
