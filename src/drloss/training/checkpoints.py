"""Checkpoints that survive: written beside and renamed, two kept, the older one used where the newer is damaged."""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drloss.data.annotations import Annotations
from drloss.detector.model import RetinaNet
from drloss.detector.weights import DetectorFile, load_detector, load_weights
from drloss.errors import UserError, first_line
from drloss.files import write_atomic
from drloss.training.config import from_json

CHECKPOINTS = "checkpoints"
MODEL = "model.safetensors"
"""Names inside a run folder: the checkpoints, and the weights of a run that has ended."""
KEPT = 2


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Write ``state`` as the checkpoint of ``iteration`` and remove all but the newest two.

    Args:
        folder: where checkpoints live.
        iteration: optimiser steps done.
        state: tensors and plain Python values: what ``torch.load(weights_only=True)`` takes back.
    """
    path = folder / f"iteration_{iteration:08d}.pt"
    for stale in folder.glob(".iteration_*.part"):  # of a run that was killed while it wrote
        stale.unlink(missing_ok=True)

    def write(beside: Path) -> None:
        try:
            torch.save(dict(state), beside)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(first_line(error)) from None
        torch.load(beside, map_location="cpu", weights_only=True, mmap=True)  # what cannot be read is not kept

    write_atomic(path, write)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The newest checkpoint that can be read, and a message for each newer one that cannot; None if there is none.

    Raises:
        UserError: if there are checkpoints and none can be read.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        try:
            with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
                if (part := archive.testzip()) is not None:
                    raise ValueError(f"checksum of {part}")
            return torch.load(path, map_location="cpu", weights_only=True), damaged
        except Exception as error:
            damaged.append(f"{path}: damaged ({first_line(error)[:80]})")
    if damaged:
        raise UserError(f"no readable checkpoint in {folder}: {'; '.join(damaged)}")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("iteration_*.pt"), reverse=True)


def fingerprint(annotations: Annotations) -> str:
    """Hash of everything that training takes from a split's annotations."""
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
    found = load_checkpoint(path / CHECKPOINTS) if (path / CHECKPOINTS).is_dir() else None
    if found is None:
        raise UserError(f"{path}: neither an exported .safetensors file nor a run folder with a checkpoint")
    state, damaged = found
    for message in damaged:
        warnings.warn(f"{message}; using the one before", stacklevel=2)
    config = from_json(json.loads(state["config"]), str(path))
    about = DetectorFile(config.detector, tuple(state["class_names"]), tuple(state["category_ids"]), config.loss)
    model = RetinaNet(config.detector, len(about.class_names), prior_probability=0.5)
    load_weights(model, state["model"], str(path))
    return model.eval(), about
