"""Reading untrusted files of tensors: no code in them is run, and they need no more memory than their size.

``.safetensors`` files contain only numbers. A ``.pt`` file is a zip archive with a pickle in it, or, from torch
before 1.6, a few pickles and the tensors behind them. It is read by ``torch.load(weights_only=True)``, without any
fallback, and only after a check of the archive's directory and of every instruction of the pickles: with
``weights_only`` alone, a pickle of one megabyte could request any amount of memory by copying a value a million
times.
"""

import io
import json
import os
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from drloss.errors import UserError, first_line

MOST_HEADER = 4 * 1024**2
"""Largest header of a ``.safetensors`` file in bytes; a ResNeXt-101 detector has 0.1 MB."""
MOST_PICKLE = 1024**2
"""Largest pickle in a ``.pt`` file in bytes; a ResNeXt-101 detector with its optimiser has 0.2 MB."""
LEAST_TORCH = (2, 10)
"""Oldest safe release: with older ones a hostile ``.pt`` does harm in spite of ``weights_only`` (CVE-2025-32434,
CVE-2026-24747)."""

_OPCODES = re.compile(
    "PROTO|STOP|MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|BINUNICODE|(EMPTY_)?TUPLE|TUPLE[123]|EMPTY_LIST"
    "|APPENDS?|EMPTY_DICT|SETITEMS?|(LONG_)?BINPUT|(LONG_)?BINGET|GLOBAL|REDUCE|BINPERSID|BUILD"
)
"""Instructions that ``torch.save`` writes for tensors, numbers, texts, and tuples, lists and dicts of them."""
_ORDERED_DICT = "collections OrderedDict"
_GLOBALS = re.compile(
    rf"{_ORDERED_DICT}|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
_MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
"""Beginning of a file that torch wrote before version 1.6: a pickled number."""
_ZIP = b"PK\x03\x04"
_SIZES = {
    "Bool": 1,
    "Byte": 1,
    "Char": 1,
    "Short": 2,
    "Half": 2,
    "BFloat16": 2,
    "Int": 4,
    "Float": 4,
    "Long": 8,
    "Double": 8,
}
"""Bytes of an element of each type of storage."""
_MOST_BUILDS = 16
_DEEPEST = 32
"""Deepest nesting of lists, tuples and dicts in a ``.pt`` file; a checkpoint of drloss has 5 levels."""
_MOST_END = 1 << 17
"""Bytes at the end of an archive in which its end record must lie; its comment has at most 65,535 bytes."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and metadata of a ``.safetensors`` file.

    Raises:
        UserError: if the file is damaged or inconsistent.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        return dict(load_file(path)), metadata
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError, AttributeError, MemoryError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {first_line(error)}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a ``.safetensors`` file, without its tensors.

    Raises:
        UserError: if there is no such file or its header cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = _header(file, path.stat().st_size)
        metadata = header.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata are not texts by name")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {first_line(error)}") from None
    return metadata


def _header(file: BinaryIO, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"its header is said to have {length} bytes, and the file has {size}")
    if length > MOST_HEADER:
        raise ValueError(f"its header has {length} bytes, allowed are {MOST_HEADER}")
    header = json.loads(file.read(length), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} stands twice in its header")
    return found


def read_pt(path: Path, *, mmap: bool = False) -> Any:
    """Read what ``torch.save`` wrote, to the CPU: tensors, numbers, texts, and tuples, lists and dicts of them.

    Args:
        path: file; there may be other bytes after the end of the archive.
        mmap: map the tensors from the file instead of reading them.
    Raises:
        UserError: if the file cannot be read, contains anything else, or claims more content than it has bytes.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
        # By the first bytes, as torch decides: a file may be a zip archive from its end and a pickle from its start.
        if start.startswith(_MAGIC):
            content = _read_before_zip(path)
        elif start.startswith(_ZIP):
            with zipfile.ZipFile(path) as archive:
                _check_place(path, archive)
                pickled = _check_directory(archive, path.stat().st_size)
            _check_pickle(pickled)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        else:
            raise ValueError("it is not whole, or not written by torch.save")
        _measure(content, 0, {})
        return content
    except Exception as error:  # from torch, its unpickler or zipfile: in any case the file is at fault
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


def _read_before_zip(path: Path) -> Any:
    """What ``torch.save`` of torch before 1.6 wrote: five pickles, then the bytes of the tensors.

    The fourth pickle is the content and names its storages, the fifth lists the storages whose bytes follow.
    """
    with path.open("rb") as file:
        pickles = io.BytesIO(file.read(MOST_PICKLE))
    parts = []
    for _ in range(5):
        start = pickles.tell()
        _check_pickle(pickles)
        parts.append(pickles.getvalue()[start : pickles.tell()])
    named = _storages(parts[3])
    listed = {argument for opcode, argument, _ in pickletools.genops(parts[4]) if opcode.name == "BINUNICODE"}
    if listed != named.keys():
        raise ValueError("the storages that its tensors name are not those whose bytes it has")
    if sum(named.values()) > path.stat().st_size:
        raise ValueError(f"its tensors are said to have more bytes than the file's {path.stat().st_size}")
    # From a file of its own, torch would first try to read a tar archive, without such a check.
    return torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)


def _storages(pickled: bytes) -> dict[str, int]:
    """The storages that a pickle of torch before 1.6 names, with their sizes in bytes.

    Each is named by a tuple: "storage", the type, the key, the device, the number of elements, and None.
    """
    found: dict[str, int] = {}
    values: list[Any] = []  # since the last mark
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name == "MARK":
            values = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = values[-1] if values else None
        elif name in ("BINGET", "LONG_BINGET"):
            values.append(memo.get(argument))
        elif name == "TUPLE":
            values = [tuple(values)]
        elif name == "BINPERSID":
            (_, kind, key, _, elements, view) = values[-1]
            size = _SIZES.get(str(kind).removeprefix("torch ").removesuffix("Storage"))
            if size is None or not isinstance(key, str) or not isinstance(elements, int) or view is not None:
                raise ValueError("one of its storages is not named as torch names them")
            found[key] = max(found.get(key, 0), elements * size)
        else:
            values.append(argument)
    return found


def _check_place(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive in which Python and torch would find different directories.

    Python reads the directory just before the end record, torch the one at the offset in that record. A hostile file
    could have a harmless one for the check and another one for torch.
    """
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _MOST_END)
        file.seek(start)
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    (place,) = struct.unpack_from("<L", tail, end + 16)
    locator, record = end - 20, end - 20 - 56
    if record >= 0 and tail[locator:].startswith(b"PK\x06\x07"):  # 64-bit archive
        (named,) = struct.unpack_from("<Q", tail, locator + 8)
        if named != start + record or not tail[record:].startswith(b"PK\x06\x06"):
            raise ValueError("its directory stands elsewhere than it says")
        (place,) = struct.unpack_from("<Q", tail, record + 48)
    elif place == 0xFFFFFFFF:
        raise ValueError("its directory has no place")
    if place != archive.start_dir:
        raise ValueError("its directory stands elsewhere than it says")


def _check_directory(archive: zipfile.ZipFile, size: int) -> bytes:
    """Refuse an archive whose content is larger than the file; returns its pickle."""
    entries = archive.infolist()
    if len({e.filename for e in entries}) != len(entries):
        raise ValueError("two of its records have one name")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise ValueError(f"record {entry.filename} is compressed or encrypted, which torch.save never does")
    if sum(e.file_size for e in entries) > size:
        raise ValueError(f"its records are said to have more bytes than the file's {size}")
    pickles = [e for e in entries if e.filename.endswith("/data.pkl") and e.filename.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} records data.pkl and must have one")
    if pickles[0].file_size > MOST_PICKLE:
        raise ValueError(f"its record data.pkl has {pickles[0].file_size} bytes, allowed are {MOST_PICKLE}")
    return archive.read(pickles[0])


def _check_pickle(pickled: bytes | io.BytesIO) -> None:
    """Refuse a pickle with anything but tensors and plain values, or with copies of a value; it is not run."""
    builds = 0
    memo: set[Any] = set()  # numbers under which the pickle stores OrderedDict
    named = False  # whether the instruction before named OrderedDict
    for opcode, argument, _ in pickletools.genops(pickled):
        if not _OPCODES.fullmatch(opcode.name):
            raise ValueError(f"its pickle has {opcode.name}: it holds more than tensors and is refused")
        if opcode.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
            raise ValueError(f"it holds {str(argument).replace(' ', '.')}, more than tensors, and is refused")
        if named and opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo.add(argument)
            continue
        if named and opcode.name != "EMPTY_TUPLE":
            raise ValueError("its pickle copies values: it holds more than tensors and is refused")
        builds += opcode.name == "BUILD"
        if builds > _MOST_BUILDS:
            raise ValueError(f"its pickle has more than {_MOST_BUILDS} objects with state and is refused")
        fetched = opcode.name in ("BINGET", "LONG_BINGET") and argument in memo
        named = fetched or (opcode.name == "GLOBAL" and argument == _ORDERED_DICT)


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Size and depth of plain values if they were printed; refuses what is too large or too deep.

    A value may be nested repeatedly: a list holds another list ten times, which holds a third list ten times, and so
    on. It is small in the file and in memory, but huge when it is printed.
    """
    if not isinstance(value, (list, tuple, dict)):
        return (1 + len(value) if isinstance(value, str) else 1), 0
    if id(value) not in known:
        if depth == _DEEPEST:
            raise ValueError(f"its values stand more than {_DEEPEST} deep in each other")
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        measured = [_measure(part, depth + 1, known) for part in parts]
        size, height = 1 + sum(s for s, _ in measured), 1 + max((h for _, h in measured), default=0)
        if size > MOST_PICKLE:
            raise ValueError(f"its values, written out, are more than {MOST_PICKLE:,} long")
        known[id(value)] = size, height
    size, height = known[id(value)]
    if depth + height > _DEEPEST:
        raise ValueError(f"its values stand more than {_DEEPEST} deep in each other")
    return size, height


def require_new_torch(path: Path) -> None:
    """Raise UserError if this version of torch is too old to read an untrusted ``.pt`` file safely."""
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < LEAST_TORCH:
        wanted = ".".join(map(str, LEAST_TORCH))
        raise UserError(
            f"{path}: a .pt file needs torch {wanted} or later, this is {torch.__version__}, in which it could do "
            "harm; convert it to .safetensors where you trust it"
        )
