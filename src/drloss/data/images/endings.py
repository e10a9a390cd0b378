"""Whether an image file ends where its format says that it does: a look at its first and last bytes.

A copy or download that broke off is the most common damage, and the fastest to find. A file that looks cut off may be
whole, because some cameras write more after the end: decoding decides. A file that looks whole may be damaged inside.
"""

import os
from pathlib import Path

_TAIL = 64
_HEAD = 16
_AFTER_JPEG = b"\0\n\r "
"""What some programs fill the last block of a file with."""


def may_be_cut_off(path: Path) -> bool:
    """Whether a file may be cut off.

    A JPEG, PNG or GIF file may be if the marker of its end is missing, a WebP or BMP file if it is shorter than its
    header says. TIFF and PPM files do not mark their end: the answer is False. For all other files it is True.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if head.startswith(b"\xff\xd8"):
        return not tail.rstrip(_AFTER_JPEG).endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG"):
        return not tail.endswith(b"\0\0\0\0IEND\xae\x42\x60\x82")
    if head.startswith(b"GIF8"):
        return not tail.endswith(b"\0;")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return size < 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(b"BM") and len(head) == _HEAD:
        return size < int.from_bytes(head[2:6], "little")
    return not head.startswith((b"II*\0", b"MM\0*", *(b"P%d" % kind for kind in range(1, 7))))
