"""Which learning rate (and weight) suits each loss at the demo's budget: the same grid for both, side by side.

    python benchmarks/rates.py --out runs/rates [--rates 0.001 0.002 0.004] [--losses focal dr] [--jobs 4]

Every run is ``drloss train --data shapes --preset cpu`` with one thread, `jobs` of them at a time. AP50 of the
validation split at the end is printed as a table; records belong in ``benchmarks/results/``.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from drloss.training.log import read_scalars
from drloss.training.records import environment
from drloss.training.run_folder import EVALUATIONS_FILE

SHOWN = ("AP", "AP50", "AP75")


def train(out: Path, loss: str, rate: float, options: list[str]) -> dict[str, float]:
    """Train once, or read what an earlier call left, and return the last evaluation."""
    folder = out / f"{loss.replace(':', '_').replace('=', '_')}_{rate:g}"
    if not (folder / "model.safetensors").exists():
        command = [sys.executable, "-m", "drloss", "train", "--data", "shapes", "--preset", "cpu", "--resume"]
        command += ["--out", str(folder), "--loss", loss, "--lr", str(rate), "--workers", "0", *options]
        log = out / f"{folder.name}.log"
        with log.open("w") as file:
            environ = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT, env=environ)
    curves = read_scalars(folder / EVALUATIONS_FILE)
    return {metric: curves[metric][1][-1] for metric in SHOWN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.002, 0.004])
    parser.add_argument("--losses", nargs="+", default=["focal", "dr"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options, passed_on = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    where = environment(torch.device("cpu"), 1)
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    print(f"{where['started']}, {where['platform']}, {os.cpu_count()} cores, {options.jobs} runs at a time")
    print(f"drloss {where['commit']}, Python {where['python']}, {versions}")
    print(f"drloss train --data shapes --preset cpu --workers 0 {' '.join(passed_on)}")
    grid = [(loss, rate) for loss in options.losses for rate in options.rates]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda cell: train(options.out, *cell, passed_on), grid))
    print(f"{'loss':<24}{'rate':>8}" + "".join(f"{metric:>8}" for metric in SHOWN))
    for (loss, rate), metrics in zip(grid, found, strict=True):
        print(f"{loss:<24}{rate:>8g}" + "".join(f"{metrics[metric]:>8.1f}" for metric in SHOWN))


if __name__ == "__main__":
    main()
