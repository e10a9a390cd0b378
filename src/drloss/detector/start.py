"""What a new detector starts from: nothing, ImageNet weights, a backbone's file, or another detector's.

Another detector may be one of ours or of torchvision, or of anybody who keeps torchvision's names for the backbone.
Its weights are taken part by part (:data:`PARTS`): a part whose weights are all there, and fit, is taken whole, any
other stays as it was initialised, and both are said. The backbone must fit; without it there is no start.

What is never taken: the last layer of a classifier unless the file says that it knows the same classes (it would not
start from the prior of the loss), and the last layers of torchvision's heads, whose boxes have other units and
anchors. A pyramid of P2-P5 is taken from P3 on. torchvision's RetinaNet makes P6 from P5 and not from C5: these two
levels fit nothing here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.hub import get_dir
from torchvision.models import get_model_weights

from drloss.detector.backbone import BACKBONES, NORMS, ResNetFPN
from drloss.detector.config import DetectorConfig
from drloss.detector.model import RetinaNet
from drloss.detector.weights import check_values, open_weights, read_weights
from drloss.errors import UserError, first_line

BODY = "backbone.body."
PARTS = {
    "the backbone": BODY,
    "the pyramid": r"backbone\.fpn\.(inner|layer)_blocks\.",
    "P6 and P7": r"backbone\.fpn\.extra_blocks\.",
    "the tower of the classifier": r"cls_head\.tower\.",
    "the last layer of the classifier": r"cls_head\.predict\.",
    "the tower of the box head": r"box_head\.tower\.",
    "the last layer of the box head": r"box_head\.predict\.",
}
"""Parts of a detector, and how the names of their weights begin."""
CLASSIFIER = "the last layer of the classifier"
_NOTHING = "no counterpart in the file"
_OTHER_CLASSES = "other classes, or not said which"
_DOWNLOAD = {"progress": True, "check_hash": True, "weights_only": True}
"""How torchvision is to fetch ImageNet weights, the one thing that drloss ever takes from the network."""
_COUNTER = "num_batches_tracked"
"""Of batch norm: steps of a training that is over, which says nothing about the weights."""
_SHOWN = 4
"""Names in a message."""

_TOWER = re.compile(r"^head\.(classification|regression)_head\.conv\.(\d+)\.(0\.)?")
_RENAMED = (
    (r"_orig_mod\.", ""),  # torch.compile
    (r"^((module|model)\.)+", ""),  # DistributedDataParallel, trainers
    (r"^(backbone\.)?(body\.)?(?=(conv1|bn1|layer[1-4]|fc)\.)", BODY),
    (r"^fpn\.", "backbone.fpn."),
    (r"^(backbone\.fpn\.(inner|layer)_blocks\.\d+\.)(?=weight|bias)", r"\g<1>0."),  # torchvision before 0.13
)
"""Other names of the same weights: pattern and ours."""
_TOWERS = {"classification": "cls_head", "regression": "box_head"}


@dataclass(frozen=True)
class Start:
    """What a detector starts from.

    Attributes:
        words: in a few words.
        details: a line each for what was taken, what stays as it was initialised, and what was not used.
    """

    words: str
    details: tuple[str, ...] = ()


def resolve_norm(config: DetectorConfig, weights: str) -> DetectorConfig:
    """Replace the norm ``"auto"``: frozen batch norm where ``weights`` bring its statistics, else group norm."""
    if config.norm != "auto":
        return config
    if weights in ("none", "imagenet"):
        return replace(config, norm="frozen" if weights == "imagenet" else "group")
    names = our_names(read_weights(Path(weights)), weights)
    frozen = any(name.startswith(BODY) and name.endswith("running_mean") for name in names)
    return replace(config, norm="frozen" if frozen else "group")


def initialise(model: RetinaNet, weights: str, class_names: tuple[str, ...]) -> Start:
    """Start a detector from ImageNet weights, a backbone file or another detector, and say what was done.

    Args:
        model: the new detector.
        weights: ``"none"``, ``"imagenet"`` or a file.
        class_names: K names of the new detector's classes.
    Raises:
        UserError: if there are no such weights, or their backbone is not the detector's.
    """
    if weights == "none":
        return Start("random weights")
    if weights == "imagenet":
        name = model.config.backbone
        if name == "resnet10":
            raise UserError("weights imagenet: there are none for resnet10; use --weights none or another backbone")
        source = f"ImageNet weights of {name} (torchvision, IMAGENET1K_V1)"
        return Start(source, _take(model, _imagenet(name), source, ()).details)
    file = open_weights(Path(weights))
    skip = () if file.class_names == class_names else (CLASSIFIER,)
    return _take(model, file.tensors, weights, skip)


def _imagenet(name: str) -> dict[str, Tensor]:
    found = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(found.get_state_dict(**_DOWNLOAD))
    except Exception as error:  # of urllib, of the disk, of torch: whatever it is, the file could not be had
        file = found.url.rpartition("/")[2]
        raise UserError(
            f"weights imagenet: {file} could not be fetched or read: {first_line(error)}\n"
            f"put that file into {Path(get_dir()) / 'checkpoints'} (TORCH_HOME names another place than "
            f"{get_dir()}), or say --weights FILE or --weights none"
        ) from None


def our_names(names: Iterable[str], source: str) -> dict[str, str]:
    """Our name of each weight of a file, to the file's own; what has no name here keeps the file's.

    Raises:
        UserError: if two weights of the file have one name here.
    """
    found: dict[str, str] = {}
    for name in names:
        ours = name
        for pattern, replacement in _RENAMED:
            ours = re.sub(pattern, replacement, ours)
        ours = _TOWER.sub(_in_tower, ours)
        if ours in found:
            raise UserError(f"{source}: weights {found[ours]} and {name} have one place in the detector, {ours}")
        found[ours] = name
    return _from_p3(found)


def _in_tower(match: re.Match[str]) -> str:
    """torchvision has a convolution and its ReLU in one module; before 0.13 they were two, as they are here."""
    number = int(match[2]) * (2 if match[3] else 1)
    return f"{_TOWERS[match[1]]}.tower.{number}."


def _from_p3(found: dict[str, str]) -> dict[str, str]:
    """The names with the levels of the pyramid counted from P3, where the file has P2, too."""
    level = re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.)(\d+)(\..*)")
    levels = {int(m[2]) for m in map(level.fullmatch, found) if m}
    if max(levels, default=0) < 3:
        return found
    first = max(levels) - 2
    renamed = {}
    for ours, name in found.items():
        match = level.fullmatch(ours)
        if match and int(match[2]) >= first:
            renamed[f"{match[1]}{int(match[2]) - first}{match[3]}"] = name
        else:
            renamed[f"below P3: {name}" if match else ours] = name
    return renamed


def _take(model: RetinaNet, found: Mapping[str, Tensor], source: str, skip: tuple[str, ...]) -> Start:
    """Load the parts that fit."""
    names = our_names(found, source)
    there = {ours: found[name] for ours, name in names.items() if not name.endswith(_COUNTER)}
    own = model.state_dict()
    if not any(re.match(BODY, ours) for ours in there if not ours.startswith(f"{BODY}fc.")):
        raise UserError(
            f"{source}: no weight fits: it has {len(found):,}, {_listed(found)}; wanted are those of a "
            f"{model.config.backbone} by torchvision's names ({BODY}conv1.weight, or conv1.weight alone)"
        )
    loaded: dict[str, Tensor] = {}
    taken, left = [], []
    for part, pattern in PARTS.items():
        wanted = {n: t for n, t in own.items() if re.match(pattern, n)}
        given = {n: t for n, t in there.items() if re.match(pattern, n) and not n.startswith(f"{BODY}fc.")}
        if not wanted:
            continue
        problem = (
            "no counterpart in the file" if not given else _OTHER_CLASSES if part in skip else _misfit(wanted, given)
        )
        if problem and pattern == BODY:
            raise UserError(_other_backbone(model.config, wanted, given, source))
        if problem:
            left.append(f"{part} ({problem})")
            continue
        for name, tensor in given.items():
            check_values(names[name], tensor, own[name], source)
        loaded |= given
        taken.append(f"{part} ({len(given)})")
    model.load_state_dict(loaded, strict=False)
    unused = [name for ours, name in names.items() if ours not in loaded]
    details = [f"weights taken of {source}: {', '.join(taken)}"]
    details += [f"as initialised: {', '.join(left)}"] if left else []
    if unused:
        unused.sort(key=lambda name: name.endswith(_COUNTER))  # last
        details.append(f"not used of the file: {len(unused):,} weights, {_listed(unused)}")
    if len(taken) == 1:
        return Start(f"backbone weights of {source}", tuple(details))
    but = ", ".join(part.partition(" (")[0] for part in left)
    return Start(f"detector weights of {source}" + (f", but for {but}" if but else ""), tuple(details))


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """The first weight of a part that is missing, unknown or of another shape; empty if there is none."""
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
    for backbone in BACKBONES:
        for norm in NORMS:
            with torch.device("meta"):
                body = ResNetFPN(replace(config, backbone=backbone, norm=norm)).body.state_dict()
            if shapes == {BODY + name: tensor.shape for name, tensor in body.items()}:
                return f"{message}; it fits --backbone {backbone} --norm {norm}"
    return message


def _listed(names: Iterable[str]) -> str:
    """The first names, of a file that may be a stranger's."""
    every = [f"{name if name.isprintable() else ascii(name):.80}" for name in names]
    return ", ".join(every[:_SHOWN]) + (", ..." if len(every) > _SHOWN else "")
