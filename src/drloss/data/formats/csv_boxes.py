"""CSV: one row for each box, as the TensorFlow tutorial, Roboflow, keras-retinanet and Open Images write them.

Rules:

- The columns are found by their names in the first row, in any order and case: an image (``filename``, ``image``,
  ``path``, ``ImageID``, ...), a class (``class``, ``label``, ``LabelName``, ...) and either ``xmin``, ``ymin``,
  ``xmax``, ``ymax`` (or ``x1``, ..., ``left``, ...) or ``x``, ``y``, ``w``, ``h`` (or ``bbox_x``, ``bbox_width``,
  ...). ``width`` and ``height`` beside xmin and xmax are the image's. Other columns are not read.
- Without such a row, a file with six columns is keras-retinanet's: path, x1, y1, x2, y2, class. A path alone is an
  image without objects. ``classes.csv``, of names and numbers from 0, then gives the order of the classes.
- Open Images' coordinates are shares of the image's size; ``class-descriptions*.csv`` names its classes; boxes with
  ``IsGroupOf`` 1 are ignored, as in its own evaluation.
- Fields are separated by ``,``, ``;`` or tabs, whichever the first row has most of.
- The split is in the file's name or folder: ``train_labels.csv``, ``valid/_annotations.csv``.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from drloss.data.checks.boxes import number_in_text
from drloss.data.files.paths import require_inside
from drloss.data.files.reading import Limit, read_text
from drloss.data.files.survey import Survey, split_of_file, stem_of
from drloss.data.formats.items import SIDES, Bad, Item, ItemBox, ItemFiles
from drloss.data.formats.layout import POSSIBLE, Layout, grouped_by_split, head
from drloss.errors import DataError, printable

MAX_BYTES = 1024**3
_LIMITS = {b"\n": Limit(20_000_000), b"\r": Limit(20_000_000), b",": Limit(1_000_000, each=100)}
_LIMITS |= {b";": _LIMITS[b","], b"\t": _LIMITS[b","]}
_IMAGE = ("filename", "file_name", "file", "image", "image_path", "filepath", "path", "img", "image_name", "imageid")
_CLASS = ("class", "label", "labelname", "class_name", "label_name", "category", "category_name")
_XYXY = (
    SIDES,
    ("x1", "y1", "x2", "y2"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
_XYWH = (("x", "y", "w", "h"), ("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("x", "y", "width", "height"))
_HEIGHT, _WIDTH = ("height", "image_height", "img_height"), ("width", "image_width", "img_width")


class _Columns:
    """Which columns of a file hold what.

    Args:
        row: the file's first row.

    Raises:
        KeyError: if it neither names the columns nor is a row of keras-retinanet's.
    """

    def __init__(self, row: Sequence[str]) -> None:
        names = [name.strip().lower() for name in row]
        self.titled = any(name in (*_IMAGE, "image_id") for name in names) and any(name in _CLASS for name in names)
        self.height = self.width = self.group = None
        self.corners, self.open_images = True, False
        self.box: tuple[int, ...] = (1, 2, 3, 4)
        if not self.titled:
            if len(row) != 6 or not row[0].strip() or not all(not v or _is_number(v) for v in row[1:5]):
                raise KeyError("columns")
            self.image, self.kind = 0, 5
            return
        place = {name: k for k, name in reversed(list(enumerate(names)))}
        self.image = next(place[name] for name in (*_IMAGE, "image_id") if name in place)
        self.kind = next(place[name] for name in _CLASS if name in place)
        sides = next((s for s in _XYXY + _XYWH if all(name in place for name in s)), None)
        if sides is None:
            raise KeyError("columns")
        self.corners = sides in _XYXY
        self.box = tuple(place[name] for name in sides)
        # Beside x and y, width and height are the box's, even where the file has its corners, too.
        sizes = [n for n in (*_HEIGHT, *_WIDTH) if n in place and n not in sides]
        sizes = [n for n in sizes if not ({"x", "y"} <= place.keys() and n in ("height", "width"))]
        self.height = next((place[n] for n in sizes if n in _HEIGHT), None)
        self.width = next((place[n] for n in sizes if n in _WIDTH), None)
        self.open_images = "imageid" in place and "labelname" in place
        self.group = place.get("isgroupof")


def _is_number(text: str) -> bool:
    return number_in_text(text.strip()) is not None


def find_csv(survey: Survey) -> Layout | None:
    """The CSV files of a folder that list boxes, as a data set."""
    files = survey.named(".csv", ".tsv")
    found = [name for name in files if _columns_of(survey.folder / name) is not None]
    if not found or not survey.listing.images:
        return None
    # Reading says what is wrong with a file that is called as one of the splits and cannot be told by its columns.
    splits = {"", *map(split_of_file, found)}
    found += [name for name in files if split_of_file(name.rpartition("/")[2]) not in splits]
    return csv_layout(survey, grouped_by_split(sorted(found)))


def csv_layout(survey: Survey, files: dict[str, list[str]]) -> Layout:
    """These CSV files as a data set."""
    texts = descriptions(survey.folder / name for name in survey.named(".csv"))
    order = None
    classes = next((n for n in survey.named(".csv") if stem_of(n).rpartition("/")[2] in ("classes", "class")), None)
    if classes is not None:
        require_inside(survey.folder / classes, survey.folder)
        order = _ordered([row for row in _rows(survey.folder / classes) if row])
    source = ItemFiles("csv", survey, files, partial(parse, texts), order)
    shown = ", ".join(printable(name) for own in files.values() for name in own[:1])
    return Layout("csv", POSSIBLE, f"rows of boxes in {shown}", source.source)


def descriptions(paths: Iterable[Path]) -> dict[str, str]:
    """The names of Open Images' classes, from those of the files that are ``class-descriptions*.csv``."""
    texts: dict[str, str] = {}
    for path in paths:
        if path.name.startswith("class-descriptions") and not path.is_symlink():
            texts |= {row[0].strip(): row[1].strip() for row in _rows(path) if len(row) > 1}
    return texts


def _ordered(rows: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    """The names of a ``classes.csv``, if its second column numbers them from 0."""
    numbered = {row[1].strip(): row[0].strip() for row in rows if len(row) == 2}
    order = [numbered.get(str(k)) for k in range(len(rows))]
    return tuple(n for n in order if n) if rows and all(order) else None


def _columns_of(path: Path) -> _Columns | None:
    """The columns of a file, by its first lines; None if it is no list of boxes."""
    try:
        text = head(path).decode("utf-8-sig", "replace")
        row = next(csv.reader(text.splitlines()[:1], delimiter=_delimiter(text)), [])
        return _Columns(row)
    except (KeyError, csv.Error, OSError):
        return None


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _rows(path: Path) -> Iterator[list[str]]:
    text = read_text(path, MAX_BYTES, _LIMITS, (b"\n",))
    reader = csv.reader(iter(text.splitlines(keepends=True)), delimiter=_delimiter(text))
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{printable(str(path))}: line {reader.line_num}: not CSV ({error})") from None


def parse(texts: dict[str, str], path: Path, split: str) -> Iterator[Item]:
    """The items of one annotation file."""
    rows = _rows(path)
    first = next(rows, [])
    try:
        columns = _Columns(first)
    except KeyError:
        raise DataError(
            f"{printable(str(path))}: first line, got {printable(','.join(first))[:80]}; allowed: names of columns "
            "such as filename, class, xmin, ymin, xmax, ymax, or six columns: path, x1, y1, x2, y2, class"
        ) from None
    images: dict[str, tuple[int, list[str], list[ItemBox]]] = {}
    numbered = enumerate(rows if columns.titled else chain([first], rows), start=2 if columns.titled else 1)
    for number, row in numbered:
        if not any(field.strip() for field in row):
            continue
        name = _field(row, columns.image)
        _, _, boxes = images.setdefault(name, (number, row, []))
        if not (_field(row, columns.kind) or any(_field(row, k) for k in columns.box)):
            continue  # an image without objects
        boxes.append(_box(columns, texts, row, number))
    for name, (number, row, boxes) in images.items():
        height = None if columns.height is None else _field(row, columns.height)
        width = None if columns.width is None else _field(row, columns.width)
        yield Item(str(path), f"line {number}", name, height, width, boxes)


def _box(columns: _Columns, texts: dict[str, str], row: Sequence[str], number: int) -> ItemBox:
    kind = _field(row, columns.kind)
    values: list[object] = [_field(row, k) for k in columns.box]
    if columns.open_images:  # its columns are XMin, XMax, YMin, YMax, found by name
        group = columns.group is not None and _field(row, columns.group) == "1"
        return ItemBox(f"line {number}", texts.get(kind, kind), values, shares=True, ignore=group)
    bad: Bad | None = None
    if not columns.corners:
        numbers = [number_in_text(str(v)) for v in values]
        odd = next((v for v, n in zip(values, numbers, strict=True) if n is None), None)
        x, y, w, h = (0.0 if n is None else n for n in numbers)
        values = [x, y, x + w, y + h]
        bad = None if odd is None else ("not a number", odd, "numbers of pixels")
    return ItemBox(f"line {number}", kind, values, bad=bad)


def _field(row: Sequence[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""
