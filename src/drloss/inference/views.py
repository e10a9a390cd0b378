"""What of an image goes through a detector, all of it or also tiles of it, and what is found there as one.

A detector sees a large image much smaller than it is, and small objects vanish. So a large image can be seen in tiles
as well: squares at its own resolution that overlap, so that an object smaller than the overlap is whole in one. What
is found in the tiles and in the whole image goes through NMS per class. An object at the edge of a tile is cut, and
its box is only a part of the right one, which NMS would keep: it is dropped where another box of its class, which no
edge cuts, holds it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from drloss.data.images.decoding import read_image
from drloss.data.transforms import pad, padded_size
from drloss.detector.boxes import area
from drloss.detector.config import DetectorConfig
from drloss.errors import UserError
from drloss.inference.images import prepared, prepared_file
from drloss.structures import Detection, Frame

OVERLAP = 0.2
"""Share of a tile's side that it has in common with the next one."""
LEAST_SIDE = 32
"""Smallest side of a tile in pixels."""
EDGE = 4.0
"""A box is cut by an edge of its tile if it ends within so many pixels of it."""
INSIDE = 0.7
"""Share of a cut box that the box of the whole object holds at least."""
LESS_SURE = 0.5
"""The score of the whole object's box is at least this share of the cut one's."""
CHUNK = 4
"""So many batches are looked at together, to fill batches of one size from images of several sizes."""


class Tiling(NamedTuple):
    """How images are cut into tiles.

    Attributes:
        side: of a tile, in pixels of the image.
        overlap: least share of the side that neighbours have in common, 0 or more and less than 1.
    """

    side: int
    overlap: float = OVERLAP


class Views(NamedTuple):
    """T parts of one image that have one size.

    Attributes:
        pixels: (T, 3, H, W) uint8, padded.
        frame: sizes of each part.
        origins: top and left of the T parts in the image, in pixels.
    """

    pixels: Tensor
    frame: Frame
    origins: list[tuple[int, int]]


@dataclass(frozen=True)
class Seen:
    """What of one image goes through a detector.

    Attributes:
        size: height and width of the image.
        views: the whole image, and its tiles if there are any.
    """

    size: tuple[int, int]
    views: list[Views]

    @property
    def parts(self) -> int:
        """Number of the parts."""
        return sum(len(v.pixels) for v in self.views)


def checked_tiling(tile: int | None, overlap: float, fixed: tuple[int, int] | None) -> Tiling | None:
    """The tiling for a side and an overlap; None without a side.

    Args:
        tile: side of a tile in pixels.
        overlap: share of the side.
        fixed: height and width of the detector's only input, if it has but one.
    Raises:
        UserError: if one is out of range, or the tile does not fit into the input.
    """
    if tile is None:
        return None
    if tile < LEAST_SIDE:
        raise UserError(f"tile must be at least {LEAST_SIDE} pixels, got {tile}")
    if not 0 <= overlap < 0.9:
        raise UserError(f"overlap must lie in 0..0.9, the 0.9 left out, got {overlap:g}")
    if fixed is not None and tile > min(fixed):
        raise UserError(f"tile must be at most {min(fixed)} for a detector whose input is {fixed[0]} x {fixed[1]}")
    return Tiling(tile, overlap)


def see(
    image: Tensor | Path,
    config: DetectorConfig,
    fixed: tuple[int, int] | None = None,
    tiling: Tiling | None = None,
    path: Path | None = None,
) -> Seen:
    """The whole of an image, and its tiles if it is larger than one, as a detector takes them.

    Args:
        image: its pixels uint8 (3, H, W), or its file; of a large JPEG file no more is decoded than is needed.
        config: has the size at test time.
        fixed: height and width of the input, if it can have no other.
        tiling: how large images are cut; None for no tiles.
        path: the file of ``image``, if that is pixels; see :func:`~drloss.inference.images.prepared`.
    Raises:
        DataError: if the file cannot be read.
    """
    if isinstance(image, Path):
        if tiling is None:
            pixels, frame = prepared_file(image, config, fixed)
            return Seen(frame.original, [Views(pixels.unsqueeze(0), frame, [(0, 0)])])
        path, image = image, read_image(image)
    pixels, frame = prepared(image, config, fixed, path)
    views = [Views(pixels.unsqueeze(0), frame, [(0, 0)])]
    if tiling is not None and max(frame.original) > tiling.side:
        views.append(_tiles(image, tiling, fixed))
    return Seen(frame.original, views)


def _tiles(image: Tensor, tiling: Tiling, fixed: tuple[int, int] | None) -> Views:
    height, width = image.shape[1:]
    size = min(tiling.side, height), min(tiling.side, width)
    rows, columns = (starts(length, *tiling) for length in (height, width))
    origins = [(top, left) for top in rows for left in columns]
    tiles = torch.stack([image[:, top : top + size[0], left : left + size[1]] for top, left in origins])
    return Views(torch.stack([pad(tile, fixed or padded_size(size)) for tile in tiles]), Frame(size, size), origins)


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles of ``side`` begin along ``length`` pixels, evenly, with at least that overlap.

    >>> starts(1500, 640, 0.2), starts(600, 640, 0.2)
    ([0, 430, 860], [0])
    """
    if length <= side:
        return [0]
    gaps = ceil((length - side) / max(1, int(side * (1 - overlap))))
    return [round(i * (length - side) / gaps) for i in range(gaps + 1)]


class HasParts(Protocol):
    """Something of which some parts go through a detector."""

    @property
    def parts(self) -> int: ...


Image = TypeVar("Image", bound=HasParts)


def in_chunks(images: Iterable[Image], batch_size: int) -> Iterator[list[Image]]:
    """Images in lists that have enough parts for :data:`CHUNK` batches, in their order."""
    chunk: list[Image] = []
    for image in images:
        chunk.append(image)
        if sum(one.parts for one in chunk) >= CHUNK * batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def find_in(
    images: Sequence[Seen],
    find: Callable[[Tensor, Sequence[Frame]], list[Detection]],
    *,
    batch_size: int,
    iou: float,
) -> list[Detection]:
    """Detections of each image, best first.

    Args:
        images: the images; their parts of one size go through the network together.
        find: finds in prepared images (N, 3, H, W) with their N frames.
        batch_size: most parts that go through the network at once.
        iou: overlap from which on NMS drops a box, where there are tiles.
    """
    groups: dict[torch.Size, list[tuple[int, int, int]]] = {}
    for i, image in enumerate(images):
        for v, views in enumerate(image.views):
            groups.setdefault(views.pixels.shape[1:], []).extend((i, v, part) for part in range(len(views.pixels)))
    found: list[list[tuple[Detection, tuple[int, int], tuple[int, int]]]] = [[] for _ in images]
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            those = [images[i].views[v] for i, v, _ in batch]
            pixels = torch.stack([those[n].pixels[part] for n, (_, _, part) in enumerate(batch)])
            detections = find(pixels, [one.frame for one in those])
            for detection, one, (i, _, part) in zip(detections, those, batch, strict=True):
                found[i].append((detection, one.origins[part], one.frame.original))
    return [
        parts[0][0] if image.parts == 1 else merge(parts, image.size, iou)
        for image, parts in zip(images, found, strict=True)
    ]


def merge(
    parts: Sequence[tuple[Detection, tuple[int, int], tuple[int, int]]], size: tuple[int, int], iou: float
) -> Detection:
    """What was found in parts of one image as detections of the image, best first.

    Args:
        parts: detections in pixels of a part, the part's top and left, and its height and width.
        size: height and width of the image.
        iou: overlap from which on NMS drops a box.
    """
    boxes, cut = [], []
    for detection, (top, left), (height, width) in parts:
        own = detection["boxes"]
        edges = torch.tensor(
            [left > 0, top > 0, left + width < size[1], top + height < size[0]], dtype=torch.bool
        )  # those that lie inside the image
        ends = torch.tensor([0.0, 0.0, width, height])
        cut.append((((own - ends).abs() < EDGE) & edges).any(dim=1))
        boxes.append(own + torch.tensor([left, top, left, top], dtype=own.dtype))
    everything = {"boxes": torch.cat(boxes)}
    everything |= {name: torch.cat([part[0][name] for part in parts]) for name in ("scores", "labels")}
    whole = _without_cut(everything, torch.cat(cut))
    keep = batched_nms(whole["boxes"], whole["scores"], whole["labels"], iou)
    return {name: tensor[keep] for name, tensor in whole.items()}


def _without_cut(found: Detection, cut: Tensor) -> Detection:
    """Detections without those that an edge cuts, ``cut`` (D,), and that a whole box of their class holds."""
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    keep = torch.ones_like(cut)
    for label in torch.unique(labels[cut]):
        parts = (cut & (labels == label)).nonzero().squeeze(1)
        wholes = (~cut & (labels == label)).nonzero().squeeze(1)
        low = torch.maximum(boxes[parts, None, :2], boxes[None, wholes, :2])
        high = torch.minimum(boxes[parts, None, 2:], boxes[None, wholes, 2:])
        shared = (high - low).clamp(min=0).prod(dim=2)
        held = shared >= INSIDE * area(boxes[parts])[:, None]
        sure = scores[None, wholes] >= LESS_SURE * scores[parts, None]
        keep[parts] = ~(held & sure).any(dim=1)
    return {name: tensor[keep] for name, tensor in found.items()}
