"""LabelMe: one JSON file for each image, with ``imagePath`` and ``shapes``.

Rules:

- Rectangles are two corners; of polygons, circles and masks the bounding box is taken, which is noted. Points and
  lines are no boxes, which is noted.
- ``imageData``, a copy of the image, is not read: the image file is.
- The split is in the folder's name: ``train/a.json``.
"""

from collections.abc import Iterator
from math import hypot
from pathlib import Path

from drloss.data.checks.boxes import number_or_none
from drloss.data.files.survey import Survey
from drloss.data.formats.coco_json import LIMITS, read_json
from drloss.data.formats.items import Bad, Item, ItemBox, ItemFiles, corners
from drloss.data.formats.layout import LIKELY, Layout, grouped_by_split
from drloss.data.formats.sniffing import json_kind
from drloss.errors import DataError

MAX_BYTES = 256 * 1024**2
_LIMITS = {mark: limit for mark, limit in LIMITS.items() if mark}  # imageData makes files of few shapes large
_NO_BOX = frozenset({"point", "points", "line", "linestrip"})


def find_labelme(survey: Survey) -> Layout | None:
    """LabelMe's files in a folder, as a data set."""
    found = [name for name in survey.named(".json") if json_kind(survey.folder / name) == "labelme"]
    if not found or not survey.listing.images:
        return None
    files = ItemFiles("labelme", survey, grouped_by_split(found), parse)
    return Layout("labelme", LIKELY, f"{len(found):,} files of LabelMe", files.source)


def parse(path: Path, split: str) -> Iterator[Item]:
    """The items of one annotation file."""
    file = str(path)
    fallback = path.stem
    try:
        content = read_json(path, MAX_BYTES, _LIMITS, (b'"points"',))
    except DataError as error:
        yield Item(file, "", fallback, bad=("annotation file not readable", error, "a file of LabelMe"))
        return
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(shapes, list):
        yield Item(file, "", fallback, bad=("shapes missing", shapes, "a list of shapes"))
        return
    notes: list[tuple[str, object]] = []
    boxes = []
    for k, shape in enumerate(shapes, start=1):
        kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else None
        if kind in _NO_BOX:
            notes.append((f"shape of type {kind}, which has no box, not read", None))
        else:
            boxes.append(_box(f"shape {k}", shape))
    name = content.get("imagePath")
    name = name if isinstance(name, str) and name.strip() else fallback
    yield Item(file, "", name, content.get("imageHeight"), content.get("imageWidth"), boxes, notes)


def _box(record: str, shape: object) -> ItemBox:
    bad: Bad
    if not isinstance(shape, dict):
        bad = ("shape not an object", shape, "an object with label and points")
        return ItemBox(record, "", (), bad=bad)
    kind, points, label = shape.get("shape_type", "polygon"), shape.get("points"), shape.get("label")
    if not (
        isinstance(points, list) and len(points) > 1 and all(isinstance(p, list) and len(p) == 2 for p in points)
    ):
        bad = ("points not usable", points, "two points or more, each of two numbers")
        return ItemBox(record, label, (), bad=bad)
    values = corners(points)
    if kind == "circle":
        (x, y), (edge_x, edge_y) = ([number_or_none(v) or 0.0 for v in point] for point in points[:2])
        radius = hypot(edge_x - x, edge_y - y)
        values = [x - radius, y - radius, x + radius, y + radius]
    note = "" if kind == "rectangle" else f"{kind}, of which the bounding box is taken"
    return ItemBox(record, label, values, note=note)
