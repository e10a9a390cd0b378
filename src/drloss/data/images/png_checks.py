"""Checksums and EXIF of PNG files.

Pillow does not check the checksums of pixel data, and finds EXIF after the pixels only by decoding them. It raises an
error of that decoding once; the next decoding returns the rest of the image as if it were whole. So this file reads
both.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_SIGNATURE_BYTES = 8
_LARGEST_EXIF = 1024**2
_BLOCK = 1024**2


def late_exif(path: Path) -> bytes | None:
    """The EXIF block of a PNG file, before or after the pixels, which are not read; None if there is none."""
    with path.open("rb") as file:
        for kind, length in _chunks(file):
            if kind == b"eXIf":
                return file.read(min(length, _LARGEST_EXIF))
    return None


def check_sums(path: Path) -> None:
    """Compare the checksums of a PNG file's pixel data.

    Raises:
        ValueError: with the place of the first that is wrong.
    """
    with path.open("rb") as file:
        for kind, length in _chunks(file):
            if kind != b"IDAT":
                continue
            start, left, found = file.tell(), length, zlib.crc32(kind)
            while left and (block := file.read(min(left, _BLOCK))):
                found, left = zlib.crc32(block, found), left - len(block)
            if left or file.read(4) != struct.pack(">I", found):
                raise ValueError(f"truncated or damaged: the checksum of the pixel data at byte {start:,} is wrong")


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk up to IEND, with the file at the start of its data."""
    position = _SIGNATURE_BYTES
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        yield kind, length
        position += length + 12
