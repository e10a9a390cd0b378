"""YOLO data sets: a ``data.yaml``, folders or lists of images, and one text file of labels per image.

Rules:

- ``names`` is a list, or a dict of 0..K-1; ``nc``, if given, must agree. ``path`` is relative to the YAML file, and
  ``train``, ``val`` (also ``valid``, ``validation``) and ``test`` to ``path``. Each of these is a folder (read with
  its subfolders), a ``.txt`` list of images, or a list of those. Other keys are ignored: nothing is downloaded or
  executed.
- The labels of ``.../images/x.jpg`` are in ``.../labels/x.txt`` (the last folder named ``images`` counts), or in
  ``x.txt`` beside the image. An image without such a file has no objects, which is noted. At least one image must
  have such a file.
- A label file (recognised by its content) in a folder of images that belongs to no image is refused with its boxes:
  there is no image of that name, or the image has another label file. Files that are no images by their suffix, and
  folders that are links, are noted.
- ``train: ../train/images`` is what exports of Roboflow write for the folder ``train/images`` in the data set. That
  folder is used if it exists. If the folder beside the data set exists too, this is noted.
- A split that the YAML file names must exist when it is read.
- A line is ``class cx cy w h``, in shares of the image's width and height, within 0..1. A longer line is a polygon,
  ``class x1 y1 x2 y2 x3 y3 ...``; its bounding box is used, which is noted. If the YAML file has ``kpt_shape``, K
  keypoints of 2 or 3 numbers, a longer line is a pose: a box and its keypoints, which are not read. This is noted.
  ``kpt_shape: [0, 0]`` says that longer lines are polygons.
- Without ``kpt_shape``, nothing says whether a longer line is a polygon or a pose. A pose read as a polygon gives a
  wrong box. So a split is refused if three in four of its longer lines may be poses with the same number of columns.
  Of true polygons, only about one in four may be poses. A line may be a pose if both of these hold:

  1. The four numbers after the class are a box within the image.
  2. The numbers after them are points of 2 numbers, or of 3 of which the third is 0, 1 or 2, and the box holds all
     these points. Points at 0 0 are missing, and do not count.

  Both hold to 0.01. A line with an even number of columns is no polygon, but may be a pose with 3 numbers a keypoint.
- Sizes come from the image headers, after EXIF rotation.
- The YAML file is at most 1 MB, without anchors, aliases or tags. Label files are at most 10 MB.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import Report
from drloss.data.files.paths import Inside, Listing, clean_name, common_folder, list_files, require_inside
from drloss.data.files.reading import Limit, read_lines
from drloss.data.files.survey import Survey
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.formats.layout import CERTAIN, LIKELY, POSSIBLE, Layout
from drloss.data.formats.yolo_labels import LabelReader
from drloss.data.formats.yolo_loose import loose_data
from drloss.data.formats.yolo_yaml import SPLITS, YoloData, read_data_yaml
from drloss.data.images.decoding import header_size, pillow_quieted
from drloss.data.source import FileSource, Places, Read, absent
from drloss.errors import DataError, printable

_MAX_LIST_BYTES = 256 * 1024**2
_LIST_LIMITS = {b"\n": Limit(2_000_000), b"\r": Limit(2_000_000)}
_AT_ONCE = 10_000
"""Number of images whose headers are read at a time."""


def find_yolo(survey: Survey) -> Layout | None:
    """The YAML files of a folder that describe a data set."""
    files = _data_files(survey.folder)
    if not files:
        return None
    says = ", ".join(printable(path.name) for path in files)
    return Layout("yolo", CERTAIN, says, partial(_open_one, files))


def find_loose_yolo(survey: Survey) -> Layout | None:
    """YOLO's label files without a YAML file, as a data set."""
    data = loose_data(survey)
    if data is None:
        return None
    named = data.file != survey.folder
    says = (
        f"label files, classes from {printable(data.file.name)}" if named else "label files, and no names of classes"
    )
    return Layout("yolo", LIKELY if named else POSSIBLE, says, partial(_open_data, data))


def _open_data(data: YoloData, name: str) -> FileSource:
    readers = {split: yolo_reader(data, split) for split in data.splits}
    return _source(name, data, readers)


def _data_files(folder: Path) -> list[Path]:
    """``data.yaml`` if it exists, else every YAML file with the keys of such a file."""
    for usual in ("data.yaml", "data.yml"):
        if (folder / usual).is_file():
            return [folder / usual]
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        text = path.read_bytes()[:100_000] if path.is_file() else b""
        if re.search(rb"^names\s*:", text, re.M) and re.search(rb"^(train|val|test)\s*:", text, re.M):
            found.append(path)
    return found


def _open_one(files: list[Path], name: str) -> FileSource:
    if len(files) > 1:
        raise DataError(
            f"{printable(name)}: looks like {len(files)} .yaml files; "
            "choose with a .toml data file, or name the file or inner folder"
        )
    return open_yolo(files[0], name)


def open_yolo(path: Path, name: str) -> FileSource:
    """The data set that a ``data.yaml`` describes.

    Args:
        path: the YAML file.
        name: name of the data set in messages.

    Raises:
        DataError: as :func:`drloss.data.formats.yolo_yaml.read_data_yaml`.
    """
    data = read_data_yaml(path)
    readers = {
        split: absent(data.absent[split]) if split in data.absent else yolo_reader(data, split)
        for split in SPLITS
        if split in data.absent or split in data.splits
    }
    return _source(name, data, readers)


def _source(name: str, data: YoloData, readers: dict[str, Read]) -> FileSource:
    settings: dict[str, Path | list[int]] = {"root": data.root}
    if data.keypoints is not None:
        sides = 3 if data.keypoints % 3 == 0 else 2
        settings["kpt_shape"] = [data.keypoints // sides, sides] if data.keypoints else [0, 0]
    return FileSource(name, "yolo", readers, data.class_names, places=partial(_places, data), settings=settings)


def _places(data: YoloData) -> Places:
    labels = data.labels
    return {
        split: {"images": [*own], **({"labels": [*labels[split]]} if split in labels else {})}
        for split, own in data.splits.items()
    }


def yolo_reader(data: YoloData, split: str) -> Read:
    """The reader of a split; for the arguments see :func:`read_yolo`."""
    return lambda name, strict: read_yolo(name, data, split, strict=strict)


def read_yolo(name: str, data: YoloData, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
    """Read one split.

    Args:
        name: name of the split in messages.
        data: from :func:`drloss.data.formats.yolo_yaml.read_data_yaml`.
        split: a key of ``data.splits``.
        strict: read everything, then raise the first problem; otherwise leave out bad records.

    Raises:
        DataError: if a list cannot be read, if no image has labels, or as ``strict`` says.
    """
    sources = data.splits[split]
    folders = [_folder(path, data.root) for path in sources]
    root = common_folder([data.root, *folders])
    ids = range(len(data.class_names))
    builder = AnnotationsBuilder(name, data.class_names, ids, root, str(data.file))
    reader = LabelReader(builder, root, data.keypoints)
    for kind, value in data.notes.get(split, ()):
        builder.note(str(data.file), split, kind, value)
    listings: list[tuple[Path, Path | None, Listing]] = []
    own_labels = data.labels.get(split, (None,) * len(sources))
    for source, folder, labels in zip(sources, folders, own_labels, strict=True):
        reader.image_folder = common_folder([source]) if source.is_dir() else folder
        reader.label_folder = labels
        listing = Listing() if source.is_file() else list_files(source)
        entries = _listed(source, data.root) if source.is_file() else _in_folder(source, listing.images)
        with pillow_quieted(), ThreadPoolExecutor(8) as pool:
            while block := list(islice(entries, _AT_ONCE)):
                sizes = pool.map(partial(_header, Inside(folder)), block)
                for (file, record, image), size in zip(block, sizes, strict=True):
                    reader.image(file, record, folder, image, size)
        listings.append((source, labels, listing))
    for source, labels, listing in listings:
        reader.label_folder = labels
        if not source.is_file():
            reader.report_unread(common_folder([source]), listing)
    if reader.images and not reader.labelled:
        raise DataError(
            f"{printable(name)}: no label file for any of {reader.images:,} images, looked for {reader.looked_for}; "
            "allowed: labels/x.txt for images/x.jpg, or x.txt beside x.jpg"
        )
    reader.refuse_poses(data.file)
    return builder.finish(strict=strict)


def _folder(source: Path, root: Path) -> Path:
    """The folder of a source's images; if it is a link that leads out of ``root``, the folder it leads to."""
    folder = common_folder([source if source.is_dir() else root])
    try:
        require_inside(folder, root)
    except DataError:
        return Path(os.path.realpath(folder))
    return folder


_Entry = tuple[str, str, str]
"""The file and record that list an image, and its name relative to its folder, unchecked."""


def _in_folder(folder: Path, names: list[str]) -> Iterator[_Entry]:
    if not names:
        raise DataError(f"{printable(str(folder))}: no image file in this folder or below")
    return ((str(folder / name), "", name) for name in names)


def _listed(path: Path, root: Path) -> Iterator[_Entry]:
    """The images in a list: names relative to the list's folder or to ``root``, or absolute and below ``root``."""
    file = str(path)
    for k, line in enumerate(read_lines(path, _MAX_LIST_BYTES, _LIST_LIMITS), start=1):
        text = line.strip()
        if not text:
            continue
        name = text
        if text.startswith("/") and "\0" not in text:
            name = text.removeprefix(f"{common_folder([root])}/")
        elif path.parent != root and _is_file(path.parent, text) and not _is_file(root, text):
            name = (common_folder([path.parent]) / text).as_posix().removeprefix(f"{common_folder([root])}/")
        if not _is_file(root, name):
            name = _end_of(text, path.parent, root) or name
        yield file, f"line {k}", name


def _end_of(text: str, folder: Path, root: Path) -> str | None:
    """The longest end of a path, of another machine or tool, that is a file below the list's folder or ``root``.

    Of an absolute path, a file's name alone is not enough.
    """
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    if "://" in text or not all(part.strip(". ") for part in parts):
        return None
    absolute = text.startswith(("/", "\\")) or text[1:2] == ":"
    for first in range(1, len(parts) - absolute):
        tail = "/".join(parts[first:])
        for base in (folder, root):
            if _is_file(base, tail):
                return (common_folder([base]) / tail).as_posix().removeprefix(f"{common_folder([root])}/")
    return None


def _is_file(folder: Path, name: str) -> bool:
    try:
        return os.path.isfile(folder / clean_name(name))
    except ValueError:
        return False


def _header(inside: Inside, entry: _Entry) -> tuple[int, int] | DataError | None:
    """Height and width, or the error of reading them; None if the name is not allowed, which the builder refuses."""
    try:
        clean = clean_name(entry[2])
        return header_size(inside.root / clean) if inside(clean) else None
    except ValueError:
        return None
    except DataError as error:
        return error.with_traceback(None)
