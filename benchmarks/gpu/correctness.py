"""Every loss in every layout against the definition in float64; and inputs that are special."""

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import LAYOUTS, LOSSES, apart, backends, labels, maps, rows, step
from benchmarks.gpu.notes import Notes, failure, words
from drloss import dr_loss, focal_loss

DTYPES = ("float32", "bfloat16", "float16")
CLASSES, FEW_CLASSES = (80, 1, 3, 91), (1, 3)
GRIDS = [(24, 32), (13, 16), (6, 9), (3, 4), (1, 1)]
SMALL_GRIDS = [(4, 5), (2, 3), (1, 1)]
VALUE_ERROR, GRADIENT_ERROR = 1e-5, 8e-6
"""Largest relative error of a value; of a gradient, beyond that of the definition in the same dtype."""
MOST_WORKERS = 8
_FEW = {"cpu": 10, "chunked": 10, "triton": 2}
"""Cases on a CPU by backend; the interpreter takes some ten seconds each."""

Case = tuple[str, str, str, str, int]
_broken = ""


def run(notes: Notes) -> None:
    """Note it; see :mod:`benchmarks.gpu`."""
    # In random order, so that what there is no time for is not of one kind.
    classes = FEW_CLASSES if notes.small else CLASSES
    cases = list(product(backends(notes.device), LOSSES, LAYOUTS, DTYPES, classes))
    # The compiled kernels have no float16, and the interpreter cuts bfloat16 off, where a device rounds.
    left_out = {("cpu", "float16"), ("triton", "bfloat16") if notes.small else ""}
    cases = [case for case in cases if (case[0], case[3]) not in left_out]
    random.Random(0).shuffle(cases)
    notes.attempt("special", lambda: special(notes.device))
    wrong, done, worst = [], 0, [0.0, 0.0]
    if notes.small:
        cases = [case for name, few in _FEW.items() for case in [c for c in cases if c[0] == name][:few]]
    for row in _each(cases, notes):
        done += "not_run" not in row
        worst = [max(worst[i], row.get(key) or 0.0) for i, key in enumerate(("value_error", "beyond_eager"))]
        if not row["ok"]:
            wrong.append(row)
        if done % 5 == 0 or not row["ok"]:
            notes.note("wrong", wrong[:40])
            notes.note("summary", _summary(done, len(cases), len(wrong), worst))
    notes.note("wrong", wrong[:40])
    notes.note("summary", _summary(done, len(cases), len(wrong), worst))


def _summary(done: int, cases: int, wrong: int, worst: list[float]) -> dict[str, Any]:
    found = {"cases": cases, "run": done, "wrong": wrong, "largest_value_error": worst[0]}
    return found | {"largest_gradient_error_beyond_eager": worst[1]}


def _each(cases: list[Case], notes: Notes) -> Iterator[dict[str, Any]]:
    """The row of each case, from several processes on a GPU: most of the time goes to compiling."""
    if notes.small:
        for case in cases:
            if notes.left < 15:
                return
            yield check(case, notes.device)
        return
    workers = min(MOST_WORKERS, max((os.cpu_count() or 2) // 2, 1))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    futures = {pool.submit(check, case, notes.device): case for case in cases}
    try:
        for future in as_completed(futures, timeout=max(notes.left - 6, 1)):
            try:
                yield future.result()
            except Exception as error:  # a process that died
                yield {"case": list(futures[future]), "ok": False} | failure(error)
    except TimeoutError:
        print("  no time for the other cases", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def check(case: Case, device: str) -> dict[str, Any]:
    """Errors of a case, and whether they are small enough; after an error of the device this process gives up."""
    global _broken  # noqa: PLW0603 - of this process
    if _broken:
        return {"case": list(case), "ok": True, "not_run": f"the device was left broken by {_broken}"}
    try:
        return {"case": list(case)} | _check(case, device)
    except Exception as error:
        if "CUDA error" in str(error):
            _broken = str(case)
        return {"case": list(case), "ok": False} | failure(error)


def _check(case: Case, device: str) -> dict[str, Any]:
    backend, name, layout, dtype, k = case
    loss, options = LOSSES[name]
    levels = maps(2, k, SMALL_GRIDS if device == "cpu" else GRIDS, layout, getattr(torch, dtype), device, seed=k)
    joined = rows(levels, k)
    given = labels(2, joined.shape[1], k, device, seed=1, share=0.1)
    if name == "dense":
        given = torch.rand(joined.shape, device=device, generator=torch.Generator(device).manual_seed(2)) < 0.01
    if name == "weights":
        weights = torch.rand(joined.shape, device=device, generator=torch.Generator(device).manual_seed(3))
        options = {prior: weights.clone() for prior in options}
    values, gradients = _poisoned(lambda: step(loss, levels, given, backend=backend, **options))
    wanted, (exact,) = step(loss, [joined.double()], given, backend="torch", **options)
    _, (eager,) = step(loss, [joined], given, backend="torch", **options)
    found = rows(gradients, k)
    row = {"value_error": apart(values, wanted), "gradient_error": apart(found, exact)}
    row["beyond_eager"] = row["gradient_error"] - apart(eager, exact)
    row["ok"] = row["value_error"] <= VALUE_ERROR and row["beyond_eager"] <= GRADIENT_ERROR
    row["in_place_equal"] = _in_place_equal(loss, levels, given, gradients, backend=backend, **options)
    row["ok"] &= row["in_place_equal"]
    return row


def _poisoned(run: Callable[[], Any]) -> Any:
    """Run with all new memory full of NaN, so that what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return run()
    finally:
        torch.use_deterministic_algorithms(before)


def _in_place_equal(
    loss: Callable[..., Tensor], levels: list[Tensor], given: Tensor, gradients: list[Tensor], **options: Any
) -> bool:
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in levels]
    values = loss([x * 1 for x in leaves], given, reduction="none", inplace=True, **options)
    (values * torch.arange(1, len(values) + 1, device=values.device)).sum().backward()
    return all(torch.equal(x.grad, g) for x, g in zip(leaves, gradients, strict=True))  # type: ignore[arg-type]


def special(device: str) -> dict[str, Any]:
    """Whether inputs that are special give what they must: True, or what went wrong."""
    found: dict[str, Any] = {}
    for backend in backends(device)[:1]:  # without the interpreter, which is slow
        for loss in (dr_loss, focal_loss):
            for check_one in (
                _nan,
                _infinite,
                _masked,
                _nothing,
                _no_objects,
                _other_labels,
                _many_levels,
                _expanded,
            ):
                name = f"{backend}, {loss.__name__}, {check_one.__name__[1:]}"
                try:
                    found[name] = bool(check_one(loss, backend, device))
                except Exception as error:
                    found[name] = words(failure(error))
    return found


Loss = Callable[..., Tensor]


def _case(device: str, k: int = 5) -> tuple[Tensor, Tensor]:
    x = rows(maps(2, k, SMALL_GRIDS, "rows", torch.float32, device), k)
    y = labels(2, x.shape[1], k, device, share=0.0)
    y[:, 3:6], y[:, 9] = 2, -1
    return x, y


def _bad(loss: Loss, backend: str, device: str, value: float) -> bool:
    x, y = _case(device)
    x[1, 20, 2] = value
    x[:, 9] = value  # ignored
    values, (gradient,) = step(loss, [x], y, backend=backend)
    return values.isnan().tolist() == [False, True] and bool(gradient[0].isfinite().all())


def _nan(loss: Loss, backend: str, device: str) -> bool:
    return _bad(loss, backend, device, torch.nan)


def _infinite(loss: Loss, backend: str, device: str) -> bool:
    return _bad(loss, backend, device, torch.inf)


def _masked(loss: Loss, backend: str, device: str) -> bool:
    x, y = _case(device)
    x[:, :, 4] = -torch.inf
    values, (gradient,) = step(loss, [x], y, backend=backend)
    wanted = loss(x.double(), y, reduction="none", backend="torch")
    right = apart(values, wanted) <= VALUE_ERROR and float(gradient[:, :, 4].abs().max()) < 1e-37
    return right and bool(gradient.isfinite().all())


def _nothing(loss: Loss, backend: str, device: str) -> bool:
    for shape in [(0, 4, 2), (2, 0, 2), (0, 0, 2)]:
        x, y = torch.zeros(shape, device=device), torch.zeros(shape[:2], dtype=torch.int64, device=device)
        values, (gradient,) = step(loss, [x], y, backend=backend)
        if not torch.equal(values, loss(x, y, reduction="none", backend="torch")) or gradient.shape != shape:
            return False
    return True


def _no_objects(loss: Loss, backend: str, device: str) -> bool:
    x, y = _case(device)
    y[0], y[1] = 0, -1
    values, (gradient,) = step(loss, [x], y, backend=backend)
    wanted, (exact,) = step(loss, [x.double()], y, backend="torch")
    return apart(values, wanted) <= VALUE_ERROR and apart(gradient, exact) <= 1e-5 and not gradient[1].any()


def _other_labels(loss: Loss, backend: str, device: str) -> bool:
    """On a device a label that is no class counts as ignored."""
    if device == "cpu":
        return True
    x, y = _case(device)
    ignored = y.clone()
    y[:, ::7], ignored[:, ::7] = 255, -1
    return torch.equal(step(loss, [x], y, backend=backend)[1][0], step(loss, [x], ignored, backend=backend)[1][0])


def _many_levels(loss: Loss, backend: str, device: str) -> bool:
    x, y = _case(device)
    levels = [part.contiguous() for part in x.split([1, 2, 3, 4, 5, 6, 7, 8, 9, x.shape[1] - 45], dim=1)]
    values, gradients = step(loss, levels, y, backend=backend)
    wanted, (exact,) = step(loss, [x.double()], y, backend="torch")
    return apart(values, wanted) <= VALUE_ERROR and apart(torch.cat(gradients, dim=1), exact) <= 1e-5


def _expanded(loss: Loss, backend: str, device: str) -> bool:
    """An incoming gradient with a stride of 0."""
    x, y = _case(device)
    leaf, exact = x.requires_grad_(), x.detach().double().requires_grad_()
    loss(leaf, y, reduction="none", backend=backend).sum().backward()
    loss(exact, y, reduction="none", backend="torch").sum().backward()
    assert leaf.grad is not None
    assert exact.grad is not None
    return apart(leaf.grad, exact.grad) <= 1e-5
