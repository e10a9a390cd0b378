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
from drloss.data.files.survey import WHOLE, Survey, in_order, split_of_folder, stem_of
from drloss.data.formats.coco_json import LIMITS, read_json
from drloss.data.formats.items import Bad, Item, ItemBox, ItemFiles, corners
from drloss.data.formats.layout import LIKELY, Layout
from drloss.data.formats.sniffing import json_kind
from drloss.errors import DataError, shown

MAX_BYTES = 256 * 1024**2
_LIMITS = {mark: limit for mark, limit in LIMITS.items() if mark}  # imageData makes files of few shapes large
_NO_BOX = frozenset({"point", "points", "line", "linestrip"})


def find_labelme(survey: Survey) -> Layout | None:
    """LabelMe's files in a folder, as a data set."""
    found = [name for name in survey.named(".json") if json_kind(survey.folder / name) == "labelme"]
    if not found or not survey.listing.images:
        return None
    found += [name for name in survey.named(".json") if _damaged(survey, name)]
    splits: dict[str, list[str]] = {}
    for name in sorted(found):
        splits.setdefault(split_of_folder(name.rpartition("/")[0]) or WHOLE, []).append(name)
    files = ItemFiles("labelme", survey, {split: splits[split] for split in in_order(splits)}, parse)
    return Layout("labelme", LIKELY, f"{len(found):,} files of LabelMe", files.source)


def _damaged(survey: Survey, name: str) -> bool:
    """Whether a file of no known kind is an image's by its name: reading says what is wrong with it."""
    stem = stem_of(name)
    own = any(f"{stem}{suffix}" in survey.images.names for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".PNG"))
    return own and not json_kind(survey.folder / name)


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
        if isinstance(kind, str) and kind in _NO_BOX:
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
        x, y, edge_x, edge_y = (number_or_none(v) for point in points[:2] for v in point)
        if x is None or y is None or edge_x is None or edge_y is None:
            return ItemBox(record, label, (), bad=("points not numbers", points, "two points, each of two numbers"))
        radius = hypot(edge_x - x, edge_y - y)
        values = [x - radius, y - radius, x + radius, y + radius]
    note = "" if kind == "rectangle" else f"shape of type {shown(kind)}, of which the bounding box is taken"
    return ItemBox(record, label, values, note=note)
