"""Images as programs have them: a path, a Pillow image, an array or a tensor; and how they go into a detector."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from drloss.data.images.decoding import as_rgb, image_size, jpeg_divisor, read_image
from drloss.data.transforms import input_sizes, pad, resize
from drloss.detector.config import DetectorConfig
from drloss.errors import UserError, first_line
from drloss.structures import Frame

Picture = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
"""An image file; a Pillow image; a NumPy array (H, W, 3) or (H, W); or a tensor (3, H, W), in RGB. Arrays and tensors
are uint8, or float in 0..1."""


def as_pixels(image: Picture) -> Tensor:
    """The pixels of an image as uint8 (3, H, W), RGB, on the CPU. Pillow images are turned as their EXIF data say.

    Raises:
        UserError: if it cannot be read, or has another shape, type or range.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return _channels_first(np.asarray(as_rgb(ImageOps.exif_transpose(image))))
        except (OSError, SyntaxError, ValueError) as error:  # of a file that Pillow reads only now, or of a mode
            raise UserError(f"an image of mode {image.mode} cannot be read: {first_line(error)}") from None
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[:, :, None].repeat(3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"an array must be (H, W, 3) RGB or (H, W) grey, got {tuple(image.shape)}")
        return _bytes(_channels_first(image))
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise UserError(f"a tensor must be (3, H, W) RGB, got {tuple(image.shape)}")
        return _bytes(image.detach().cpu())
    raise UserError(f"an image must be a path, a Pillow image, an array or a tensor, got {type(image).__name__}")


def _channels_first(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def _bytes(pixels: Tensor) -> Tensor:
    """Pixels as uint8, from uint8 or from floats in 0..1."""
    if not pixels.numel():
        raise UserError(f"an image must have pixels, got the shape {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise UserError(f"pixels must be uint8, or float in 0..1, got {pixels.dtype}")
    low, high = pixels.aminmax()
    if not (low >= 0 and high <= 1):
        raise UserError(f"float pixels must lie in 0..1, got {float(low):g}..{float(high):g}")
    return (pixels.float() * 255).round().to(torch.uint8)


def prepared(
    image: Tensor, config: DetectorConfig, fixed: tuple[int, int] | None = None, path: Path | None = None
) -> tuple[Tensor, Frame]:
    """What a detector is given of an image: resized and padded pixels uint8 (3, H', W'), and the sizes.

    Args:
        image: uint8 (3, H, W).
        config: has the size at test time.
        fixed: height and width of the input, if it can have no other.
        path: the image's file. The detector then sees the pixels that it would see in evaluation: those of a large
            JPEG file are decoded at a part of its size.
    """
    original = (image.shape[1], image.shape[2])
    size, padded = input_sizes(original, config.short_side, config.max_side, fixed)
    if path is not None and jpeg_divisor(original, size) > 1:
        image = read_image(path, needed=size)
    return pad(resize(image, size), padded), Frame(original, size)


def prepared_file(path: Path, config: DetectorConfig, fixed: tuple[int, int] | None = None) -> tuple[Tensor, Frame]:
    """What :func:`prepared` makes of an image file, of which no more is decoded than the detector sees.

    Raises:
        DataError: if the file cannot be read.
    """
    original = image_size(path)
    size, padded = input_sizes(original, config.short_side, config.max_side, fixed)
    return pad(resize(read_image(path, needed=size), size), padded), Frame(original, size)
