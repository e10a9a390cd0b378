"""From what ``--data`` names to a data set with its splits.

- ``shapes`` or ``shapes:key=value,...``: images that code draws (:mod:`drloss.data.formats.shapes`).
- A folder in one of these layouts:

  ======  =============================================================================================
  COCO    ``annotations/instances_{split}20xx.json`` with images in ``{split}20xx/``, ``images/{split}20xx/``
          or ``images/``; or ``{split}/_annotations.coco.json`` with the images beside it; or ``{split}.json``,
          ``coco_{split}.json``, ``{name}_{split}.json`` in the folder, with names relative to it or to ``images/``
  VOC     ``Annotations/``, ``JPEGImages/``, ``ImageSets/Main/{split}.txt``; or a devkit with such folders ``VOC20xx``
          (with several of them, the splits carry the year: ``trainval2007``)
  YOLO    one ``.yaml`` file with ``names`` and ``train``
  ======  =============================================================================================

  A ``data.toml`` in the folder decides instead of these layouts. A folder that fits two formats is refused. So is one
  with parts that are links to the outside; a data file may name such places.
- A ``.toml`` data file (:mod:`drloss.data.formats.data_toml`), or YOLO's ``.yaml`` file.

A split whose folder or list does not exist is refused when it is read; the other splits can still be read.
Splits called ``valid`` or ``validation`` are shown as ``val``; any of the three names opens the split.

To add a format, write its reader with a ``find_...`` function as in ``coco.py``, and add that to :data:`FORMATS`.
"""

import os
from collections.abc import Callable
from pathlib import Path

from drloss.data.formats import shapes
from drloss.data.formats.coco import find_coco
from drloss.data.formats.data_toml import DATA_FILE, open_data_toml
from drloss.data.formats.voc import find_voc
from drloss.data.formats.yolo import find_yolo, open_yolo
from drloss.data.source import DataSource, FileSource, unreadable
from drloss.errors import DataError, UserError, printable

FORMATS: dict[str, Callable[[Path], Callable[[str], FileSource] | None]] = {
    "COCO": find_coco,
    "VOC": find_voc,
    "YOLO": find_yolo,
}
"""For each format, a function of a folder: None if it is not in this format, else what opens it under a name."""


def open_data(spec: str | Path) -> DataSource:
    """The data set that ``--data`` names; see the module's rules.

    Raises:
        UserError: if it does not exist.
        DataError: if it is in no known layout, or in several.
    """
    if isinstance(spec, str) and (spec == "shapes" or spec.startswith("shapes:")):
        return shapes.open_shapes(spec)
    path = Path(spec)
    name = printable(str(spec))
    if not str(spec) or not os.path.exists(path):
        raise UserError(f"{name or 'DATA'}: no such file or folder; allowed: shapes, a folder, a .toml or .yaml file")
    try:
        return _open_folder(path, str(spec)) if path.is_dir() else _open_file(path, str(spec))
    except OSError as error:
        raise unreadable(str(spec), error) from None


def _open_file(path: Path, name: str) -> FileSource:
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return open_data_toml(path, name)
    if suffix in (".yaml", ".yml"):
        return open_yolo(path, name)
    raise UserError(
        f"{printable(str(path))}: file type, got {path.suffix or 'none'}; "
        "allowed: .toml, .yaml, or the folder of a data set"
    )


def _open_folder(folder: Path, name: str) -> FileSource:
    if (folder / DATA_FILE).is_file():
        return open_data_toml(folder / DATA_FILE, name)
    found = {kind: opener for kind, find in FORMATS.items() if (opener := find(folder))}
    if not found:
        raise DataError(
            f"{printable(name)}: no data set found in this folder; allowed: a COCO, VOC or YOLO layout "
            "(annotations/instances_train.json, Annotations + JPEGImages, data.yaml), or a .toml data file"
        )
    if len(found) > 1:
        raise DataError(
            f"{printable(name)}: looks like {' and '.join(found)}; "
            "choose with a .toml data file, or name the file or inner folder"
        )
    (opener,) = found.values()
    return opener(name)
