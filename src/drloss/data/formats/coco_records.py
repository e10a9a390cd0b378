"""The records of a COCO file, passed to the builder one by one, or as columns where nothing is wrong with them."""

import os
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drloss.data.checks.boxes import flag_is_set, integer_or_none, number_or_none
from drloss.data.files.paths import clean_name
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.formats.coco_json import SEGMENTED, TWICE
from drloss.data.formats.coco_stream import Blocks, Columns


def file_names(record: dict[str, Any]) -> list[object]:
    """Possible file names of an image: its ``file_name``; without that, the two ends of ``coco_url``."""
    url = record.get("coco_url")
    if "file_name" in record or not isinstance(url, str) or "/" not in url:
        return [record.get("file_name")]
    return ["/".join(url.split("/")[-2:]), url.rpartition("/")[2]]


class RecordReader:
    """Passes the records of one file to the builder."""

    def __init__(self, builder: AnnotationsBuilder, file: str, folder: Path, part: int | None) -> None:
        self.builder = builder
        self.file = file
        self.folder = folder
        self.part = part  # number of the file, if the split has several: ids are unique in one file only
        self.seen: dict[int, tuple[Any, ...]] = {}

    def key(self, image_id: int) -> Any:
        return image_id if self.part is None else (self.part, image_id)

    def image(self, position: int, record: Any) -> None:
        """Pass the record at ``position`` of ``images`` to the builder, or what is wrong with it."""
        bad: tuple[str, object, str] | None = None
        if not isinstance(record, dict):
            bad, record = ("image record not an object", record, "an object"), {}
        elif TWICE in record:
            bad = ("key given twice", record[TWICE], "each once")
        own = integer_or_none(record.get("id"))
        where = f"image {own}" if own is not None else f"images[{position}]"
        if bad is None and own is None:
            kind = "image id not an integer" if "id" in record else "image id missing"
            bad = (kind, record.get("id"), "an integer")
        self.builder.add_image(
            self.file,
            where,
            key=None if own is None else self.key(own),
            name=self._name(where, record) if bad is None else None,
            height=record.get("height"),
            width=record.get("width"),
            image_id=own if self.part is None and own is not None else None,
            folder=self.folder,
            bad=bad,
        )

    def _name(self, where: str, record: dict[str, Any]) -> object:
        *first, name = file_names(record)
        if first:
            self.builder.note(self.file, where, "file_name missing, the end of coco_url instead", record["coco_url"])
            with suppress(ValueError):
                name = first[0] if os.path.isfile(self.folder / clean_name(first[0])) else name
        return name

    def annotations(self, records: list[Any]) -> None:
        """Pass all ``annotations`` to the builder."""
        blocks = records if isinstance(records, Blocks) else Blocks([records])
        repeated, position = blocks.repeated_ids(), 0
        for block in blocks:
            if isinstance(block, Columns):
                self._columns(position, block, repeated)
            else:
                for place, record in enumerate(block, start=position):
                    self.annotation(place, record)
            position += len(block)

    def _columns(self, position: int, block: Columns, repeated: npt.NDArray[np.int64]) -> None:
        x, y, width, height = block.xywh.T
        images = block.images.tolist()
        self.builder.add_boxes(
            images if self.part is None else [self.key(image) for image in images],
            block.categories.tolist(),
            np.stack([x, y, x + width, y + height], axis=1),
            block.ignore,
            block.areas,
            np.isin(block.ids, repeated),
            lambda row: self.annotation(position + row, block.record(row)),
        )

    def annotation(self, position: int, record: Any) -> None:
        """Pass the record at ``position`` of ``annotations`` to the builder as a box, or what is wrong with it."""
        where = f"annotations[{position}]"
        drop = self.builder.drop_box
        if not isinstance(record, dict):
            drop(self.file, where, "annotation not an object", record, "an object")
            return
        own = integer_or_none(record.get("id"))
        where = where if own is None else f"annotation {own}"
        if TWICE in record:
            drop(self.file, where, "key given twice", record[TWICE], "each once")
            return
        image, category = integer_or_none(record.get("image_id")), integer_or_none(record.get("category_id"))
        for key, value in (("image_id", image), ("category_id", category)):
            if value is None:
                what = "not an integer" if key in record else "missing"
                drop(self.file, where, f"{key} {what}", record.get(key), "an integer")
                return
        box = _xywh(record.get("bbox"))
        if box is None:
            what = "bbox not usable" if "bbox" in record else "bbox missing"
            what += " (there is a segmentation, which is not read)" if SEGMENTED in record else ""
            drop(self.file, where, what, record.get("bbox"), "four numbers: x, y, width, height")
            return
        if self._repeated(where, own, record, (image, category, box)):
            return
        x, y, width, height = box
        self.builder.add_box(
            self.file,
            where,
            key=self.key(image),  # type: ignore[arg-type]  # not None, by the loop above
            category=category,
            box=(x, y, x + width, y + height),
            ignore=self._flag(where, record, "iscrowd") or self._flag(where, record, "difficult"),
            area=self._area(where, record),
            written=(x, y, x + width, y + height),
        )

    def _repeated(self, where: str, own: int | None, record: dict[str, Any], what: tuple[Any, ...]) -> bool:
        """Whether an annotation was read before; odd ids are noted."""
        if own is None:
            kind = "annotation id not an integer" if "id" in record else "annotation id missing"
            self.builder.note(self.file, where, f"{kind} (ids of annotations are not used)")
        elif self.seen.setdefault(own, what) is not what:
            if self.seen[own] == what:
                allowed = "each annotation once"
                self.builder.drop_box(self.file, where, "annotation given twice", list(what[2]), allowed)
                return True
            kind = "annotation id given to several boxes (ids of annotations are not used)"
            self.builder.note(self.file, where, kind)
        return False

    def _flag(self, where: str, record: dict[str, Any], key: str) -> bool:
        value = record.get(key)
        is_set, usual = flag_is_set(value)
        if not usual:
            self.builder.note(self.file, where, f"{key} neither 0 nor 1 (taken as 0 if it says so, else as 1)", value)
        return is_set

    def _area(self, where: str, record: dict[str, Any]) -> float | None:
        value = number_or_none(record.get("area"))
        if value is not None and isfinite(value) and value > 0:
            return value
        if "area" in record:
            self.builder.note(self.file, where, "area not a positive number, width x height instead", record["area"])
        return None


def _xywh(value: object) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = (number_or_none(v) for v in value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height
