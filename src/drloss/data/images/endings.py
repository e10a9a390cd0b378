"""Whether an image file ends where its format says that it does: a look at its first and last bytes.

A copy or a download that broke off is the commonest damage, and the cheapest to find. What looks cut off may be whole
(some cameras write on after the end): only decoding tells. What looks whole may be damaged inside.
"""

import os
from pathlib import Path

_TAIL = 64
_HEAD = 16
_AFTER_JPEG = b"\0\n\r "
"""What some programs fill the last block of a file with."""


def may_be_cut_off(path: Path) -> bool:
    """Whether a file is no JPEG, PNG, GIF, WebP or BMP that has its end; False for TIFF and PPM, which mark none.

    Raises:
        OSError: if it cannot be read.
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
