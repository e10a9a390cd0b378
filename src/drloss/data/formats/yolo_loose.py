"""YOLO's label files without a YAML file: which they are, where their images are, and what their classes are called.

The rules are those of :mod:`drloss.data.formats.yolo`.
"""

from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path

from drloss.data.checks.boxes import number_in_text
from drloss.data.files.paths import IMAGE_SUFFIXES, require_inside, suffix_of
from drloss.data.files.reading import read_lines
from drloss.data.files.survey import WHOLE, Survey, in_order, split_of_file, split_of_folder
from drloss.data.formats.layout import head
from drloss.data.formats.yolo_yaml import YoloData
from drloss.errors import DataError, printable

_NAMES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "names.txt", "predefined_classes.txt")
_PROBED = 20
_MOST_CLASSES = 20_000
_MAX_BYTES = 10 * 1024**2
_LARGEST_LIST = 256 * 1024**2


def loose_data(survey: Survey) -> YoloData | None:
    """What a YAML file would say of a folder; None if there are no label files in it."""
    texts = survey.named(".txt")
    others = survey.named(".names", ".labels")
    names = [n for n in (*texts, *others) if _base(n) in _NAMES or suffix_of(n) == ".names"]
    listing = [n for n in texts if n not in names and _is_list(survey.folder / n)]
    lists = [n for n in listing if split_of_file(_base(n))]
    unread = [n for n in listing if n not in lists]
    labels = sorted(set(texts) - set(names) - set(listing))
    by_folder: dict[str, list[str]] = {}
    for name in labels:
        by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    probed = {folder: [is_label(survey.folder / n) for n in own[:_PROBED]] for folder, own in by_folder.items()}
    folders = [folder for folder, found in probed.items() if True in found]
    if not folders or not survey.listing.images:
        return None
    file, classes = _classes(survey, sorted(names, key=lambda n: (n.count("/"), n)))
    splits: dict[str, list[tuple[Path, Path | None]]] = {}
    if lists:
        for name in lists:
            splits.setdefault(split_of_file(name) or WHOLE, []).append((survey.folder / name, None))
        own_labels: dict[str, tuple[Path, ...]] = {}
    else:
        for images, place in _pairs(survey, folders, by_folder):
            split = split_of_folder(images) or split_of_folder(place) or WHOLE
            splits.setdefault(split, []).append((survey.folder / images, survey.folder / place))
        own_labels = {split: tuple(label for _, label in own if label) for split, own in splits.items()}
    if not splits:
        return None
    if classes is None:
        classes = _numbers(survey, [name for folder in folders for name in by_folder[folder]])
    sources = {split: tuple(source for source, _ in splits[split]) for split in in_order(splits)}
    said = [("classes without names: their numbers are taken", "")] if file == survey.folder else []
    said += [("list of images that names no split, not read", name) for name in unread]
    if lists:
        said += _unlisted(survey, lists)
    notes = {next(iter(sources)): tuple(said)}
    return YoloData(file, survey.folder, classes, sources, None, notes=notes, labels=own_labels)


def _base(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _unlisted(survey: Survey, lists: Iterable[str]) -> list[tuple[str, str]]:
    """A note for each image whose name is in no list."""
    lines = [line for name in lists for line in read_lines(survey.folder / name, _LARGEST_LIST)]
    listed = {line.strip().replace("\\", "/").rpartition("/")[2] for line in lines}
    images = survey.listing.images
    return [("image in no list, not read", name) for name in images if name.rpartition("/")[2] not in listed]


def _is_list(path: Path) -> bool:
    """Whether a text file lists images."""
    lines = [line.strip() for line in _head_lines(path)]
    return bool(lines) and all(suffix_of(line) in IMAGE_SUFFIXES for line in lines)


def _head_lines(path: Path) -> list[str]:
    """The first lines of a text file that are not blank; the last may be cut off, and is left out if so."""
    data = head(path, 16_384)
    lines = data.decode("utf-8-sig", "replace").splitlines()
    return [line for line in (lines[:-1] if len(data) == 16_384 else lines) if line.strip()][:_PROBED]


def is_label(path: Path) -> bool | None:
    """Whether a text file has lines of labels; None if it has no lines."""
    lines = _head_lines(path)
    if not lines:
        return None
    return all(_is_line(line.split()) for line in lines)


def _is_line(words: Sequence[str]) -> bool:
    numbers = [number_in_text(word) for word in words]
    if len(words) < 5 or any(n is None or not isfinite(n) for n in numbers):
        return False
    return numbers[0] == int(numbers[0] or 0) and all(-0.01 <= (n or 0) <= 1.01 for n in numbers[1:5])


def _pairs(survey: Survey, folders: Iterable[str], labels: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(folder of images, folder of their label files), each of the former once and none within another.

    Raises:
        DataError: if several folders have label files for the same images, and none is their usual one.
    """
    found: dict[str, list[str]] = {}
    for place in folders:
        images = survey.images.folder_of(labels[place], place)
        if images is not None:
            found.setdefault(images, []).append(place)
    chosen = {images: _one_of(survey, images, places) for images, places in found.items()}
    nested = {i for i, p in chosen.items() for o in chosen if _within(i, o) and _same(i, o, p, chosen)}
    return sorted((images, place) for images, place in chosen.items() if images not in nested)


def _one_of(survey: Survey, images: str, places: list[str]) -> str:
    usual = [place for place in places if place in (images, _usual_labels(images))]
    if len(places) > 1 and len(usual) != 1:
        both = " and ".join(printable(place or ".") for place in places[:2])
        raise DataError(
            f"{printable(str(survey.folder / images))}: label files of the same images in {both}; allowed: one "
            "folder, called labels for images; a .toml data file says which"
        )
    return (usual or places)[0]


def _usual_labels(images: str) -> str:
    return "/".join("labels" if part == "images" else part for part in images.split("/"))


def _within(folder: str, other: str) -> bool:
    return folder != other and (other == "" or folder.startswith(f"{other}/"))


def _same(folder: str, other: str, place: str, found: dict[str, str]) -> bool:
    """Whether the label files of a folder are found from the folder around it."""
    return folder.removeprefix(other).strip("/") == place.removeprefix(found[other]).strip("/")


def _classes(survey: Survey, names: Sequence[str]) -> tuple[Path, tuple[str, ...] | None]:
    """The file of class names, and these; the folder and None if there is none."""
    found: dict[tuple[str, ...], Path] = {}
    for name in names:
        path = survey.folder / name
        require_inside(path, survey.folder)
        lines = [line.strip() for line in read_lines(path, _MAX_BYTES)]
        while lines and not lines[-1]:
            lines.pop()
        if lines:
            found.setdefault(tuple(lines), path)
    if len(found) > 1:
        both = " and ".join(printable(str(path)) for path in list(found.values())[:2])
        raise DataError(f"{both}: names of classes that differ; allowed: one list of classes for the data set")
    return next(((path, classes) for classes, path in found.items()), (survey.folder, None))


def _numbers(survey: Survey, labels: Iterable[str]) -> tuple[str, ...]:
    """The numbers of the classes, as their names."""
    most = 0
    for name in labels:
        try:
            lines = read_lines(survey.folder / name, _MAX_BYTES)
        except DataError:  # reading the split reports it
            continue
        for line in lines:
            value = number_in_text(line.split()[0]) if line.strip() else None
            if value is not None and 0 <= value < _MOST_CLASSES:
                most = max(most, int(value))
    return tuple(str(k) for k in range(most + 1))
