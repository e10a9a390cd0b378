"""Checkpoints that survive: written beside and renamed, two kept, the older one used where the newer is damaged.

A checkpoint is one file: what ``torch.save`` writes, and after it 72 bytes with the SHA-256 of all that stands
before them. A zip archive's own checksums leave its headers and padding uncovered; a checksum in a second file could
be newer or older than the first. ``torch.load`` reads the file as it is, and ``head -c -72 FILE | sha256sum`` checks
it.
"""

import errno
import fcntl
import hashlib
import json
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from drloss.data.annotations import Annotations
from drloss.detector.exported import DetectorFile, build_detector, check_classes, load_detector
from drloss.detector.model import RetinaNet
from drloss.errors import UserError, first_line
from drloss.io.atomic import remove_unfinished, unwritable, write_atomic
from drloss.io.untrusted import read_pt, require_new_torch
from drloss.training.config import from_json

CHECKPOINTS = "checkpoints"
MODEL = "model.safetensors"
"""Names inside a run folder: the checkpoints, and the weights of a run that has ended."""
LOCK = ".lock"
KEPT = 2
_SEAL = 72
"""Bytes of ``sha256 <64 hexadecimal digits>`` and a new line."""
_NAME = re.compile(r"iteration_([0-9]{8}|[1-9][0-9]{8,})\.pt")
_FIELDS = {
    **dict.fromkeys(("model", "optimizer", "scaler", "random", "versions"), dict),
    **dict.fromkeys(("class_names", "category_ids"), list),
    **dict.fromkeys(("config", "data"), str),
    **{"iteration": int, "last_ap": float, "evaluated": bool},
}
"""What a run's state holds, and of which types."""


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Write ``state`` as the checkpoint of ``iteration`` and remove those before it but for the newest one.

    What was written is read back from the disk before it takes its name, and only then the older ones go. One that is
    damaged does not count, nor does one of a later iteration, which could not be read when the run went on before it.

    Args:
        folder: where checkpoints live.
        iteration: optimiser steps done.
        state: tensors and plain Python values: what :func:`drloss.io.untrusted.read_pt` takes back.
    Raises:
        UserError: if it cannot be written, with the older checkpoints as they were.
    """
    path = folder / f"iteration_{iteration:08d}.pt"
    remove_unfinished(folder)  # of a run that was killed while it wrote

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            sealed = _Hashed(file)
            try:
                torch.save(dict(state), sealed)  # type: ignore[arg-type]
            except RuntimeError:  # torch's word for a file that does not take what it is given
                raise sealed.failure or OSError("torch.save did not come to its end") from None
            file.write(sealed.seal())

    write_atomic(path, write, check=lambda beside: _read(beside, mmap=True))
    before = [old for old in newest_first(folder) if _iteration(old) < iteration]
    kept = next((old for old in before if _counts(old)), None)
    for old in before if kept else ():
        if old != kept:
            old.unlink()
    return path


class _Hashed:
    """A file that knows the SHA-256 of what was written to it, and what went wrong."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> bytes:
        return f"sha256 {self.digest.hexdigest()}\n".encode()


def _read(path: Path, *, mmap: bool = False) -> Any:
    if not _whole(path):
        raise UserError(f"{path}: cut off or altered: its checksum is not that of its content")
    return read_pt(path, mmap=mmap)


def _counts(path: Path) -> bool:
    with suppress(OSError):  # a bad sector
        return _whole(path)
    return False


def _whole(path: Path) -> bool:
    digest = hashlib.sha256()
    left = path.stat().st_size - _SEAL
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        seal = file.read()
    return seal == f"sha256 {digest.hexdigest()}\n".encode()


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The newest checkpoint that can be read, and a message for each newer one that cannot; None if there is none.

    Raises:
        UserError: if there are checkpoints and none can be read.
    """
    found = _load_newest(folder)
    return None if found is None else found[1:]


def _load_newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    damaged: list[str] = []
    for path in newest_first(folder):
        try:
            state = _read(path)
            if not isinstance(state, dict):
                raise UserError(f"{path}: holds no state of a run")
            return path, state, damaged
        except (UserError, OSError) as error:
            damaged.append(f"damaged checkpoint {first_line(error)}")
    if damaged:
        raise UserError(f"no readable checkpoint in {folder}: {'; '.join(damaged)}")
    return None


def load_state(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """As :func:`load_checkpoint`, the state being one that a run has written, with its ``config`` parsed.

    Raises:
        UserError: also if a field of it is missing or of another type.
    """
    found = _load_newest(folder)
    if found is None:
        return None
    path, state, damaged = found
    try:
        for name, kind in _FIELDS.items():
            if not isinstance(state[name], kind) or (kind is int and isinstance(state[name], bool)):
                raise TypeError(f"{name} must be of type {kind.__name__}, got {state[name]!r:.80}")
        for name, kind in (("model", Tensor), ("versions", str)):
            if not all(isinstance(k, str) and isinstance(v, kind) for k, v in state[name].items()):
                raise TypeError(f"{name} must hold {kind.__name__}s by name")
        check_classes(state)
        config = json.loads(state["config"])
        if not isinstance(config, dict) or not isinstance(config.get("detector"), dict):
            raise TypeError("config must be a run's settings as JSON")
        if not isinstance(config["max_iters"], int) or not 0 <= state["iteration"] <= config["max_iters"]:
            raise ValueError(f"iteration must lie in 0..max_iters, got {state['iteration']} of {config['max_iters']}")
    except KeyError as error:
        raise UserError(f"{path}: holds no state of a run: {first_line(error)} is missing") from None
    except RecursionError:
        raise UserError(f"{path}: holds no state of a run: config is too deep") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: holds no state of a run: {first_line(error)}") from None
    return {**state, "config": config}, damaged


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their iteration; copies under other names are none."""
    found = (path for path in folder.glob("iteration_*.pt") if _NAME.fullmatch(path.name) and path.is_file())
    return sorted(found, key=_iteration, reverse=True)


def _iteration(path: Path) -> int:
    return int(path.stem.removeprefix("iteration_"))


def require_space(folder: Path, size: int) -> None:
    """Raise UserError unless the disk of the run folder has room for three checkpoints of ``size`` bytes.

    Two are kept, and the next is written before the oldest goes. Those that are there already count as room.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    own = sum(path.stat().st_size for path in newest_first(folder / CHECKPOINTS))
    free = shutil.disk_usage(there).free
    if free + own < (KEPT + 1) * size:
        raise UserError(
            f"--out {folder}: no space: {free / 1e6:,.0f} MB are free on its disk, and the run needs "
            f"{((KEPT + 1) * size - own) / 1e6:,.0f} MB, for three checkpoints of {size / 1e6:,.0f} MB"
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the same run folder; where the disk knows no locks, nothing is kept.

    Raises:
        UserError: if another process does, or the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made a folder: {error.strerror}") from None
    try:
        lock = (folder / LOCK).open("a")  # which leaves a file of that name as it is
    except OSError as error:
        raise unwritable(folder / LOCK, error) from None
    with lock as file:
        try:
            # A record lock: it ends with this process, and none that is forked from it holds it on.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"--out {folder}: another process is training into it") from None
        yield


def random_state() -> dict[str, Any]:
    """States of the random number generators of torch (CPU), Python and NumPy, as tensors and plain values."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    numpy = {**numpy, "state": {**numpy["state"], "key": key}}
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers where :func:`random_state` was called.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: if ``state`` is nothing that it returned.
    """
    own = random_state()
    for name, tensor, like in (
        ("torch", state["torch"], own["torch"]),
        ("numpy.state.key", state["numpy"]["state"]["key"], own["numpy"]["state"]["key"]),
    ):
        if not isinstance(tensor, Tensor) or (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ValueError(f"random.{name} is no {like.dtype} tensor of {like.numel()} values")
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})


def fingerprint(annotations: Annotations) -> str:
    """Hash of all that training and evaluation take from a split's annotations, and of the sizes of its image files.

    The pixels are not read: that would take longer than many a run. An image that was replaced by another of the same
    name, width, height and number of bytes goes unnoticed.
    """
    digest = hashlib.sha256(repr((annotations.class_names, len(annotations))).encode())
    for array in (
        annotations.category_ids,
        annotations.image_ids,
        annotations.image_names,
        annotations.sizes,
        annotations.first_box,
        annotations.boxes,
        annotations.labels,
        annotations.ignore,
    ):
        digest.update(array.tobytes())
    if (annotations.areas != (annotations.boxes[:, 2:] - annotations.boxes[:, :2]).prod(axis=1)).any():
        digest.update(annotations.areas.tobytes())  # only COCO has areas that boxes do not say
    if annotations.draw is None and annotations.image_root is not None:
        files = (annotations.image_root / annotations.image_name(i) for i in range(len(annotations)))
        digest.update(repr([file.stat().st_size if file.is_file() else -1 for file in files]).encode())
    return digest.hexdigest()


def load_run(path: Path) -> tuple[RetinaNet, DetectorFile]:
    """The detector of a run folder or of an exported file, in evaluation mode on the CPU.

    A run that has not ended is taken at its newest checkpoint.

    Raises:
        UserError: if there is neither, or it is damaged.
    """
    if path.is_file():
        return load_detector(path)
    if (path / MODEL).is_file():
        return load_detector(path / MODEL)
    if (path / CHECKPOINTS).is_dir():
        require_new_torch(path / CHECKPOINTS)
    found = load_state(path / CHECKPOINTS) if (path / CHECKPOINTS).is_dir() else None
    if found is None:
        raise UserError(f"{path}: neither an exported .safetensors file nor a run folder with a checkpoint")
    state, damaged = found
    for message in damaged:
        warnings.warn(f"{message}; using the one before", stacklevel=2)
    source = str(path / CHECKPOINTS)
    config = from_json(state["config"], source)
    about = DetectorFile(config.detector, *check_classes(state), config.loss)
    return build_detector(about, dict(state["model"]), source), about
