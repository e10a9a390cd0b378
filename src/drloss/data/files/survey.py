"""What lies in a folder: its files, listed once, for whoever recognises or reads a data set in it."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from drloss.data.files.paths import IMAGE_SUFFIXES, Listing, list_files, suffix_of
from drloss.errors import DataError, printable

_SPLITS = "train|training|trainval|val|valid|validation|test|testing|minival"
_FOLDER = re.compile(rf"(?P<name>{_SPLITS})(?P<year>20\d\d)?", re.IGNORECASE)
_STEM = re.compile(rf"(?:^|.*[_.\- ])(?P<name>{_SPLITS})(?P<year>20\d\d)?(?:[_.\- ].*)?", re.IGNORECASE)
_PLAIN = {"training": "train", "testing": "test"}
WHOLE = "all"
"""Name of the only split of a data set that has no splits."""
_MOST_SUFFIXES = 6
_USUAL = frozenset({"images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "data"})
"""Usual names of folders of images."""


class Survey:
    """The files of a folder and below.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def listing(self) -> Listing:
        """All files, as names relative to the folder."""
        return list_files(self.folder)

    @cached_property
    def images(self) -> "ImageIndex":
        """The image files."""
        return ImageIndex(self.listing.images)

    def named(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, in any case, hidden ones left out."""
        return [name for suffix in suffixes for name in self.listing.with_suffix(suffix)]

    def counts(self) -> str:
        """How many files there are of each kind, in words."""
        listing = self.listing
        suffixes = Counter(suffix_of(name) or "without a suffix" for name in listing.others)
        found = [f"{len(listing.images):,} image{'s' if len(listing.images) != 1 else ''}"]
        found += [f"{count:,} {printable(suffix)}" for suffix, count in suffixes.most_common(_MOST_SUFFIXES)]
        if len(suffixes) > _MOST_SUFFIXES:
            found.append(
                f"{sum(suffixes.values()) - sum(c for _, c in suffixes.most_common(_MOST_SUFFIXES)):,} others"
            )
        if listing.links:
            found.append(f"{len(listing.links):,} folders that are links, not searched")
        return ", ".join(found)


class ImageIndex:
    """The image files of a data set, found by the names that annotation files give them.

    Only names of the listing are ever returned, so that no name in a file leads anywhere else.

    Args:
        names: paths relative to the data set's folder.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self._listed = names

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        return _grouped((name.rpartition("/")[2].casefold(), name) for name in self._listed)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped((stem_of(name).rpartition("/")[2].casefold(), name) for name in self._listed)

    @cached_property
    def folders(self) -> list[str]:
        """The folders that hold images, sorted."""
        return sorted({name.rpartition("/")[0] for name in self._listed})

    def find(self, text: str, near: Iterable[str] = ("",), split: str = "") -> tuple[str, bool] | None:
        """The image that a file calls ``text``, and whether only its name says so; None if there is none.

        As much of the end of its path as leads to an image below one of the folders ``near``; otherwise the only
        image with its file name, or with its stem, which is not in the folder of another split.

        Raises:
            ValueError: if several images could be meant.
        """
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        prefixes = [f"{folder}/" if folder else "" for folder in near]
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            for prefix in prefixes:
                if prefix + tail in self.names:
                    return prefix + tail, 0 < first == len(parts) - 1
        base = parts[-1].casefold()
        stem = stem_of(base) if suffix_of(base) in IMAGE_SUFFIXES else base
        candidates = self._by_base.get(base) or self._by_stem.get(stem, [])
        own = {name: split_of_folder(name.rpartition("/")[0]) for name in candidates}
        candidates = [name for name in candidates if own[name] in ("", split) or split in ("", WHOLE)]
        candidates = [name for name in candidates if split and own[name] == split] or candidates
        if len(candidates) > 1:
            raise ValueError(f"{len(candidates)} images of that name, {candidates[0]} and {candidates[1]} among them")
        return (candidates[0], len(parts) > 1) if candidates else None

    def folder_of(self, files: Iterable[str], place: str) -> str | None:
        """The folder of the images that have the same stems as the files of a folder ``place``; None if none has.

        Of several, the one with the most of them; then the folder itself, its usual partner (``images`` for
        ``labels``), one of the same split, one called ``images`` or the like.

        Raises:
            DataError: if it cannot be told.
        """
        found: Counter[str] = Counter()
        for stem in {stem_of(name.rpartition("/")[2]).casefold() for name in files}:
            found.update({name.rpartition("/")[0] for name in self._by_stem.get(stem, [])})
        if not found:
            return None
        split = split_of_folder(place)

        def fits(folder: str) -> tuple[object, ...]:
            usual = folder.rpartition("/")[2].casefold() in _USUAL
            return found[folder], folder == place, _partner(folder, place), split_of_folder(folder) == split, usual

        best, *others = sorted(found, key=fits, reverse=True)
        if others and fits(best) == fits(others[0]):
            both = " and ".join(printable(folder or ".") for folder in sorted((best, others[0])))
            raise DataError(
                f"{printable(place or '.')}: folder of its images, got {both} with the same names; allowed: one; "
                "a .toml data file says which"
            )
        return best


def _partner(images: str, labels: str) -> bool:
    """Whether two folders differ in the one part that is ``images`` or the like in the first."""
    ours, theirs = images.split("/"), labels.split("/")
    if len(ours) != len(theirs):
        return False
    differ = [ours[k].casefold() in _USUAL for k in range(len(ours)) if ours[k] != theirs[k]]
    return differ == [True]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return found


def stem_of(name: str) -> str:
    """A file's path without its suffix."""
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.rpartition(".")
    return folder + slash + (stem if dot and stem else base)


def split_of_folder(folder: str) -> str:
    """The split that one of a path's folders names, the innermost first; an empty string if none does.

    >>> split_of_folder("images/Train2017"), split_of_folder("valid/images"), split_of_folder("images")
    ('train2017', 'val', '')
    """
    for part in reversed(folder.split("/")):
        match = _FOLDER.fullmatch(part)
        if match:
            return _canonical(match)
    return ""


def split_of_file(name: str) -> str:
    """The split that a file's stem names, or else one of its folders; an empty string if none does.

    >>> split_of_file("data/train_labels.csv"), split_of_file("test/a.xml"), split_of_file("latest.csv")
    ('train', 'test', '')
    """
    folder, _, base = name.rpartition("/")
    match = _STEM.fullmatch(stem_of(base))
    return _canonical(match) if match else split_of_folder(folder)


def _canonical(match: "re.Match[str]") -> str:
    name = match["name"].lower()
    name = "val" if name in ("valid", "validation") else _PLAIN.get(name, name)
    return name + (match["year"] or "")


def in_order(splits: Iterable[str]) -> list[str]:
    """Names of splits, train and val first."""
    order = {"train": 0, "val": 1}
    return sorted(splits, key=lambda split: (order.get(split, 2), split))
