"""What only a device shows: large sizes, equal bits, streams, graphs, waits, the compiler, half precision."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import GRIDS, LOSSES, PER_PLACE, apart, backends, labels, maps, rows, step
from benchmarks.gpu.notes import Notes, failure, words
from drloss import dr_loss

CLASSES = 80
REPETITIONS = 20
SMALL_GRIDS = [(10, 12), (5, 6)]
SANITIZED = """
import torch
from benchmarks.gpu.cases import LOSSES, labels, maps, step
for layout in ("rows", "planes"):
    for name in ("dr", "mined", "class", "focal"):
        x = maps(2, 3, [(13, 9), (3, 3)], layout, torch.bfloat16, "cuda")
        loss, options = LOSSES[name]
        print(name, layout, step(loss, x, labels(2, 1134, 3, "cuda"), backend="triton", **options)[0].tolist())
torch.cuda.synchronize()
"""


def run(notes: Notes) -> None:
    """Note it; see :mod:`benchmarks.gpu`."""
    torch.backends.cudnn.allow_tf32 = False  # too rough to compare what comes after it
    device, grids = notes.device, SMALL_GRIDS if notes.small else GRIDS
    backend = backends(device)[0]
    notes.attempt("batch of 16 against float64", lambda: against_float64(2 if notes.small else 16, grids, notes))
    notes.attempt("repetitions", lambda: repetitions(grids, device, backend))
    if notes.small:
        notes.attempt("inductor", lambda: compiled(device, backend, "aot_eager"))
        notes.attempt("autocast", lambda: autocast(device, backend))
        for name in ("over 2^31 elements", "side stream", "graph", "waits", "sanitizer"):
            notes.note(name, {"not_run": "it needs a GPU"})
        return
    notes.attempt("waits", waits)
    notes.attempt("side stream", side_stream)
    notes.attempt("over 2^31 elements", over_31_bits)
    notes.attempt("graph", graph)
    notes.attempt("autocast", lambda: autocast(device, backend))
    notes.attempt("inductor", lambda: compiled(device, backend, "inductor"), needs=8)
    notes.attempt("sanitizer", lambda: sanitizer(notes.left - 6), needs=15)


def against_float64(n: int, grids: list[tuple[int, int]], notes: Notes) -> dict[str, Any]:
    """Largest relative errors over the images, one after the other in float64."""
    found = {}
    for layout in ("planes", "rows"):
        levels = maps(n, CLASSES, grids, layout, torch.float32, notes.device)
        given = labels(n, PER_PLACE * sum(h * w for h, w in grids), CLASSES, notes.device)
        values, gradients = step(dr_loss, levels, given, backend=backends(notes.device)[0])
        errors = []
        for i in range(n):
            exact = rows([x[i : i + 1] for x in levels], CLASSES).double()
            wanted, (slope,) = step(dr_loss, [exact], given[i : i + 1], backend="torch")
            own = rows([g[i : i + 1] for g in gradients], CLASSES)
            errors.append((apart(values[i : i + 1], wanted), apart(own, (i + 1) * slope)))
        found[layout] = {"value": max(e[0] for e in errors), "gradient": max(e[1] for e in errors)}
    return found


def repetitions(grids: list[tuple[int, int]], device: str, backend: str) -> str | dict[str, str]:
    """Whether repeated runs give the same bits."""
    levels = maps(2 if device == "cpu" else 16, CLASSES, grids, "planes", torch.float32, device)
    given = labels(len(levels[0]), PER_PLACE * sum(h * w for h, w in grids), CLASSES, device)
    values, gradients = step(dr_loss, levels, given, backend=backend)
    for number in range(REPETITIONS):
        again, others = step(dr_loss, levels, given, backend=backend)
        same = torch.equal(values, again) and all(map(torch.equal, gradients, others))
        if not same:
            return {"error": f"run {number + 2} differs from the first"}
    return f"{REPETITIONS} equal to the bit"


def over_31_bits() -> dict[str, Any]:
    """136 images, and one image of more than 2^31 candidates: the first and last of them against float64."""
    found = {}
    anchors = 201_600
    for name, n, a in (("136 images", 136, anchors), ("one image", 1, 135 * anchors)):
        size = 2 * n * a * CLASSES
        free = torch.cuda.mem_get_info()[0]
        if free < 3 * size:
            found[name] = {"not_run": f"{free / 1e9:.0f} GB are free, and it needs {3 * size / 1e9:.0f}"}
            continue
        x = torch.empty(n, a, CLASSES, dtype=torch.bfloat16, device="cuda").normal_().mul_(2).sub_(2)
        y = torch.zeros(n, a, dtype=torch.int64, device="cuda")
        y[:, :50], y[:, -50:] = 3, CLASSES
        assert x.numel() > 2**31
        values, (gradient,) = step(dr_loss, [x], y, backend="triton")
        if n > 1:
            errors = []
            for i in (0, n - 1):
                wanted, (exact,) = step(dr_loss, [x[i : i + 1].double()], y[i : i + 1], backend="torch")
                errors += [apart(values[i : i + 1], wanted), apart(gradient[i : i + 1], (i + 1) * exact)]
            found[name] = {"errors": errors}
        else:  # the same candidates in four images that share one ranking are seen in another order
            parts, given = x.view(5, a // 5, CLASSES), y.view(5, a // 5)
            wanted, (other,) = step(dr_loss, [parts], given, backend="triton", scope="pooled")
            found[name] = {"errors": [apart(values, wanted), _apart_by_parts(gradient.view(-1), other.view(-1))]}
        del x, y, gradient
        torch.cuda.empty_cache()
    return found


def _apart_by_parts(found: Tensor, wanted: Tensor, size: int = 2**28) -> float:
    """As :func:`apart`, without a copy of all in float64."""
    return max(apart(a, b) for a, b in zip(found.split(size), wanted.split(size), strict=True))


def waits() -> dict[str, str]:
    """By loss whether its step waits for the device: it must not."""
    found = {}
    levels = maps(2, CLASSES, SMALL_GRIDS, "planes", torch.float32, "cuda")
    given = labels(2, PER_PLACE * sum(h * w for h, w in SMALL_GRIDS), CLASSES, "cuda")
    for name, (loss, options) in LOSSES.items():
        if name in ("dense", "weights"):
            continue

        def once(loss: Callable[..., Tensor] = loss, options: dict[str, Any] = options) -> None:
            leaves = [x.detach().requires_grad_() for x in levels]
            loss(leaves, given, backend="triton", **options).backward()

        once()  # compiles
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            once()
            found[name] = "no wait"
        except RuntimeError as error:
            found[name] = words(failure(error))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def side_stream() -> bool:
    """Whether a stream of its own gives the same bits."""
    levels = maps(4, CLASSES, SMALL_GRIDS, "planes", torch.bfloat16, "cuda")
    given = labels(4, PER_PLACE * sum(h * w for h, w in SMALL_GRIDS), CLASSES, "cuda")
    values, gradients = step(dr_loss, levels, given, backend="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        doubled = [x * 2 for x in levels]  # if another stream did not wait for this, it would read other logits
        again, others = step(dr_loss, [x / 2 for x in doubled], given, backend="triton")
    stream.synchronize()
    return torch.equal(values, again) and all(map(torch.equal, gradients, others))


def graph() -> dict[str, Any]:
    """Errors of a captured step after its logits have changed, for losses of both kinds."""
    found = {}
    for name in ("dr", "pooled", "focal"):
        loss, options = LOSSES[name]
        levels = [x.requires_grad_() for x in maps(2, CLASSES, SMALL_GRIDS, "planes", torch.float32, "cuda")]
        given = labels(2, PER_PLACE * sum(h * w for h, w in SMALL_GRIDS), CLASSES, "cuda")

        def once(loss=loss, options=options, levels=levels, given=given) -> Tensor:  # type: ignore[no-untyped-def]
            for x in levels:
                x.grad = None
            value: Tensor = loss(levels, given, backend="triton", **options)
            value.backward()
            return value

        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    once()
            torch.cuda.current_stream().wait_stream(stream)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                value = once()
            kept = [x.grad for x in levels]
            for x in levels:
                x.data.mul_(0.5)
            captured.replay()
            torch.cuda.synchronize()
            replayed, gradients = value.detach().clone(), [g.clone() for g in kept]  # type: ignore[union-attr]
            wanted = once()
            same = all(torch.equal(x.grad, g) for x, g in zip(levels, gradients, strict=True))  # type: ignore[arg-type]
            found[name] = {"value": apart(replayed, wanted.detach()), "gradients_equal": same}
        except Exception as error:
            found[name] = failure(error)
    return found


def head(device: str) -> nn.Module:
    """A layer that makes maps of logits of five classes and nine anchors a place."""
    torch.manual_seed(0)
    return nn.Conv2d(8, PER_PLACE * 5, 3, padding=1).to(device)


def compiled(device: str, backend: str, compiler: str) -> dict[str, Any]:
    """Errors of a compiled step of a head and the loss at several image sizes, and how many graphs were compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer = head(device)

    def loss(features: Tensor, y: Tensor) -> Tensor:
        return dr_loss([layer(features)], y, backend=backend)

    quick = torch.compile(loss, fullgraph=True, backend=compiler)
    errors = []
    for side in (16, 20, 24, 30, 36):
        features = torch.randn(2, 8, side, side + 4, device=device)
        y = labels(2, PER_PLACE * side * (side + 4), 5, device, seed=side)
        slopes = []
        for function in (loss, quick):
            layer.zero_grad()
            function(features, y).backward()  # type: ignore[no-untyped-call]
            slopes.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))  # type: ignore[union-attr]
        errors.append(apart(slopes[1], slopes[0]))
    return {"errors": errors, "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}


def autocast(device: str, backend: str) -> dict[str, Any]:
    """Losses of some steps with autocast and a gradient scaler, beside those of the definition."""
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    backend = "chunked" if backend == "cpu" else backend
    found: dict[str, Any] = {"dtype": str(dtype)}
    for name in (backend, "torch"):
        layer = head(device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
        generator = torch.Generator(device).manual_seed(0)
        features = torch.randn(2, 8, 16, 16, generator=generator, device=device)
        y = labels(2, PER_PLACE * 256, 5, device, share=0.1)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=dtype):
                value = dr_loss([layer(features)], y, backend=name)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(value.detach()))
        found[name] = losses
    found["apart"] = max(abs(a - b) for a, b in zip(found[backend], found["torch"], strict=True))
    return found


def sanitizer(seconds: float) -> str | dict[str, str]:
    """What compute-sanitizer says of a few small cases."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"not_run": "compute-sanitizer is not installed"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "3", sys.executable, "-c", SANITIZED]
    try:
        # Each tensor has memory of its own, so that no neighbour hides an access outside it.
        alone = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"not_run": f"it took more than {seconds:.0f} s"}
    last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
    return last if done.returncode == 0 else {"error": f"exit status {done.returncode}: {last[-600:]}"}
