"""A detector's weights in files: exported as safetensors, and taken from other detectors or ImageNet classifiers.

Nothing in a file is run, and what a file says of itself is not believed: see :mod:`drloss.io.untrusted`. A detector is
built only where the file has its weights, so that a description cannot ask for more memory than the file's size.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import get_model_weights

from drloss.detector.config import DetectorConfig, check_detector
from drloss.detector.model import RetinaNet
from drloss.errors import UserError, first_line
from drloss.io.atomic import write_atomic
from drloss.io.untrusted import read_metadata, read_pt, read_safetensors, require_new_torch

FORMAT = "drloss.detector/1"
_BODY = "backbone.body."
_LONGEST_LOSS = 1000
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DOWNLOAD = {"progress": True, "check_hash": True, "weights_only": True}
"""How torchvision is to fetch ImageNet weights, the one thing that drloss ever takes from the network."""


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
        _check_values(name, tensor, own[name], source)


def _check_values(name: str, tensor: Tensor, own: Tensor, source: str) -> None:
    if tensor.dtype != own.dtype and not (tensor.dtype in _FLOATS and own.is_floating_point()):
        raise UserError(f"{source}: weight {name} is of type {tensor.dtype}, wanted {own.dtype}")
    if not tensor.float().isfinite().all():
        raise UserError(f"{source}: weight {name} has values that are not finite")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Raises:
        UserError: if the file is missing, damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    require_new_torch(path)
    content = read_pt(path)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"weights {path}: must hold tensors by name (a state dict)")
    return {str(k): v for k, v in content.items()}


def resolve_norm(config: DetectorConfig, weights: str) -> DetectorConfig:
    """Replace the norm ``"auto"``: frozen batch norm where ``weights`` bring its statistics, else group norm."""
    if config.norm != "auto":
        return config
    if weights in ("none", "imagenet"):
        return replace(config, norm="frozen" if weights == "imagenet" else "group")
    frozen = any(name.endswith("running_mean") for name in read_weights(Path(weights)))
    return replace(config, norm="frozen" if frozen else "group")


def initialise(model: RetinaNet, weights: str, class_names: tuple[str, ...]) -> str:
    """Start a detector from ImageNet weights, a backbone file or another detector, and say what was done.

    A detector's file may know other classes: then the last layer of the classification head stays as it was
    initialised, at the prior of the loss.

    Args:
        model: the new detector.
        weights: ``"none"``, ``"imagenet"`` or a file.
        class_names: K names of the new detector's classes.
    Raises:
        UserError: if there are no such weights or they do not fit.
    """
    if weights == "none":
        return "random weights"
    if weights == "imagenet":
        name = model.config.backbone
        if name == "resnet10":
            raise UserError("weights imagenet: there are none for resnet10; use --weights none or another backbone")
        found = dict(get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(**_DOWNLOAD))
        _load_backbone(model, found, f"ImageNet weights of {name}")
        return f"ImageNet weights of {name} (torchvision, IMAGENET1K_V1)"
    found = read_weights(Path(weights))
    if not any(name.startswith(_BODY) for name in found):
        _load_backbone(model, found, weights)
        return f"backbone weights of {weights}"
    own = model.state_dict()
    about = _about(Path(weights)) if weights.endswith(".safetensors") else None
    others = about is not None and about.class_names != class_names
    last = [n for n in own if n.startswith("cls_head.predict.") and n in found]
    renewed = [n for n in last if others or found[n].shape != own[n].shape]
    load_weights(model, {**found, **{n: own[n] for n in renewed}}, weights)
    return f"detector weights of {weights}" + (", but for the last layer of the classifier" if renewed else "")


def _load_backbone(model: RetinaNet, found: dict[str, Tensor], source: str) -> None:
    body = model.backbone.body
    own = body.state_dict()
    found = {n: t for n, t in found.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    for name in own.keys() | found.keys():
        if name not in found or name not in own or found[name].shape != own[name].shape:
            kind = "is missing" if name not in found else "is unknown or of another shape"
            raise UserError(
                f"{source}: backbone weight {name} {kind} for {model.config.backbone}, norm {model.config.norm}"
            )
        _check_values(name, found[name], own[name], source)
    body.load_state_dict(found)


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
