"""The annotated images of one split in memory, whatever their format on disk.

They are a few flat arrays, not a list of dicts: a data-loading worker that is forked from the trainer shares their
memory instead of copying it, and 860,000 boxes take 40 MB.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from drloss.data.images.cache import ImageCache, load_cached
from drloss.data.images.decoding import read_image


@dataclass(frozen=True)
class Annotations:
    """The images of one split and their boxes.

    N images, M boxes, K classes. Image ``i`` owns the boxes ``first_box[i]:first_box[i + 1]``.

    Attributes:
        name: name of the split in messages, e.g. ``"data/bccd train"``.
        class_names: K names; the class of label k (1..K) is ``class_names[k - 1]``.
        category_ids: (K,) int64, the annotation file's id of class k at position k - 1.
        image_ids: (N,) int64, unique; the file's own ids (COCO), else 1..N.
        image_names: (N,) bytes, UTF-8 paths relative to ``image_root``.
        image_root: folder of the images; None if ``draw`` makes them.
        sizes: (N, 2) int32, height and width of the decoded image in pixels.
        first_box: (N + 1,) int64, offsets into the box arrays.
        boxes: (M, 4) float64, xyxy in absolute pixels, inside the image.
        labels: (M,) int64, 1..K.
        ignore: (M,) bool, crowd regions (COCO) and difficult objects (VOC): neither target nor background.
        areas: (M,) float64, square pixels; the evaluator sorts objects into small, medium and large by them.
        draw: image index to uint8 image (3, H, W), for generated data.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: npt.NDArray[np.int64]
    image_ids: npt.NDArray[np.int64]
    image_names: npt.NDArray[np.bytes_]
    image_root: Path | None
    sizes: npt.NDArray[np.int32]
    first_box: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    draw: Callable[[int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def boxes_of(self, index: int) -> slice:
        """The positions of an image's boxes in the box arrays."""
        return slice(int(self.first_box[index]), int(self.first_box[index + 1]))

    def image_name(self, index: int) -> str:
        """The image's path relative to ``image_root``, or a made-up name for a generated image."""
        return bytes(self.image_names[index]).decode()

    def image_path(self, index: int) -> str:
        """The image's path in messages; its name, if the image is generated."""
        return str(self.image_root / self.image_name(index)) if self.image_root else self.image_name(index)

    def select(self, images: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Annotations":
        """The annotations of some of the images.

        Args:
            images: (N,) bool mask; or positions, in the order wanted, each at most once.
        """
        index = np.arange(len(self))[images]
        counts = np.diff(self.first_box)[index]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        boxes = np.arange(first[-1]) + np.repeat(self.first_box[index] - first[:-1], counts)
        draw = self.draw
        return replace(
            self,
            image_ids=self.image_ids[index],
            image_names=self.image_names[index],
            sizes=self.sizes[index],
            first_box=first,
            boxes=self.boxes[boxes],
            labels=self.labels[boxes],
            ignore=self.ignore[boxes],
            areas=self.areas[boxes],
            draw=None if draw is None else partial(_draw_selected, draw, index),
        )

    def load_image(
        self, index: int, needed: tuple[int, int] | None = None, cache: ImageCache | None = None
    ) -> Tensor:
        """Read or draw one image: uint8 (3, H, W), RGB.

        Args:
            index: position of the image.
            needed: the height and width that are needed; the image may be smaller than ``sizes`` states, but not
                smaller than this. None for the size that ``sizes`` states.
            cache: where decoded images are kept.
        Raises:
            DataError: if the file is missing, cannot be decoded or has another size than listed.
        """
        if self.draw is not None:
            return load_cached(cache, index, Path(), partial(self.draw, index))
        assert self.image_root is not None
        height, width = (int(s) for s in self.sizes[index])
        file = self.image_root / self.image_name(index)
        read = partial(read_image, file, height=height, width=width, needed=needed)
        return load_cached(cache, index, file, read)


def _draw_selected(draw: Callable[[int], Tensor], images: npt.NDArray[np.int64], index: int) -> Tensor:
    return draw(int(images[index]))
