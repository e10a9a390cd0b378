"""CreateML: a JSON list of images, each with annotations of a label and its coordinates.

Rules:

- ``coordinates`` are the centre's x and y, width and height, in pixels.
- The image's name is ``image``, or ``imagefilename`` as Apple's own samples have it.
- The split is in the file's name or folder: ``train/_annotations.createml.json``.
"""

from collections.abc import Iterator
from pathlib import Path

from drloss.data.checks.boxes import number_or_none
from drloss.data.files.survey import Survey
from drloss.data.formats.coco_json import read_json
from drloss.data.formats.items import Item, ItemBox, ItemFiles
from drloss.data.formats.layout import LIKELY, Layout, grouped_by_split
from drloss.data.formats.sniffing import json_kind
from drloss.errors import DataError, printable, shown

MAX_BYTES = 1024**3
_KEYS = ("x", "y", "width", "height")


def find_createml(survey: Survey) -> Layout | None:
    """CreateML's files in a folder, as a data set."""
    found = [name for name in survey.named(".json") if json_kind(survey.folder / name) == "createml"]
    return createml_layout(survey, grouped_by_split(found)) if found else None


def createml_layout(survey: Survey, files: dict[str, list[str]]) -> Layout:
    """These files of CreateML as a data set."""
    shown_files = ", ".join(printable(name) for own in files.values() for name in own[:1])
    return Layout(
        "createml", LIKELY, f"CreateML in {shown_files}", ItemFiles("createml", survey, files, parse).source
    )


def parse(path: Path, split: str) -> Iterator[Item]:
    """The items of one annotation file."""
    file = str(path)
    content = read_json(path, MAX_BYTES, records=(b'"coordinates"', b'"image"'))
    if not isinstance(content, list):
        raise DataError(
            f"{printable(file)}: top level, got {shown(content)}; allowed: a list of images, as CreateML has"
        )
    for k, record in enumerate(content):
        where = f"image {k + 1}"
        if not isinstance(record, dict):
            yield Item(file, where, "", bad=("image record not an object", record, "an object"))
            continue
        boxes = record.get("annotations", record.get("annotation", []))
        if not isinstance(boxes, list):
            yield Item(file, where, record.get("image"), bad=("annotations not a list", boxes, "a list"))
            continue
        name = record.get("image", record.get("imagefilename"))
        yield Item(file, where, name, boxes=[_box(f"annotation {j}", b) for j, b in enumerate(boxes, start=1)])


def _box(record: str, box: object) -> ItemBox:
    place = box.get("coordinates") if isinstance(box, dict) else None
    if not isinstance(box, dict) or not isinstance(place, dict):
        return ItemBox(record, "", (), bad=("coordinates missing", place, "an object with x, y, width and height"))
    x, y, width, height = (number_or_none(place.get(key)) for key in _KEYS)
    if x is None or y is None or width is None or height is None:
        return ItemBox(record, "", (), bad=("coordinates not numbers", place, "numbers x, y, width and height"))
    values = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return ItemBox(record, box.get("label"), values)
