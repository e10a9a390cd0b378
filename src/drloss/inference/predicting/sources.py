"""What ``drloss predict`` is to look at: images and videos in folders, patterns, lists and by name, in any mix."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drloss.data.files.paths import IMAGE_SUFFIXES, common_folder, list_files, suffix_of, why_not_read
from drloss.data.files.reading import read_bytes
from drloss.errors import UserError, printable
from drloss.inference.predicting.folder import SETTINGS
from drloss.inference.predicting.videos import is_video

LIST_SUFFIXES = frozenset({".txt", ".lst"})
"""Suffixes of files that list paths, one a line."""
LARGEST_LIST = 1 << 30
"""Most bytes of a list."""


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Attributes:
        path: the file.
        name: its path relative to the folder that all have in common; no two have the same.
    """

    path: Path
    name: str


@dataclass
class Sources:
    """What was found, in the order in which it was named; in a folder, in the order of the names.

    Attributes:
        root: the folder that the names are relative to.
        images, videos: each file once.
        passed: what is not read, in words, with how often it occurs: by what was named.
    """

    root: Path
    images: list[Source] = field(default_factory=list)
    videos: list[Source] = field(default_factory=list)
    passed: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass
class _Found:
    """Files by what the user named, and the folders that names are relative to.

    ``own`` is the folder of older results, of which nothing is read; empty if there are none.
    """

    own: str
    files: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    passed: dict[str, Counter[str]] = field(default_factory=dict)

    def not_own(self, folder: str, names: list[str]) -> list[str]:
        """Those of the names in a folder that are not in the folder of results, which may lie in it."""
        if not self.own:
            return names
        inner = os.path.relpath(self.own, os.path.realpath(folder)).replace(os.sep, "/")
        return [name for name in names if not name.startswith(f"{inner}/")]

    def pass_over(self, word: str, why: str, count: int = 1) -> None:
        if count:
            self.passed.setdefault(word, Counter())[why] += count


def find_sources(words: Sequence[str], out: Path) -> Sources:
    """The images and videos that are named.

    A folder is searched for images, with its subfolders but for ``out``; videos in it are passed over, and counted. A
    pattern (``*``, ``?``, ``**``) gives the files and folders that match. A ``.txt`` or ``.lst`` file lists paths, a
    line each, relative to its own folder. Any other file is a video by its suffix, or else an image.

    Args:
        words: what the user named.
        out: the folder of results, nothing of which is read.
    Raises:
        UserError: if one is not there, nothing is found at all, or ``out`` is a folder of images.
    """
    own = os.path.realpath(out)
    begun = (out / SETTINGS).is_file()
    found = _Found(own if begun else "")
    for word in words:
        _look(word, found)
    files = list(dict.fromkeys(map(os.path.abspath, found.files)))
    if not files:
        raise UserError(_nothing(words, found))
    places = {folder: os.path.realpath(folder) for folder in {os.path.dirname(file) for file in files}}
    below = any(place.startswith(own + os.sep) for place in places.values())
    if own in places.values() or own == os.path.realpath(words[0]) or (below and not begun):
        raise UserError(f"--out {out}: is the folder of the images; name another")
    root = common_folder(map(Path, found.bases))
    sources = Sources(root, passed=found.passed)
    for file in files:
        place = places[os.path.dirname(file)]
        if place.startswith(own + os.sep):
            continue
        source = Source(Path(file), os.path.relpath(file, root).replace(os.sep, "/"))
        (sources.videos if is_video(file) else sources.images).append(source)
    if not (sources.images or sources.videos):
        raise UserError(_nothing(words, found))
    return sources


def _look(word: str, found: _Found) -> None:
    path = Path(word)
    if path.is_dir():
        _search(word, word, found)
    elif path.is_file() and suffix_of(word) in LIST_SUFFIXES:
        for file in _listed(path):
            found.files.append(file)
            found.bases.append(os.path.dirname(os.path.abspath(file)))
    elif path.is_file():
        found.files.append(word)
        found.bases.append(os.path.dirname(os.path.abspath(word)))
    elif glob.has_magic(word):
        _match(word, found)
    else:
        raise UserError(f"{printable(word)}: no such file or folder")


def _search(folder: str, word: str, found: _Found) -> None:
    listing = list_files(Path(folder))
    found.bases.append(os.path.abspath(folder))
    found.files += [os.path.join(folder, name) for name in found.not_own(folder, listing.images)]
    for name in found.not_own(folder, listing.others):
        words = "video in a folder, not read; name it to have it read"
        found.pass_over(word, words if is_video(name) else why_not_read(name))
    found.pass_over(word, "folder that is a link, not searched", len(listing.links))


def _match(pattern: str, found: _Found) -> None:
    """The files that match a pattern, and the images in the folders that do."""
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise UserError(f"{printable(pattern)}: no file matches")
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    found.bases.append(os.path.abspath(os.path.join(*parts[:fixed]) if fixed else "."))
    for match in matches:
        if os.path.isdir(match):
            if "**" not in pattern:
                _search(match, pattern, found)
        elif suffix_of(match) in IMAGE_SUFFIXES or is_video(match):
            found.files.append(match)
        else:
            found.pass_over(pattern, why_not_read(match))


def _listed(path: Path) -> Iterator[str]:
    """The files that a list names."""
    content = read_bytes(path, LARGEST_LIST)
    if b"\0" in content:
        raise UserError(f"{printable(str(path))}: is no list of files: it is not text")
    for line in content.splitlines():
        name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf")).strip()
        if name:
            yield os.path.join(path.parent, name)


def _nothing(words: Sequence[str], found: _Found) -> str:
    """The message where there is nothing to look at."""
    where = ", ".join(printable(word) for word in words[:3]) + (", ..." if len(words) > 3 else "")
    passed = "; ".join(f"{n:,} x {why}" for counts in found.passed.values() for why, n in counts.items())
    return f"{where}: no image in it ({', '.join(sorted(IMAGE_SUFFIXES))})" + (f"; {passed}" if passed else "")
