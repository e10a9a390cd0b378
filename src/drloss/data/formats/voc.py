"""PASCAL VOC trees: ``Annotations/*.xml``, ``JPEGImages``, ``ImageSets/Main/{split}.txt``.

Rules:

- A split is the lines of its list; the image and the XML file are found by that stem. Where no image has it, a mark
  (-1, 0, 1), a suffix at its end or quotes around it, which some lists have, are passed over. A list of which every
  line has a mark is no split but PASCAL's list of a class, unless it is called ``train``, ``val``, ``trainval`` or
  ``test``.
- Both folders may have subfolders, the same in both, as CVAT writes them; a list then says ``sub/a``. Without lists
  every XML file is of the one split. XML files that no list names, and, without lists, images without an XML file,
  are noted: they are not read.
- The XML's own ``<filename>`` is not
  trusted: tools copy and rename files without changing it. Where it differs, that is noted.
- Coordinates. In a tree named ``VOC2007``, ``VOC2012``, ... they are what PASCAL wrote: counted from 1, both ends
  inside the box, so 1 is subtracted from xmin and ymin. In every other tree they are taken as they stand, as the
  tools that export this format write them: from 0, with width xmax - xmin. ``one_based`` overrides this.
- Classes. A ``VOC20xx`` tree has PASCAL's 20, in their order. Elsewhere they are the names given, else all names in
  the tree's ``Annotations`` folder in alphabetical order, so that every split has the same.
- ``<difficult>1</difficult>`` marks a box to ignore. ``<part>`` boxes are not read. ``<size>`` is the image's;
  where it is missing or 0, the header of the image file tells.
- XML is UTF-8 or what its declaration says, at most 10 MB and half a million tags, nested at most 32 deep, without a
  DOCTYPE: no entity is ever expanded and nothing outside the file is read.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import Box, flag
from drloss.data.checks.problems import Report
from drloss.data.files.paths import (
    IMAGE_SUFFIXES,
    Inside,
    clean_name,
    common_folder,
    list_files,
    passed_over,
    require_inside,
)
from drloss.data.files.reading import Most, read_bytes, read_lines
from drloss.data.formats.builder import AnnotationsBuilder, known_classes
from drloss.data.images.decoding import image_size
from drloss.errors import DataError, printable, shown

PASCAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
PASCAL_TREE = re.compile(r"VOC20\d\d")
MAX_XML_BYTES = 10 * 1024**2
MAX_DEPTH = 32
MAX_MARKS = {b"<": Most(500_000), b"=": Most(100_000)}
"""Tags and attributes in a file."""
_MAX_LIST_BYTES = 64 * 1024**2
_MAX_LINES = {b"\n": Most(1_000_000), b"\r": Most(1_000_000)}
"""Of the list of a split."""
USUAL_SETS = ("train", "val", "valid", "validation", "trainval", "test")
_PROBED = 1000
"""Lines of a list that are looked at to see whether it is one of a class."""
_MARK = re.compile(r"\s+(-1|0|1)$")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocTree:
    """One tree, with the names of its image files by stem.

    Attributes:
        folder: the folder that holds ``Annotations``.
        image_folder: the folder of the images where it is not ``JPEGImages``, searched with its subfolders.
        one_based: whether coordinates count from 1 and include both ends; None to tell by the folder's name.
    """

    folder: Path
    one_based: bool | None = None
    image_folder: Path | None = None

    @property
    def pascal(self) -> bool:
        """Whether this is one of PASCAL's own trees, by its name."""
        return PASCAL_TREE.fullmatch(self.folder.name) is not None

    @property
    def offset(self) -> float:
        """What is subtracted from xmin and ymin."""
        return 1.0 if (self.pascal if self.one_based is None else self.one_based) else 0.0

    @property
    def images(self) -> Path:
        """The folder of the images."""
        return self.folder / "JPEGImages" if self.image_folder is None else self.image_folder

    @cached_property
    def annotations(self) -> dict[str, list[str]]:
        """The XML files by stem, relative to ``Annotations``, sorted."""
        return _by_stem(list_files(self.folder / "Annotations").with_suffix(".xml"))

    @cached_property
    def image_files(self) -> dict[str, list[str]]:
        """The image files by stem, relative to :attr:`images`, sorted."""
        return _by_stem(list_files(self.images).images)

    def image_names(self, stem: str) -> list[str]:
        """The image files of a stem, relative to :attr:`images`: none, one, or several."""
        try:
            return self.image_files.get(clean_name(stem), [])
        except ValueError:
            return []

    def lists(self) -> list[str]:
        """Names of the lists that are splits, the usual ones first."""
        stems = [path.stem for path in sorted((self.folder / "ImageSets" / "Main").glob("*.txt"))]
        usual = [stem for stem in USUAL_SETS if stem in stems]
        return usual + [stem for stem in stems if stem not in usual and not self._of_a_class(stem, stems)]

    def _of_a_class(self, image_set: str, stems: Sequence[str]) -> bool:
        """Whether every line of a list has a mark and names no image with it; of an empty one, by its name."""
        try:
            lines = [text for line in self._lines(image_set)[1] if (text := line.strip())]
        except DataError:  # which reading the split will say
            return False
        if not lines:
            return any(image_set.endswith(f"_{stem}") for stem in stems)
        return all(_MARK.search(line) and not self.image_names(line) for line in lines[:_PROBED])

    def _lines(self, image_set: str) -> tuple[Path, list[str]]:
        path = self.folder / "ImageSets" / "Main" / f"{image_set}.txt"
        return path, read_lines(path, _MAX_LIST_BYTES, _MAX_LINES)

    def stems(self, image_set: str | None) -> tuple[Path, list[tuple[str, str]]]:
        """The list's file, and (record, stem) of each entry; of all XML files without a list."""
        if image_set is None:
            return self.folder / "Annotations", [("", stem) for stem in sorted(self.annotations)]
        path, lines = self._lines(image_set)
        return path, [(f"line {k}", self._stem(e)) for k, line in enumerate(lines, start=1) if (e := line.strip())]

    def _stem(self, entry: str) -> str:
        """The stem that a line of a list names: all of it if there is such an image, else without what lists add."""
        if self.image_names(entry):
            return entry
        stem = _MARK.sub("", entry)
        if len(stem) > 2 and stem[0] == stem[-1] == '"':
            stem = stem[1:-1]
        suffix = Path(stem).suffix
        if suffix.lower() in IMAGE_SUFFIXES and not self.image_names(stem):
            return stem[: -len(suffix)]
        return stem

    def named(self, image_set: str) -> set[str]:
        """The stems that a list, or another of the tree's lists, names."""
        found: set[str] = set()
        for name in {image_set, *self.lists()}:
            with suppress(DataError):  # which reading that split will say
                found.update(os.path.normpath(stem) for _, stem in self.stems(name)[1])
        return found


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(os.path.splitext(name)[0], []).append(name)
    return found


def read_voc(
    name: str,
    sets: Sequence[tuple[VocTree, str | None]],
    *,
    classes: Sequence[str] | None = None,
    strict: bool = True,
) -> tuple[Annotations, Report]:
    """Read one split.

    Args:
        name: what messages call it.
        sets: its trees, each with the name of an image set or None for all images.
        classes: class names in the order of their labels; None for the rule above.
        strict: raise at the first problem once everything is read, instead of leaving bad records out.

    Raises:
        DataError: if a list cannot be read, or as ``strict`` says.
    """
    trees = [tree for tree, _ in sets]
    for tree in trees:
        require_inside(tree.folder / "Annotations", tree.folder)
        if tree.image_folder is None:
            require_inside(tree.images, tree.folder)
    if classes is None:
        classes = PASCAL_CLASSES if all(t.pascal for t in trees) else found_classes([t.folder for t in trees])
    images = [tree.images for tree in trees]
    root = trees[0].folder
    if len(trees) > 1 or trees[0].image_folder is not None:  # what they are: none below the root may be a link out
        images = [Path(os.path.realpath(folder)) for folder in images]
        root = common_folder(images)
    builder = AnnotationsBuilder(name, classes, range(1, len(classes) + 1), root, str(trees[0].folder))
    for (tree, image_set), folder in zip(sets, images, strict=True):
        reader = _Reader(builder, tree, folder, {c: k for k, c in enumerate(classes, start=1)})
        path, entries = tree.stems(image_set)
        for record, stem in entries:
            reader.image(path, record, stem)
        reader.account(image_set)
    return builder.finish(strict=strict)


def found_classes(folders: Sequence[Path]) -> tuple[str, ...]:
    """All object names in the trees' ``Annotations`` and their subfolders, sorted.

    Files that cannot be read, and links out of a tree, are passed over.

    Raises:
        DataError: if there is none.
    """
    names: set[str] = set()
    for folder in folders:
        inside = Inside(folder)
        for name in list_files(folder / "Annotations").with_suffix(".xml"):
            if not inside(f"Annotations/{name}"):
                continue
            try:
                root = parse_xml(folder / "Annotations" / name)
            except DataError:
                continue
            names.update(text for item in root.findall("object") if (text := _text(item, "name")))
    if not names:
        raise DataError(f"{printable(str(folders[0]))}: no object with a name in any .xml file of Annotations")
    return tuple(sorted(names))


class _Reader:
    """Hands the images of one tree to the builder."""

    def __init__(self, builder: AnnotationsBuilder, tree: VocTree, images: Path, labels: dict[str, int]) -> None:
        self.builder = builder
        self.tree = tree
        self.images = images
        self.labels = labels
        self.known = known_classes(labels)
        self.inside = Inside(tree.folder)
        self.listed = 0

    def image(self, listing: Path, record: str, stem: str) -> None:
        add = self.builder.add_image
        self.listed += 1
        key = (self.tree.folder, self.listed)
        bad: tuple[str, object, str]
        try:
            stem = clean_name(stem)
        except ValueError as error:
            bad = (f"file name refused ({error})", stem, "the stem of a file in Annotations")
            add(str(listing), record, key=None, name=None, height=None, width=None, bad=bad)
            return
        files = self.tree.annotations.get(stem, [f"{stem}.xml"])
        path = self.tree.folder / "Annotations" / files[0]
        if len(files) > 1:
            self.builder.note(str(path), "", "several XML files of one stem, the first is taken", files)
        try:
            if not self.inside(f"Annotations/{files[0]}"):
                raise DataError("a link out of the tree")
            root = parse_xml(path)
        except DataError as error:
            bad = ("annotation file not readable", error, "a VOC XML file")
            add(str(path), "", key=None, name=None, height=None, width=None, bad=bad)
            return
        names = self.tree.image_names(stem)
        bad_image = None if names else ("image file missing", stem, f"a file of that stem in {self.tree.images}")
        if len(names) > 1:
            self.builder.note(str(path), "", "several image files of one stem, the first is taken", names)
        self._check_filename(path, root, stem)
        height, width = self._size(root, names)
        add(
            str(path),
            "",
            key=key,
            name=names[0] if names else None,
            height=height,
            width=width,
            folder=self.images,
            bad=bad_image,
        )
        for k, item in enumerate(root.findall("object"), start=1):
            self._object(str(path), f"object {k}", key, item)

    def account(self, image_set: str | None) -> None:
        """Note what is in the tree and not read."""
        note, tree, xmls = self.builder.note, self.tree, self.tree.folder / "Annotations"
        named = None if image_set is None else tree.named(image_set)
        for stem, names in tree.annotations.items():
            if named is not None and stem not in named:
                note(str(xmls / names[0]), "", "XML file that no list in ImageSets/Main names, not read")
        for stem, names in tree.image_files.items():
            if stem not in tree.annotations and (named is None or stem not in named):
                note(str(tree.images / names[0]), "", "image without an XML file, not read")
        for folder in (xmls, tree.images):
            for name in list_files(folder).links:
                note(str(folder / name), "", "folder that is a link, not searched")
        for name in list_files(tree.images).others:
            note(str(tree.images / name), "", passed_over(name))

    def _check_filename(self, path: Path, root: ElementTree.Element, stem: str) -> None:
        named = _text(root, "filename")
        if named and named not in (stem, Path(stem).name) and Path(named).stem != Path(stem).name:
            self.builder.note(str(path), "", "<filename> differs from the file's own name, and is not used", named)

    def _size(self, root: ElementTree.Element, names: list[str]) -> Sequence[object]:
        """Height and width as the XML has them, or of the image's header where it has none."""
        texts = [_text(root, f"size/{side}") for side in ("height", "width")]
        height, width = (_number(text) for text in texts)
        unknown = any(not text or value == 0 for text, value in zip(texts, (height, width), strict=True))
        if unknown and names and Inside(self.tree.images)(names[0]):
            with suppress(DataError):  # the builder then names the size that the XML has
                return image_size(self.tree.images / names[0])
        return [value if value is not None else text for value, text in zip((height, width), texts, strict=True)]

    def _object(self, file: str, record: str, key: object, item: ElementTree.Element) -> None:
        drop = self.builder.drop_box
        name = _text(item, "name")
        if not name:
            drop(file, record, "name missing", None, "a class name")
            return
        label = self.labels.get(name)
        if label is None:
            drop(file, record, "unknown class", name, self.known)
            return
        box = self._box(file, record, item)
        if box is not None:
            difficult = _text(item, "difficult")
            ignore, usual = flag(difficult)
            if not usual:
                kind = "difficult neither 0 nor 1 (taken as 0 if it says so, else as 1)"
                self.builder.note(file, record, kind, difficult)
            offset = self.tree.offset
            turned = (box[0] - offset, box[1] - offset, box[2], box[3])
            self.builder.add_box(file, record, key=key, category=label, box=turned, ignore=ignore, written=box)

    def _box(self, file: str, record: str, item: ElementTree.Element) -> Box | None:
        """The box as it is written."""
        values = []
        for side in _SIDES:
            text = _text(item, f"bndbox/{side}")
            value = _number(text)
            if value is None:
                what = "missing" if text is None else "not a number"
                self.builder.drop_box(file, record, f"{side} {what}", text, "a number of pixels")
                return None
            values.append(value)
        return values[0], values[1], values[2], values[3]


def _text(element: ElementTree.Element, path: str) -> str | None:
    text = element.findtext(path)
    return None if text is None else text.strip()


def _number(text: str | None) -> float | None:
    """A number as XML has it: digits, a sign, a point, an exponent; also nan and inf, for the checks to name."""
    if text is None or not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


class _Guarded(ElementTree.TreeBuilder):
    """Builds the tree, and stops at a DOCTYPE or at deep nesting."""

    depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise DataError(f"elements nested more than {MAX_DEPTH} deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("a DOCTYPE, which may define entities; allowed: plain elements")


def parse_xml(path: Path) -> ElementTree.Element:
    """The root ``<annotation>`` of an XML file.

    Raises:
        DataError: if it is none, too large, nested too deeply, or has a DOCTYPE.
    """
    data = read_bytes(path, MAX_XML_BYTES, MAX_MARKS)
    name = printable(str(path))
    parser = ElementTree.XMLParser(target=_Guarded())
    try:
        parser.feed(data)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = "" if str(error).startswith("undefined entity") else f" ({str(error).partition(':')[0]})"
        raise DataError(f"{name}: line {line}, column {column + 1}: not well-formed XML{reason}") from None
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (ValueError, LookupError) as error:
        raise DataError(f"{name}: cannot be read as XML ({error})") from None
    if root.tag != "annotation":
        raise DataError(f"{name}: root element, got {shown(root.tag)}; allowed: annotation")
    return root
