"""DR and focal loss on generated shapes: same model, budget and data, three seeds, all at once on the device.

It shows that training works on this device, not which loss is better: the pictures are small and generated. The AP is
by :mod:`drloss.evaluation.matching`, which needs no other package.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.notes import Notes

LOSSES, SEEDS = ("dr", "focal"), (0, 1, 2)
DATA, SMALL_DATA = "shapes:train=1024,val=256", "shapes:train=16,val=4,size=64"
STEPS, STEPS_A_SECOND = 300, 4
"""Steps of each run, and how many of them each of six runs at once is trusted to take in a second."""
SMALL = {"short_side": 64, "fpn_channels": 32, "head_channels": 32, "batch_size": 4, "scale_lr": False, "workers": 0}


def run(notes: Notes) -> None:
    """Note it; see :mod:`benchmarks.gpu`."""
    steps = 4 if notes.small else max(min(STEPS, int(STEPS_A_SECOND * notes.left)), 20)
    notes.note("steps", steps)
    runs = [(loss, seed) for seed in ((0,) if notes.small else SEEDS) for loss in LOSSES]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        begun = {key: _start(folder, *key, steps, notes) for key in runs}
        while begun and notes.left > 4:
            for key, process in list(begun.items()):
                if process.poll() is None:
                    continue
                del begun[key]
                rows.append(_row(folder, *key))
                notes.note("runs", sorted(rows, key=lambda row: (row["loss"], row["seed"])), say=str(rows[-1])[:200])
            time.sleep(0.2)
        for (loss, seed), process in begun.items():
            process.kill()
            rows.append({"loss": loss, "seed": seed, "error": "there was no time left for it"})
    notes.note("runs", sorted(rows, key=lambda row: (row["loss"], row["seed"])))


def _start(folder: Path, loss: str, seed: int, steps: int, notes: Notes) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "benchmarks.gpu.training", loss, str(seed), str(steps), notes.device]
    with (folder / f"{loss}-{seed}.txt").open("wb") as said:
        return subprocess.Popen([*command, str(folder / f"{loss}-{seed}")], stdout=said, stderr=said)


def _row(folder: Path, loss: str, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"loss": loss, "seed": seed}
    try:
        return found | json.loads((folder / f"{loss}-{seed}" / "found.json").read_text())
    except OSError:
        lines = (folder / f"{loss}-{seed}.txt").read_text(errors="replace").strip().splitlines()
        return found | {"error": lines[-1] if lines else "it wrote nothing", "said": "\n".join(lines[-30:])}


def train(loss: str, seed: int, steps: int, device: str, out: Path) -> dict[str, Any]:
    """Train one detector, and give its losses and its AP in percent."""
    from drloss.data.formats.shapes import open_shapes
    from drloss.distributed.ranks import Ranks
    from drloss.evaluation.detecting import run_detector
    from drloss.evaluation.matching import average_precision, match_detections
    from drloss.training.config import override
    from drloss.training.fit import fit
    from drloss.training.log import read_scalars
    from drloss.training.presets import PRESETS
    from drloss.training.run_folder import METRICS_FILE
    from drloss.training.trained import load_run

    torch.set_num_threads(1)
    small = device == "cpu"
    settings = {"loss": loss, "seed": seed, "max_iters": steps, "eval_every": 0, "checkpoint_every": steps}
    config = override(PRESETS["cpu"], settings | {"workers": 1, "cache": "ram"} | (SMALL if small else {}))
    source = open_shapes(SMALL_DATA if small else DATA)
    ranks = Ranks(0, 1, torch.device(device))
    began = time.perf_counter()
    fit(config, source.read("train")[0], None, out, ranks)
    seconds = time.perf_counter() - began
    model, _ = load_run(out)
    val = source.read("val")[0]
    matches = match_detections(val, run_detector(model.to(ranks.device), val, ranks, batch_size=16))
    at_half = replace(matches, found=matches.found[:1].repeat(10, 0), counted=matches.counted[:1].repeat(10, 0))
    losses = read_scalars(out / METRICS_FILE)["loss"][1]
    found: dict[str, Any] = {"seconds": seconds, "first_loss": losses[0], "last_loss": losses[-1]}
    return found | {"AP50": average_precision(at_half), "AP": average_precision(matches)}


def main(loss: str, seed: str, steps: str, device: str, out: str) -> None:
    found = train(loss, int(seed), int(steps), device, Path(out))
    (Path(out) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
