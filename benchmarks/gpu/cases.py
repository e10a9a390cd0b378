"""Logits, labels and losses that the parts share."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from drloss import cross_entropy_loss, dr_loss, focal_loss
from drloss.losses.fused import cpu
from drloss.losses.inputs import maps_to_rows

PER_PLACE = 9
GRIDS = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
"""Levels of an image of 800 x 1344: 201,600 anchors with nine a place."""
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "dr": (dr_loss, {}),
    "dual": (dr_loss, {"weights_grad": "dual", "neg_lambda": 0.01, "pos_lambda": 0.02}),
    "mined": (dr_loss, {"neg_prior": 7, "pos_prior": 2}),
    "weights": (dr_loss, {"neg_prior": "weights", "pos_prior": "weights"}),
    "pooled": (dr_loss, {"scope": "pooled"}),
    "class": (dr_loss, {"scope": "per_class"}),
    "dense": (dr_loss, {}),
    "focal": (focal_loss, {}),
    "cross-entropy": (cross_entropy_loss, {}),
}
LAYOUTS = ("rows", "planes", "channels_last", "mixed", "sliced")


def backends(device: str) -> list[str]:
    """The fused backends that a device can try; on a CPU Triton's only with its interpreter."""
    if device == "cuda":
        return ["triton"]
    interpreted = find_spec("triton") is not None and "TRITON_INTERPRET" in os.environ
    return (["cpu"] if cpu.available() else ["chunked"]) + (["triton"] if interpreted else [])


def maps(
    n: int, classes: int, grids: list[tuple[int, int]], layout: str, dtype: torch.dtype, device: str, seed: int = 0
) -> list[Tensor]:
    """Logits of each level: maps (n, 9 K, H, W) in a layout, or with ``"rows"`` (n, 9 H W, K)."""
    generator = torch.Generator(device).manual_seed(seed)
    levels = []
    for number, (h, w) in enumerate(grids):
        x = torch.randn(n, PER_PLACE * classes, h, w, generator=generator, device=device).mul_(2).sub_(2).to(dtype)
        if layout == "rows":
            x = x.view(n, -1, classes)
        elif layout == "channels_last" or (layout == "mixed" and number % 2):
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "sliced":
            x = torch.cat([x, x], dim=3)[..., :w]
        levels.append(x)
    return levels


def rows(levels: list[Tensor], classes: int) -> Tensor:
    """The levels as one tensor (n, A, K)."""
    return torch.cat([x if x.ndim == 3 else maps_to_rows(x, classes) for x in levels], dim=1)


def labels(n: int, anchors: int, classes: int, device: str, seed: int = 0, share: float = 0.005) -> Tensor:
    """Labels (n, A), most of them background, some ignored."""
    generator = torch.Generator(device).manual_seed(seed)
    found = torch.randint(-1, classes + 1, (n, anchors), generator=generator, device=device)
    return found * (torch.rand(n, anchors, generator=generator, device=device) < share)


def step(
    loss: Callable[..., Tensor], levels: list[Tensor], given: Any, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """Losses of the images and gradients of the levels, whose incoming gradients differ."""
    leaves = [x.detach().requires_grad_() for x in levels]
    values = loss(leaves, given, reduction="none", **options)
    (values * torch.arange(1, len(values) + 1, device=values.device)).sum().backward()
    return values.detach(), [x.grad for x in leaves]  # type: ignore[misc]


def apart(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; NaN if anything found is not finite."""
    found, wanted = found.double(), wanted.double()
    if not bool(found.isfinite().all()):
        return float("nan")
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-300))
