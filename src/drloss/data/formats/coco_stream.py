"""Large COCO files, read piece by piece: a file of 450 MB is never whole in memory.

What comes out is what :func:`.load_json` would give, in a form that takes less memory: a piece of ``annotations`` in
which every record is as it should be becomes :class:`Columns`. Such pieces are parsed by msgspec, which passes over
polygons without making numbers of them. Any other piece is parsed by Python's own json into one dict for each record.
A file that cannot be read in pieces, or is no JSON, is left to :func:`.load_json`, which says what is wrong with it.

msgspec takes a few things that :func:`.load_json` does not, so that a piece is parsed again by json if it has an
escape sequence in a string, a key that the first record does not have, or lacks one that it has, or if it has

- a key twice: there are more colons in the piece than the keys and values that were read account for;
- an integer with more digits than Python converts, or lists within lists within lists: a long value is looked at.
"""

import codecs
import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from json import JSONDecoder
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from drloss.data.checks.boxes import integer_or_none
from drloss.data.files.reading import require_limits
from drloss.data.formats.coco_json import LIMITS, MAX_BYTES, RECORDS, load_json, used_keys

try:
    import msgspec
except ModuleNotFoundError:  # then large files are read whole, which takes more time and memory
    msgspec = None  # type: ignore[assignment]

WHOLE = 16 * 1024**2
"""Size in bytes up to which a file is parsed whole."""
PIECE = 512 * 1024
"""Bytes that are read at once; more if the end of a record is not among them."""
_MOST_PIECES = 32
"""Number of pieces in which there must be the end of a record, or of any other value."""
_MOST_KEYS = 64
_LONG, _MOST_LISTS = 900, 100
"""Characters from which a value is long, and the number of lists and objects it may have."""
_BLANK = re.compile(r"[ \t\n\r]+")
_LONG_INTEGER = re.compile(rb"[0-9]{600}")
_INT64 = 2**63
_TYPES: dict[str, dict[str, Any]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {
        **{"id": int, "image_id": int, "category_id": int, "bbox": tuple[float, float, float, float]},
        **{"area": float, "iscrowd": int, "difficult": int},
    },
}
"""Keys that are read, and the type of a value that is as it should be."""
_NEEDED = {"images": 4, "annotations": 4}
"""Number of these keys, the first ones, that a record must have."""


class _OddError(Exception):
    """The file cannot be read in pieces."""


@dataclass(frozen=True)
class Columns:
    """Annotations of which each has integers for ids, four numbers as box, and flags of 0 or 1.

    Attributes:
        ids, images, categories: (M,) int64.
        xywh: (M, 4) float64.
        areas: (M,) float64, finite and positive; None if no annotation has one.
        ignore: (M,) bool.
    """

    ids: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    xywh: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64] | None
    ignore: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, row: int) -> dict[str, Any]:
        """An annotation as the file has it."""
        ids = {"id": self.ids, "image_id": self.images, "category_id": self.categories}
        own = {key: int(values[row]) for key, values in ids.items()}
        area = {} if self.areas is None else {"area": float(self.areas[row])}
        return {**own, "bbox": self.xywh[row].tolist(), **area, "iscrowd": int(self.ignore[row])}


Block = list[Any] | Columns
"""Records that follow one another in the file."""


@contextmanager
def uncollected() -> Iterator[None]:
    """While this holds, Python does not look for garbage in circles: among millions of records there is none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_coco(path: Path) -> dict[str, Any]:
    """As :func:`.load_json`; in a large file, ``annotations`` may be :class:`Blocks`.

    Raises:
        DataError: with line and column, if known.
    """
    try:
        if msgspec is not None and path.is_file() and path.stat().st_size > WHOLE:
            require_limits(path, MAX_BYTES, LIMITS, RECORDS)
            return _in_pieces(path)
    except (_OddError, OSError, ValueError, RecursionError, MemoryError):
        pass
    return load_json(path)


class Blocks(list[Block]):
    """A list of a file."""

    def records(self) -> list[Any]:
        """The records that are not in :class:`Columns`."""
        return [record for block in self if isinstance(block, list) for record in block]

    def repeated_ids(self) -> npt.NDArray[np.int64]:
        """The ids that several annotations have."""
        ids = [block.ids for block in self if isinstance(block, Columns)]
        others = [integer_or_none(record.get("id")) for record in self.records() if isinstance(record, dict)]
        ids.append(np.array([own for own in others if own is not None], dtype=np.int64))
        found, counts = np.unique(np.concatenate(ids), return_counts=True)
        return found[counts > 1]


def _in_pieces(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    with path.open("rb") as file:
        pieces = _Pieces(file)
        mark = pieces.next()
        while mark in ("{" if not content else ","):
            key = pieces.value()
            if not isinstance(key, str) or key in content or pieces.next() != ":":
                raise _OddError
            if key in _TYPES and pieces.next(peek=True) == "[":
                blocks = Blocks(_blocks(pieces, key))
                content[key] = blocks if key == "annotations" else blocks.records()
            else:
                content[key] = pieces.value()
            mark = pieces.next()
        if mark != "}" or pieces.next(peek=True):
            raise _OddError
    return content


class _Pieces:
    """The text of a file, as much as is needed of it: ``text[at:]`` is what comes next."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = JSONDecoder(object_pairs_hook=used_keys)
        self.text, self.at, self.ended = "", 0, False

    def more(self) -> None:
        """Read a piece.

        Raises:
            _OddError: if there is none, or the text has too many already.
        """
        if self.ended or len(self.text) - self.at > _MOST_PIECES * PIECE:
            raise _OddError
        data = self._file.read(max(PIECE, len(self.text) - self.at))
        self.ended = not data
        self.text = self.text[self.at :] + self._decoder.decode(data, final=self.ended)
        self.at = 0

    def next(self, *, peek: bool = False) -> str:
        """The next character that is not blank, or an empty string at the end; passed over unless ``peek``."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text) or self.ended:
                break
            self.more()
        found = self.text[self.at : self.at + 1]
        self.at += 0 if peek else len(found)
        return found

    def value(self) -> Any:
        """The next value, which is passed over."""
        self.next(peek=True)
        while True:
            try:
                found, end = self.json.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                self.more()
                continue
            if end < len(self.text) or self.ended:  # else a number may go on
                self.at = end
                return found
            self.more()


def _blocks(pieces: _Pieces, key: str) -> Iterator[Block]:
    """The list that comes next, in blocks; it is passed over."""
    pieces.next()
    quick: _Quick | None = None
    over, found = False, 0
    while not over:
        end = pieces.text.rfind("},", pieces.at) + 1
        part = f"[{pieces.text[pieces.at : end]}]"  # if this is a list, its last record ends there
        quick = quick or (_Quick(key, part) if end else None)
        block: Block | None = quick.read(part) if quick and end else None
        if block is None:
            block, over = _read_exactly(pieces, part)
        if not over and not block:  # the end of a record is not there yet
            pieces.more()
            continue
        if not over:
            pieces.at = end + 1
            if not pieces.ended:
                pieces.more()
        elif found and not block:
            raise _OddError  # a comma before the end of the list
        found += len(block)
        yield block


def _read_exactly(pieces: _Pieces, part: str) -> tuple[list[Any], bool]:
    """The records in a part of a list, none if it is not whole, and whether the list ends with them."""
    try:
        return json.loads(part, object_pairs_hook=used_keys), False
    except json.JSONDecodeError:
        pass
    try:
        found, end = pieces.json.raw_decode(f"[{pieces.text[pieces.at :]}")
    except json.JSONDecodeError:
        return [], False
    pieces.at += end - 1
    return found, True


class _Quick:
    """Parses parts of a list whose records have the keys of the first, each of the type that it should have.

    Args:
        key: of the list.
        part: a text that starts with its first record.
    """

    def __init__(self, key: str, part: str) -> None:
        try:
            first, _ = JSONDecoder().raw_decode(part, 1)
        except json.JSONDecodeError:
            first = None
        keys = list(first)[:_MOST_KEYS] if isinstance(first, dict) else []
        self.used = {k: kind for k, kind in _TYPES[key].items() if k in keys}
        self.unused = [k for k in keys if k not in self.used]
        self.colons = len(keys) + sum(k.count(":") for k in keys)
        self.annotations = key == "annotations"
        fields = [*self.used.items(), *((k, msgspec.Raw) for k in self.unused)]
        names = {f"f{i}": k for i, (k, _) in enumerate(fields)}
        record = msgspec.defstruct(
            "Record",
            [(name, kind) for name, (_, kind) in zip(names, fields, strict=True)],
            rename=names,
            forbid_unknown_fields=True,
            gc=False,
        )
        usable = list(self.used)[: _NEEDED[key]] == list(_TYPES[key])[: _NEEDED[key]]
        self._decoder = msgspec.json.Decoder(list[record]) if usable else None  # type: ignore[valid-type]

    def read(self, part: str) -> Block | None:
        """The records in a part of the list; None if one is not as it should be."""
        if self._decoder is None or "\\" in part:
            return None
        try:
            records = self._decoder.decode(part)
        except msgspec.MsgspecError:
            return None
        columns = list(zip(*map(msgspec.structs.astuple, records), strict=True))
        used = dict(zip(self.used, columns, strict=False))
        colons = len(records) * self.colons
        for raw in columns[len(used) :]:
            colons += b"".join(raw).count(b":")
            long = [bytes(value) for value in raw if len(value) > _LONG]
            if any(map(_is_odd, long)):
                return None
        if self.annotations:
            return _columns(used) if part.count(":") == colons else None
        colons += "".join(used["file_name"]).count(":")
        if part.count(":") != colons or max(map(abs, (*used["id"], *used["width"], *used["height"]))) >= _INT64:
            return None
        return [dict(zip(used, values, strict=True)) for values in zip(*used.values(), strict=True)]


def _is_odd(value: bytes) -> bool:
    """Whether a value is one that json may refuse."""
    return value.count(b"[") + value.count(b"{") > _MOST_LISTS or _LONG_INTEGER.search(value) is not None


def _columns(used: dict[str, tuple[Any, ...]]) -> Columns | None:
    """Annotations by the keys that are read; None if a value is not as it should be."""
    try:
        ids, images, categories = (np.array(used[k], dtype=np.int64) for k in ("id", "image_id", "category_id"))
    except OverflowError:
        return None
    areas = np.array(used["area"]) if "area" in used else None
    if areas is not None and not (areas > 0).all():  # none is infinite or NaN, which msgspec does not read
        return None
    ignore = np.zeros(len(ids), dtype=np.bool_)
    for flags in (used[key] for key in ("iscrowd", "difficult") if key in used):
        if not set(flags) <= {0, 1}:
            return None
        ignore |= np.array(flags, dtype=np.bool_)
    xywh = np.fromiter(chain.from_iterable(used["bbox"]), dtype=np.float64, count=4 * len(ids)).reshape(-1, 4)
    return Columns(ids, images, categories, xywh, areas, ignore)
