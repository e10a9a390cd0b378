"""From what ``--data`` names to a data set with its splits.

- ``shapes`` or ``shapes:key=value,...``: images that code draws (:mod:`drloss.data.formats.shapes`).
- A folder as a tool has exported it. Each format says what it makes of the folder and how sure it is of that:

  ===========  ==========================================================================================
  COCO         ``annotations/instances_{split}20xx.json``, ``{split}/_annotations.coco.json``, or any .json
               file with images, annotations and categories, with its images beside it or below
  VOC          trees with ``Annotations``, ``JPEGImages`` and, if they have splits, ``ImageSets/Main``; or XML
               files beside the images, or in a folder of their own, also by split
  YOLO         ``data.yaml``; or text files of labels beside the images or in ``labels``, with or without
               ``classes.txt``, ``obj.names`` or ``_darknet.labels``, also by split or by lists of images
  CSV          one row for each box: TensorFlow's, Roboflow's, keras-retinanet's, Open Images'
  LabelMe      one .json file for each image
  CreateML     .json lists of images with annotations and coordinates
  CVAT         ``annotations.xml``, "CVAT for images"
  imagefolder  Hugging Face's ``metadata.jsonl`` beside the images
  ===========  ==========================================================================================

  The surest format is taken. If two are equally sure, the folder is refused. A ``data.toml`` in the folder decides
  instead. A folder whose only content is another folder stands for that folder.
- One annotation file of such a folder: a ``.json``, ``.csv``, ``.xml`` or YOLO's ``.yaml`` file; its images are
  looked for in its folder, or if there are none in the one around it.
- A ``.toml`` data file (:mod:`drloss.data.formats.data_toml`).

A split whose folder or list does not exist is refused when it is read; the other splits can still be read.
Splits called ``valid`` or ``validation`` are shown as ``val``; any of the three names opens the split.

To add a format, write its reader with a ``find_...`` function as in ``csv_boxes.py``, and add that to
:data:`MARKED` or :data:`LOOSE`.
"""

import os
from collections.abc import Callable
from pathlib import Path

from drloss.data.files.paths import IMAGE_SUFFIXES
from drloss.data.files.survey import WHOLE, Survey
from drloss.data.formats import shapes
from drloss.data.formats.coco_layout import find_coco, find_loose_coco, loose_coco
from drloss.data.formats.createml import createml_layout, find_createml
from drloss.data.formats.csv_boxes import csv_layout, find_csv
from drloss.data.formats.cvat import cvat_layout, find_cvat
from drloss.data.formats.data_toml import DATA_FILE, open_data_toml
from drloss.data.formats.imagefolder import find_imagefolder
from drloss.data.formats.labelme import find_labelme
from drloss.data.formats.layout import Layout
from drloss.data.formats.refusals import ARCHIVES, no_layout, several_layouts
from drloss.data.formats.sniffing import json_kind, xml_root
from drloss.data.formats.voc import find_loose_voc, find_voc
from drloss.data.formats.yolo import find_loose_yolo, find_yolo, open_yolo
from drloss.data.source import DataSource, FileSource, unreadable
from drloss.errors import DataError, UserError, printable

Find = Callable[[Survey], Layout | None]
"""What a format makes of a folder; None if it is not in this format."""
_DEEPEST = 20
MARKED: dict[str, Find] = {"COCO": find_coco, "VOC": find_voc, "YOLO": find_yolo, "imagefolder": find_imagefolder}
"""Formats by a mark of their own, which is quick to find. A folder with one is searched for no other layout."""
LOOSE: dict[str, Find] = {
    "COCO": find_loose_coco,
    "VOC": find_loose_voc,
    "YOLO": find_loose_yolo,
    "CSV": find_csv,
    "LabelMe": find_labelme,
    "CreateML": find_createml,
    "CVAT": find_cvat,
}
"""Formats by the content of any files in any folders."""
_ALONE = "a file of all its annotations: .toml, .yaml, .json, .csv or .xml"


def open_data(spec: str | Path) -> DataSource:
    """The data set that ``--data`` names; see the module's rules.

    Within :func:`drloss.data.files.paths.following_links`, links in it may lead out of it.

    Raises:
        UserError: if it does not exist.
        DataError: if it is in no known layout, or in several.
    """
    if isinstance(spec, str) and (spec == "shapes" or spec.startswith("shapes:")):
        return shapes.open_shapes(spec)
    path = Path(spec)
    name = printable(str(spec))
    if not str(spec) or not os.path.exists(path):
        raise UserError(
            f"{name or 'DATA'}: no such file or folder; allowed: shapes, the folder of a data set, or {_ALONE}"
        )
    try:
        return _open_folder(path, str(spec)) if path.is_dir() else _open_file(path, str(spec))
    except OSError as error:
        raise unreadable(str(spec), error) from None


def _open_file(path: Path, name: str) -> FileSource:
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return open_data_toml(path, name, open_as)
    if suffix in (".yaml", ".yml"):
        return open_yolo(path, name)
    survey, own = Survey(path.parent), path.name
    if not survey.listing.images:  # the folder of annotations, beside that of the images
        around = Path(os.path.abspath(path)).parent
        survey, own = Survey(around.parent), f"{around.name}/{own}"
    only = {WHOLE: [own]}
    layout: Layout | None = None
    if suffix == ".json" and json_kind(path) in ("coco", ""):
        layout = loose_coco(survey, [own])
    elif suffix == ".json" and json_kind(path) == "createml":
        layout = createml_layout(survey, only)
    elif suffix == ".csv":
        layout = csv_layout(survey, only)
    elif suffix == ".xml" and xml_root(path) == "annotations":
        layout = cvat_layout(survey, [own])
    if layout is None:
        raise UserError(f"{printable(str(path))}: {_not_alone(path)}; allowed: the folder of a data set, or {_ALONE}")
    return layout.open(name)


def _not_alone(path: Path) -> str:
    """Why a file is no data set, in words."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "an image (drloss predict takes images)"
    if suffix in (".xml", ".json", ".txt"):
        return "not the annotations of a whole data set"
    if suffix in ARCHIVES:
        return "an archive; unpack it first"
    return f"file type, got {path.suffix or 'none'}"


def _open_folder(folder: Path, name: str) -> FileSource:
    if (folder / DATA_FILE).is_file():
        return open_data_toml(folder / DATA_FILE, name, open_as)
    survey = Survey(folder)
    found = _found(survey, MARKED) or _found(survey, LOOSE)
    if not found:
        inner = _only_folder(folder)
        if inner != folder:
            return _open_folder(inner, name)
        raise DataError(f"{printable(name)}: {no_layout(survey)}")
    surest = max(layout.sure for layout in found.values())
    best = {kind: layout for kind, layout in found.items() if layout.sure == surest}
    if len(best) > 1:
        raise DataError(f"{printable(name)}: {several_layouts(best)}")
    (layout,) = best.values()
    others = {kind: other for kind, other in found.items() if other is not layout}
    also = "".join(f"; not read: {kind} ({other.says})" for kind, other in others.items())
    return layout.open(name).saying(layout.says + also)


def _found(survey: Survey, formats: dict[str, Find]) -> dict[str, Layout]:
    """What each format makes of a folder. The error of one counts only if no other takes the folder."""
    found: dict[str, Layout] = {}
    errors = []
    for kind, find in formats.items():
        try:
            layout = find(survey)
        except DataError as error:
            errors.append(error)
            continue
        if layout is not None:
            found[kind] = layout
    if errors and not found:
        raise errors[0]
    return found


def open_as(kind: str, folder: Path, name: str) -> FileSource:
    """A folder as a data set of one format, whatever else it may look like.

    Args:
        kind: name of the format, in lower case.
        folder: the folder.
        name: name of the data set in messages.

    Raises:
        DataError: if it is none.
    """
    survey = Survey(folder)
    finds = (known[own] for known in (MARKED, LOOSE) for own in known if own.lower() == kind)
    layout = next((layout for find in finds if (layout := find(survey))), None)
    if layout is None:
        raise DataError(f"{printable(name)}: no {kind} data set; {no_layout(survey)}")
    return layout.open(name).saying(layout.says)


def _only_folder(folder: Path) -> Path:
    """The folder in a folder without anything else, as archives leave it, and in that; or else the folder itself."""
    for _ in range(_DEEPEST):
        inner = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(inner) != 1 or not inner[0].is_dir() or inner[0].is_symlink():
            return folder
        folder = inner[0]
    return folder
