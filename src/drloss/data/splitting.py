"""A validation split for a data set that has none: made from the images' content, and the same every time.

Images that show the same thing stay together, or the validation would test on training images:

- Files with the same bytes.
- Augmented copies of one source, by Roboflow's names: ``cat_jpg.rf.0a1b.jpg`` and ``cat_jpg.rf.2c3d.jpg``.
- Pictures that look alike: shrunk to 8 x 9 grey cells, they agree in nearly all signs of the differences between
  neighbouring cells (a difference hash), and their cells are correlated. Of a plain picture these signs are noise, so
  that it is like no other by this rule.
- Neighbours in a numbered sequence (``a_0010.jpg``, ``a_0020.jpg``), as frames of a video are, that look roughly
  alike. This rule takes plain pictures too.

The groups are put into an order by a hash of the seed and their content, and go to validation in this order.
"""

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from drloss.data.annotations import Annotations
from drloss.data.files.reading import Limit, read_text
from drloss.data.images.decoding import decode_quieted, pillow_quieted
from drloss.errors import DataError, UserError, printable, shown

VAL_FRACTION = 0.2
SPLIT_SEED = 0

MAX_BYTES = 256 * 1024**2
LIMITS = {b"[": Limit(5_000_000), b"{": Limit(5_000_000), b",": Limit(20_000_000)}
"""Largest size of a ``splits.json``, and largest numbers of its marks."""

_THREADS = 8
_ROWS, _COLUMNS = 8, 9
_MOST_BITS = 6
"""Largest number of the 64 signs in which pictures that look alike differ."""
_LEAST_CORRELATION = 0.95
_PLAIN = 3.0
"""Grey levels; a picture whose cells have a smaller standard deviation is plain."""
_MOST_COMPARED = 256
"""With how many pictures of a similar hash a picture is compared: millions of plain walls must not take all day."""
_FRAMES_APART = 8.0
"""Grey levels; largest mean difference of the cells of neighbouring frames that are plain."""
_FRAMES_CORRELATION = 0.85
"""Least correlation of neighbouring frames that are not plain."""

_Pixels = npt.NDArray[np.float32]
_Index = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Splits:
    """Which images are for training and which for validation.

    Attributes:
        train, val: names of the images, as :meth:`Annotations.image_name`; sorted, none in both, neither empty.
        fraction: share of the images that validation was to have.
        seed: seed of the order.
        groups: number of groups of two or more images that were kept together.
        rule: one sentence that says how the splits were made.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    fraction: float
    seed: int
    groups: int
    rule: str

    def to_json(self) -> dict[str, Any]:
        """All attributes, as plain values."""
        return vars(self) | {"train": list(self.train), "val": list(self.val)}

    @classmethod
    def from_json(cls, path: Path) -> "Splits":
        """Read a ``splits.json``, the file with :meth:`to_json`.

        Raises:
            DataError: if the file cannot be read or holds something else.
        """
        text = read_text(path, MAX_BYTES, LIMITS)
        file = printable(str(path))
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: not JSON ({error})") from None
        if not isinstance(value, dict) or set(value) != set(_ALLOWED):
            found = sorted(value) if isinstance(value, dict) else value
            raise DataError(f"{file}: keys, got {shown(found)}; allowed: an object with {', '.join(_ALLOWED)}")
        for key, (good, allowed) in _ALLOWED.items():
            if not good(value[key]):
                raise DataError(f"{file}: {key}, got {shown(value[key])}; allowed: {allowed}")
        train, val = value.pop("train"), value.pop("val")
        if both := set(train) & set(val):
            raise DataError(f"{file}: val, got {shown(min(both))}, which is in train; allowed: names in one of them")
        return cls(train=tuple(train), val=tuple(val), **value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    if not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        return False
    return len(set(value)) == len(value)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


_NAMES = (_are_names, "a list of one or more image names, each once")
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "train": _NAMES,
    "val": _NAMES,
    "fraction": (_is_fraction, "a number above 0 and below 1"),
    "seed": (_is_integer, "an integer"),
    "groups": (lambda value: _is_integer(value) and value >= 0, "an integer of at least 0"),
    "rule": (lambda value: isinstance(value, str), "a sentence"),
}


def make_splits(
    annotations: Annotations,
    fraction: float = VAL_FRACTION,
    seed: int = SPLIT_SEED,
    progress: Callable[[int, int], object] | None = None,
) -> Splits:
    """Divide images into training and validation; see the module's rules.

    The result depends on the images, their boxes and the names of the files, not on their order or the names of their
    folders. Every class that has boxes keeps some in training. An image that cannot be decoded is compared by its
    bytes alone.

    Args:
        annotations: N images.
        fraction: share of the images for validation.
        seed: another seed makes other splits.
        progress: called with the number of images read so far, and N.

    Raises:
        UserError: if the fraction is not above 0 and below 1.
        DataError: if the images cannot be divided: one image, all of them copies, or no class could spare any.
    """
    if not _is_fraction(fraction):
        raise UserError(f"--val-fraction: got {shown(fraction)}; allowed: a number above 0 and below 1")
    name = printable(annotations.name)
    if len(annotations) < 2:
        raise DataError(f"{name}: number of images, got {len(annotations)}; allowed: at least 2, or --val-split none")
    names = [annotations.image_name(i) for i in range(len(annotations))]
    digests, cells = _read_all(annotations, progress)
    order = np.array(sorted(range(len(names)), key=lambda i: (digests[i], names[i])))
    ordered = annotations.select(order)
    names, digests, cells = [names[i] for i in order], [digests[i] for i in order], cells[order]

    copies = _copies(names, digests)
    similar = _join_similar(copies, cells)
    if annotations.draw is None:
        similar = _join_frames(similar, names, cells)
    wanted = min(max(1, int(fraction * len(names) + 0.5)), len(names) - 1)
    groups, by_looks = similar, True
    val = _choose(ordered, groups, digests, wanted, seed)
    if 2 * val.sum() < wanted:  # the groups are too large
        other = _choose(ordered, copies, digests, wanted, seed)
        if other.sum() > val.sum():
            val, groups, by_looks = other, copies, False
    if not val.any():
        if not copies.any():
            raise DataError(
                f"{name}: all {len(names):,} images are copies or come from one source; "
                "allowed: at least two different ones, or --val-split none"
            )
        raise DataError(
            f"{name}: no image can go to validation, because a class would have no boxes left for training; "
            "allowed: more images of each class, or --val-split none"
        )
    rule = f"{100 * fraction:g} % of the images are for validation, chosen by their content and the seed {seed}; "
    if by_looks:
        rule += "copies, augmentations of one source and pictures that look alike are kept together."
    else:
        rule += "copies and augmentations of one source are kept together; too many pictures look alike to be."
    return Splits(
        train=tuple(sorted({names[i] for i in np.flatnonzero(~val)})),
        val=tuple(sorted({names[i] for i in np.flatnonzero(val)})),
        fraction=float(fraction),
        seed=seed,
        groups=int((np.bincount(groups) > 1).sum()),
        rule=rule,
    )


def select_splits(annotations: Annotations, splits: Splits) -> tuple[Annotations, Annotations, Annotations]:
    """The annotations for training, those for validation, and those of images that are in neither.

    Raises:
        DataError: if an image of the splits is not there.
    """
    names = [annotations.image_name(i) for i in range(len(annotations))]
    train, val = set(splits.train), set(splits.val)
    gone = sorted((train | val) - set(names))
    if gone:
        moved = {PurePath(name).name for name in gone} <= {PurePath(name).name for name in names}
        why = ", although files of these names are in other folders, as in a converted copy" if moved else ""
        raise DataError(
            f"{printable(annotations.name)}: {len(gone):,} of the {len(train | val):,} images of the train and val "
            f"splits are not there, the first is {shown(gone[0])}{why}; allowed: the data set that the splits are of"
        )
    first, second = (np.array([name in part for name in names], np.bool_) for part in (train, val))
    return annotations.select(first), annotations.select(second), annotations.select(~(first | second))


# ---------------------------------------------------------------------- reading


def _read_all(annotations: Annotations, progress: Callable[[int, int], object] | None) -> tuple[list[bytes], _Pixels]:
    """SHA-256 of the content of each image, and its cells: (N, 72), NaN if it cannot be decoded."""
    digests: list[bytes] = []
    cells = np.full((len(annotations), _ROWS * _COLUMNS), np.nan, np.float32)
    with pillow_quieted(), ThreadPoolExecutor(_THREADS) as pool:
        for i, (digest, own) in enumerate(pool.map(partial(_read, annotations), range(len(annotations)))):
            digests.append(digest)
            if own is not None:
                cells[i] = own
            if progress is not None:
                progress(i + 1, len(annotations))
    return digests, cells


def _read(annotations: Annotations, index: int) -> tuple[bytes, _Pixels | None]:
    if annotations.draw is not None or annotations.image_root is None:
        pixels = annotations.load_image(index).permute(1, 2, 0).numpy()
        return hashlib.sha256(pixels.tobytes()).digest(), _cells(pixels)
    name = annotations.image_name(index)
    path = annotations.image_root / name
    try:
        if not path.is_file():
            raise FileNotFoundError(name)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError):  # checks elsewhere report it
        return hashlib.sha256(name.encode()).digest(), None
    try:
        return digest, _cells(decode_quieted(path, None, None, (_ROWS, _COLUMNS)).permute(1, 2, 0).numpy())
    except DataError:
        return digest, None


def _cells(pixels: npt.NDArray[np.uint8]) -> _Pixels:
    """Mean grey levels of the 8 x 9 cells of an image (H, W, 3), row by row: (72,)."""
    grey = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    grey = grey.reduce(max(1, min(grey.width // (4 * _COLUMNS), grey.height // (4 * _ROWS))))
    return np.asarray(grey.convert("F").resize((_COLUMNS, _ROWS), Image.Resampling.BOX), np.float32).ravel()


# ---------------------------------------------------------------------- grouping


def _copies(names: list[str], digests: list[bytes]) -> _Index:
    """The group of each image when those with the same bytes or from the same source stay together: (N,), from 0."""
    same_bytes = np.unique(np.array([d.hex() for d in digests]), return_inverse=True)[1].reshape(-1)
    first: dict[str, int] = {}
    sources = [first.setdefault(_source(name), i) for i, name in enumerate(names)]
    firsts = np.unique(same_bytes, return_index=True)[1]
    groups = np.arange(len(names))
    groups = _joined(groups, np.arange(len(names)), firsts[same_bytes])
    return _joined(groups, np.arange(len(names)), np.array(sources))


def _source(name: str) -> str:
    """The file that Roboflow made an image from; of other images, the name with its folder."""
    source = re.fullmatch(r"(.+)\.rf\.[0-9A-Za-z_-]+\.\w+", name.rpartition("/")[2])
    return f"{source[1]}.rf" if source else name


def _joined(groups: _Index, a: _Index, b: _Index) -> _Index:
    """The groups when each image ``a[k]`` is in one group with ``b[k]``; a group's number is its first image's."""
    while (groups[a] != groups[b]).any():
        low, high = np.minimum(groups[a], groups[b]), np.maximum(groups[a], groups[b])
        parent = np.arange(len(groups))
        np.minimum.at(parent, high, low)
        while (parent != parent[parent]).any():
            parent = parent[parent]
        groups = parent[groups]
    return groups


def _join_similar(groups: _Index, cells: _Pixels) -> _Index:
    """Join the groups of pictures that look alike.

    Hashes that differ in at most 6 bits agree in one of 7 parts of the hash, so that only such are compared.
    """
    sharp = np.flatnonzero(_contrast(cells) >= _PLAIN)  # not NaN either
    table = cells.reshape(-1, _ROWS, _COLUMNS)[sharp]
    signs = (table[:, :, 1:] > table[:, :, :-1]).reshape(len(sharp), 64)
    hashes = np.packbits(signs, axis=1).view(">u8").reshape(-1).astype(np.uint64)
    for part in np.array_split(np.arange(64), _MOST_BITS + 1):
        key = signs[:, part] @ (1 << np.arange(len(part)))
        order = np.lexsort((hashes, key))
        for step in range(1, min(_MOST_COMPARED, len(sharp) - 1) + 1):
            a, b = order[:-step], order[step:]
            near = key[a] == key[b]
            if not near.any():
                break
            near &= groups[sharp[a]] != groups[sharp[b]]
            a, b = a[near], b[near]
            near = _bits(hashes[a] ^ hashes[b]) <= _MOST_BITS
            a, b = sharp[a[near]], sharp[b[near]]
            near = _correlation(cells[a], cells[b]) >= _LEAST_CORRELATION
            groups = _joined(groups, a[near], b[near])
    return groups


def _join_frames(groups: _Index, names: list[str], cells: _Pixels) -> _Index:
    """Join the groups of neighbours in a numbered sequence that look roughly alike."""
    sequences: dict[tuple[str, str], dict[tuple[int, str], int]] = {}
    for i, name in enumerate(names):
        numbered = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", _source(name), re.DOTALL)
        if numbered:
            number = numbered[2].lstrip("0")
            sequences.setdefault((numbered[1], numbered[3]), {})[len(number), number] = i
    pairs = [pair for frames in sequences.values() for pair in pairwise(frames[k] for k in sorted(frames))]
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    alike = np.maximum(_contrast(cells[a]), _contrast(cells[b])) < _PLAIN
    alike &= np.abs(cells[a] - cells[b]).mean(1) <= _FRAMES_APART
    alike |= _correlation(cells[a], cells[b]) >= _FRAMES_CORRELATION
    return _joined(groups, a[alike], b[alike])


def _contrast(cells: _Pixels) -> _Pixels:
    """Standard deviation of the cells (N, 72) of each picture: (N,)."""
    contrast: _Pixels = cells.std(1)
    return contrast


def _correlation(a: _Pixels, b: _Pixels) -> _Pixels:
    """Correlation of the cells (N, 72) of pairs of pictures: (N,); 0 if one of them has no contrast at all."""
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    correlation: _Pixels = ((a * b).sum(1) / np.maximum(size, np.float32(1e-6))).astype(np.float32, copy=False)
    return correlation


_ONES = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


def _bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Number of ones of each value."""
    ones: npt.NDArray[np.uint8] = _ONES[values.view(np.uint16).reshape(-1, 4)].sum(1, dtype=np.uint8)
    return ones


# ---------------------------------------------------------------------- choosing


def _choose(annotations: Annotations, groups: _Index, digests: list[bytes], wanted: int, seed: int) -> _Mask:
    """Which images are for validation.

    Args:
        annotations: N images, in the order of their digests.
        groups: (N,) the number of each image's group.
        digests: SHA-256 of the content of each image.
        wanted: number of images for validation.
        seed: seed of the order of the groups.

    Returns:
        (N,) bool, never all true. None is true if no group can go without emptying training, or one of its classes.
    """
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    members = [group for group in members if len(group)]
    members.sort(key=lambda group: hashlib.sha256(f"{seed}:{digests[group[0]].hex()}".encode()).digest())
    targets = np.where(annotations.ignore, 0, annotations.labels)
    size = len(annotations.class_names) + 1
    left = np.bincount(targets, minlength=size)
    val = np.zeros(len(groups), np.bool_)
    count = 0
    for may_exceed in (False, True):
        for group in members:
            after = count + len(group)
            far = after - wanted > (wanted - count if may_exceed else 0)
            if count >= wanted or far or after == len(groups) or val[group[0]]:
                continue
            own = np.bincount(np.concatenate([targets[annotations.boxes_of(i)] for i in group]), minlength=size)
            if ((own > 0) & (own == left))[1:].any():
                continue
            val[group] = True
            left -= own
            count = after
    return val
