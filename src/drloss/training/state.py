"""The state of a run: what a checkpoint holds, how it is captured, checked and restored.

The learning rate and the place in the data follow from the iteration, and the augmentation of an image from the seed,
the epoch and the image's index: none of them is saved. No step draws from the random generators today; their state is
saved for a step that might.
"""

import json
import random
from collections.abc import Mapping
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import drloss
from drloss.detector.exported import check_classes, load_weights
from drloss.detector.model import RetinaNet
from drloss.errors import UserError, first_line
from drloss.training.best import Best
from drloss.training.checkpoints import load_checkpoint, newest_first, save_checkpoint
from drloss.training.config import to_json
from drloss.training.run_folder import CHECKPOINTS
from drloss.training.schedule import load_optimizer
from drloss.training.trainer import Trainer

_FIELDS = {
    **dict.fromkeys(("model", "optimizer", "scaler", "random", "versions", "best", "average"), dict),
    **dict.fromkeys(("class_names", "category_ids"), list),
    **dict.fromkeys(("config", "data"), str),
    **{"iteration": int, "last_ap": float, "evaluated": bool},
}
"""Fields of the state, and their types."""
_LATER: dict[str, Any] = {"best": vars(Best()), "average": {}}
"""Fields that the first checkpoints of version 0.2 and those of 0.1 lack, and what they stand for."""


def save(trainer: Trainer) -> None:
    """Have rank 0 write a checkpoint, and wait for it."""
    if trainer.ranks.first:
        trainer.ranks.at("saving", slow=True)
        save_checkpoint(trainer.out / CHECKPOINTS, trainer.iteration, capture(trainer))
    trainer.ranks.wait()


def capture(trainer: Trainer) -> dict[str, Any]:
    """Everything that the next step depends on, and a description of the run."""
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "random": random_state(),
        "iteration": trainer.iteration,
        "last_ap": trainer.last_ap,
        "evaluated": trainer.evaluated,
        "best": dict(vars(trainer.best)),
        "average": trainer.average.state() if trainer.average is not None else {},
        "versions": versions(),
        "config": json.dumps(to_json(trainer.config)),
        "class_names": list(trainer.train.class_names),
        "category_ids": [int(i) for i in trainer.train.category_ids],
        "data": trainer.fingerprint,
    }


def restore(
    state: dict[str, Any],
    model: RetinaNet,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    source: str,
) -> None:
    """Load a captured state into the model, the optimiser, the scaler and the random generators.

    Raises:
        UserError: naming ``source``, if the state does not fit them.
    """
    try:
        load_weights(model, dict(state["model"]), source)
        load_optimizer(optimizer, state["optimizer"])
        if state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(f"{source} does not fit this run: {first_line(error)}") from None


def load_state(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """As :func:`drloss.training.checkpoints.load_checkpoint`, with the fields checked and ``config`` parsed.

    Raises:
        UserError: also if a field of the state is missing or of another type.
    """
    found = load_checkpoint(folder)
    if found is None:
        return None
    state, damaged = {**_LATER, **found[0]}, found[1]
    path = newest_first(folder)[len(damaged)]
    try:
        return {**state, "config": _checked_config(state)}, damaged
    except KeyError as error:
        raise UserError(f"{path}: holds no state of a run: {first_line(error)} is missing") from None
    except RecursionError:
        raise UserError(f"{path}: holds no state of a run: config is too deep") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: holds no state of a run: {first_line(error)}") from None


def _checked_config(state: dict[str, Any]) -> dict[str, Any]:
    """Check the types of all fields, and return the settings in JSON types."""
    for name, kind in _FIELDS.items():
        if not isinstance(state[name], kind) or (kind is int and isinstance(state[name], bool)):
            raise TypeError(f"{name} must be of type {kind.__name__}, got {state[name]!r:.80}")
    for name, kind in (("model", Tensor), ("versions", str)):
        if not all(isinstance(k, str) and isinstance(v, kind) for k, v in state[name].items()):
            raise TypeError(f"{name} must hold {kind.__name__}s by name")
    check_classes(state)
    _check_later(state)
    config = json.loads(state["config"])
    if not isinstance(config, dict) or not isinstance(config.get("detector"), dict):
        raise TypeError("config must be a run's settings as JSON")
    if not isinstance(config["max_iters"], int) or not 0 <= state["iteration"] <= config["max_iters"]:
        raise ValueError(f"iteration must lie in 0..max_iters, got {state['iteration']} of {config['max_iters']}")
    return config


def _check_later(state: dict[str, Any]) -> None:
    """Check the content of the fields of :data:`_LATER`; raises TypeError or ValueError, which names the field."""
    best, average = state["best"], state["average"]
    kinds = {"ap": float, "iteration": int, "waited": int}
    if best.keys() != kinds.keys() or any(type(best[name]) is not kind for name, kind in kinds.items()):
        raise TypeError(f"best must hold {', '.join(kinds)}, got {best!r:.80}")
    if isinf(best["ap"]) or min(best["iteration"], best["waited"]) < 0:
        raise ValueError(f"best must hold a finite AP and numbers from 0 on, got {best!r:.80}")
    weights = average.get("model", {})
    if average and not (type(average.get("updates")) is int and average["updates"] >= 0 and weights):
        raise TypeError("average must hold updates, a number from 0 on, and model")
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise TypeError("average.model must hold tensors by name")


def versions() -> dict[str, str]:
    """Versions of the packages that write a checkpoint."""
    return {"drloss": drloss.__version__, "torch": str(torch.__version__)}


def random_state() -> dict[str, Any]:
    """States of the random generators of torch (CPU), Python and NumPy, as tensors and plain values."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    numpy = {**numpy, "state": {**numpy["state"], "key": key}}
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the random generators to what :func:`random_state` returned.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: if ``state`` is not of that form.
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
