"""``drloss benchmark``: how fast and how large a trained detector is on this machine."""

import multiprocessing
import re
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from drloss.detector.onnx_file import SUFFIX
from drloss.distributed.ranks import choose_device
from drloss.errors import UserError
from drloss.inference.detector import Detector
from drloss.inference.export import export_onnx
from drloss.inference.images import as_pixels, prepared
from drloss.io.atomic import write_json
from drloss.structures import Frame
from drloss.training.records import environment
from drloss.training.trained import load_run

LEAST_RUNS = 10
"""Fewest timed runs of a batch size."""
WARM_UP = 3
"""Runs before them, of a batch size."""
NOISE = (480, 640)
"""Height and width of the image of noise that stands in for a photograph."""


@dataclass(frozen=True)
class Speed:
    """How long a batch takes.

    Attributes:
        engine: ``"torch"`` or ``"onnxruntime"``.
        device: ``"cpu"`` or ``"cuda"``: where it computed. An onnxruntime that was built for CPUs has no other.
        batch_size: number of images in the batch.
        median_ms, p90_ms, p99_ms: milliseconds of a batch: the median, and what 90 and 99 % of the runs stay below.
        images_per_second: at the median.
        runs: number of runs.
        memory_mb: megabytes at the peak: of the GPU for torch on one, else of the whole process, with torch itself.
    """

    engine: str
    device: str
    batch_size: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    runs: int
    memory_mb: float


@dataclass(frozen=True)
class Cost:
    """What a detector consists of.

    Attributes:
        parameters: number of trained values, buffers such as frozen norms not among them.
        gflops: billions of operations for one image, in convolutions and matrix products; a multiplication and an
            addition are two.
        weights_mb: megabytes of parameters and buffers.
    """

    parameters: int
    gflops: float
    weights_mb: float


def benchmark(
    path: Path,
    *,
    image: Path | None,
    batch_size: int,
    seconds: float,
    threads: int | None,
    device: str | None,
    out: Path | None,
    console: Console,
) -> list[Speed]:
    """Time a detector at one image and at a batch, in torch and in onnxruntime, and print a table.

    A run goes from prepared pixels on the CPU to detections on the CPU, with NMS; reading and resizing image files is
    not in it. Each engine has a process of its own, so that neither sees the other's memory and threads.

    Args:
        path: run folder, or ``.safetensors`` or ``.onnx`` file; the latter is timed in onnxruntime only.
        image: a photograph of the usual kind; None for noise.
        batch_size: images of the larger batch.
        seconds: time for each batch size in each engine, exceeded if :data:`LEAST_RUNS` take longer.
        threads: CPU threads; None for torch's own choice.
        device: cpu, cuda or cuda:N; by default cuda where there is one.
        out: JSON file for the record, or None.
        console: where to print.
    Raises:
        UserError: if the detector or the image cannot be read, or a value is out of range.
    """
    if batch_size < 1 or not seconds > 0 or (threads is not None and threads < 1):
        raise UserError(
            f"--batch-size, --seconds and --threads must be positive, got {batch_size}, {seconds:g} and {threads}"
        )
    chosen = choose_device(device)
    pixels = as_pixels(image) if image else _noise()
    detector = Detector.load(path, device="cpu")
    one, _ = prepared(pixels, detector.description.detector, detector.fixed_size, image)
    cost = None if path.suffix == SUFFIX else _cost(path, one)
    jobs = (str(chosen), pixels, image, sorted({1, batch_size}), seconds, threads or torch.get_num_threads())
    speeds: list[Speed] = []
    with TemporaryDirectory() as folder:
        for engine, file in _engines(path, Path(folder), console):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                speeds += process.submit(_measure, engine, file, *jobs).result()
    record = {
        "model": str(path),
        "backbone": detector.description.detector.backbone,
        "image": "noise" if image is None else str(image),
        "image_size": list(pixels.shape[1:]),
        "input_size": list(one.shape[1:]),
        "cost": cost and asdict(cost),
        "speeds": [asdict(speed) for speed in speeds],
        "environment": environment(chosen, 1) | {"threads": jobs[-1]},
    }
    _print(record, speeds, cost, console)
    if out is not None:
        write_json(out, record)
        console.print(f"record: {out}", markup=False, soft_wrap=True)
    return speeds


def _noise() -> Tensor:
    return torch.randint(0, 256, (3, *NOISE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _engines(path: Path, folder: Path, console: Console) -> list[tuple[str, Path]]:
    """The engines that can run a detector, each with the file for it."""
    if path.suffix == SUFFIX:
        return [("onnxruntime", path)]
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]:
        console.print(
            f"not timed in onnxruntime: {', '.join(missing)} is missing (the extra onnx)",
            markup=False,
            soft_wrap=True,
        )
        return [("torch", path)]
    file = folder / "model.onnx"
    try:
        export_onnx(path, file, size=None, suppress=True, half=False, annotations=None, console=Console(quiet=True))
    except UserError as error:
        console.print(f"not timed in onnxruntime: {error}", markup=False, soft_wrap=True)
        return [("torch", path)]
    return [("torch", path), ("onnxruntime", file)]


@torch.no_grad()
def _cost(path: Path, image: Tensor) -> Cost:
    model, _ = load_run(path)
    with FlopCounterMode(display=False) as counter:
        model(image.unsqueeze(0))
    state = model.state_dict().values()
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=counter.get_total_flops() / 1e9,
        weights_mb=sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6,
    )


def _measure(
    engine: str,
    path: Path,
    device: str,
    pixels: Tensor,
    image: Path | None,
    batch_sizes: list[int],
    seconds: float,
    threads: int,
) -> list[Speed]:
    """Time a detector in this process."""
    torch.set_num_threads(threads)
    detector = Detector.load(path, device=device)
    one, frame = prepared(pixels, detector.description.detector, detector.fixed_size, image)
    return [_timed(engine, detector, one, frame, size, seconds) for size in batch_sizes]


def _timed(engine: str, detector: Detector, one: Tensor, frame: Frame, batch_size: int, seconds: float) -> Speed:
    batch, frames = one.repeat(batch_size, 1, 1, 1), [frame] * batch_size
    for _ in range(WARM_UP):
        detector.find(batch, frames)
    times: list[float] = []
    while len(times) < LEAST_RUNS or sum(times) < seconds:
        began = time.perf_counter()
        detector.find(batch, frames)  # it waits for the device
        times.append(time.perf_counter() - began)
    median, p90, p99 = (1000 * float(v) for v in np.quantile(times, (0.5, 0.9, 0.99)))
    where = detector.device.type
    memory = _peak_memory(detector.device if engine == "torch" else torch.device("cpu"))
    return Speed(engine, where, batch_size, median, p90, p99, 1000 * batch_size / median, len(times), memory)


def _peak_memory(device: torch.device) -> float:
    """Most memory that this process has had so far, in megabytes: of the GPU, or its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    # What getrusage says begins, on Linux, with the memory of the process that started this one.
    if status.is_file() and (own := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(own[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _print(record: dict[str, Any], speeds: list[Speed], cost: Cost | None, console: Console) -> None:
    height, width = record["input_size"]
    where = record["environment"]
    console.print(f"{record['model']}: {record['backbone']}, input {height} x {width}", markup=False, soft_wrap=True)
    if cost is not None:
        console.print(
            f"{cost.parameters:,} parameters, {cost.gflops:.2f} GFLOPs an image, weights {cost.weights_mb:.1f} MB",
            markup=False,
        )
    console.print(f"{where['device']}, {where['threads']} thread(s)", markup=False)
    table = Table("engine", "on", title="from pixels to boxes", title_justify="left")
    for name in ("batch", "median ms", "90 % ms", "99 % ms", "images/s", "memory MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for speed in speeds:
        times = (f"{value:.1f}" for value in (speed.median_ms, speed.p90_ms, speed.p99_ms))
        table.add_row(
            speed.engine,
            speed.device,
            str(speed.batch_size),
            *times,
            f"{speed.images_per_second:.1f}",
            f"{speed.memory_mb:.0f}",
        )
    console.print(table)
