"""Small images and their files."""

import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)

PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)

GREY = PIXELS[:, :, 0].copy()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def save(path, image, **options):
    image.save(path, **options)
    return path


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
