"""Time and memory of a loss, and the machine they were measured on."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages of the memory profiler


def synchronize(x: Tensor) -> None:
    """Wait for the device that holds x."""
    if x.is_cuda:
        torch.cuda.synchronize()


def step(loss: Callable[[], Tensor], logits: Tensor) -> tuple[float, float]:
    """Seconds of a forward and of a backward."""
    logits.grad = None
    synchronize(logits)
    began = time.perf_counter()
    value = loss()
    synchronize(logits)
    between = time.perf_counter()
    value.backward()
    synchronize(logits)
    return between - began, time.perf_counter() - between


def peak_memory(loss: Callable[[], Tensor], logits: Tensor) -> float:
    """Peak extra memory of a forward and backward, including the gradient, over the memory of the logits."""
    size = logits.numel() * logits.element_size()
    logits.grad = None
    if logits.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, logits)
        return (torch.cuda.max_memory_allocated() - before) / size
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(loss, logits)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / size


def example(n: int, anchors: int, classes: int, kind: str) -> tuple[Tensor, Tensor]:
    """Logits (N, A, K) float32 and labels (N, A) of images with 100 positive anchors each.

    ``kind`` is ``"start"``, scores about 0.5, or ``"trained"``, negatives about -5 and positives about 1.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, anchors, classes, generator=generator)
    logits = logits.mul_(0.1) if kind == "start" else logits.mul_(1.5).sub_(5)
    labels = torch.zeros(n, anchors, dtype=torch.int64)
    labels[:, :100] = torch.randint(1, classes + 1, (n, min(100, anchors)), generator=generator)
    if kind == "trained":
        logits[:, :100] += 6
    return logits, labels


def surroundings(device: str) -> dict[str, str | int]:
    """Device, versions and commit, for a record; outside a checkout, ``DRLOSS_COMMIT`` names the commit."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    found: dict[str, str | int] = {"device": name, "threads": torch.get_num_threads(), "system": platform.system()}
    found["python"] = platform.python_version()
    for package in ("torch", "torchvision", "triton", "drloss"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    known = _commit() or os.environ.get("DRLOSS_COMMIT")
    found["commit"] = "unknown" if known is None else known + ("" if _clean() else ", with changes")
    return found


def _commit() -> str | None:
    try:
        from drloss.training.records import commit
    except ImportError:  # of what training needs and a loss does not
        return None
    return commit()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def _clean() -> bool:
    try:
        status = subprocess.run(
            ["git", "status", "--porcelain", "src", "benchmarks"], capture_output=True, check=False
        )
    except OSError:  # no git
        return True
    return not any(line and not line.startswith(b"?? benchmarks/results") for line in status.stdout.splitlines())
