"""Time of the losses and their rivals on the device and on the host, of each kernel, memory and compilations.

The rows are those of ``benchmarks.loss``, so that docs/speed.md shows both: an image has 201,600 anchors and 80
classes, the floor is two reads and a write at the speed of a copy measured here, and targets of the rivals are ready.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu import clock
from benchmarks.gpu.cases import GRIDS, PER_PLACE, backends, labels, maps
from benchmarks.gpu.notes import Notes, failure, words
from drloss import cross_entropy_loss, dr_loss, focal_loss

CLASSES = 80
FOCAL = "torchvision focal"
SMALL_GRIDS = [(6, 8), (3, 4)]
REPEATS = 50
BUFFERS = 2**28
"""Bytes that the logits of one setting together have at least, so that none of them is in the cache."""
PLAIN = (("float32", 16), ("bfloat16", 16), ("float32", 1), ("bfloat16", 1), ("float32", 2), ("bfloat16", 2))
LAYOUTS = {"planes": ", planes", "channels_last": ", channels_last"}

Loss = Callable[[list[Tensor], Tensor, Tensor | None], Tensor]  # of levels, labels and dense targets


def ours(loss: Callable[..., Tensor], **options: Any) -> Loss:
    """A loss of drloss, of the levels and their labels."""
    return lambda x, y, _: loss(x, y, **options)


def focal_of_torchvision(x: list[Tensor], _: Tensor, targets: Tensor | None) -> Tensor:
    """Of one level; an example of torchvision divides the sum by the number of objects."""
    from torchvision.ops import sigmoid_focal_loss

    found: Tensor = sigmoid_focal_loss(x[0], targets, reduction="sum") / 100
    return found


def variants(backend: str) -> dict[str, Loss]:
    """What is measured beside the DR loss, on rows, at the largest batch."""
    return {
        "DR+": lambda x, y, _: dr_loss(x, y, objects=y, pos_prior="object", backend=backend),
        "DR, per class": ours(dr_loss, scope="per_class", backend=backend),
        "DR, pooled": ours(dr_loss, scope="pooled", backend=backend),
        "DR, lambda 0.01": ours(dr_loss, neg_lambda=0.01, backend=backend),
        "DR, mined": ours(dr_loss, neg_prior=10_000, backend=backend),
        "focal": ours(focal_loss, backend=backend),
        "cross-entropy": ours(cross_entropy_loss, backend=backend),
    }


def run(notes: Notes) -> None:
    """Note it; see :mod:`benchmarks.gpu`."""
    table: list[dict[str, Any]] = []
    backend = backends(notes.device)[0]
    settings = [("float32", 2), ("bfloat16", 1)] if notes.small else PLAIN
    for dtype, n in settings:
        _rows(table, notes, dtype, n, {"DR": ours(dr_loss, backend=backend), FOCAL: focal_of_torchvision})
        for layout, suffix in LAYOUTS.items():
            _rows(table, notes, dtype, n, {f"DR{suffix}": ours(dr_loss, backend=backend)}, layout)
    notes.attempt("kernels", lambda: kernels(notes, backend))
    notes.attempt("compilations", lambda: compilations(notes, backend))
    for dtype, n in settings[:2]:
        _rows(table, notes, dtype, n, variants(backend))
    if notes.small:
        return
    for dtype, n in settings[:4]:
        torch._dynamo.reset()  # else it would compile for any size after the second
        if notes.left < 12:
            notes.note(f"compiled focal, {dtype}, batch {n}", {"not_run": f"{notes.left:.0f} s were left"})
            continue
        quick = torch.compile(focal_of_torchvision, dynamic=False)
        _rows(table, notes, dtype, n, {f"{FOCAL}, compiled": quick})


def _rows(
    table: list[dict[str, Any]], notes: Notes, dtype: str, n: int, losses: dict[str, Loss], layout: str = "rows"
) -> None:
    """Append the rows of a setting, and note all rows with their ratios to the focal loss."""
    setting = {"device": notes.device, "dtype": dtype, "batch": n, "logits": "start", "layout": layout}
    beside = [row["floor_s"] for row in table if (row["dtype"], row["batch"]) == (dtype, n) and "floor_s" in row]
    try:
        given = _given(notes, dtype, n, layout)
        copied = [levels[0] for levels in given[0]]  # all levels, where they are rows
        setting["floor_s"] = beside[0] if beside else 1.5 * clock.copy_seconds(copied, notes.device)
    except Exception as error:
        table.append(setting | {"loss": ", ".join(losses)} | failure(error))
        losses = {}
    for name, loss in losses.items():
        try:
            row = _measure(loss, *given, notes)
            table.append(setting | {"loss": name} | row | {"x_floor": row["both_s"] / setting["floor_s"]})
        except Exception as error:
            table.append(setting | {"loss": name} | failure(error))
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
    units = {(r["dtype"], r["batch"]): r["both_s"] for r in table if r["loss"] == FOCAL and "both_s" in r}
    for row in table:
        if "both_s" in row and (row["dtype"], row["batch"]) in units:
            row["x_focal"] = row["both_s"] / units[row["dtype"], row["batch"]]
    row = table[-1]
    said = f"{row['both_s'] * 1e3:.3f} ms, {row['x_floor']:.2f} x floor" if "both_s" in row else words(row)
    notes.note("rows", table, say=f"{row['loss']}, {dtype}, batch {n}: {said}")


Given = tuple[list[list[Tensor]], Tensor, Tensor | None]


def _given(notes: Notes, dtype: str, n: int, layout: str) -> Given:
    """Several sets of levels of logits, labels, and dense targets of the rows."""
    grids = SMALL_GRIDS if notes.small else GRIDS
    kind: torch.dtype = getattr(torch, dtype)
    size = n * PER_PLACE * CLASSES * sum(h * w for h, w in grids) * kind.itemsize
    count = 2 if notes.small else min(max(-(-BUFFERS // size), 2), 8)
    sets = [maps(n, CLASSES, grids, layout, kind, notes.device, seed=i) for i in range(count)]
    if layout == "rows":
        sets = [[torch.cat(levels, dim=1)] for levels in sets]
    y = labels(n, PER_PLACE * sum(h * w for h, w in grids), CLASSES, notes.device, share=0.0)
    y[:, :100] = torch.randint(1, CLASSES + 1, y[:, :100].shape, device=y.device)
    targets = functional.one_hot(y, CLASSES + 1)[..., 1:].to(kind) if layout == "rows" else None
    return [[x.requires_grad_() for x in levels] for levels in sets], y, targets


def _measure(loss: Loss, sets: list[list[Tensor]], y: Tensor, targets: Tensor | None, notes: Notes) -> dict[str, Any]:
    value: list[Tensor] = []

    def forward(number: int) -> None:
        value[:] = [loss(sets[number % len(sets)], y, targets)]

    def backward(number: int) -> None:
        for x in sets[number % len(sets)]:
            x.grad = None
        value[0].backward()  # type: ignore[no-untyped-call]

    (ahead, back), host = clock.times([forward, backward], notes.device, 3 if notes.small else REPEATS)
    for levels in sets:
        for x in levels:
            x.grad = None
    value.clear()
    with clock.peak(notes.device) as highest:
        forward(0)
        backward(0)
        bytes_of_logits = sum(x.numel() * x.element_size() for x in sets[0])
        memory = highest() / bytes_of_logits
    value.clear()
    found = {"forward_s": ahead, "backward_s": back, "both_s": ahead + back, "memory": memory}
    return found | {"host_forward_s": host[0], "host_backward_s": host[1], "host_s": sum(host)}


def kernels(notes: Notes, backend: str) -> dict[str, Any]:
    """The kernels of a forward, which are the sums and the step to the loss, and of a backward, the gradient."""
    found = {}
    for layout in ("rows", "planes"):
        for dtype in ("float32", "bfloat16"):
            sets, y, _ = _given(notes, dtype, 2 if notes.small else 16, layout)
            loss = partial(dr_loss, sets[0], y, backend=backend)
            loss().backward()  # compiles
            found[f"{layout}, {dtype}, forward"] = clock.kernels(loss, notes.device, 4)
            found[f"{layout}, {dtype}, backward"] = clock.kernels(loss().backward, notes.device, 4)
    return found


def compilations(notes: Notes, backend: str) -> dict[str, Any]:
    """How many kernels are compiled over 20 image sizes, and the longest that a step of a new size takes."""
    before, seconds = _compiled(), []
    for number in range(20):
        grids = [(4 + number, 7 + 2 * number), (2 + number, 3 + number)]
        levels = [x.requires_grad_() for x in maps(2, CLASSES, grids, "planes", torch.float32, notes.device)]
        y = labels(2, PER_PLACE * sum(h * w for h, w in grids), CLASSES, notes.device)
        clock.synchronize(notes.device)
        began = time.perf_counter()
        dr_loss(levels, y, backend=backend).backward()  # type: ignore[no-untyped-call]
        clock.synchronize(notes.device)
        seconds.append(time.perf_counter() - began)
    later = sorted(seconds[3:])
    return {"kernels": _compiled() - before, "first_s": seconds[0], "longest_after_three_s": later[-1]}


def _compiled() -> int:
    """Kernels in Triton's cache on the disk."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    return sum(1 for _ in folder.glob("*/*.cubin"))
