"""CVAT's own XML, "CVAT for images 1.1": one file for all images.

Rules:

- ``<box>`` is xtl, ytl, xbr, ybr in pixels. Of polygons, ellipses and masks the bounding box is taken, which is
  noted; points, polylines, skeletons, cuboids and tags are no boxes, which is noted.
- Classes are the task's labels, in their order; without them, as :mod:`drloss.data.formats.items` says.
- ``subset`` of an image is its split; without it, the file's name or folder.
- ``<track>``, of a video, is refused: its frames are not image files.
- XML is read as it streams, at most 2 GB, without a DOCTYPE.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import cos, radians, sin
from pathlib import Path
from xml.etree import ElementTree

from drloss.data.checks.boxes import number_in_text
from drloss.data.files.reading import read_bytes
from drloss.data.files.survey import WHOLE, Survey, in_order, split_of_file, split_of_folder
from drloss.data.formats.items import Bad, Item, ItemBox, ItemFiles, corners
from drloss.data.formats.layout import LIKELY, Layout, head
from drloss.data.formats.sniffing import xml_root
from drloss.data.formats.voc_xml import MAX_DEPTH, xml_error
from drloss.errors import DataError, printable

MAX_BYTES = 2 * 1024**3
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_NO_BOX = frozenset({"points", "polyline", "skeleton", "cuboid", "tag"})
_SHAPES = frozenset({"box", "polygon", "ellipse", "mask"})


def find_cvat(survey: Survey) -> Layout | None:
    """CVAT's files in a folder, as a data set."""
    found = [name for name in survey.named(".xml") if xml_root(survey.folder / name) == "annotations"]
    found = [name for name in found if b"<image" in head(survey.folder / name, 4 << 20) or len(found) == 1]
    return cvat_layout(survey, found) if found else None


def cvat_layout(survey: Survey, names: list[str]) -> Layout:
    """These files of CVAT as a data set."""
    contents = {name: _read(survey.folder / name) for name in names}
    files: dict[str, list[str]] = {}
    for name, content in contents.items():
        for subset in content.subsets or [""]:
            own = split_of_folder(subset) or subset or split_of_file(name) or WHOLE
            files.setdefault(own, []).append(name)
    labels = tuple(dict.fromkeys(label for content in contents.values() for label in content.labels))
    source = ItemFiles("cvat", survey, {s: files[s] for s in in_order(files)}, parse, labels or None)
    return Layout("cvat", LIKELY, f"CVAT's XML in {', '.join(map(printable, names[:3]))}", source.source)


def parse(path: Path, split: str) -> Iterator[Item]:
    """The items of one annotation file: its images of this subset, or without one."""
    for subset, item in _read(path).items:
        if not subset or (split_of_folder(subset) or subset) == split:
            yield item


@lru_cache(maxsize=8)
def _read(path: Path) -> "_Content":
    return _Content(path)


class _Content(ElementTree.TreeBuilder):
    """What a file holds: its labels, its subsets, and its images with their boxes.

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
        self._text = ""
        self._image: dict[str, str] = {}
        self._boxes: list[ItemBox] = []
        self._notes: list[tuple[str, object]] = []
        data = read_bytes(path, MAX_BYTES)
        parser = ElementTree.XMLParser(target=self)
        try:
            for first in range(0, len(data), 1 << 20):
                parser.feed(data[first : first + (1 << 20)])
            parser.close()
        except (ElementTree.ParseError, DataError, ValueError, LookupError) as error:
            raise xml_error(path, error) from None

    @property
    def subsets(self) -> list[str]:
        """The subsets that images name."""
        return list(dict.fromkeys(subset for subset, _ in self.items))

    def start(self, tag: str, attrs: dict[str, str], /) -> None:  # type: ignore[override]  # builds no tree
        tag = tag.rpartition("}")[2]
        self._open.append(tag)
        self._text = ""
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
        self._text += text

    def end(self, tag: str, /) -> None:  # type: ignore[override]
        tag = self._open.pop()
        if tag == "name" and self._open[-1:] == ["label"] and "image" not in self._open:
            self.labels.append(self._text.strip())
        elif tag == "image" and len(self._open) == 1:
            own = self._image
            record = f"image {own.get('id', len(self.items) + 1)}"
            item = Item(
                self.file, record, own.get("name"), own.get("height"), own.get("width"), self._boxes, self._notes
            )
            self.items.append((own.get("subset", ""), item))

    def close(self) -> None:  # type: ignore[override]
        pass

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("a DOCTYPE, which may define entities; allowed: plain elements")


def _box(record: str, tag: str, attrs: dict[str, str]) -> ItemBox:
    label = attrs.get("label")
    note = "" if tag == "box" else f"{tag}, of which the bounding box is taken"
    if tag == "box":
        values: list[object] = [attrs.get(side) for side in _CORNERS]
        turn = number_in_text(attrs.get("rotation")) or 0.0
        return _turned(record, label, values, turn) if turn % 180 else ItemBox(record, label, values)
    if tag == "ellipse":
        x, y, rx, ry = (number_in_text(attrs.get(key)) or 0.0 for key in ("cx", "cy", "rx", "ry"))
        return ItemBox(record, label, [x - rx, y - ry, x + rx, y + ry], note=note)
    if tag == "mask":
        x, y, w, h = (number_in_text(attrs.get(key)) or 0.0 for key in ("left", "top", "width", "height"))
        return ItemBox(record, label, [x, y, x + w, y + h], note=note)
    points = [pair.split(",") for pair in attrs.get("points", "").split(";") if pair]
    if not points or any(len(p) != 2 for p in points):
        bad: Bad = ("points not usable", attrs.get("points"), "x1,y1;x2,y2;...")
        return ItemBox(record, label, (), bad=bad)
    return ItemBox(record, label, corners(points), note=note)


def _turned(record: str, label: str | None, values: list[object], degrees: float) -> ItemBox:
    """The box around a box that is turned about its centre."""
    x1, y1, x2, y2 = (number_in_text(str(v)) or 0.0 for v in values)
    c, s = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    w, h = (x2 - x1) * c + (y2 - y1) * s, (x2 - x1) * s + (y2 - y1) * c
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    around = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return ItemBox(record, label, around, note="rotated box, of which the bounding box is taken")
