"""``shapes``: a detection data set that code draws, so that everything runs without a download.

Small filled discs, squares, triangles and stars lie on textured backgrounds, among similar shapes that belong to no
class (rings, frames, crescents, hexagons, crosses). Colours are random. About one image in sixteen has no object.
Image i of a split depends on (seed, split, i) only: nothing is stored, and a split can have any number of images.
"""

from dataclasses import dataclass, fields
from functools import lru_cache, partial
from math import cos, pi, sin

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import Report, report_of
from drloss.errors import UserError

CLASS_NAMES = ("disc", "square", "triangle", "star")
DISTRACTORS = ("ring", "frame", "crescent", "hexagon", "cross")
SPLITS = ("train", "val", "test")
_SUPERSAMPLE = 3
_EMPTY_SHARE = 1 / 16
_CACHED_SIZE = 160
"""Side up to which drawn images stay in memory for the next epoch, 1,024 of them (80 MB)."""

Polygon = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShapesConfig:
    """What to draw; given on the command line as ``shapes:size=128,train=2000``.

    Attributes:
        size: side of the square images, in pixels.
        train, val, test: images of each split.
        seed: seed of the data set.
        objects: largest number of objects in an image; there are about half as many distractors.
        smallest, largest: range of an object's side, as a share of ``size``.
    """

    size: int = 128
    train: int = 1024
    val: int = 256
    test: int = 256
    seed: int = 0
    objects: int = 6
    smallest: float = 0.12
    largest: float = 0.4


@dataclass(frozen=True)
class _Shape:
    """One shape in an image: its kind, centre and outer radius in pixels, angle and colour."""

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    colour: tuple[int, int, int]


class Shapes:
    """The generated data set as a :class:`drloss.data.source.DataSource`."""

    format = "shapes"
    says = ""
    splits = SPLITS

    def __init__(self, config: ShapesConfig, name: str = "shapes") -> None:
        self.config = config
        self.name = name

    def read(self, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
        """Annotations of a split and their report; ``strict`` has no effect, because generated data are good."""
        if split not in SPLITS:
            raise UserError(f"{self.name} has the splits {', '.join(SPLITS)}, got {split!r}")
        config = self.config
        count = getattr(config, split)
        labels: list[int] = []
        boxes: list[tuple[float, float, float, float]] = []
        first = [0]
        for index in range(count):
            for shape in _layout(config, split, index):
                if shape.kind in CLASS_NAMES:
                    labels.append(CLASS_NAMES.index(shape.kind) + 1)
                    boxes.append(_box(shape))
            first.append(len(boxes))
        array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        annotations = Annotations(
            name=f"{self.name} {split}",
            class_names=CLASS_NAMES,
            category_ids=np.arange(1, len(CLASS_NAMES) + 1, dtype=np.int64),
            image_ids=np.arange(1, count + 1, dtype=np.int64),
            image_names=np.array([f"{split}_{i:06d}.png".encode() for i in range(count)], dtype=np.bytes_),
            image_root=None,
            sizes=np.full((count, 2), config.size, dtype=np.int32),
            first_box=np.array(first, dtype=np.int64),
            boxes=array,
            labels=np.array(labels, dtype=np.int64),
            ignore=np.zeros(len(labels), dtype=np.bool_),
            areas=(array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1]),
            draw=partial(draw, config, split),
        )
        return annotations, report_of(annotations)


def open_shapes(spec: str) -> Shapes:
    """``shapes`` or ``shapes:key=value,...`` with the fields of :class:`ShapesConfig`.

    Raises:
        UserError: if a key is unknown or a value does not fit.
    """
    _, _, options = spec.partition(":")
    values: dict[str, int | float] = {}
    types = {f.name: f.type for f in fields(ShapesConfig)}
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        if key not in types:
            raise UserError(f"{spec}: unknown key {key!r}, allowed: {', '.join(types)}")
        kind = int if types[key] is int else float
        try:
            values[key] = kind(text)
        except ValueError:
            raise UserError(f"{spec}: {key} must be of type {kind.__name__}, got {text!r}") from None
    config = ShapesConfig(**values)  # type: ignore[arg-type]
    if config.size < 32 or min(config.train, config.val, config.test, config.objects) < 1 or config.seed < 0:
        raise UserError(f"{spec}: size must be at least 32, counts at least 1 and seed not negative")
    if not 0 < config.smallest <= config.largest <= 0.5:
        raise UserError(f"{spec}: need 0 < smallest <= largest <= 0.5")
    return Shapes(config, spec)


def draw(config: ShapesConfig, split: str, index: int) -> Tensor:
    """Image ``index`` of a split: uint8 (3, size, size). The caller must not write into it."""
    return _draw_small(config, split, index) if config.size <= _CACHED_SIZE else _draw(config, split, index)


@lru_cache(maxsize=1024)
def _draw_small(config: ShapesConfig, split: str, index: int) -> Tensor:
    return _draw(config, split, index)


def _draw(config: ShapesConfig, split: str, index: int) -> Tensor:
    shapes = _layout(config, split, index)
    rng = np.random.default_rng((config.seed, SPLITS.index(split), index, 1))
    side = config.size * _SUPERSAMPLE
    canvas = Image.fromarray(_background(rng, config.size)).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for shape in shapes:
        outline = _outline(shape) * _SUPERSAMPLE
        pen.polygon([tuple(p) for p in outline], fill=shape.colour)
        if shape.kind in ("ring", "frame"):
            # Hollow: the hole shows a second colour, so that colour alone does not tell it from an object.
            hole = _outline(_Shape(shape.kind, shape.x, shape.y, shape.radius * 0.6, shape.angle, shape.colour))
            other = tuple(int(v) for v in rng.integers(0, 256, 3))
            pen.polygon([tuple(p) for p in hole * _SUPERSAMPLE], fill=other)
    small = np.asarray(canvas.resize((config.size, config.size), Image.Resampling.BOX), dtype=np.float32)
    noisy = small + rng.normal(0, 6, small.shape)
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _layout(config: ShapesConfig, split: str, index: int) -> list[_Shape]:
    """The objects and distractors of an image, placed so that their boxes hardly touch."""
    rng = np.random.default_rng((config.seed, SPLITS.index(split), index, 0))
    objects = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, config.objects + 1))
    distractors = int(rng.integers(0, config.objects // 2 + 2))
    kinds = [*rng.choice(CLASS_NAMES, objects), *rng.choice(DISTRACTORS, distractors)]
    placed: list[_Shape] = []
    for kind in kinds:
        for _ in range(20):
            # Log-uniform: as many small objects as large ones.
            side = config.size * config.smallest * (config.largest / config.smallest) ** rng.random()
            radius = side / 2
            x, y = rng.uniform(radius + 1, config.size - radius - 1, 2)
            red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
            angle = float(rng.uniform(0, 2 * pi))
            shape = _Shape(str(kind), float(x), float(y), float(radius), angle, (red, green, blue))
            if all(max(abs(x - o.x), abs(y - o.y)) > 0.9 * (radius + o.radius) for o in placed):
                placed.append(shape)
                break
    return placed


def _outline(shape: _Shape) -> Polygon:
    """Corners (P, 2) of the shape in pixels of the image."""
    if shape.kind in ("disc", "ring"):
        points = _regular(40)
    elif shape.kind in ("square", "frame"):
        points = _regular(4)
    elif shape.kind == "triangle":
        points = _regular(3)
    elif shape.kind == "hexagon":
        points = _regular(6)
    elif shape.kind == "star":
        points = _regular(10) * np.where(np.arange(10) % 2 == 0, 1.0, 0.45)[:, None]
    elif shape.kind == "cross":
        arm = 0.3
        corner = np.array([[1, arm], [arm, arm], [arm, 1]])
        points = np.concatenate([corner @ _rotation(k * pi / 2).T for k in range(4)])
    else:  # crescent: a half-circle outside, a flatter arc back
        t = np.linspace(-pi / 2, pi / 2, 20)
        outer = np.stack([np.cos(t), np.sin(t)], axis=1)
        points = np.concatenate([outer, np.stack([0.45 * np.cos(t), np.sin(t)], axis=1)[::-1]])
    points = points @ _rotation(shape.angle).T
    return np.array([shape.x, shape.y]) + shape.radius * points


def _regular(corners: int) -> Polygon:
    t = np.arange(corners) * 2 * pi / corners
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def _rotation(angle: float) -> Polygon:
    return np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])


def _box(shape: _Shape) -> tuple[float, float, float, float]:
    """Tight xyxy box of the outline."""
    outline = _outline(shape)
    (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _background(rng: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    """Noise at three scales, more of it in brightness than in colour (size, size, 3)."""
    grey = rng.integers(50, 206)
    total = np.full((size, size, 3), grey + rng.integers(-25, 26, 3), dtype=np.float32)
    for cells, strength in ((3, 30), (10, 20), (32, 14)):
        colour = rng.normal(0, 0.4 * strength, (cells, cells, 3))
        grid = (colour + rng.normal(0, strength, (cells, cells, 1))).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(grid[:, :, channel]).resize((size, size), Image.Resampling.BICUBIC)
            total[:, :, channel] += np.asarray(layer)
    return np.clip(total, 0, 255).astype(np.uint8)
