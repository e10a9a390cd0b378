"""Checkpoints that survive: written beside and renamed, two kept, the older one used where the newer is damaged."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drloss.data.annotations import Annotations
from drloss.errors import UserError
from drloss.files import write_atomic

KEPT = 2


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Write ``state`` as the checkpoint of ``iteration`` and remove all but the newest two.

    Args:
        folder: where checkpoints live.
        iteration: optimiser steps done.
        state: tensors and plain Python values: what ``torch.load(weights_only=True)`` takes back.
    """
    path = folder / f"iteration_{iteration:08d}.pt"

    def write(beside: Path) -> None:
        torch.save(dict(state), beside)
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
            return torch.load(path, map_location="cpu", weights_only=True), damaged
        except Exception as error:
            damaged.append(f"{path}: damaged ({str(error).splitlines()[0][:80]})")
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
