"""COCO's JSON files, read with limits on their size and on what they hold.

A data set has a ``"file_name"`` in each image and a ``"bbox"`` in each annotation. A file with far more objects,
lists, values or bytes than these keys explain is no data set, and is refused before it is parsed.
"""

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drloss.data.files.reading import Limit, read_bytes
from drloss.errors import DataError, printable, shown

MAX_BYTES = 2 * 1024**3
LIMITS = {
    b"": Limit(32 * 1024**2, each=1024**2),
    b"{": Limit(500_000, each=4, total=5_000_000),
    b"[": Limit(1_000_000, each=20, total=20_000_000),
    b",": Limit(3_000_000, each=10_000),
    b":": Limit(1_000_000, each=200),
}
"""Largest number of bytes, objects, lists, values and keys in a file; the totals are five times the numbers in COCO's
largest file."""
RECORDS = (b'"bbox"', b'"file_name"')
TWICE = "\0key given twice"
"""Key that marks an object in which a key is given twice; its value is that key."""
SEGMENTED = "\0a segmentation"
"""Key that marks an object with a segmentation and no box."""
_UNUSED = ("segmentation", "keypoints", "caption")


def load_json(path: Path) -> dict[str, Any]:
    """The object in a COCO file. NaN and infinities stay numbers: the checks say where they are.

    Raises:
        DataError: with line and column, if known.
    """
    name = printable(str(path))
    content = read_json(path, MAX_BYTES, LIMITS, RECORDS, used_keys)
    if not isinstance(content, dict):
        raise DataError(f"{name}: top level, got {shown(content)}; allowed: an object with images and annotations")
    if TWICE in content:
        raise DataError(f"{name}: key given twice, got {shown(content[TWICE])}; allowed: each once")
    return content


def read_json(
    path: Path,
    max_bytes: int,
    limits: Mapping[bytes, Limit] | None = None,
    records: Sequence[bytes] = (),
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        max_bytes, limits, records: as for :func:`drloss.data.files.reading.read_bytes`.
        hook: makes an object of its pairs.

    Raises:
        DataError: with line and column, if known.
    """
    data = read_bytes(path, max_bytes, LIMITS if limits is None else limits, records or RECORDS)
    name = printable(str(path))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        raise DataError(f"{name}: encoding, got UTF-16 or UTF-32; allowed: UTF-8")
    try:
        text = data.decode("utf-8-sig")
        del data
        return json.loads(text, object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start:,} is not UTF-8; allowed: a file saved as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno:,}, column {error.colno:,}"
        raise DataError(f"{name}: {where}: not JSON ({error.msg}); is the file complete?") from None
    except RecursionError:
        raise DataError(f"{name}: nested too deeply to be an annotation file") from None
    except ValueError as error:
        raise DataError(f"{name}: not JSON ({error})") from None
    except MemoryError:
        raise DataError(f"{name}: does not fit into this machine's memory") from None


def used_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without the keys that are not used; see also :data:`TWICE` and :data:`SEGMENTED`."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        result[TWICE] = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
    if "segmentation" in result and "bbox" not in result:
        result[SEGMENTED] = True
    for key in _UNUSED:
        result.pop(key, None)
    return result
