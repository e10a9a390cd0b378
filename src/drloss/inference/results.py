"""What a detector found in one image, for programs and notebooks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

from PIL import Image
from torch import Tensor

from drloss.errors import UserError
from drloss.evaluation.drawing import draw_detections
from drloss.inference.images import Picture, as_pixels
from drloss.structures import Detection


class Found(NamedTuple):
    """One detected object.

    Attributes:
        name: its class.
        score: in 0..1.
        box: left, top, right, bottom in pixels of the image.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, best first. It has the length and the items of a sequence of :class:`Found`.

    Attributes:
        boxes: (D, 4) float32 xyxy, in pixels of the image, on the CPU.
        scores: (D,) float32 in descending order.
        labels: (D,) int64 in 1..K.
        size: height and width of the image.
        class_names: names of the labels 1..K.
        category_ids: ids of the labels 1..K in the training data.
        source: the image as it was given; a path is not read again before :meth:`plot`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: Picture

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> list[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | list[Found]:
        """The object at a position, counted from the best; or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        left, top, right, bottom = self.boxes[index].tolist()
        name = self.class_names[int(self.labels[index]) - 1]
        return Found(name, float(self.scores[index]), (left, top, right, bottom))

    def __iter__(self) -> Iterator[Found]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        few = ", ".join(f"{found.name} {found.score:.2f}" for found in list(self)[:5])
        return f"<{len(self)} detections{': ' if few else ''}{few}{', …' if len(self) > 5 else ''}>"

    @property
    def names(self) -> list[str]:
        """Names of the D classes."""
        return [self.class_names[label - 1] for label in self.labels.tolist()]

    def above(self, threshold: float) -> "Detections":
        """Those that score at least ``threshold``."""
        keep = self.scores >= threshold
        rest = (self.size, self.class_names, self.category_ids, self.source)
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], *rest)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Records of the COCO results format: left, top, width and height; category ids of the training data."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label in rows
        ]

    def to_supervision(self) -> Any:
        """``supervision.Detections``, with class ids from 0 and the names in ``data["class_name"]``.

        Raises:
            UserError: if supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UserError("to_supervision: supervision is missing: run pip install supervision") from None
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy() - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def plot(self, image: Picture | None = None) -> Image.Image:
        """The image with the boxes, as a Pillow image; a notebook shows it.

        Args:
            image: draws on this one; by default on the image that was given, whose file is read again.
        """
        pixels = as_pixels(self.source if image is None else image)
        return draw_detections(pixels, self.as_tensors(), self.class_names, threshold=0.0)

    def as_tensors(self) -> Detection:
        """The three tensors by name, as the functions of :mod:`drloss.evaluation` take them."""
        return {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
