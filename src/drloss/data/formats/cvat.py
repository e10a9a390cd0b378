"""CVAT's own XML, "CVAT for images 1.1": one file for all images.

Rules:

- ``<box>`` is xtl, ytl, xbr, ybr in pixels. Of polygons, ellipses and masks the bounding box is taken, which is
  noted; points, polylines, skeletons, cuboids and tags are no boxes, which is noted.
- Classes are the task's labels, in their order; without them, as :mod:`drloss.data.formats.items` says.
- ``subset`` of an image is its split; without it, the file's name or folder says.
- ``<track>``, of a video, is refused: its frames are not image files.
- XML is at most 1 GB, without a DOCTYPE, with as many tags and attributes as its boxes explain.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import cos, isfinite, radians, sin
from pathlib import Path
from xml.etree import ElementTree

from drloss.data.checks.boxes import number_in_text
from drloss.data.files.paths import require_inside
from drloss.data.files.reading import Limit, read_bytes
from drloss.data.files.survey import WHOLE, Survey, in_order, split_of_file, split_of_folder
from drloss.data.formats.items import Bad, Item, ItemBox, ItemFiles, corners
from drloss.data.formats.layout import LIKELY, Layout
from drloss.data.formats.sniffing import xml_root
from drloss.data.formats.voc_xml import MAX_DEPTH, xml_error
from drloss.errors import DataError, printable

MAX_BYTES = 1024**3
LIMITS = {b"<": Limit(200_000, each=8, total=20_000_000), b"=": Limit(2_000_000, each=20, total=100_000_000)}
RECORDS = (b"<box", b"<polygon")
_MOST_PIECES = 1000
"""Number of pieces of text of a label's name that count."""
_NO_BOX = frozenset({"points", "polyline", "skeleton", "cuboid", "tag"})
_SHAPES = {
    "box": ("xtl", "ytl", "xbr", "ybr"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "mask": ("left", "top", "width", "height"),
    "polygon": (),
}
"""The attributes of each shape."""


def find_cvat(survey: Survey) -> Layout | None:
    """CVAT's files in a folder, as a data set."""
    found = [name for name in survey.named(".xml") if xml_root(survey.folder / name) == "annotations"]
    return cvat_layout(survey, found) if found else None


def cvat_layout(survey: Survey, names: list[str]) -> Layout:
    """These files of CVAT as a data set."""
    files: dict[str, list[str]] = {}
    labels: dict[str, None] = {}
    for name in names:
        require_inside(survey.folder / name, survey.folder)
        content = _read(survey.folder / name)
        labels |= dict.fromkeys(content.labels)
        own = split_of_file(name) or WHOLE
        for split in dict.fromkeys(split or own for split in content.splits or [""]):
            files.setdefault(split, []).append(name)
    source = ItemFiles("cvat", survey, {s: files[s] for s in in_order(files)}, parse, tuple(labels) or None)
    return Layout("cvat", LIKELY, f"CVAT's XML in {', '.join(map(printable, names[:3]))}", source.source)


def parse(path: Path, split: str) -> Iterator[Item]:
    """The items of one annotation file: its images of this split; or all, if the file names no other split."""
    content = _read(path)
    without = split not in content.splits or split == split_of_file(path.name)
    for own, item in content.items:
        if own == split or (without and (own == "" or len(content.splits) == 1)):
            yield item


def _read(path: Path) -> "_Content":
    status = path.stat()
    return _cached(path, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=4)
def _cached(path: Path, version: tuple[int, int]) -> "_Content":
    return _Content(path)


class _Content(ElementTree.TreeBuilder):
    """What a file holds: its labels, and its images with their boxes, each with its split.

    Args:
        path: the file.

    Raises:
        DataError: if it is not such XML.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = str(path)
        self.labels: list[str] = []
        self.items: list[tuple[str, Item]] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self._image: dict[str, str] = {}
        self._boxes: list[ItemBox] = []
        self._notes: list[tuple[str, object]] = []
        data = read_bytes(path, MAX_BYTES, LIMITS, RECORDS)
        parser = ElementTree.XMLParser(target=self)
        try:
            parser.feed(data)
            parser.close()
        except (ElementTree.ParseError, DataError, ValueError, LookupError) as error:
            raise xml_error(path, error) from None

    @property
    def splits(self) -> list[str]:
        """The splits that the images name, and an empty string if some name none."""
        return list(dict.fromkeys(split for split, _ in self.items))

    def start(self, tag: str, attrs: dict[str, str], /) -> None:  # type: ignore[override]  # builds no tree
        tag = tag.rpartition("}")[2]
        self._open.append(tag)
        self._text = []
        if len(self._open) > MAX_DEPTH:
            raise DataError(f"elements nested more than {MAX_DEPTH} deep")
        if len(self._open) == 1 and tag != "annotations":
            raise DataError(f"root element, got {tag!r}; allowed: annotations")
        if len(self._open) == 2 and tag == "track":
            raise DataError("a track, of a video; allowed: an export of CVAT for images, with its images")
        if len(self._open) == 2 and tag == "image":
            self._image, self._boxes, self._notes = attrs, [], []
        elif len(self._open) == 3 and self._open[1] == "image":
            if tag in _SHAPES:
                self._boxes.append(_box(f"{tag} {len(self._boxes) + 1}", tag, attrs))
            elif tag in _NO_BOX:
                self._notes.append((f"{tag}, which has no box, not read", None))

    def data(self, text: str, /) -> None:
        if self._open[-1:] == ["name"] and len(self._text) < _MOST_PIECES:
            self._text.append(text)

    def end(self, tag: str, /) -> None:  # type: ignore[override]
        tag = self._open.pop()
        if tag == "name" and self._open[-1:] == ["label"] and "image" not in self._open:
            self.labels.append("".join(self._text).strip())
        elif tag == "image" and len(self._open) == 1:
            own = self._image
            record = f"image {own.get('id', len(self.items) + 1)}"
            item = Item(
                self.file, record, own.get("name"), own.get("height"), own.get("width"), self._boxes, self._notes
            )
            subset = own.get("subset", "")
            self.items.append((split_of_folder(subset) or subset, item))

    def close(self) -> None:  # type: ignore[override]
        pass

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("a DOCTYPE, which may define entities; allowed: plain elements")


def _box(record: str, tag: str, attrs: dict[str, str]) -> ItemBox:
    label = attrs.get("label")
    note = "" if tag == "box" else f"{tag}, of which the bounding box is taken"
    if tag == "polygon":
        points = [pair.split(",") for pair in attrs.get("points", "").split(";") if pair]
        if not points or any(len(p) != 2 for p in points):
            bad: Bad = ("points not usable", attrs.get("points"), "x1,y1;x2,y2;...")
            return ItemBox(record, label, (), bad=bad)
        return ItemBox(record, label, corners(points), note=note)
    numbers = []
    for key in (*_SHAPES[tag], "rotation"):
        value = number_in_text(attrs.get(key, "0" if key == "rotation" else None))
        if value is None or not isfinite(value):
            return ItemBox(record, label, (), bad=(f"{key} not a number", attrs.get(key), "a finite number"))
        numbers.append(value)
    a, b, c, d, turn = numbers
    if tag == "ellipse":
        a, b, c, d = a - c, b - d, a + c, b + d
    elif tag == "mask":
        c, d = a + c, b + d
    if turn % 180:
        (a, b, c, d), note = _turned(a, b, c, d, turn), f"rotated {tag}, of which the bounding box is taken"
    return ItemBox(record, label, (a, b, c, d), note=note)


def _turned(x1: float, y1: float, x2: float, y2: float, degrees: float) -> tuple[float, float, float, float]:
    """The box around a box that is turned about its centre."""
    c, s = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    w, h = (x2 - x1) * c + (y2 - y1) * s, (x2 - x1) * s + (y2 - y1) * c
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2
