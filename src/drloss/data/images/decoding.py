"""From an image file to pixels, by these rules.

- Formats: JPEG, PNG, BMP, GIF, TIFF, WebP, PPM, recognised by content and not by the file's suffix.
- EXIF orientation is applied, once. Exception: if the data set lists the size of the stored image, and that differs
  from the size after rotation, the boxes were drawn on the stored pixels, and the orientation is not applied. Of a
  TIFF, it is always applied. Damaged EXIF is ignored.
- Alpha is dropped; the stored colours below it are used. Palettes become RGB, 1-bit and 8-bit grey become grey RGB,
  CMYK becomes RGB by Pillow's formula. Colour profiles are not applied.
- 16-bit grey is reduced to its high byte, so that 65535 becomes 255; a TIFF's 12-bit grey to its high eight bits. A
  TIFF in which 0 is white is inverted. Signed, floating-point and 32-bit pixels are refused.
- The first frame of an animation or of a file with several pages is read.
- A truncated file is an error, never a half-grey image. So is a JPEG whose data end before its pixels do (except
  within a TIFF), and a PNG whose pixel data do not match their checksums. Other formats have no checksums: damage
  there may go unnoticed.
- More than 50 megapixels are an error, found in the header before anything is decoded; the environment variable
  ``DRLOSS_MAX_PIXELS`` sets another limit. A JPEG with more than 100 scans is an error too.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from drloss.data.images.jpeg_checks import check_number_of_scans, check_scans
from drloss.data.images.png_checks import check_sums, late_exif
from drloss.errors import DataError, UserError, printable

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_DIVISORS = (8, 4, 2)
"""Divisors of an image's height and width with which libjpeg can decode it."""
_T = Image.Transpose
_TURNS = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}


class SizeError(DataError):
    """An image has another size than the data set lists."""


def read_image(
    path: Path,
    *,
    height: int | None = None,
    width: int | None = None,
    needed: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """Decode an image file.

    Args:
        path: the file.
        height, width: the size that the data set lists, in pixels; None to take the image as it is.
        needed: the height and width that are needed. A JPEG file of at least twice this size is decoded at a half, a
            quarter or an eighth of its size, which is faster. None for the full size.
        max_pixels: largest number of pixels; by default :func:`pixel_limit`.

    Returns:
        uint8 (3, H, W), RGB; the three values of a pixel are neighbours in memory.

    Raises:
        DataError: if the file is missing, no image, damaged, too large, or not of the listed size.
    """
    with pillow_quieted():
        return decode_quieted(path, height, width, needed, max_pixels)


def image_size(path: Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """Height and width in pixels of the image as :func:`read_image` returns it, from the header alone.

    Raises:
        DataError: if the file is missing, no image, or too large.
    """
    with pillow_quieted():
        return header_size(path, max_pixels)


@contextmanager
def pillow_quieted() -> Iterator[None]:
    """Silence Pillow's warnings. Warnings are not per thread: enter this before threads start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pixel_limit() -> int:
    """The largest number of pixels of an image: ``DRLOSS_MAX_PIXELS``, or 50 million."""
    text = os.environ.get("DRLOSS_MAX_PIXELS", "")
    if not text:
        return MAX_PIXELS
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(f"DRLOSS_MAX_PIXELS: got {text!r}; allowed: a positive integer")
    return int(text)


def header_size(path: Path, max_pixels: int | None = None) -> tuple[int, int]:
    """:func:`image_size` for callers that are :func:`pillow_quieted` already."""
    with _opened(path, max_pixels) as image:
        return _turned_size(image, _orientation(path, image))


def decode_quieted(
    path: Path,
    height: int | None,
    width: int | None,
    needed: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """:func:`read_image` for callers that are :func:`pillow_quieted` already."""
    with _opened(path, max_pixels) as image:
        turn = _turn(path, image, height, width)
        if needed and image.format in ("JPEG", "MPO"):
            divisor = jpeg_divisor(_turned_size(image, turn), needed)
            image.draft(None, (image.width // divisor, image.height // divisor))
        pixels = _pixels(path, image)
        if pixels is not image:
            image.close()  # which gives back its memory
        if turn in _TURNS:
            pixels = pixels.transpose(_TURNS[turn])
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def jpeg_divisor(size: tuple[int, int], needed: tuple[int, int]) -> int:
    """By what a JPEG file's height and width of ``size`` are divided when it is decoded: 8, 4, 2 or 1.

    >>> jpeg_divisor((1080, 1920), (256, 455)), jpeg_divisor((480, 640), (256, 341))
    (4, 1)
    """
    ratio = min(whole // wanted for whole, wanted in zip(size, needed, strict=True))
    return next((divisor for divisor in _DIVISORS if divisor <= ratio), 1)


def check_image(path: Path, height: int, width: int, *, pixels: bool) -> bool:
    """Raise what :func:`read_image` would raise; for callers that are :func:`pillow_quieted` already.

    Args:
        path: the file.
        height, width: the size that the data set lists, in pixels.
        pixels: decode the pixels, not only the header.

    Returns:
        Whether the EXIF orientation is not applied, because the listed size is that of the stored pixels.
    """
    with _opened(path, None) as image:
        orientation, turn = _orientation(path, image), _turn(path, image, height, width)
        if pixels:
            _pixels(path, image)
        return turn != orientation


@contextmanager
def _opened(path: Path, max_pixels: int | None) -> Iterator[Image.Image]:
    """The image with its header read. Any error inside the context becomes a DataError that names the file."""
    limit = pixel_limit() if max_pixels is None else max_pixels
    name = printable(str(path))
    try:
        if not path.is_file():
            raise DataError(f"{name}: {'not a plain file' if path.exists() else 'no such image file'}")
        if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = limit  # Pillow refuses twice that many; other threads need it too
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > limit:
                raise DataError(
                    f"{name}: size, got {image.height} x {image.width} px; allowed: at most {limit:,} pixels "
                    "(the environment variable DRLOSS_MAX_PIXELS sets another limit)"
                )
            yield image
    except (DataError, UserError):
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name}: far more pixels than the {limit:,} allowed") from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise DataError(f"{name}: {'empty file' if empty else 'not an image of a known format'}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({printable(reason)})") from None


def _orientation(path: Path, image: Image.Image) -> int:
    """The EXIF orientation, 1..8, that Pillow does not apply itself; reads no pixels."""
    if image.format == "TIFF":  # Pillow's TIFF decoder applies it itself
        return 1
    try:
        exif = Image.Image.getexif(image)  # not PngImageFile's, which decodes the pixels
        late = late_exif(path) if image.format == "PNG" and not exif else None
        if late is not None:
            exif.load(late)
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF is ignored
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _turn(path: Path, image: Image.Image, height: int | None, width: int | None) -> int:
    """The orientation to apply so that the image has the listed size."""
    orientation = _orientation(path, image)
    stored, turned = _turned_size(image, 1), _turned_size(image, orientation)
    listed = (turned[0] if height is None else height, turned[1] if width is None else width)
    if listed == turned:
        return orientation
    if listed == stored:
        return 1
    also = "" if stored == turned else f" ({stored[0]} x {stored[1]} before EXIF rotation)"
    raise SizeError(
        f"{printable(str(path))}: size, got {turned[0]} x {turned[1]}{also}; "
        f"the data set lists {listed[0]} x {listed[1]} (height x width)"
    )


def _turned_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Height and width after turning."""
    return (image.width, image.height) if orientation >= 5 else (image.height, image.width)


def _pixels(path: Path, image: Image.Image) -> Image.Image:
    """The decoded image, in mode RGB, not turned."""
    if image.format == "PNG":
        check_sums(path)
    if image.format in ("JPEG", "MPO"):
        check_number_of_scans(path)
    image.load()
    if image.format in ("JPEG", "MPO"):
        check_scans(path, image)
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """The loaded image in mode RGB.

    Raises:
        ValueError: if its pixels have no range that maps to 0..255.
    """
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ValueError("signed pixels have no range that maps to 0..255")
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        wide = np.asarray(image) >> bits - 8
        grey = wide.clip(0, 255, out=wide).astype(np.uint8)
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts it below 16 bits only
            grey = 255 - grey
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no range that maps to 0..255")
    if image.mode == "RGBA":
        return image.convert("RGB")
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        if image.mode == "P" and "transparency" not in image.info:
            return image.convert("RGB")
        rgba = np.asarray(image.convert("RGBA"))
        return Image.fromarray(np.ascontiguousarray(rgba[:, :, :3]))
    image.info.pop("transparency", None)  # the transparent grey level, which is not used
    return image.convert("RGB")
