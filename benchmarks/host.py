"""What a call of the loss costs the host on a GPU, before anything runs on the device.

    python -m benchmarks.host [--against SRC]

The kernels' launches do nothing, so that no GPU is needed, and what is left is Python: checks, views, arguments. A
small batch cannot be quicker than that. ``--against`` measures the package in another folder as well (``src`` of
another checkout), in turns with this one. Values of labels are not looked at, as on a device.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import surroundings

RESULTS = Path(__file__).parent / "results"
CLASSES, SHAPES = 80, 9
SIDES = ((12, 21), (6, 10), (3, 5), (3, 5), (3, 5))
"""Small maps of five levels: the cost does not depend on their sizes."""
TIMES, ROUNDS = 400, 5


def measure(images: int = 2) -> dict[str, float]:
    """Microseconds of a forward and of a backward call of the DR loss, each the first decile of many."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    import drloss.losses.inputs
    from drloss import DRLoss
    from drloss.losses.fused import triton as backend

    class NoLaunch:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: None

    backend.pass_over_logits = backend.finish = NoLaunch()  # type: ignore[assignment]
    drloss.losses.inputs.values_can_be_checked = lambda values: False
    torch.set_num_threads(1)
    maps = [torch.zeros(images, SHAPES * CLASSES, h, w, requires_grad=True) for h, w in SIDES]
    labels = torch.zeros(images, SHAPES * sum(h * w for h, w in SIDES), dtype=torch.int64)
    loss = DRLoss(backend="triton")
    forward, backward = [], []
    for _ in range(TIMES):
        began = time.perf_counter()
        value = loss(maps, labels)
        between = time.perf_counter()
        value.backward()  # type: ignore[no-untyped-call]
        forward.append(between - began)
        backward.append(time.perf_counter() - between)
        for level in maps:
            level.grad = None
    return {"forward": sorted(forward)[TIMES // 10] * 1e6, "backward": sorted(backward)[TIMES // 10] * 1e6}


def in_turns(sources: dict[str, Path]) -> dict[str, dict[str, float]]:
    """The least of several rounds for each package, in processes of their own that take turns."""
    found: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for name, source in sources.items():
            path = os.pathsep.join([str(source.resolve()), str(Path(__file__).parents[1])])
            command = [sys.executable, "-c", "import benchmarks.host as h, json; print(json.dumps(h.measure()))"]
            done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=True)
            one = json.loads(done.stdout)
            found[name] = {key: min(value, found.get(name, one)[key]) for key, value in one.items()}
    return found


def commit(folder: Path) -> str:
    """The commit that a checkout is at."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, metavar="SRC", help="folder of another version of the package")
    other = parser.parse_args().against
    sources = {"this": Path(__file__).parents[1] / "src"} | ({} if other is None else {"before": other})
    microseconds: dict[str, Any] = in_turns(sources)
    for name, found in microseconds.items():
        print(f"{name:7} forward {found['forward']:4.0f} µs, backward {found['backward']:4.0f} µs")
    found = surroundings("cpu") | {"before_commit": None if other is None else commit(other)}
    path = RESULTS / f"{date.today()}-host.json"
    path.write_text(json.dumps(found | {"microseconds": microseconds}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
