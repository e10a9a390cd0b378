"""The one place where annotations are checked, whatever their format.

A reader passes every image and every box to an :class:`AnnotationsBuilder` as the file has them. The rules:

============================================  ============================  =======
found                                         consequence                   refused
============================================  ============================  =======
coordinate missing, not a number, NaN, inf    box left out                  yes
width or height below 0.01 px, or negative    box left out                  yes
box wholly outside its image                  box left out                  yes
box outside by more than 1 px                 box clipped                   yes
box outside by at most 1 px (rounding)        box clipped                   no
box within 0..1 of an image of 8 px or more   box left out                  yes
... if >= 90 % and >= 3 boxes look like that  the split is refused          yes
unknown class                                 box left out                  yes
image of a box not listed                     box left out                  yes
label or XML file with boxes, no such image   its boxes left out            yes
label file of an image that has another one   its boxes left out            yes
file that is no image by its suffix, or link  note                          no
image id not an integer, or missing           image left out                yes
image id twice, same file and size            the second is left out        yes
image id twice, different images              both left out                 yes
image file listed twice                       the second is left out        yes
image names that differ in case only          note                          no
size missing, below 1 or absurd               image left out                yes
file name that leaves the image folder        image left out                yes
more than 100,000 boxes in an image           image left out                yes
============================================  ============================  =======

Strict reading reads everything and then stops if anything is refused; lenient reading applies the consequences.
If an image is left out, so are its boxes, which its problem counts. Images without boxes are good images.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import Box, BoxColumns, fit_box, fit_boxes, integer_or_none, is_normalised
from drloss.data.checks.classes import check_classes, known_classes
from drloss.data.checks.problems import BOX_CLIPPED, BOX_LEFT_OUT, IMAGE_LEFT_OUT, ProblemLog, Report, report_of
from drloss.data.files.paths import Inside, clean_name
from drloss.errors import DataError, printable

MAX_BOXES = 100_000
"""Largest number of boxes in an image."""
MAX_NAMES = 200_000_000
"""Largest size of all file names in bytes, each counted as long as the longest: 2 million names of 100 bytes."""
MAX_SIDE = 65_535
"""Largest side of an image in pixels, which is that of JPEG files."""
_NORMALISED = "box within 0..1, as if normalised"
_MOST_NORMALISED, _LEAST_NORMALISED = 0.9, 3
"""The split is refused if at least this share and this number of its boxes look normalised."""


@dataclass(slots=True)
class _Image:
    """One image of the files; ``bad`` is the position of the problem that leaves it out.

    ``boxes`` is the number of its boxes, those in the columns only once all are read.
    """

    name: str
    height: int
    width: int
    image_id: int
    file: str
    record: str
    bad: int | None = None
    boxes: int = 0


class AnnotationsBuilder:
    """Checks the images and boxes of one split one by one, and makes its annotations and report.

    Args:
        name: name of the split in messages.
        class_names: K names, in the order of their labels.
        category_ids: K ids by which boxes refer to their class.
        image_root: folder that the stored image names are relative to.
        file: the file that lists the classes, for messages.

    Raises:
        DataError: if there is no class or too many, or if a name or id is given twice.
    """

    def __init__(
        self, name: str, class_names: Sequence[str], category_ids: Sequence[int], image_root: Path, file: str = ""
    ) -> None:
        check_classes(file or name, class_names, category_ids)
        self.name = name
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.image_root = image_root
        self._labels: dict[int | None, int] = {category: k for k, category in enumerate(category_ids, start=1)}
        self._images: list[_Image] = []
        self._by_key: dict[Any, int] = {}
        self._by_name: dict[str, int] = {}
        self._by_folded: dict[str, str] = {}
        self._inside: dict[Path, Inside] = {}
        self._boxes = BoxColumns()
        self._usable = np.zeros((0, 2), dtype=np.int32)
        self._log = ProblemLog()
        self._boxes_in = 0
        self._normalised, self._first_normalised = 0, ""
        self._known = known_classes(f"{c} ({printable(n)})" for c, n in zip(category_ids, class_names, strict=True))
        self._renumber = False

    def note(self, file: str, record: str, kind: str, value: object = None) -> None:
        """Add a note: it is not refused, and leaves nothing out."""
        self._log.note(file, record, kind, value)

    def drop_box(self, file: str, record: str, kind: str, value: object, allowed: str, boxes: int = 1) -> None:
        """Leave out boxes that cannot be passed to :meth:`add_box`, because the reader found a problem already."""
        self._boxes_in += boxes
        self._leave_out_box(file, record, kind, value, allowed, boxes)

    # ------------------------------------------------------------------ images

    def add_image(
        self,
        file: str,
        record: str,
        *,
        key: Any,
        name: object,
        height: object,
        width: object,
        image_id: int | None = None,
        folder: Path | None = None,
        bad: tuple[str, object, str] | None = None,
    ) -> None:
        """Add one image.

        Args:
            file, record: where it is listed.
            key: hashable value by which boxes refer to the image; None if the file's value cannot be used.
            name: its file name as the file has it, relative to ``folder``.
            height, width: in pixels, as the file has them.
            image_id: the file's own id; if any image has none, all are numbered 1..N.
            folder: folder of the image, if it is not ``image_root`` but below it.
            bad: kind, value and allowed of a problem that the reader found; the image is left out.
        """
        self._renumber |= image_id is None
        image = _Image("", 1, 1, image_id or 0, file, record)
        position = len(self._images)
        if bad is None:
            bad = self._name_problem(image, name, folder) or self._size_problem(image, height, width)
        self._images.append(image)
        if bad is not None:
            self._leave_out(image, *bad)
        if key is not None and key in self._by_key:
            self._same_id(image, self._images[self._by_key[key]], key)
        elif key is not None:
            self._by_key[key] = position
        if image.bad is None:
            self._same_name(image, position)

    def _leave_out(self, image: _Image, kind: str, value: object, allowed: str) -> None:
        image.bad = self._log.add(
            image.file, image.record, kind, value=value, allowed=allowed, consequence=IMAGE_LEFT_OUT
        )

    def _name_problem(self, image: _Image, name: object, folder: Path | None) -> tuple[str, object, str] | None:
        folder = self.image_root if folder is None else folder
        if folder not in self._inside:
            self._inside[folder] = Inside(folder)
        try:
            clean = clean_name(name)
        except ValueError as error:
            return f"file name refused ({error})", name, "a path relative to the image folder, within it"
        if not self._inside[folder](clean):
            return "file name refused (a link out of the image folder)", name, f"a file within {folder}"
        image.name = clean
        if folder is not self.image_root and folder != self.image_root:
            image.name = f"{os.path.relpath(folder, self.image_root)}/{clean}".replace(os.sep, "/")
            image.name = image.name.removeprefix("./")
        try:
            image.name.encode()
        except UnicodeEncodeError:
            return "file name refused (a folder that is not UTF-8)", image.name, "names in UTF-8"
        return None

    def _size_problem(self, image: _Image, height: object, width: object) -> tuple[str, object, str] | None:
        for side, value in (("height", height), ("width", width)):
            number = integer_or_none(value)
            if value is None:
                return f"{side} missing", None, f"an integer in 1..{MAX_SIDE}"
            if number is None or not 1 <= number <= MAX_SIDE:
                return f"image {side} not usable", value, f"an integer in 1..{MAX_SIDE}"
            setattr(image, side, number)
        return None

    def _same_id(self, image: _Image, first: _Image, key: Any) -> None:
        same = (image.name, image.height, image.width) == (first.name, first.height, first.width)
        if image.bad is None:
            self._leave_out(image, "image id listed twice", key, f"ids used once ({first.record} has it too)")
        if not same and first.bad is None:
            allowed = f"ids used once ({image.record} has it too, and nobody can tell whose boxes are whose)"
            self._leave_out(first, "image id listed twice", key, allowed)

    def _same_name(self, image: _Image, position: int) -> None:
        if image.name in self._by_name:
            first = self._images[self._by_name[image.name]]
            self._leave_out(
                image, "image file listed twice", image.name, f"files listed once (see {first.record or first.file})"
            )
            return
        self._by_name[image.name] = position
        other = self._by_folded.setdefault(image.name.casefold(), image.name)
        if other != image.name:
            self.note(image.file, image.record, "file name differs from another in case only", image.name)

    # ------------------------------------------------------------------ boxes

    def add_box(
        self,
        file: str,
        record: str,
        *,
        key: Any,
        category: object,
        box: Box,
        ignore: bool = False,
        area: float | None = None,
        written: Box | None = None,
    ) -> None:
        """Add one box.

        Args:
            file, record: where the box is.
            key: key of its image, as given to :meth:`add_image`.
            category: one of the category ids.
            box: xyxy in absolute pixels.
            ignore: whether it is neither target nor background.
            area: in square pixels, if the file has it; otherwise width times height.
            written: xyxy as the file has it, if the format has pixels: shares of the image's size are refused.
        """
        self._boxes_in += 1
        position = self._by_key.get(key)
        if position is None:
            self._leave_out_box(file, record, "image not listed", key, "the id of an image that the file lists")
            return
        image = self._images[position]
        if image.bad is not None:
            image.boxes += 1  # finish() adds them to the image's problem
            return
        label = self._labels.get(integer_or_none(category))
        if label is None:
            self._leave_out_box(file, record, "unknown class", category, self._known)
            return
        if written is not None and is_normalised(written, image.height, image.width):
            allowed = "pixels; shares of the image's width and height have to be multiplied by them"
            found = self._leave_out_box(file, record, _NORMALISED, _rounded(written), allowed)
            self._first_normalised = self._first_normalised or self._log.problems[found].message
            self._normalised += 1
            return
        fit = fit_box(box, image.height, image.width)
        if fit is not None:
            values, consequence = _rounded(box), BOX_LEFT_OUT if fit.box is None else BOX_CLIPPED
            if fit.refused:
                left_out = int(fit.box is None)
                self._log.add(
                    file, record, fit.kind, value=values, allowed=fit.allowed, consequence=consequence, boxes=left_out
                )
            elif fit.kind:
                self._log.note(file, record, fit.kind, values, consequence)
            if fit.box is None:
                return
            box = fit.box
        self._boxes.append(position, box, label, ignore, area)

    def add_boxes(
        self,
        keys: Sequence[Any],
        categories: Sequence[int],
        boxes: npt.NDArray[np.float64],
        ignore: npt.NDArray[np.bool_],
        areas: npt.NDArray[np.float64] | None,
        one_by_one: npt.NDArray[np.bool_],
        add: Callable[[int], None],
    ) -> None:
        """Add M boxes in their order: at once those of which :meth:`add_box` has nothing to say.

        Args:
            keys, categories, boxes, ignore, areas: as for :meth:`add_box`, with pixels as the file has them.
            one_by_one: (M,) boxes to be added by ``add`` in any case.
            add: adds the box at a position by :meth:`add_box`.
        """
        images = np.array([self._by_key.get(key, -1) for key in keys], dtype=np.int64)
        labels = np.array([self._labels.get(category, 0) for category in categories], dtype=np.int64)
        sizes = self._usable_sizes()[images]
        boxes, fine = fit_boxes(boxes, sizes[:, 0], sizes[:, 1])
        fine &= (images >= 0) & (labels > 0) & (sizes[:, 0] > 0) & ~one_by_one
        borders = np.flatnonzero(np.diff(fine)) + 1
        for first, end in zip([0, *borders.tolist()], [*borders.tolist(), len(keys)], strict=True):
            own = slice(first, end)
            if not fine[first]:
                for position in range(first, end):
                    add(position)
                continue
            self._boxes_in += end - first
            area = None if areas is None else areas[own]
            self._boxes.extend(images[own], boxes[own], labels[own], ignore[own], area)

    def _usable_sizes(self) -> npt.NDArray[np.int32]:
        """Height and width of each image, 0 if it is left out; and at the end those of no image."""
        if len(self._usable) != len(self._images) + 1:
            sizes = [(i.height, i.width) if i.bad is None else (0, 0) for i in self._images]
            self._usable = np.array([*sizes, (0, 0)], dtype=np.int32)
        return self._usable

    def _leave_out_box(self, file: str, record: str, kind: str, value: object, allowed: str, boxes: int = 1) -> int:
        return self._log.add(file, record, kind, value=value, allowed=allowed, consequence=BOX_LEFT_OUT, boxes=boxes)

    def _refuse_normalised(self) -> None:
        found = self._normalised
        if found >= max(_LEAST_NORMALISED, _MOST_NORMALISED * self._boxes_in):
            raise DataError(
                f"{self._first_normalised}\n{found:,} of {self._boxes_in:,} boxes in {printable(self.name)} are so: "
                "write them in pixels, or as a YOLO data set, which has shares of the image's size"
            )

    # ------------------------------------------------------------------ the result

    def finish(self, *, strict: bool) -> tuple[Annotations, Report]:
        """The annotations of the good images and boxes, and the report of all.

        Raises:
            DataError: if ``strict`` and a problem is refused, if no image is left, or if the boxes are normalised.
        """
        self._refuse_normalised()
        in_columns = np.bincount(np.array(self._boxes.image, dtype=np.int64), minlength=len(self._images)).tolist()
        for image, boxes in zip(self._images, in_columns, strict=True):
            image.boxes += boxes
        self._too_many_boxes()
        for image in self._images:
            if image.bad is not None:
                self._log.set_boxes(image.bad, image.boxes)
        annotations = self._annotations()
        report = report_of(annotations, self._log.problems, images_in=len(self._images), boxes_in=self._boxes_in)
        if strict:
            report.refuse()
        if not len(annotations):
            found = f"; {self._log.problems[0].message}" if self._log.problems else ""
            raise DataError(f"{printable(self.name)}: no usable image, got {len(self._images):,} listed{found}")
        return annotations, report

    def _too_many_boxes(self) -> None:
        for image in self._images:
            if image.bad is None and image.boxes > MAX_BOXES:
                self._leave_out(image, "image with too many boxes", image.boxes, f"{MAX_BOXES:,} at most")

    def _annotations(self) -> Annotations:
        good = [i for i, image in enumerate(self._images) if image.bad is None]
        first, boxes, labels, ignore, areas = self._boxes.arrays(len(self._images), good)
        images = [self._images[i] for i in good]
        names = [image.name.encode() for image in images]
        longest = max(map(len, names), default=0)
        if longest * len(names) > MAX_NAMES:  # the array stores each at the length of the longest
            raise DataError(
                f"{printable(self.name)}: file names, got {len(names):,} of up to {longest:,} bytes; allowed: "
                f"{MAX_NAMES:,} in all, each counted as the longest"
            )
        ids = range(1, len(good) + 1) if self._renumber else (image.image_id for image in images)
        return Annotations(
            name=self.name,
            class_names=self.class_names,
            category_ids=np.array(self.category_ids, dtype=np.int64),
            image_ids=np.array(list(ids), dtype=np.int64),
            image_names=np.array(names, dtype=np.bytes_),
            image_root=self.image_root,
            sizes=np.array([(i.height, i.width) for i in images], dtype=np.int32).reshape(-1, 2),
            first_box=first,
            boxes=boxes,
            labels=labels,
            ignore=ignore,
            areas=areas,
        )


def _rounded(box: Box) -> list[float]:
    return [float(f"{v:.10g}") for v in box]
