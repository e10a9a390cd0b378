"""Our names for the weights of other detectors: torchvision's, and those that wrappers and older versions made."""

import re
from collections.abc import Collection, Iterable

from drloss.errors import UserError

BODY = "backbone.body."
"""Beginning of the names of the backbone's weights."""
_TOWER = re.compile(r"^head\.(classification|regression)_head\.conv\.(\d+)\.(0\.)?")
_RENAMED = (
    (r"_orig_mod\.", ""),  # torch.compile
    (r"^((module|model)\.)+", ""),  # DistributedDataParallel, trainers
    (r"^(backbone\.)?(body\.)?(?=(conv1|bn1|layer[1-4]|fc)\.)", BODY),
    (r"^fpn\.", "backbone.fpn."),
    (r"^(backbone\.fpn\.(inner|layer)_blocks\.\d+\.)(?=weight|bias)", r"\g<1>0."),  # torchvision before 0.13
)
"""Other names of the same weights: a pattern, and our name in its place."""
_TOWERS = {"classification": "cls_head", "regression": "box_head"}


def our_names(names: Iterable[str], source: str, body: Collection[str] = ()) -> dict[str, str]:
    """For the weights of a file, a dict from our name to the name in the file. An unknown weight keeps its name.

    Args:
        names: names in the file.
        source: the file, for messages.
        body: names of the weights of a timm backbone, whose classifier the file may be of.
    Raises:
        UserError: if two weights of the file get the same name.
    """
    found: dict[str, str] = {}
    for name in names:
        ours = name
        for pattern, replacement in _RENAMED:
            ours = re.sub(pattern, replacement, ours)
        ours = _TOWER.sub(_in_tower, ours)
        ours = _in_body(ours, body)
        if ours in found:
            raise UserError(f"{source}: weights {found[ours]} and {name} have one place in the detector, {ours}")
        found[ours] = name
    return _from_p3(found)


def _in_body(name: str, body: Collection[str]) -> str:
    """Our name of a weight of timm's classifier: timm joins the names of modules that it takes out of a sequence."""
    known = (own for own in (name, name.replace(".", "_", 1)) if own in body)
    return next((f"{BODY}{own}" for own in known), name)


def _in_tower(match: re.Match[str]) -> str:
    """Number the layers as here: torchvision counts a convolution and its ReLU as one, before 0.13 as two."""
    number = int(match[2]) * (2 if match[3] else 1)
    return f"{_TOWERS[match[1]]}.tower.{number}."


def _from_p3(found: dict[str, str]) -> dict[str, str]:
    """Count the levels of the pyramid from P3 where the file counts them from P2."""
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
