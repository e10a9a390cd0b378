"""Formats that name, for each image, its boxes and their classes in words: CSV, LabelMe, CreateML, CVAT, imagefolder.

Each of these files turns its annotations into :class:`Item` records; what follows is the same for all, and here:

- An image is found by the end of its path, below the annotation file, its ``images`` folder or the data set; or else
  by its file name, if only one image has it; or else by its stem. A path in a file leads nowhere else.
- Sizes that a file does not give, or gives as 0, come from the header of the image, which is noted for 0.
- Classes are those that the format lists, or else all names in all splits: in numerical order if all are numbers,
  else in alphabetical order.
- Images that no annotation file names are not read, which is noted: nobody says that they are empty.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import Box, number_in_text, number_or_none
from drloss.data.checks.classes import known_classes
from drloss.data.checks.problems import Report
from drloss.data.files.paths import IMAGE_SUFFIXES, Inside, suffix_of
from drloss.data.files.survey import Survey, in_order
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.images.decoding import header_size, pillow_quieted
from drloss.data.source import FileSource, Places, Read
from drloss.errors import DataError, printable

_AT_ONCE = 10_000
"""Number of images whose headers are read at a time."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
Bad = tuple[str, object, str]
"""Kind, value and what is allowed, of a problem."""


@dataclass(frozen=True, slots=True)
class ItemBox:
    """A box as a file has it.

    Attributes:
        record: where it is, in words.
        name: the class.
        values: xyxy in pixels, or in shares of the image's size if ``shares``: numbers, or texts of numbers.
        shares: whether the values are shares.
        ignore: whether it is neither target nor background.
        note: what is noted about it.
        bad: why it is no box.
    """

    record: str
    name: object
    values: Sequence[object]
    shares: bool = False
    ignore: bool = False
    note: str = ""
    bad: Bad | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """An image as a file has it, with its boxes.

    Attributes:
        file, record: where it is listed.
        name: its file's name.
        height, width: in pixels; None or 0 if the file does not say.
        boxes: its boxes.
        notes: kind and value of each note.
        bad: why it cannot be read.
    """

    file: str
    record: str
    name: object
    height: object = None
    width: object = None
    boxes: Sequence[ItemBox] = ()
    notes: Sequence[tuple[str, object]] = ()
    bad: Bad | None = None


Found = tuple[str, bool] | ValueError | None
"""What :meth:`drloss.data.files.survey.ImageIndex.find` gives or raises."""


@dataclass(frozen=True)
class ItemFiles:
    """The annotation files of a data set in one of these formats.

    Attributes:
        format: name of the format.
        survey: the data set's folder.
        files: split to its annotation files, relative to the folder.
        parse: reads the items of one of them, for a split.
        class_names: the classes, if the format lists them.
        images: split to the folders in which its images are looked for first, relative to the folder.
    """

    format: str
    survey: Survey
    files: Mapping[str, Sequence[str]]
    parse: Callable[[Path, str], Iterator[Item]]
    class_names: tuple[str, ...] | None = None
    images: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def items(self, split: str) -> Iterator[tuple[str, Item]]:
        """(annotation file, item) of a split."""
        inside = Inside(self.survey.folder)
        for name in self.files[split]:
            path = self.survey.folder / name
            if not (name.startswith("../") or inside(name)):  # a data file may name any place
                raise DataError(f"{printable(str(path))}: a link out of the data set; allowed: a file in it")
            for item in self.parse(path, split):
                yield name, item

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of their labels."""
        if self.class_names is not None:
            return self.class_names
        names = {
            b.name for split in self.files for _, item in self.items(split) for b in item.boxes if _usable(b.name)
        }
        if not names:
            files = [name for own in self.files.values() for name in own]
            raise DataError(
                f"{printable(str(self.survey.folder / files[0]))}: no box with a class"
                + (f", nor in {len(files) - 1:,} other files" if len(files) > 1 else "")
            )
        texts = [str(name).strip() for name in names]
        numbers = all(text.isascii() and text.isdigit() for text in texts)
        return tuple(sorted(set(texts), key=_by_number if numbers else None))

    @cached_property
    def named(self) -> frozenset[str]:
        """The images that any split names."""
        found = (self.image_of(split, name, item) for split in self.files for name, item in self.items(split))
        return frozenset(image[0] for image in found if isinstance(image, tuple))

    def image_of(self, split: str, file: str, item: Item) -> Found:
        """The image of an item, and whether only its name says so; or None, or why there is none."""
        own = file.rpartition("/")[0]
        inner = [f"{own}/{sub}" if own else sub for sub in (split, f"images/{split}", "images", "data")]
        try:
            near = [
                *self.images.get(split, ()),
                own,
                *inner,
                f"images/{split}",
                f"{split}/images",
                split,
                "images",
                "",
            ]
            return self.survey.images.find(str(item.name), near, split) if isinstance(item.name, str) else None
        except ValueError as error:
            return error

    def source(self, name: str) -> FileSource:
        """The data set, under a name for messages."""
        readers: dict[str, Read] = {split: partial(_read, self, split) for split in in_order(self.files)}
        return FileSource(name, self.format, readers, self.class_names, places=self._places)

    def _places(self) -> Places:
        root = self.survey.folder
        files = {split: [root / name for name in own] for split, own in self.files.items()}
        if self.format == "labelme":  # the folders of its many files
            files = {split: list(dict.fromkeys(path.parent for path in own)) for split, own in files.items()}
        return {split: {"annotations": [*own], "images": [root]} for split, own in files.items()}


def _by_number(text: str) -> tuple[int, str, str]:
    """Orders texts of digits, of any length, as numbers."""
    digits = text.lstrip("0")
    return len(digits), digits, text


def _usable(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _read(files: ItemFiles, split: str, name: str, strict: bool) -> tuple[Annotations, Report]:
    classes, root = files.classes, files.survey.folder
    first = printable(str(root / files.files[split][0]))
    builder = AnnotationsBuilder(name, classes, range(1, len(classes) + 1), root, first)
    reader = _Reader(builder, files, split)
    entries = files.items(split)
    with pillow_quieted(), ThreadPoolExecutor(8) as pool:
        while block := list(islice(entries, _AT_ONCE)):
            images = [files.image_of(split, file, item) for file, item in block]
            sizes = pool.map(partial(_header, root), [i for _, i in block], images)
            for (_, item), image, size in zip(block, images, sizes, strict=True):
                reader.image(item, image, size)
    if split == in_order(files.files)[0]:
        for unnamed in sorted(files.survey.images.names - files.named):
            builder.note(str(root / unnamed), "", "image that no annotation names, not read")
        for link in files.survey.listing.links:
            builder.note(str(root / link), "", "folder that is a link, not searched")
    return builder.finish(strict=strict)


_Size = tuple[int, int] | DataError | None


def _header(root: Path, item: Item, image: Found) -> _Size:
    """Height and width from the image's header, or why it cannot be read; None if the item has them."""
    if (_given(item.height) and _given(item.width)) or not isinstance(image, tuple):
        return None
    try:
        return header_size(root / image[0])
    except DataError as error:
        return error.with_traceback(None)


def _given(side: object) -> bool:
    return side not in (None, "", 0, "0", 0.0)


class _Reader:
    """Passes the items of a split to the builder."""

    def __init__(self, builder: AnnotationsBuilder, files: ItemFiles, split: str) -> None:
        self.builder = builder
        self.files = files
        self.labels = {name: k for k, name in enumerate(files.classes, start=1)}
        self.known = known_classes(files.classes)
        self.images = 0

    def image(self, item: Item, found: Found, size: _Size) -> None:
        self.images += 1
        key, bad = self.images, item.bad
        image, by_name = found if isinstance(found, tuple) else (None, False)
        if bad is None and found is None:
            bad = ("image file missing", item.name, f"a file of that name in {self.files.survey.folder}")
        elif bad is None and isinstance(found, ValueError):
            bad = (f"image not to be told ({found})", item.name, "a path that leads to one image")
        elif bad is None and isinstance(size, DataError):
            bad = ("image not readable", size, "an image file")
        height, width = size if isinstance(size, tuple) else (_number(item.height), _number(item.width))
        if isinstance(size, tuple) and (item.height, item.width) not in ((None, None), ("", "")):
            self.builder.note(item.file, item.record, "size 0, that of the image file instead")
        listed = suffix_of(item.name) if isinstance(item.name, str) else ""
        if isinstance(image, str) and listed in IMAGE_SUFFIXES and listed != suffix_of(image):
            self.builder.note(item.file, item.record, "image of another suffix than listed, of that stem", item.name)
        if by_name and bad is None:
            self.builder.note(item.file, item.record, "image found by its name alone, in another folder", item.name)
        add = self.builder.add_image
        add(item.file, item.record, key=key, name=image, height=height, width=width, bad=bad)
        for kind, value in item.notes:
            self.builder.note(item.file, item.record, kind, value)
        for box in item.boxes:
            self._box(item, key, box, (height, width))

    def _box(self, item: Item, key: int, box: ItemBox, size: tuple[object, object]) -> None:
        drop = self.builder.drop_box
        record = ": ".join(part for part in (item.record, box.record) if part)
        if box.bad is not None:
            drop(item.file, record, *box.bad)
            return
        if not _usable(box.name):
            drop(item.file, record, "class missing", box.name, "a class name")
            return
        label = self.labels.get(str(box.name).strip())
        if label is None:
            drop(item.file, record, "unknown class", box.name, self.known)
            return
        values = [_number(value) for value in box.values]
        for side, value, text in zip(SIDES, values, box.values, strict=True):
            if not isinstance(value, float | int) or isinstance(value, bool):
                what = "missing" if text in (None, "") else "not a number"
                drop(item.file, record, f"{side} {what}", text, "a number of pixels")
                return
        x1, y1, x2, y2 = (float(v) for v in values)  # type: ignore[arg-type]  # by the loop above
        xyxy: Box = (x1, y1, x2, y2)
        if box.shares:
            height, width = (v if isinstance(v, int | float) else 1 for v in size)
            xyxy = (x1 * width, y1 * height, x2 * width, y2 * height)
        if box.note:
            self.builder.note(item.file, record, box.note)
        written = None if box.shares else xyxy
        self.builder.add_box(item.file, record, key=key, category=label, box=xyxy, ignore=box.ignore, written=written)


def _number(value: object) -> object:
    """The number that a value or its text stands for; else the value itself."""
    number = number_in_text(value.strip()) if isinstance(value, str) else number_or_none(value)
    return value if number is None else number


def corners(points: Iterable[Sequence[object]]) -> list[object]:
    """xyxy around points, each of two numbers; the first odd value four times if there is any."""
    numbers = [[_number(v) for v in point] for point in points]
    for value in (v for point in numbers for v in point):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return [value] * 4
    xs, ys = [float(p[0]) for p in numbers], [float(p[1]) for p in numbers]  # type: ignore[arg-type]
    return [min(xs), min(ys), max(xs), max(ys)]
