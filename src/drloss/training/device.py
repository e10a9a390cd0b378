"""What the settings ``auto`` mean on a device."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from drloss.detector.precision import Precision
from drloss.training.config import Config, is_pooled, override

MOST_IMAGES, MOST_WORKERS = 16, 12
GIGABYTES = {"fp32": 8, "bf16": 4, "fp16": 4}
"""Memory of a GPU for each image that it takes at a time. An estimate for 800 x 1333 pixels; ResNet-50 takes less."""
FEW = 2
"""Images and data-loading processes of other devices, and images of losses that are pooled over them."""

_KEPT = ("precision", "micro_batch", "channels_last")


@dataclass(frozen=True)
class DeviceConfig(Config):
    """A configuration without ``auto``: the settings of one run on one kind of device."""

    precision: Precision = "fp32"
    micro_batch: int = FEW
    channels_last: bool = False
    workers: int = FEW


def for_device(
    config: Config, device: torch.device, share: int | None = None, so_far: Mapping[str, Any] | None = None
) -> DeviceConfig:
    """The configuration on a device; settings that are not ``auto`` stay as they are.

    Args:
        config: settings.
        device: where the run computes.
        share: images of a step on each device; by default the whole batch.
        so_far: settings of the run that is resumed, in JSON types, which ``auto`` keeps.
    Raises:
        UserError: if ``so_far`` has values that are no settings.
    """
    share = config.batch_size if share is None else share
    gpu, found = device.type == "cuda", dict(vars(config))
    kept = {name: so_far[name] for name in _KEPT if found[name] == "auto" and name in so_far} if so_far else {}
    found |= {name: getattr(override(config, kept), name) for name in kept}
    if found["micro_batch"] != "auto" and "micro_batch" in kept and share % min(found["micro_batch"], share):
        found["micro_batch"] = "auto"  # there are other processes than before
    if found["precision"] == "auto":
        found["precision"] = "bf16" if gpu and torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if found["channels_last"] == "auto":
        found["channels_last"] = gpu
    if found["workers"] == "auto":
        found["workers"] = _workers() if gpu else FEW
    if found["micro_batch"] == "auto":
        most = FEW if not gpu or is_pooled(config.loss) else _images(device, found["precision"])
        found["micro_batch"] = max(n for n in range(1, most + 1) if share % n == 0)
    return DeviceConfig(**found)


def _images(device: torch.device, precision: str) -> int:
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(FEW, min(MOST_IMAGES, int(memory / 1e9 / GIGABYTES[precision])))


def _workers() -> int:
    """The share of a process in the cores of this machine, up to :data:`MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(FEW, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
