"""A VOC tree on disk: its folders, its lists, and which files an entry of a list names.

The rules are those of :mod:`drloss.data.formats.voc`.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from drloss.data.files.paths import IMAGE_SUFFIXES, Listing, clean_name, list_files, require_inside
from drloss.data.files.reading import Limit, read_lines
from drloss.errors import DataError

PASCAL_TREE = re.compile(r"VOC20\d\d")
"""Names of PASCAL's own trees."""
USUAL_SETS = ("train", "val", "valid", "validation", "trainval", "test")
_MAX_LIST_BYTES = 64 * 1024**2
_LIST_LIMITS = {b"\n": Limit(1_000_000), b"\r": Limit(1_000_000)}
_PROBED = 1000
"""Number of lines of a list that decide whether it is the list of a class."""
_CLASS_FLAG = re.compile(r"\s+(-1|0|1)$")


@dataclass
class VocTree:
    """A VOC tree: where its files are, and which images and XML files a list names.

    Attributes:
        folder: the folder that holds ``Annotations``.
        one_based: whether coordinates count from 1 and include both ends; None if the folder's name decides.
        image_folder: the folder of the images, with its subfolders, if it is not ``JPEGImages``.
        xml_folder: the folder of the XML files, in ``folder``, with its subfolders, if it is not ``Annotations``.
        deep: whether files in subfolders count.
    """

    folder: Path
    one_based: bool | None = None
    image_folder: Path | None = None
    xml_folder: Path | None = None
    deep: bool = True

    @property
    def pascal(self) -> bool:
        """Whether this is one of PASCAL's own trees, by its name."""
        return PASCAL_TREE.fullmatch(self.folder.name) is not None

    @property
    def offset(self) -> float:
        """Pixels to subtract from xmin and ymin."""
        return 1.0 if (self.pascal if self.one_based is None else self.one_based) else 0.0

    @property
    def images(self) -> Path:
        """The folder of the images."""
        return self.folder / "JPEGImages" if self.image_folder is None else self.image_folder

    @property
    def xmls(self) -> Path:
        """The folder of the XML files."""
        return self.folder / "Annotations" if self.xml_folder is None else self.xml_folder

    def xml_name(self, file: str) -> str:
        """The path of one of the XML files relative to :attr:`folder`."""
        return f"{os.path.relpath(self.xmls, self.folder)}/{file}".replace(os.sep, "/").removeprefix("./")

    def files(self, folder: Path) -> Listing:
        """The files of one of the tree's folders, those in subfolders only if they count."""
        listing = list_files(folder)
        if self.deep:
            return listing
        kept = ([n for n in names if "/" not in n] for names in (listing.images, listing.others, listing.links))
        return Listing(*kept)

    @cached_property
    def annotations(self) -> dict[str, list[str]]:
        """Stem to its XML files, relative to :attr:`xmls`, sorted."""
        return _by_stem(self.files(self.xmls).with_suffix(".xml"))

    @cached_property
    def image_files(self) -> dict[str, list[str]]:
        """Stem to its image files, relative to :attr:`images`, sorted."""
        return _by_stem(self.files(self.images).images)

    def image_names(self, stem: str) -> list[str]:
        """The image files of a stem, relative to :attr:`images`: none, one, or several."""
        try:
            return self.image_files.get(clean_name(stem), [])
        except ValueError:
            return []

    def lists(self) -> list[str]:
        """Names of the lists that are splits, the usual names first."""
        stems = [path.stem for path in sorted((self.folder / "ImageSets" / "Main").glob("*.txt"))]
        usual = [stem for stem in USUAL_SETS if stem in stems]
        return usual + [stem for stem in stems if stem not in usual and not self._of_a_class(stem, stems)]

    def _of_a_class(self, name: str, stems: Sequence[str]) -> bool:
        """Whether a list is PASCAL's list of a class: by the flags in its lines or, if it is empty, by its name."""
        try:
            lines = [text for line in self._lines(name)[1] if (text := line.strip())]
        except DataError:  # reading the split reports it
            return False
        if not lines:
            return any(name.endswith(f"_{stem}") for stem in stems)
        return all(_CLASS_FLAG.search(line) and not self.image_names(line) for line in lines[:_PROBED])

    def _lines(self, name: str) -> tuple[Path, list[str]]:
        path = self.folder / "ImageSets" / "Main" / f"{name}.txt"
        return path, read_lines(path, _MAX_LIST_BYTES, _LIST_LIMITS)

    def stems(self, list_name: str | None) -> tuple[Path, list[tuple[str, str]]]:
        """A list's file, and (record, stem) of each of its lines; without a list, those of all XML files."""
        if list_name is None:
            return self.xmls, [("", stem) for stem in sorted(self.annotations)]
        path, lines = self._lines(list_name)
        return path, [(f"line {k}", self._stem(e)) for k, line in enumerate(lines, start=1) if (e := line.strip())]

    def _stem(self, line: str) -> str:
        """The stem in a line: the whole line if there is such an image, else the line without what lists add."""
        if self.image_names(line):
            return line
        stem = _CLASS_FLAG.sub("", line)
        if len(stem) > 2 and stem[0] == stem[-1] == '"':
            stem = stem[1:-1]
        suffix = Path(stem).suffix
        if suffix.lower() in IMAGE_SUFFIXES and not self.image_names(stem):
            return stem[: -len(suffix)]
        return stem

    def listed_stems(self, list_name: str) -> set[str]:
        """All stems in this list and in the tree's other lists."""
        found: set[str] = set()
        for name in {list_name, *self.lists()}:
            with suppress(DataError):  # reading that split reports it
                found.update(os.path.normpath(stem) for _, stem in self.stems(name)[1])
        return found


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(os.path.splitext(name)[0], []).append(name)
    return found


def is_tree(folder: Path) -> bool:
    """Whether a folder is a VOC tree."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def find_trees(folder: Path) -> list[VocTree]:
    """The folder itself if it is a tree, else the ``VOC20xx`` trees in it or in its ``VOCdevkit``."""
    if is_tree(folder):
        named = folder if folder.name not in ("", "..") else folder.resolve()  # its name decides the offset
        return [VocTree(named)]
    for base in (folder, folder / "VOCdevkit"):
        trees = [path for path in _inner(base) if PASCAL_TREE.fullmatch(path.name)]
        for tree in trees:
            require_inside(tree, folder)
        if trees:
            return [VocTree(tree) for tree in trees]
    return []


def inner_trees(folder: Path) -> list[VocTree]:
    """The only tree in a folder, whatever its name; none if there are several."""
    trees = _inner(folder)
    for tree in trees:
        require_inside(tree, folder)
    return [VocTree(trees[0])] if len(trees) == 1 else []


def _inner(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if is_tree(path)] if folder.is_dir() else []
