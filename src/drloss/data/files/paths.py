"""Names of files in a data set: they must stay within the data set's folder; and lists of a folder's files.

A name is a relative path with ``/`` or ``\\`` between folders. These are refused before anything on disk is touched:
absolute paths, ``..``, drives (``C:``), UNC paths, URLs, control characters, names that no file system
takes, and Windows' device names. A symbolic link that leads out of the folder is refused as well; the folder itself
may be a link.

The same holds for the folders of a layout (``train2017``, ``JPEGImages``, ``images/train``): a link among them must
lead to a place within the data set, unless :func:`following_links` holds. If images are elsewhere, a ``.toml`` data
file can name any place.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from drloss.errors import DataError, printable

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "bmp", "dib", "gif", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm"),
    )
)
"""Suffixes of image files, of every format that :mod:`drloss.data.images.decoding` reads."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[A-Za-z0-9_-]{5,200}\.[A-Za-z0-9]{1,50}")
"""Most names of files: nothing is to be checked or changed. Windows' devices have four letters at most."""
_DRIVE = re.compile(r"[A-Za-z]:")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))})
_LONGEST_PART = 255
_LONGEST_NAME = 1024


def clean_name(name: object) -> str:
    """A file name from a data set as a plain relative path: no ``.`` parts, single ``/``.

    >>> clean_name("./images//a.jpg"), clean_name("images\\\\a.jpg")
    ('images/a.jpg', 'images/a.jpg')

    Raises:
        ValueError: with the reason, if the name could lead out of the folder or cannot be a file's name.
    """
    if not isinstance(name, str):
        raise ValueError("not a string")
    if _PLAIN.fullmatch(name):
        return name
    if not name.strip():
        raise ValueError("empty")
    if _CONTROL.search(name):
        raise ValueError("control character in the name")
    name = name.replace("\\", "/")
    if name.startswith("/") or _DRIVE.match(name):
        raise ValueError("absolute path")
    if _URL.match(name):
        raise ValueError("a URL, not a file")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError("names a folder, not a file")
    for part in parts:
        if not part.strip(". "):
            raise ValueError("leads out of the image folder" if part.strip() == ".." else "only dots and blanks")
        if part.split(".")[0].rstrip().lower() in _DEVICES:
            raise ValueError(f"{part!r} is a device on Windows")
        if len(_utf8(part)) > _LONGEST_PART:
            raise ValueError(f"longer than {_LONGEST_PART} bytes")
    joined = "/".join(parts)
    if len(_utf8(joined)) > _LONGEST_NAME:
        raise ValueError(f"longer than {_LONGEST_NAME} bytes")
    return joined


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a character (a lone surrogate)") from None


_FOLLOW: ContextVar[bool] = ContextVar("follow_links", default=False)


@contextmanager
def following_links(follow: bool) -> Iterator[None]:
    """While this holds, links in a data set may lead out of it, if ``follow``."""
    token = _FOLLOW.set(follow)
    try:
        yield
    finally:
        _FOLLOW.reset(token)


class Inside:
    """Tells whether files lie in a folder after symbolic links are followed; checks each parent folder once.

    Where :func:`following_links` allows it, links may lead anywhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)
        self._anywhere = _FOLLOW.get()
        self._resolved = os.path.realpath(root)
        self._parents: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        """Whether ``root / name`` (a :func:`clean_name`) stays below ``root``; it need not exist."""
        if self._anywhere:
            return True
        path, parent = os.path.join(self._root, name), name.rpartition("/")[0]
        if parent not in self._parents:
            self._parents[parent] = self._below(os.path.realpath(os.path.dirname(path)))
        if not self._parents[parent]:
            return False
        return not os.path.islink(path) or self._below(os.path.realpath(path))

    def _below(self, resolved: str) -> bool:
        return resolved == self._resolved or resolved.startswith(self._resolved.rstrip(os.sep) + os.sep)


def require_inside(path: Path, root: Path) -> None:
    """Raise :class:`DataError` if ``path``, below the folder ``root``, is a link to a place outside ``root``.

    A ``path`` that is not below ``root`` by its name is not checked.
    """
    name = os.path.relpath(os.path.abspath(path), os.path.abspath(root)).replace(os.sep, "/")
    if name != "." and name.split("/")[0] != ".." and not Inside(root)(name):
        raise DataError(
            f"{printable(str(path))}: a link out of the data set, to {printable(os.path.realpath(path))}; "
            "allowed: a folder or file in it; --follow-links, or a .toml data file that names where it is"
        )


def common_folder(folders: Iterable[Path]) -> Path:
    """The deepest folder that holds all of ``folders``."""
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))


@dataclass
class Listing:
    """The files below a folder, as sorted names relative to it.

    Hidden folders are not searched. Of hidden files, only images are listed.

    Attributes:
        images: files with one of :data:`IMAGE_SUFFIXES`, in any case.
        others: all other files, and hidden images.
        links: folders that are links, which are not searched.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def with_suffix(self, suffix: str) -> Iterator[str]:
        """Those of ``others`` that have a suffix, in any case, and are not hidden."""
        return (n for n in self.others if suffix_of(n) == suffix and not n.rpartition("/")[2].startswith("."))


def suffix_of(name: str) -> str:
    """The suffix of a file, in lower case."""
    return os.path.splitext(name)[1].lower()


def why_not_read(name: str) -> str:
    """Why one of a listing's ``others`` is not read as an image, in words."""
    suffix = printable(suffix_of(name))
    if suffix in IMAGE_SUFFIXES:
        return "hidden image file, not read"
    return f"file {f'with suffix {suffix}' if suffix else 'without a suffix'}, not taken for an image"


def _holds(folder: str, place: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)


def list_files(folder: Path) -> Listing:
    """All files below ``folder``; none if it is not a folder."""
    found = Listing()
    follow = _FOLLOW.get()
    root = os.path.realpath(folder)
    seen: set[str] = set()
    for base, folders, files in os.walk(folder, followlinks=follow):
        inner = os.path.relpath(base, folder).replace(os.sep, "/")
        prefix = "" if inner == "." else f"{inner}/"
        searched = [f for f in folders if not f.startswith(".")]
        links = [f for f in searched if os.path.islink(os.path.join(base, f))]
        if follow:  # a folder once: not by links within the data set, nor by two that lead to one place
            outside = {}
            for f in links:
                place = os.path.realpath(os.path.join(base, f))
                around = any(_holds(other, place) or _holds(place, other) for other in (root, *seen))
                if not around:
                    outside[f] = place
                    seen.add(place)
            links = [f for f in links if f not in outside]
            searched = [f for f in searched if f not in links]
        found.links += [prefix + f for f in links]
        folders[:] = searched
        for file in files:
            hidden, image = file.startswith("."), suffix_of(file) in IMAGE_SUFFIXES
            if image and not hidden:
                found.images.append(prefix + file)
            elif image or not hidden:
                found.others.append(prefix + file)
    for names in (found.images, found.others, found.links):
        names.sort()
    return found
