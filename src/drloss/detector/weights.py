"""A detector's weights in files: exported as safetensors, and read from there and from what ``torch.save`` wrote.

Nothing in a file is run, and what a file says of itself is not believed: see :mod:`drloss.io.untrusted`. A detector
is built only where the file has its weights, so that a description cannot ask for more memory than the file's size.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from drloss.detector.config import DetectorConfig, check_detector
from drloss.detector.model import RetinaNet
from drloss.errors import UserError, first_line
from drloss.io.atomic import write_atomic
from drloss.io.untrusted import read_metadata, read_pt, read_safetensors, require_new_torch

FORMAT = "drloss.detector/1"
_WRAPPINGS = ("model", "state_dict", "model_state_dict")
"""Under what a ``.pt`` file may hold its weights, beside other things."""
_LONGEST_LOSS = 1000
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class DetectorFile:
    """What stands beside the weights of an exported detector.

    Attributes:
        detector: structure and test-time settings.
        class_names: K names, of the labels 1..K.
        category_ids: K ids that the training data gave the classes.
        loss: what it was trained with.
    """

    detector: DetectorConfig
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    loss: str


def save_detector(path: Path, weights: dict[str, Tensor], about: DetectorFile) -> None:
    """Write weights and their description to one ``.safetensors`` file, atomically."""
    # One entry: safetensors writes several in any order, and the same weights are to be the same bytes.
    metadata = {"about": json.dumps({"format": FORMAT, **asdict(about)})}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}

    def write(beside: Path) -> None:
        try:
            save_file(tensors, beside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(first_line(error)) from None
        mask = os.umask(0)
        os.umask(mask)
        beside.chmod(0o666 & ~mask)  # safetensors leaves it to its owner alone

    write_atomic(path, write)


def load_detector(path: Path) -> tuple[RetinaNet, DetectorFile]:
    """Rebuild the detector that :func:`save_detector` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: if the file is missing, damaged or not an exported detector.
    """
    about = _about(path)
    if about is None:
        raise UserError(
            f"{path}: not a detector exported by drloss (its safetensors metadata has no format {FORMAT})"
        )
    return build_detector(about, read_weights(path), str(path)), about


def build_detector(about: DetectorFile, weights: dict[str, Tensor], source: str) -> RetinaNet:
    """The detector that ``about`` describes with these weights, in evaluation mode on the CPU.

    Raises:
        UserError: if the description is out of range or the weights are not those of such a detector.
    """
    try:
        check_detector(about.detector)
        with torch.device("meta"):  # takes no memory: first see whether the file has the weights at all
            wanted = RetinaNet(about.detector, len(about.class_names), prior_probability=0.5).state_dict()
    except (UserError, RuntimeError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: its description of the detector cannot be used: {first_line(error)}") from None
    _check_weights(wanted, weights, source)
    model = RetinaNet(about.detector, len(about.class_names), prior_probability=0.5)
    model.load_state_dict(weights)
    return model.eval()


def load_weights(model: RetinaNet, weights: dict[str, Tensor], source: str) -> None:
    """Load all weights of a detector, which must fit exactly.

    Raises:
        UserError: naming the first weight that is missing, unknown, of another shape or kind, or not finite.
    """
    _check_weights(model.state_dict(), weights, source)
    model.load_state_dict(weights)


def _check_weights(own: dict[str, Tensor], weights: dict[str, Tensor], source: str) -> None:
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own or weights[name].shape != own[name].shape:
            found = tuple(weights[name].shape) if name in weights else "none"
            wanted = tuple(own[name].shape) if name in own else "none"
            raise UserError(f"{source}: weight {name} does not fit the detector: shape {found}, wanted {wanted}")
    for name, tensor in weights.items():
        check_values(name, tensor, own[name], source)


def check_values(name: str, tensor: Tensor, own: Tensor, source: str) -> None:
    """Raise UserError if a weight is of another kind than ``own``, or not finite."""
    if tensor.dtype != own.dtype and not (tensor.dtype in _FLOATS and own.is_floating_point()):
        raise UserError(f"{source}: weight {name} is of type {tensor.dtype}, wanted {own.dtype}")
    if not tensor.float().isfinite().all():
        raise UserError(f"{source}: weight {name} has values that are not finite")


@dataclass(frozen=True)
class WeightsFile:
    """Tensors by name of a file, and the names of the classes of the detector they are of, where the file says so."""

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a file; see :func:`open_weights`."""
    return open_weights(path).tensors


def open_weights(path: Path) -> WeightsFile:
    """The weights in a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Raises:
        UserError: if the file is missing, damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        about = _about(path)
        return WeightsFile(read_safetensors(path)[0], about.class_names if about else None)
    require_new_torch(path)
    content = whole = read_pt(path)
    while wrapped := [k for k in _WRAPPINGS if isinstance(content, dict) and isinstance(content.get(k), dict)]:
        content = content[wrapped[0]]
    if not isinstance(content, dict) or not content:
        raise UserError(f"weights {path}: must hold tensors by name (a state dict), got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"weights {path}: must hold tensors by name (a state dict), alone or under one of "
                f"{', '.join(_WRAPPINGS)}; {str(name)!r:.80} is a {type(value).__name__}"
            )
    names = whole.get("class_names")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return WeightsFile({str(k): v for k, v in content.items()}, tuple(names) if known else None)


def check_classes(plain: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """``class_names`` and ``category_ids`` of a description.

    Raises:
        ValueError: unless they are texts and as many integers.
    """
    names, ids = plain["class_names"], plain["category_ids"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of texts, got {names!r:.80}")
    if not isinstance(ids, list) or not all(type(i) is int and -(2**63) <= i < 2**63 for i in ids):
        raise ValueError(f"category_ids must be a list of integers of 64 bits, got {ids!r:.80}")
    if len(ids) != len(names):
        raise ValueError(f"category_ids must be as many as the {len(names)} class_names, got {len(ids)}")
    return tuple(names), tuple(ids)


def _about(path: Path) -> DetectorFile | None:
    metadata = read_metadata(path)
    try:
        plain: dict[str, Any] = json.loads(metadata.get("about", "{}"))
        if plain.get("format") != FORMAT:
            return None
        known = {f.name for f in fields(DetectorConfig)}
        settings: dict[str, Any] = {k: v for k, v in plain["detector"].items() if k in known}
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        loss = plain["loss"]
        if not isinstance(loss, str) or not loss.isprintable() or len(loss) > _LONGEST_LOSS:
            raise ValueError(f"loss must be a printable text of at most {_LONGEST_LOSS} characters, got {loss!r:.80}")
        return DetectorFile(DetectorConfig(**settings), *check_classes(plain), loss)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its description cannot be read: {first_line(error)}") from None
