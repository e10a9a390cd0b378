"""The exported detector: one ``.safetensors`` file with the weights and a description, written and read.

Nothing in a file is run, and its description is not trusted: see :mod:`drloss.io.untrusted`. The detector is built
only after the file proved to have all of its weights, so a description cannot ask for more memory than the file has.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from drloss.detector.config import DetectorConfig, check_detector
from drloss.detector.model import RetinaNet
from drloss.errors import UserError, first_line, shown
from drloss.io.atomic import write_atomic
from drloss.io.untrusted import read_metadata, read_safetensors

FORMAT = "drloss.detector/1"
_LONGEST_LOSS = 1000
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class DetectorFile:
    """Description of a detector, stored beside its weights.

    Attributes:
        detector: structure and test-time settings.
        class_names: names of the labels 1..K.
        category_ids: ids of the labels 1..K in the training data.
        loss: loss that the detector was trained with.
        threshold: score from which its detections are taken to be true, where an evaluation has chosen one.
        iteration: number of steps that it was trained for, if a run wrote it.
        ap: its AP in percent on the validation split of its run, if it was evaluated there.
    """

    detector: DetectorConfig
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    loss: str
    threshold: float | None = None
    iteration: int | None = None
    ap: float | None = None


def save_detector(path: Path, weights: dict[str, Tensor], description: DetectorFile) -> None:
    """Write weights and their description to one ``.safetensors`` file, atomically."""
    # One entry only: safetensors writes several in any order, but the same weights must give the same bytes.
    metadata = {"about": json.dumps({"format": FORMAT, **asdict(description)})}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}

    def write(beside: Path) -> None:
        try:
            save_file(tensors, beside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(first_line(error)) from None
        mask = os.umask(0)
        os.umask(mask)
        beside.chmod(0o666 & ~mask)  # safetensors makes it readable by its owner only

    write_atomic(path, write)


def load_detector(path: Path) -> tuple[RetinaNet, DetectorFile]:
    """Rebuild the detector that :func:`save_detector` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: if the file is missing, damaged or not an exported detector.
    """
    description = read_description(path)
    if description is None:
        raise UserError(
            f"{path}: not a detector exported by drloss (its safetensors metadata has no format {FORMAT})"
        )
    return build_detector(description, read_safetensors(path)[0], str(path)), description


def build_detector(description: DetectorFile, weights: dict[str, Tensor], source: str) -> RetinaNet:
    """The detector that ``description`` describes with these weights, in evaluation mode on the CPU.

    Raises:
        UserError: if the description is out of range or the weights do not belong to such a detector.
    """
    try:
        check_detector(description.detector)
        with torch.device("meta"):  # takes no memory: first check that the file has all weights
            wanted = RetinaNet(description.detector, len(description.class_names), prior_probability=0.5).state_dict()
    except (UserError, RuntimeError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: its description of the detector cannot be used: {first_line(error)}") from None
    _check_weights(wanted, weights, source)
    model = RetinaNet(description.detector, len(description.class_names), prior_probability=0.5)
    model.load_state_dict(weights)
    return model.eval()


def load_weights(model: RetinaNet, weights: dict[str, Tensor], source: str) -> None:
    """Load the weights of a detector; all must be there and fit.

    Raises:
        UserError: naming the first weight that is missing, unknown, of another shape or type, or not finite.
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
    """Raise UserError if a weight is not of the type of ``own``, or has values that are not finite."""
    if tensor.dtype != own.dtype and not (tensor.dtype in _FLOATS and own.is_floating_point()):
        raise UserError(f"{source}: weight {name} is of type {tensor.dtype}, wanted {own.dtype}")
    if not tensor.float().isfinite().all():
        raise UserError(f"{source}: weight {name} has values that are not finite")


def check_classes(plain: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Class names and category ids from a description in plain JSON types.

    Raises:
        ValueError: if they are not a list of texts and a list of as many integers.
    """
    names, ids = plain["class_names"], plain["category_ids"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of texts, got {names!r:.80}")
    if not isinstance(ids, list) or not all(type(i) is int and -(2**63) <= i < 2**63 for i in ids):
        raise ValueError(f"category_ids must be a list of integers of 64 bits, got {ids!r:.80}")
    if len(ids) != len(names):
        raise ValueError(f"category_ids must be as many as the {len(names)} class_names, got {len(ids)}")
    return tuple(names), tuple(ids)


def read_description(path: Path) -> DetectorFile | None:
    """Description in a ``.safetensors`` file; None if drloss did not export it.

    Raises:
        UserError: if the file or its description cannot be read.
    """
    about = about_in(read_metadata(path), path)
    return parse_description(about, path) if about.get("format") == FORMAT else None


def about_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The entry ``about`` of a file's metadata, which every file that drloss exports has; empty if there is none.

    Raises:
        UserError: if it is no JSON object.
    """
    try:
        about = json.loads(metadata.get("about", "{}"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(about, dict):
        raise _unreadable(path, TypeError("it is not a JSON object"))
    return about


def parse_description(plain: Mapping[str, Any], path: Path) -> DetectorFile:
    """The description in the metadata of an exported file; its settings may still be out of range.

    Raises:
        UserError: naming what cannot be read.
    """
    try:
        known = {f.name for f in fields(DetectorConfig)}
        settings: dict[str, Any] = {k: v for k, v in plain["detector"].items() if k in known}
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        loss = plain["loss"]
        if not isinstance(loss, str) or not loss.isprintable() or len(loss) > _LONGEST_LOSS:
            raise ValueError(f"loss must be a printable text of at most {_LONGEST_LOSS} characters, got {loss!r:.80}")
        threshold = plain.get("threshold")  # files of before have none
        if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold <= 1):
            raise ValueError(f"threshold must be null or a number in 0..1, got {threshold!r:.80}")
        return DetectorFile(DetectorConfig(**settings), *check_classes(plain), loss, threshold, *_trained(plain))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _trained(plain: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """How long a detector was trained, and the AP it had then; files of before say neither."""
    iteration, ap = plain.get("iteration"), plain.get("ap")
    if iteration is not None and not (type(iteration) is int and 0 <= iteration < 2**63):
        raise ValueError(f"iteration must be null or an integer from 0 on, got {shown(iteration)}")
    if ap is not None and not (type(ap) is float and isfinite(ap)):
        raise ValueError(f"ap must be null or a finite number, got {shown(ap)}")
    return iteration, ap


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: its description cannot be read: {first_line(error)}")
