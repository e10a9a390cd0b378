"""Checks of JPEG files: data for all pixels, and not so many scans that decoding takes minutes.

If the data of a scan end too early, because a damaged byte looks like a marker or shifts what follows, libjpeg leaves
the rest of the scan grey and only warns; Pillow hides this warning. So an image with grey blocks is decoded a second
time, from a padded copy: extra bytes stand before each marker that ends a scan or a restart interval. If all data are
there, libjpeg skips the extra bytes, and the pixels stay the same. If data are missing, it decodes the extra bytes in
their place, and the pixels change.
"""

import io
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

_PADDING = bytes(256)
_SIDE = 8
"""Side in pixels of the blocks that a JPEG image is made of."""
_LARGEST, _METADATA = 4, 1 << 26
"""Largest size of a good JPEG file: bytes for each value of its pixels, and bytes of metadata."""
_GREYS = (127, 128)
"""Values of a block without data; 127 if the file's colours are inverted."""
MAX_SCANS = 100
"""Largest number of scans, each of which covers the whole image; progressive files have about ten."""
_SCAN = b"\xff\xda"
_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""A marker that a length follows, or the end of the image."""
_BLOCK = 1 << 24
_MARKER = re.compile(rb"\xff+[\x01-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_RESTARTS = range(0xD0, 0xD8)


def check_number_of_scans(path: Path) -> None:
    """Count the scans, before they are decoded.

    Raises:
        ValueError: if there are more than :data:`MAX_SCANS`.
    """
    found = 0
    with path.open("rb") as file:
        while found <= MAX_SCANS and (block := file.read(_BLOCK)):
            found += block.count(_SCAN)
        if found <= MAX_SCANS:  # nearly always; otherwise some may be in metadata or after the image
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found, position = 0, 2
            while match := _SEGMENT.search(data, position):
                kind = data[match.end() - 1]
                position = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
                found += kind == _START_OF_SCAN
                if found > MAX_SCANS:
                    raise ValueError(f"it has more than {MAX_SCANS} scans; ordinary files have about ten")
                if kind == _END_OF_IMAGE:
                    return


def check_scans(path: Path, image: Image.Image) -> None:
    """Look for parts of the image without data, if it has grey blocks.

    Args:
        path: the JPEG file.
        image: the decoded image, neither turned nor converted; perhaps at a part of its size.

    Raises:
        ValueError: if there is such a part.
    """
    pixels = np.asarray(image)
    (divisor, *_) = getattr(image, "decoderconfig", ()) or (1,)  # as Pillow's draft has set it
    side = _SIDE // divisor
    if not _has_grey_block(pixels, side):
        return
    with Image.open(path, formats=("JPEG",)) as header:
        whole = header.size
    values = whole[0] * whole[1] * len(image.getbands())
    if path.stat().st_size > _LARGEST * values + _METADATA:
        raise ValueError(f"damaged: it has {path.stat().st_size} bytes for {values} values")
    blocks = -(-whole[1] // _SIDE) * -(-whole[0] // _SIDE)
    with Image.open(io.BytesIO(_padded(path.read_bytes(), blocks)), formats=("JPEG",)) as again:
        again.draft(None, (again.width * side // _SIDE, again.height * side // _SIDE))
        again.load()
        if not np.array_equal(np.asarray(again), pixels):
            raise ValueError("truncated or damaged: parts of the image have no data, and would be grey")


def _has_grey_block(pixels: npt.NDArray[np.uint8], side: int) -> bool:
    """Whether the inner pixels of a block all have one of the greys. Its border may have its neighbours' colours.

    Args:
        pixels: the decoded image.
        side: side of its blocks in pixels, 8 or less if it was decoded at a part of its size.
    """
    height, width = (max(1, length // side) for length in pixels.shape[:2])
    inner = slice(side // 4, side - side // 4)
    tall = pixels[: height * side, : width * side]
    if tall.shape[:2] != (height * side, width * side):
        return bool(np.isin(pixels, _GREYS).any())
    middle = tall[side // 2 :: side, side // 2 :: side]
    for grey in _GREYS:
        found = (middle == grey).reshape(height, width, -1).all(axis=2)
        for row, column in np.argwhere(found):
            block = tall[row * side : (row + 1) * side, column * side : (column + 1) * side]
            if (block[inner, inner] == grey).all():
                return True
    return False


def _padded(data: bytes, blocks: int) -> bytes:
    """The file with padding before each marker that ends entropy-coded data, and with more restart intervals.

    Raises:
        ValueError: if restart markers are out of order, so that intervals are missing; or if a scan has more than
            ``blocks`` of them.
    """
    parts, start, restarts = [], 0, 0
    for end, kind in _ends_of_data(data):
        parts += [data[start:end], _PADDING]
        start = end
        if kind in _RESTARTS:
            if kind != _RESTARTS[restarts % 8]:
                raise ValueError("damaged: restart markers are missing or out of order")
            restarts += 1
            if restarts > blocks:
                raise ValueError("damaged: it has more restart markers than blocks")
        else:
            parts += [bytes([0xFF, _RESTARTS[k % 8]]) + _PADDING for k in range(restarts, restarts + 8)]
            restarts = 0
    return b"".join([*parts, data[start:]])


def _ends_of_data(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each piece of entropy-coded data ends, and the marker that follows."""
    position = 2
    while match := _MARKER.search(data, position):  # skips what is no marker, as libjpeg does
        kind = match[0][-1]
        if kind == _END_OF_IMAGE:
            return
        position = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
        while kind == _START_OF_SCAN and (match := _MARKER.search(data, position)):
            following = match[0][-1]
            yield match.start(), following
            position = match.end()
            if following not in _RESTARTS:
                position = match.start()
                break
