"""Starting weights of a new detector: random, ImageNet's, or from the file of a backbone or of another detector.

The other detector may come from drloss, from torchvision, or from anyone who uses torchvision's names for the
backbone. Its weights are loaded part by part (:data:`PARTS`). A part is loaded if the file has all of its weights and
all fit; otherwise it keeps its initial values. The run prints both. The backbone must fit.

Two parts are never loaded: the last layer of a classifier trained for other classes, because the new one must start
at the loss's prior; and the last layers of torchvision's heads, whose boxes have other units and anchors.
Of a pyramid P2-P5 the levels from P3 on are loaded. torchvision's RetinaNet makes P6 from P5, here P6 comes from C5:
its P6 and P7 do not fit.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.hub import get_dir
from torchvision.models import get_model_weights

from drloss.detector import timm_backbones
from drloss.detector.backbone import BACKBONES, BackboneFPN, with_image_statistics
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import check_values, read_description
from drloss.detector.model import RetinaNet
from drloss.detector.weight_names import BODY, our_names
from drloss.errors import UserError, first_line
from drloss.io.untrusted import read_pt, read_safetensors, require_new_torch

PARTS = {
    "the backbone": BODY,
    "the pyramid": r"backbone\.fpn\.(inner|layer)_blocks\.",
    "P6 and P7": r"backbone\.fpn\.extra_blocks\.",
    "the tower of the classifier": r"cls_head\.tower\.",
    "the last layer of the classifier": r"cls_head\.predict\.",
    "the tower of the box head": r"box_head\.tower\.",
    "the last layer of the box head": r"box_head\.predict\.",
}
"""Parts of a detector, each with the beginning of the names of its weights."""
CLASSIFIER = "the last layer of the classifier"
_DOWNLOAD = {"progress": True, "check_hash": True, "weights_only": True}
"""Options of torchvision's download of ImageNet weights. Nothing but these or timm's is fetched from the network."""
_COUNTER = "num_batches_tracked"
"""End of the name of batch norm's step counter, which is not a weight."""
_SHOWN = 4
"""Number of names that a message lists."""
_WRAPPINGS = ("model", "state_dict", "model_state_dict")
"""Keys under which a ``.pt`` file may hold its weights beside other things."""


@dataclass(frozen=True)
class Start:
    """Description of a detector's starting weights, for the log.

    Attributes:
        words: the source in a few words.
        details: one line each: parts that were loaded, parts that keep their initial values, weights not used.
    """

    words: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightsFile:
    """Content of a file of weights.

    Attributes:
        tensors: weights by name.
        class_names: names of the detector's classes, if the file has them.
    """

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights by name from a ``.safetensors``, ``.pt`` or ``.pth`` file; see :func:`open_weights`."""
    return open_weights(path).tensors


def open_weights(path: Path) -> WeightsFile:
    """Read the weights, and class names if there are any, from a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Raises:
        UserError: if the file is missing, damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        description = read_description(path)
        return WeightsFile(read_safetensors(path)[0], description.class_names if description else None)
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


def resolve_detector(config: DetectorConfig, weights: str) -> DetectorConfig:
    """The settings of a new detector with its norm chosen and, for a timm backbone, its image's mean and deviation.

    The norm ``"auto"`` becomes frozen batch norm if ``weights`` have its statistics, otherwise group norm. The mean
    and the deviation are kept with the run because another version of timm may give the backbone other weights.
    """
    if config.norm == "auto":
        config = replace(config, norm="frozen" if _has_statistics(config.backbone, weights) else "group")
    return config if config.backbone in BACKBONES else with_image_statistics(config)


def _has_statistics(backbone: str, weights: str) -> bool:
    """Whether weights have the statistics of batch norms, or of a backbone that needs none."""
    if weights in ("none", "imagenet"):
        return weights == "imagenet"
    names = our_names(read_weights(Path(weights)), weights)
    if backbone not in BACKBONES and not any(name.startswith("cls_head.") for name in names):
        return True  # a classifier of timm, perhaps without batch norms
    return any(name.startswith(BODY) and name.endswith("running_mean") for name in names)


def initialise(model: RetinaNet, weights: str, class_names: tuple[str, ...]) -> Start:
    """Load the starting weights of a new detector, and describe what was loaded.

    Args:
        model: the new detector.
        weights: ``"none"``, ``"imagenet"`` or a file.
        class_names: K names of the new detector's classes.
    Raises:
        UserError: if there are no such weights, or their backbone does not fit the detector.
    """
    if weights == "none":
        return Start("random weights")
    if weights == "imagenet":
        found, source = _imagenet(model.config.backbone)
        return Start(source, _load_parts(model, found, source, ()).details)
    file = open_weights(Path(weights))
    skip = () if file.class_names == class_names else (CLASSIFIER,)
    return _load_parts(model, file.tensors, weights, skip)


def _imagenet(name: str) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights of a backbone, and where they are from: an installed package, or else the network."""
    if name == "resnet10":
        raise UserError("weights imagenet: there are none for resnet10; use --weights none or another backbone")
    if name in BACKBONES:
        return _of_torchvision(name), f"ImageNet weights of {name} (torchvision, IMAGENET1K_V1)"
    if file := timm_backbones.packaged_weights(name):
        tensors = timm_backbones.classifier_names(read_weights(file), name, str(file))
        return tensors, f"ImageNet weights of {name} (package {file.parent.parent.name}, {file.name})"
    return timm_backbones.download(name), f"ImageNet weights of {name} (timm)"


def _of_torchvision(name: str) -> dict[str, Tensor]:
    found = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(found.get_state_dict(**_DOWNLOAD))
    except Exception as error:  # of urllib, the disk or torch: in any case there is no file
        file = found.url.rpartition("/")[2]
        raise UserError(
            f"weights imagenet: {file} could not be fetched or read: {first_line(error)}\n"
            f"put that file into {Path(get_dir()) / 'checkpoints'} (TORCH_HOME names another place than "
            f"{get_dir()}), or say --weights FILE or --weights none"
        ) from None


def _load_parts(model: RetinaNet, found: Mapping[str, Tensor], source: str, skip: tuple[str, ...]) -> Start:
    """Load the parts that fit into the detector, without those in ``skip``, and describe what was done."""
    own = model.state_dict()
    body = [] if model.config.backbone in BACKBONES else [n.removeprefix(BODY) for n in own if n.startswith(BODY)]
    if body and timm_backbones.is_packaged(found):
        found = timm_backbones.classifier_names(found, model.config.backbone, source)
    names = our_names(found, source, body)
    there = {ours: found[name] for ours, name in names.items() if not name.endswith(_COUNTER)}
    if not any(re.match(BODY, ours) for ours in there if not ours.startswith(f"{BODY}fc.")):
        raise UserError(
            f"{source}: no weight fits: it has {len(found):,}, {_listed(found)}; wanted are those of a "
            f"{model.config.backbone} by {'timm' if body else 'torchvision'}'s names, such as {_first_of_body(own)}"
        )
    loaded: dict[str, Tensor] = {}
    taken: list[str] = []
    left: dict[str, list[str]] = {}  # what was in the way, and of which parts
    for part, pattern in PARTS.items():
        wanted = {n: t for n, t in own.items() if re.match(pattern, n)}
        given = {n: t for n, t in there.items() if re.match(pattern, n) and not n.startswith(f"{BODY}fc.")}
        if not wanted:
            continue
        problem = "not in the file"
        if given:
            problem = "other classes, or not said which" if part in skip else _misfit(wanted, given)
        if problem and pattern == BODY:
            raise UserError(_other_backbone(model.config, wanted, given, source))
        if problem:
            left.setdefault(problem, []).append(part)
            continue
        for name, tensor in given.items():
            check_values(names[name], tensor, own[name], source)
        loaded |= given
        taken.append(f"{part} ({len(given)})")
    model.load_state_dict(loaded, strict=False)
    unused = [name for ours, name in names.items() if ours not in loaded]
    details = [f"weights taken of {source}: {', '.join(taken)}"]
    words = "; ".join(f"{', '.join(parts)} ({problem})" for problem, parts in left.items())
    details += [f"as initialised: {words}"] if left else []
    if unused:
        unused.sort(key=lambda name: name.endswith(_COUNTER))  # last
        details.append(f"not used of the file: {len(unused):,} weights, {_listed(unused)}")
    if len(taken) == 1:
        return Start(f"backbone weights of {source}", tuple(details))
    but = ", ".join(part for parts in left.values() for part in parts)
    return Start(f"detector weights of {source}" + (f", but for {but}" if but else ""), tuple(details))


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """The first weight of a part that is missing, unknown or of another shape, in words; empty if all fit."""
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            return f"no {name}"
        if name not in wanted:
            return f"unknown {name}"
        if given[name].shape != wanted[name].shape:
            return f"{name}: shape {tuple(given[name].shape)}, wanted {tuple(wanted[name].shape)}"
    return ""


def _other_backbone(
    config: DetectorConfig, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str
) -> str:
    shapes = {name: tensor.shape for name, tensor in given.items()}
    problem = _misfit(wanted, given)
    message = f"{source}: its backbone is no {config.backbone} with norm {config.norm}: {problem}"
    norms: tuple[Literal["frozen", "group"], ...] = ("frozen", "group")
    for backbone in dict.fromkeys((config.backbone, *BACKBONES)):
        for norm in norms:
            if shapes == _body_shapes(backbone, norm):
                return f"{message}; it fits --backbone {backbone} --norm {norm}"
    return message


@cache
def _body_shapes(backbone: str, norm: Literal["frozen", "group"]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        body = BackboneFPN(DetectorConfig(backbone=backbone, norm=norm)).body.state_dict()
    return {BODY + name: tensor.shape for name, tensor in body.items()}


def _first_of_body(own: Iterable[str]) -> str:
    """The first weight of the detector's backbone, alone."""
    return next(name for name in own if name.startswith(BODY)).removeprefix(BODY)


def _listed(names: Iterable[str]) -> str:
    """The first few names with commas, made printable."""
    every = [f"{name if name.isprintable() else ascii(name):.80}" for name in names]
    return ", ".join(every[:_SHOWN]) + (", ..." if len(every) > _SHOWN else "")
