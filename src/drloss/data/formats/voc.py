"""PASCAL VOC trees: ``Annotations/*.xml``, ``JPEGImages``, ``ImageSets/Main/{split}.txt``.

Rules:

- A split is a list. Each line is the stem (the name without suffix) of an image and of its XML file. If no image has
  that stem, what some lists add is removed: a class flag (-1, 0, 1) or a suffix at the end, quotes around it.
- A list in which every line has a class flag is not a split: it is PASCAL's list of a class. Lists of these names are
  splits in any case: ``train``, ``val``, ``valid``, ``validation``, ``trainval``, ``test``.
- Both folders may have subfolders, the same in both, as CVAT writes them; a list then says ``sub/a``. A tree without
  lists has one split of all XML files. These are not read, which is noted: XML files that no list names and, in trees
  without lists, images without an XML file.
- ``<filename>`` in the XML is not used, because tools copy and rename files without changing it. It is noted if it
  differs from the file's own name.
- Coordinates. In a tree named ``VOC2007``, ``VOC2012``, ... they are PASCAL's: counted from 1, with both ends inside
  the box, so 1 is subtracted from xmin and ymin. In every other tree they are used as they are, because the tools
  that export this format count from 0, with width xmax - xmin. ``one_based`` overrides this.
- Classes. A ``VOC20xx`` tree has PASCAL's 20, in their order. Other trees have the names given, or else all names in
  their ``Annotations`` folder in alphabetical order, so that every split has the same classes.
- ``<difficult>1</difficult>`` marks a box to ignore. ``<part>`` boxes are not read. ``<size>`` is the image's size;
  if it is missing or 0, the size comes from the header of the image file.
- XML is UTF-8 or what its declaration says, at most 10 MB and half a million tags, nested at most 32 deep, without a
  DOCTYPE: no entity is ever expanded and nothing outside the file is read.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from drloss.data.annotations import Annotations
from drloss.data.checks.boxes import Box, flag_is_set, number_in_text
from drloss.data.checks.classes import known_classes
from drloss.data.checks.problems import Report
from drloss.data.files.paths import Inside, clean_name, common_folder, require_inside, suffix_of, why_not_read
from drloss.data.files.survey import WHOLE, Survey, in_order, split_of_folder
from drloss.data.formats.builder import AnnotationsBuilder
from drloss.data.formats.layout import CERTAIN, LIKELY, Layout
from drloss.data.formats.sniffing import xml_root
from drloss.data.formats.voc_tree import VocTree, find_trees, inner_trees
from drloss.data.formats.voc_xml import parse_xml, text_at
from drloss.data.images.decoding import image_size
from drloss.data.source import FileSource, Places, Read, standard_name
from drloss.errors import DataError, printable

PASCAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_PROBED = 20
"""Number of XML files of a folder that decide what they are and where their images are."""
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def find_voc(survey: Survey) -> Layout | None:
    """The VOC trees of a folder, as a data set."""
    return _trees(find_trees(survey.folder), CERTAIN)


def _trees(trees: Sequence[VocTree], sure: int) -> Layout | None:
    if not trees:
        return None
    says = ", ".join(printable(f"{tree.folder.name}/Annotations") for tree in trees[:3])
    sets = _sets(trees)
    readers = {split: voc_reader(own) for split, own in sets.items()}
    places = partial(_places, sets)
    return Layout(
        "voc", sure, f"{says} with JPEGImages", lambda name: FileSource(name, "voc", readers, places=places)
    )


_Set = tuple[VocTree, str | None]
"""A tree, and one of its lists; None for all its XML files."""


def _places(sets: Mapping[str, Sequence[_Set]]) -> Places:
    places: Places = {}
    for split, own in sets.items():
        tree, list_name = own[0]
        if tree.xml_folder is not None:
            places[split] = {"annotations": [t.xmls for t, _ in own], "images": [t.images for t, _ in own]}
        elif list_name is None:
            places[split] = {"trees": [tree.folder]}
        else:
            places[split] = {"trees": [tree.folder], "image_set": list_name}
    return places


def find_loose_voc(survey: Survey) -> Layout | None:
    """The only VOC tree in a folder, or VOC's XML files in any folders, beside the images or apart from them."""
    layout = _trees(inner_trees(survey.folder), LIKELY)
    if layout is not None:
        return layout
    splits: dict[str, list[_Set]] = {}
    matched = False
    for folder, names in _by_folder(survey.named(".xml")).items():
        if all(xml_root(survey.folder / folder / name) != "annotation" for name in names[:_PROBED]):
            continue
        images = survey.images.folder_of(names, folder)
        matched |= images is not None
        images = folder if images is None else images  # reading says which images are missing
        tree = VocTree(survey.folder, False, survey.folder / images, survey.folder / folder, deep=False)
        splits.setdefault(split_of_folder(folder) or split_of_folder(images) or WHOLE, []).append((tree, None))
    if not matched:
        return None
    trees = [tree for own in splits.values() for tree, _ in own]
    readers = {split: voc_reader(splits[split], others=trees) for split in in_order(splits)}
    where = ", ".join(printable(str(os.path.relpath(tree.xmls, survey.folder))) for tree in trees[:3])
    says = f"XML files of VOC in {where}"
    places = partial(_places, splits)
    return Layout("voc", LIKELY, says, lambda name: FileSource(name, "voc", readers, places=places))


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        found.setdefault(folder, []).append(base)
    return found


def _sets(trees: Sequence[VocTree]) -> dict[str, list[_Set]]:
    """Trees and lists by split: ``all`` for a tree without lists; the year is in the name if there are several."""
    sets: dict[str, list[_Set]] = {}
    for tree in trees:
        year = tree.folder.name.removeprefix("VOC") if len(trees) > 1 else ""
        lists = tree.lists()
        names = [standard_name(name) for name in lists]
        for list_name, split in zip(lists, names, strict=True):
            shown_name = split if names.count(split) == 1 else list_name
            sets[printable(shown_name + year)] = [(tree, list_name)]
        if not lists:
            sets[WHOLE + year] = [(tree, None)]
    return sets


def voc_reader(
    sets: Sequence[_Set],
    classes: Sequence[str] | None = None,
    others: Sequence[VocTree] = (),
) -> Read:
    """The reader of a split; for the arguments see :func:`read_voc`."""
    return lambda name, strict: read_voc(name, sets, classes=classes, others=others, strict=strict)


def read_voc(
    name: str,
    sets: Sequence[_Set],
    *,
    classes: Sequence[str] | None = None,
    others: Sequence[VocTree] = (),
    strict: bool = True,
) -> tuple[Annotations, Report]:
    """Read one split.

    Args:
        name: name of the split in messages.
        sets: its trees, each with the name of a list, or None for all XML files.
        classes: class names in the order of their labels; None for the rule above.
        others: trees of other splits, whose classes count, too.
        strict: read everything, then raise the first problem; otherwise leave out bad records.

    Raises:
        DataError: if a list cannot be read, or as ``strict`` says.
    """
    trees = [tree for tree, _ in sets]
    for tree in trees:
        require_inside(tree.xmls, tree.folder)
        if tree.image_folder is None:
            require_inside(tree.images, tree.folder)
    if classes is None:
        classes = PASCAL_CLASSES if all(t.pascal for t in trees) else found_classes([*trees, *others])
    images = [tree.images for tree in trees]
    root = trees[0].folder
    if len(trees) > 1 or trees[0].image_folder is not None:
        # Links are resolved: a link among these folders would lead out of the folder that they have in common.
        images = [Path(os.path.realpath(folder)) for folder in images]
        root = common_folder(images)
    builder = AnnotationsBuilder(name, classes, range(1, len(classes) + 1), root, str(trees[0].folder))
    for (tree, image_set), folder in zip(sets, images, strict=True):
        reader = _Reader(builder, tree, folder, {c: k for k, c in enumerate(classes, start=1)})
        path, entries = tree.stems(image_set)
        for record, stem in entries:
            reader.image(path, record, stem, listed=image_set is not None)
        reader.report_unread(image_set)
    return builder.finish(strict=strict)


def found_classes(trees: Sequence[VocTree]) -> tuple[str, ...]:
    """All object names in the trees' XML files, sorted.

    Files that cannot be read are skipped, and so are links that lead out of a tree.

    Raises:
        DataError: if there is no object with a name.
    """
    names: set[str] = set()
    for tree in trees:
        inside = Inside(tree.folder)
        for path in (name for files in tree.annotations.values() for name in files):
            if not inside(tree.xml_name(path)):
                continue
            try:
                root = parse_xml(tree.xmls / path)
            except DataError:
                continue
            names.update(text for item in root.findall("object") if (text := text_at(item, "name")))
    if not names:
        raise DataError(f"{printable(str(trees[0].xmls))}: no object with a name in any .xml file")
    return tuple(sorted(names))


class _Reader:
    """Passes the images and boxes of one tree to the builder."""

    def __init__(self, builder: AnnotationsBuilder, tree: VocTree, images: Path, labels: dict[str, int]) -> None:
        self.builder = builder
        self.tree = tree
        self.images = images
        self.labels = labels
        self.known = known_classes(labels)
        self.inside = Inside(tree.folder)
        self.listed = 0

    def image(self, listing: Path, record: str, stem: str, *, listed: bool) -> None:
        add = self.builder.add_image
        self.listed += 1
        key = (self.tree.xmls, self.listed)
        bad: tuple[str, object, str]
        try:
            stem = clean_name(stem)
        except ValueError as error:
            bad = (f"file name refused ({error})", stem, "the stem of a file in Annotations")
            add(str(listing), record, key=None, name=None, height=None, width=None, bad=bad)
            return
        files = self.tree.annotations.get(stem, [f"{stem}.xml"])
        path = self.tree.xmls / files[0]
        if len(files) > 1:
            self.builder.note(str(path), "", "several XML files of one stem, the first is taken", files)
        try:
            if not self.inside(self.tree.xml_name(files[0])):
                raise DataError("a link out of the tree")
            root = parse_xml(path)
        except DataError as error:
            if not listed and not self.tree.image_names(stem) and xml_root(path) not in ("annotation", ""):
                self.builder.note(str(path), "", "XML file of another kind, not read")
                return
            bad = ("annotation file not readable", error.with_traceback(None), "a VOC XML file")
            add(str(path), "", key=None, name=None, height=None, width=None, bad=bad)
            return
        names = self.tree.image_names(stem)
        bad_image = None if names else ("image file missing", stem, f"a file of that stem in {self.tree.images}")
        if len(names) > 1:
            self.builder.note(str(path), "", "several image files of one stem, the first is taken", names)
        self._check_filename(path, root, stem)
        height, width = self._size(str(path), root, names)
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

    def report_unread(self, image_set: str | None) -> None:
        """Report the files of the tree that are not read."""
        note, tree, xmls = self.builder.note, self.tree, self.tree.xmls
        named = None if image_set is None else tree.listed_stems(image_set)
        for stem, names in tree.annotations.items():
            if named is not None and stem not in named:
                note(str(xmls / names[0]), "", "XML file that no list in ImageSets/Main names, not read")
        for stem, names in tree.image_files.items():
            if stem not in tree.annotations and (named is None or stem not in named):
                note(str(tree.images / names[0]), "", "image without an XML file, not read")
        for folder in {xmls: None, tree.images: None}:
            for name in tree.files(folder).links:
                note(str(folder / name), "", "folder that is a link, not searched")
        for name in tree.files(tree.images).others:
            if tree.images != xmls or suffix_of(name) != ".xml":
                note(str(tree.images / name), "", why_not_read(name))

    def _check_filename(self, path: Path, root: ElementTree.Element, stem: str) -> None:
        named = text_at(root, "filename")
        if named and named not in (stem, Path(stem).name) and Path(named).stem != Path(stem).name:
            self.builder.note(str(path), "", "<filename> differs from the file's own name, and is not used", named)

    def _size(self, path: str, root: ElementTree.Element, names: list[str]) -> Sequence[object]:
        """Height and width from the XML, or from the image's header if the XML has none."""
        texts = [text_at(root, f"size/{side}") for side in ("height", "width")]
        height, width = (number_in_text(text) for text in texts)
        unknown = any(not text or value == 0 for text, value in zip(texts, (height, width), strict=True))
        if unknown and names and Inside(self.tree.images)(names[0]):
            with suppress(DataError):  # the builder then reports the size in the XML
                size = image_size(self.tree.images / names[0])
                if all(texts):
                    said = f"{texts[1]} x {texts[0]}"
                    self.builder.note(path, "", "size 0 in the XML, that of the image file instead", said)
                return size
        return [value if value is not None else text for value, text in zip((height, width), texts, strict=True)]

    def _object(self, file: str, record: str, key: object, item: ElementTree.Element) -> None:
        drop = self.builder.drop_box
        name = text_at(item, "name")
        if not name:
            drop(file, record, "name missing", None, "a class name")
            return
        label = self.labels.get(name)
        if label is None:
            drop(file, record, "unknown class", name, self.known)
            return
        box = self._box(file, record, item)
        if box is not None:
            difficult = text_at(item, "difficult")
            ignore, usual = flag_is_set(difficult)
            if not usual:
                kind = "difficult neither 0 nor 1 (taken as 0 if it says so, else as 1)"
                self.builder.note(file, record, kind, difficult)
            offset = self.tree.offset
            shifted = (box[0] - offset, box[1] - offset, box[2], box[3])
            self.builder.add_box(file, record, key=key, category=label, box=shifted, ignore=ignore, written=box)

    def _box(self, file: str, record: str, item: ElementTree.Element) -> Box | None:
        """The box as the file has it, counted from 1 or 0."""
        values = []
        for side in _SIDES:
            text = text_at(item, f"bndbox/{side}")
            value = number_in_text(text)
            if value is None:
                what = "missing" if text is None else "not a number"
                self.builder.drop_box(file, record, f"{side} {what}", text, "a number of pixels")
                return None
            values.append(value)
        return values[0], values[1], values[2], values[3]
