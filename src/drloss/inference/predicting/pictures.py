"""Pictures with the boxes drawn, and the objects cut out of them, as JPEG files."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor
from pathlib import Path

from PIL import Image
from torch import Tensor

from drloss.data.images.decoding import decode_quieted
from drloss.errors import NoSpaceError, UserError, first_line, printable
from drloss.evaluation.drawing import draw_detections
from drloss.inference.predicting.folder import CROPS, PICTURES
from drloss.io.atomic import write_atomic
from drloss.structures import Detection

QUALITY = 92
"""Quality of the JPEG files; their colours are stored in full, or the frames of boxes would blur."""


@dataclass(frozen=True)
class Drawing:
    """What is drawn.

    Attributes:
        out: folder of results.
        class_names: names of the labels 1..K.
        threshold: lowest score that is drawn or cut out.
        pictures: whether pictures are drawn.
        crops: whether objects are cut out.
        unit: as for :func:`~drloss.evaluation.drawing.draw_detections`.
    """

    out: Path
    class_names: tuple[str, ...]
    threshold: float
    pictures: bool
    crops: bool
    unit: int | None

    def save(self, path: Path, stem: str, detection: Detection) -> str:
        """Draw an image file; why that was not possible, or nothing. Callers are ``pillow_quieted``.

        Raises:
            NoSpaceError: if there is no room on the disk.
        """
        if not (self.pictures or self.crops):
            return ""
        try:
            image = decode_quieted(path, None, None)
            if self.pictures:
                save_jpeg(self.draw(image, detection), self.out / PICTURES / f"{stem}.jpg")
            self.cut_out(image, stem, detection)
        except NoSpaceError:
            raise
        except (UserError, ValueError, OSError, MemoryError) as error:
            return f"{printable(str(path))}: its picture could not be written: {first_line(error)}"
        return ""

    def draw(self, image: Tensor, detection: Detection) -> Image.Image:
        """An image uint8 (3, H, W) with its boxes."""
        return draw_detections(image, detection, self.class_names, threshold=self.threshold, unit=self.unit)

    def cut_out(self, image: Tensor, stem: str, detection: Detection) -> None:
        """Save each object of an image uint8 (3, H, W), in a folder for each class, if that is wanted."""
        if not self.crops:
            return
        height, width = image.shape[1:]
        rows = zip(*(detection[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
        for number, (box, score, label) in enumerate(rows, start=1):
            left, top = min(width - 1, max(0, floor(box[0]))), min(height - 1, max(0, floor(box[1])))
            right, bottom = min(width, max(left + 1, ceil(box[2]))), min(height, max(top + 1, ceil(box[3])))
            if score >= self.threshold:
                part = image[:, top:bottom, left:right].permute(1, 2, 0).contiguous().numpy()
                path = self.out / CROPS / self.folders[label - 1] / f"{stem}-{number}.jpg"
                save_jpeg(Image.fromarray(part), path)

    @cached_property
    def folders(self) -> list[str]:
        """Names of the K classes as folders."""
        return class_folders(self.class_names)


def save_jpeg(picture: Image.Image, path: Path) -> None:
    """Write a picture as JPEG, whole or not at all.

    Raises:
        NoSpaceError: if there is no room on the disk.
        UserError: if it cannot be written for another reason.
        OSError, ValueError: if it is too large for JPEG.
    """
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY, subsampling=0)
    write_atomic(path, lambda beside: beside.write_bytes(content.getbuffer()), sync=False)


def class_folders(names: Sequence[str]) -> list[str]:
    """Names of classes as names of folders, all different on any disk.

    >>> class_folders(["cell", "Cell", "a/b", ".."])
    ['cell', '2-Cell', '3-a_b', '4-__']
    """
    found: list[str] = []
    for label, name in enumerate(names, start=1):
        plain = re.sub(r"[^\w +()-]|^ | $", "_", name)[:60]
        new = plain == name != "" and plain.casefold() not in {other.casefold() for other in found}
        found.append(plain if new else f"{label}-{plain}")
    return found
