"""The trained detector of a run folder or of an exported file."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import get_args

from drloss.detector.exported import DetectorFile, build_detector, check_classes, load_detector
from drloss.detector.model import RetinaNet
from drloss.detector.precision import Precision
from drloss.errors import UserError
from drloss.io.untrusted import require_new_torch
from drloss.training.best import Best, has_ended
from drloss.training.config import from_json
from drloss.training.run_folder import CHECKPOINTS, MODEL, run_of, settings_of
from drloss.training.state import load_state


def precision_of(path: Path) -> Precision:
    """Numbers that a run computed with, from its folder; fp32 for an exported file elsewhere."""
    folder = run_of(path)
    settings = settings_of(folder) if folder is not None else None
    precision: Precision = settings.get("precision", "fp32") if settings else "fp32"
    return precision if precision in get_args(Precision) else "fp32"


def load_run(path: Path) -> tuple[RetinaNet, DetectorFile]:
    """The detector of a run folder or of an exported file, in evaluation mode on the CPU.

    If the run has not ended, its newest checkpoint is loaded.

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
        missing = "" if path.exists() else "no such file or folder: "
        raise UserError(f"{path}: {missing}neither an exported .safetensors file nor a run folder with a checkpoint")
    state, damaged = found
    for message in damaged:
        warnings.warn(f"{message}; using the one before", stacklevel=2)
    source = str(path / CHECKPOINTS)
    config = from_json(state["config"], source)
    if not has_ended(state["iteration"], Best(**state["best"]), config):
        done = f"{state['iteration']:,} of {config.max_iters:,} iterations"
        warnings.warn(f"{path}: the run has not ended; this is its detector after {done}", stacklevel=2)
    about = *check_classes(state), config.loss
    description = DetectorFile(config.detector, *about, iteration=state["iteration"])
    weights = (state["average"] or state)["model"]
    model = build_detector(description, dict(weights), source)
    return model, replace(description, detector=model.config)
