"""The DR loss beside its rivals: forward, backward and peak memory, in one run, as ratios.

    python -m benchmarks.loss [--device cpu] [--batches 1 2 16] [--dtypes float32 bfloat16] [--logits start trained]
                              [--repeats 5] [--record] [--only NAME ...]

Images of the paper's size, 201,600 anchors × 80 classes. All losses take their turn in each round, and medians over
the rounds are shown:

- ``x focal``: time over that of torchvision's ``sigmoid_focal_loss``, whose dense targets are made beforehand;
- ``x floor``: time over that of what no loss can do without, measured in the same rounds: one read and one fresh copy
  of the logits on a CPU; two reads and a write at the speed of a copy on a GPU;
- ``memory``: peak during the step, the gradient included, over the logits' own, beside ready targets and labels.

``--record`` writes benchmarks/results/DATE-loss-DEVICE.json; ``python -m benchmarks.page`` makes docs/speed.md of it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from benchmarks.authors import authors_dr_loss
from benchmarks.measure import example, peak_memory, step, surroundings, synchronize
from drloss import cross_entropy_loss, dr_loss, focal_loss
from drloss.losses.fused import cpu

ANCHORS, CLASSES = 201_600, 80
RESULTS = Path(__file__).parent / "results"
FOCAL = "torchvision focal"
_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, labels and dense targets


class _Intermediate(torch.autograd.Function):
    """The logits as something that another layer made: no leaf, and free."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def _torchvision_focal(x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    return sigmoid_focal_loss(x, targets, reduction="sum") / 100


def _cross_entropy(x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(x, targets, reduction="sum") / 100


def _ours(loss: Callable[..., Tensor], **options: Any) -> _Loss:
    return lambda x, labels, targets: loss(x, labels, **options)


def losses(device: str) -> dict[str, _Loss | str]:
    """By name, or in place of one that cannot be had the reason."""
    found: dict[str, _Loss | str] = {
        FOCAL: _torchvision_focal,
        "torchvision focal, compiled": torch.compile(_torchvision_focal),
        "cross-entropy of torch": _cross_entropy,
        "fvcore focal, scripted": "fvcore is not installed",
        "authors' DR": lambda x, labels, targets: authors_dr_loss(x, labels),
        "DR, definition": _ours(dr_loss, backend="torch"),
        "DR, chunked": _ours(dr_loss, backend="chunked"),
    }
    if find_spec("fvcore"):
        from fvcore.nn import sigmoid_focal_loss_jit

        found["fvcore focal, scripted"] = lambda x, labels, targets: (
            sigmoid_focal_loss_jit(x, targets, alpha=0.25, gamma=2.0, reduction="sum") / 100
        )
    backend = "triton" if device.startswith("cuda") else "cpu"
    if backend == "cpu" and not cpu.available():
        return found | dict.fromkeys(
            ("DR", "DR+", "DR, per class", "DR, in place", "focal", "cross-entropy"), "there is no C compiler"
        )
    return found | {
        "DR": _ours(dr_loss, backend=backend),
        # The labels themselves tell objects apart, as far as the time goes.
        "DR+": lambda x, labels, targets: dr_loss(x, labels, objects=labels, pos_prior="object", backend=backend),
        "DR, per class": _ours(dr_loss, backend=backend, scope="per_class"),
        "DR, in place": lambda x, labels, targets: dr_loss(
            _Intermediate.apply(x), labels, backend=backend, inplace=True
        ),
        "focal": _ours(focal_loss, backend=backend),
        "cross-entropy": _ours(cross_entropy_loss, backend=backend),
    }


def floor(logits: Tensor) -> float:
    """Seconds of what no loss can do without."""
    x = logits.detach()
    synchronize(x)
    began = time.perf_counter()
    if x.is_cuda:
        torch.empty_like(x).copy_(x)
        synchronize(x)
        return 1.5 * (time.perf_counter() - began)
    x.sum()
    x.clone()
    return time.perf_counter() - began


def measure(
    device: str, dtype: str, n: int, kind: str, repeats: int, only: list[str] | None
) -> tuple[float, list[dict[str, Any]]]:
    """Floor in seconds, and a row for each loss."""
    values, labels = example(n, ANCHORS, CLASSES, kind)
    logits = values.to(device, getattr(torch, dtype)).requires_grad_()
    labels = labels.to(device)
    targets = functional.one_hot(labels, CLASSES + 1)[..., 1:].to(logits.dtype)
    ready: dict[str, Callable[[], Tensor] | str] = {
        name: loss if isinstance(loss, str) else partial(loss, logits, labels, targets)
        for name, loss in losses(device).items()
        if not only or name in only or name == FOCAL
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    floors = []
    for repeat in range(repeats + 1):
        seconds = floor(logits)
        if repeat:
            floors.append(seconds)
        for name, loss in ready.items():
            if isinstance(loss, str):
                continue
            try:
                both = step(loss, logits)
            except Exception as error:  # a rival that does not run here is a row that says so
                if name.startswith("DR") or name == FOCAL:
                    raise
                ready[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                continue
            if name == "DR, in place":
                logits.data.copy_(values)  # which it wrote over
            if repeat:
                times[name].append(both)
    rows = []
    for name, loss in ready.items():
        row: dict[str, Any] = {"device": device, "dtype": dtype, "batch": n, "logits": kind, "loss": name}
        if isinstance(loss, str):
            rows.append(row | {"not_run": loss})
            continue
        row["forward_s"], row["backward_s"] = (statistics.median(t[i] for t in times[name]) for i in range(2))
        row["both_s"] = statistics.median(sum(t) for t in times[name])
        row["memory"] = peak_memory(loss, logits)
        rows.append(row)
        logits.data.copy_(values)
    unit, least = next(row["both_s"] for row in rows if row["loss"] == FOCAL), statistics.median(floors)
    for row in rows:
        if "both_s" in row:
            row["x_focal"], row["x_floor"] = row["both_s"] / unit, row["both_s"] / least
    return least, rows


def show(least: float, rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    print(f"\nbatch {first['batch']}, {first['dtype']}, logits as at {first['logits']}; floor {least * 1e3:.2f} ms")
    print(f"{'loss':<30}{'forward':>10}{'backward':>10}{'both, ms':>10}{'x focal':>9}{'x floor':>9}{'memory':>8}")
    for row in rows:
        if "not_run" in row:
            print(f"{row['loss']:<30}  not run: {row['not_run'][:70]}")
            continue
        times = "".join(f"{row[key] * 1e3:>10.2f}" for key in ("forward_s", "backward_s", "both_s"))
        print(f"{row['loss']:<30}{times}{row['x_focal']:>9.3f}{row['x_floor']:>9.2f}{row['memory']:>7.2f}x")


def _setting(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["dtype"], row["batch"], row["logits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--logits", nargs="+", default=["start", "trained"], choices=("start", "trained"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these losses, and torchvision's focal")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results/")
    options = parser.parse_args()
    about = surroundings(options.device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"images of {ANCHORS} x {CLASSES}, medians of {options.repeats}")
    rows = []
    for n in options.batches:
        for dtype in options.dtypes:
            for kind in options.logits:
                least, measured = measure(options.device, dtype, n, kind, options.repeats, options.only)
                show(least, measured)
                rows += [row | {"floor_s": least} for row in measured]
    if options.record:
        now = datetime.now(UTC)
        path = RESULTS / f"{now:%Y-%m-%d}-loss-{options.device.split(':')[0]}.json"
        rows = [row | {"commit": about["commit"]} for row in rows]
        if path.exists():  # of the same day: what was not measured again stays
            measured = {_setting(row) for row in rows}
            rows += [row for row in json.loads(path.read_text())["rows"] if _setting(row) not in measured]
            rows.sort(key=lambda row: (row["batch"], row["dtype"], row["logits"]))
        record = {"date": f"{now:%Y-%m-%d}", **about, "anchors": ANCHORS, "classes": CLASSES, "rows": rows}
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
