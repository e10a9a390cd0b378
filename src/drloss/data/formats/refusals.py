"""What to say of a folder in which no data set is recognised, or more than one."""

from collections.abc import Mapping

from drloss.data.files.paths import suffix_of
from drloss.data.files.survey import Survey
from drloss.data.formats.layout import Layout
from drloss.data.formats.sniffing import json_kind, xml_root
from drloss.data.formats.yolo_loose import is_label
from drloss.errors import printable

LAYOUTS = "COCO, VOC, YOLO, CSV, LabelMe, CreateML, CVAT and imagefolder"
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_ARROWS = (".parquet", ".arrow", ".tfrecord", ".record")
_PROBED = 20


def no_layout(survey: Survey) -> str:
    """What was seen in a folder, what it is nearest to, and what is missing."""
    return f"no data set recognised; found {survey.counts()}. {_nearest(survey)}"


def _nearest(survey: Survey) -> str:
    listing = survey.listing
    suffixes = {suffix_of(name) for name in listing.others}
    if not listing.images and not listing.others:
        if listing.links:
            return "There is nothing but links, which --follow-links follows"
        return "The folder is empty; name the folder with the images and their annotations"
    packed = [name for name in listing.others if suffix_of(name) in ARCHIVES]
    if packed:
        return f"Unpack {printable(packed[0])} first, and name the folder that it gives"
    if suffixes & set(_ARROWS):
        kind = next(s for s in _ARROWS if s in suffixes)
        return f"{kind} files hold images and boxes in one, and are not read; export as COCO, VOC or YOLO"
    if not listing.images:
        return (
            "There are annotations but no images: put the images beside them, or name both in a .toml data file"
            if suffixes & {".xml", ".json", ".txt", ".csv", ".jsonl"}
            else f"There is neither an image nor an annotation; read are {LAYOUTS}"
        )
    for suffix, explain in ((".xml", _xml), (".json", _json), (".txt", _txt), (".csv", _csv)):
        names = survey.named(suffix)
        if names:
            return explain(survey, names)
    return (
        f"There are images but no annotations: export them from the labelling tool as well, in one of {LAYOUTS}; "
        "drloss predict takes images alone"
    )


def _xml(survey: Survey, names: list[str]) -> str:
    root = xml_root(survey.folder / names[0])
    if root == "annotation":
        return _of_others("XML", names[0])
    what = f"starts with <{printable(root)}>" if root else "is not XML"
    return (
        f"Nearest: VOC's XML files, but {printable(names[0])} {what}; VOC's start with <annotation>, CVAT's "
        "with <annotations>"
    )


def _json(survey: Survey, names: list[str]) -> str:
    kinds = {json_kind(survey.folder / name) for name in names[:_PROBED]}
    if "coco" in kinds:
        return "Nearest: COCO; name the .json file itself as DATA"
    return (
        f"Nearest: COCO, but {printable(names[0])} lacks the keys images, annotations and categories, and those of "
        "LabelMe (shapes, imagePath) or CreateML (coordinates, label)"
    )


def _txt(survey: Survey, names: list[str]) -> str:
    if is_label(survey.folder / names[0]):
        return _of_others("label", names[0])
    return (
        f"Nearest: YOLO's label files, but the lines of {printable(names[0])} are not numbers: class cx cy w h, in "
        "shares of the image's width and height"
    )


def _of_others(kind: str, name: str) -> str:
    return (
        f"There are {kind} files and images, but none of one name, as {printable(name)} and its image should be: "
        "they seem to be of other images"
    )


def _csv(survey: Survey, names: list[str]) -> str:
    return (
        f"Nearest: CSV, but the first line of {printable(names[0])} names no image, class and box: "
        "filename, class, xmin, ymin, xmax, ymax"
    )


def several_layouts(found: Mapping[str, Layout]) -> str:
    """The formats of a folder that could be several, and how to choose."""
    seen = " and ".join(f"{kind} ({layout.says})" for kind, layout in found.items())
    first = next(iter(found)).lower()
    return (
        f'looks like {seen}; choose with a data.toml in it that says format = "{first}", or name the annotation file '
        "or an inner folder"
    )
