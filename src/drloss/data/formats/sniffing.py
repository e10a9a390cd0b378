"""What kind of annotation file a JSON or XML file is, by the keys and tags in it, before it is parsed."""

import mmap
import re
from functools import lru_cache
from pathlib import Path

from drloss.data.formats.layout import head

_LARGEST_SMALL = 64 * 1024


def json_kind(path: Path) -> str:
    """``"coco"``, ``"labelme"`` or ``"createml"`` by the keys in a JSON file; an empty string for any other file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return _json_kind(path, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=200_000)
def _json_kind(path: Path, version: tuple[int, int]) -> str:
    start = head(path, 4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"[" and _has(path, b'"coordinates"', b'"label"'):
        return "createml"
    if start[:1] == b"{":
        if _has(path, b'"images"', b'"annotations"', b'"categories"'):
            return "coco"
        if _has(path, b'"shapes"', b'"imagePath"'):
            return "labelme"
    return ""


def _has(path: Path, *keys: bytes) -> bool:
    """Whether all keys stand in a file, which is searched without being read into memory."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in keys)
    except (OSError, ValueError):
        return False


def xml_root(path: Path) -> str:
    """The name of an XML file's first element, without its namespace; an empty string if there is none."""
    text = re.sub(rb"<\?.*?\?>|<!--.*?-->", b"", head(path, 4096).replace(b"\0", b""), flags=re.DOTALL)
    match = re.search(rb"<(?:[\w.-]+:)?([\w.-]+)", text)
    return match[1].decode("ascii", "replace") if match else ""
