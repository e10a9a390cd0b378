"""Time and extra memory of the losses, forward and backward, side by side in one run.

    python -m benchmarks.losses [--anchors 201600] [--classes 80] [--dtype float32] [--device cpu] [--repeats 5]

Each loss of the family by its default backend; ``benchmarks.loss`` compares backends and rivals. One image of the
paper's size by default. Each loss is timed in turn, round after round, and the median is shown as a ratio to
torchvision's ``sigmoid_focal_loss``; the extra memory is the peak during the step beyond the logits, their gradient
and the labels, in units of the logits. Records belong in ``benchmarks/results/`` as dated files.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor

import drloss
from benchmarks.authors import authors_dr_loss, torchvision_focal
from drloss import dr_loss
from drloss.training.records import commit

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torchvision focal": torchvision_focal,
    "authors' DR": authors_dr_loss,
    "DR": dr_loss,
    "DR, detached": partial(dr_loss, weights_grad="detached"),
    "DR, dual": partial(dr_loss, weights_grad="dual"),
    "DR, mined 1000": partial(dr_loss, neg_prior=1000),
    "DR, radius": partial(dr_loss, pos_radius=0.1, neg_radius=1.0),
    "DR, chi2": partial(dr_loss, regularizer="chi2"),
    "DR, cvar": partial(dr_loss, regularizer="cvar", pos_alpha=0.5, neg_alpha=1e-4),
    "NegOnly": partial(dr_loss, pairing="neg_only"),
    "worst case": partial(dr_loss, pairing="worst_case"),
    "all pairs, logistic": partial(dr_loss, pairing="all_pairs"),
    "all pairs, quadratic": partial(dr_loss, pairing="all_pairs", surrogate="quadratic"),
    "all pairs, hinge": partial(dr_loss, pairing="all_pairs", surrogate="hinge"),
    "focal": drloss.focal_loss,
    "cross-entropy": drloss.cross_entropy_loss,
    "OHEM 3:1": drloss.ohem_loss,
    "quality focal": drloss.quality_focal_loss,
    "AP-loss": drloss.ap_loss,
}


def step(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """Seconds of one forward and backward."""
    logits.grad = None
    synchronize(logits)
    began = time.perf_counter()
    loss(logits, labels).backward()
    synchronize(logits)
    return time.perf_counter() - began


def synchronize(logits: Tensor) -> None:
    if logits.is_cuda:
        torch.cuda.synchronize()


def extra_memory(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """Peak memory of a step beyond the logits and their gradient, in units of the logits."""
    size = logits.numel() * logits.element_size()
    logits.grad = None
    if logits.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, logits, labels)
        return (torch.cuda.max_memory_allocated() - before - size) / size
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(loss, logits, labels)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return (peak - size) / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", type=int, default=201_600)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the memory profiler's own chatter
    torch.manual_seed(0)
    shape = (1, options.anchors, options.classes)
    # As in a trained detector: negatives about -5, positives about 1.
    logits = torch.randn(shape) * 1.5 - 5
    labels = torch.zeros(shape[:2], dtype=torch.int64)
    labels[0, :100] = torch.randint(1, options.classes + 1, (100,))
    logits[0, :100] += 6
    logits = logits.to(options.device, getattr(torch, options.dtype)).requires_grad_()
    labels = labels.to(options.device)
    name = torch.cuda.get_device_name() if logits.is_cuda else f"{platform.processor() or platform.machine()}"
    print(f"device {options.device} ({name}), {torch.get_num_threads()} threads; Python {platform.python_version()}")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, drloss {drloss.__version__} {commit()}")
    print(f"logits {shape} {options.dtype}, median of {options.repeats}")
    times: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for repeat in range(options.repeats + 1):
        for loss, function in LOSSES.items():
            seconds = step(function, logits, labels)
            if repeat:
                times[loss].append(seconds)
    unit = statistics.median(times["torchvision focal"])
    print(f"{'loss':<22}{'seconds':>9}{'ratio':>8}{'extra memory':>14}")
    for loss, function in LOSSES.items():
        seconds = statistics.median(times[loss])
        memory = extra_memory(function, logits, labels)
        print(f"{loss:<22}{seconds:>9.3f}{seconds / unit:>8.2f}{memory:>13.1f}x")


if __name__ == "__main__":
    main()
