"""Put a trained detector on offer: its weights in half precision, and a card that says what it is.

    python tools/model_card.py RUN --data DATA --split test --licence WORDS --out models/NAME

writes ``models/NAME.safetensors`` and ``models/NAME.md``. RUN must be a run folder that came from a commit without
changes. The numbers of the card are those of the file that is written, on images that the run has not seen.
"""

import argparse
import json
from hashlib import sha256
from pathlib import Path
from shlex import join
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from drloss.data.formats.opening import open_data
from drloss.detector.exported import load_detector, save_detector
from drloss.distributed.ranks import Ranks, choose_device
from drloss.evaluation.coco import METRICS, percent
from drloss.evaluation.matching import average_precision, match_detections
from drloss.inference.evaluate import Evaluated, evaluate_run
from drloss.io.atomic import write_text
from drloss.training.run_folder import CONFIG, ENVIRONMENT, MODEL

RESAMPLINGS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--licence", required=True, help="where the images are from, and their licence")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    model, about = load_detector(options.run / MODEL)
    file = options.out.with_suffix(".safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_detector(file, half, about)
    data, _ = open_data(options.data).read(options.split)
    with TemporaryDirectory() as folder:
        found = evaluate_run(
            file,
            data,
            Path(folder),
            Ranks(0, 1, choose_device("cpu")),
            batch_size=1,
            workers=0,
            score_threshold=None,
            console=Console(quiet=True),
        )
    assert found is not None
    matches = match_detections(data, found.detections)
    rng = np.random.default_rng(0)
    aps = [
        average_precision(matches, np.bincount(rng.integers(0, len(data), len(data)), minlength=len(data)))
        for _ in range(RESAMPLINGS)
    ]
    low, high = np.quantile(aps, [0.025, 0.975])
    started = json.loads((options.run / ENVIRONMENT).read_text())[0]
    config = json.loads((options.run / CONFIG).read_text())
    interval = f"{low:.1f} to {high:.1f}"
    write_text(options.out.with_suffix(".md"), card(file, found, started, config, options, interval, len(data)))


def card(
    file: Path,
    found: Evaluated,
    started: dict[str, Any],
    config: dict[str, Any],
    options: argparse.Namespace,
    interval: str,
    images: int,
) -> str:
    """The card's text.

    Args:
        file: the weights.
        found: their evaluation.
        started: first record of the run's environment.
        config: settings of the run.
        options: those of the command.
        interval: of AP over the images, in words.
        images: number of the evaluated images.
    """
    about, metrics, name = found.description, found.evaluation.metrics, Path(options.data).name
    if started["commit"] is None or started["commit"].endswith("+"):
        raise SystemExit(f"{options.run}: not from a commit without changes: {started['commit']}")
    command = [word if word != options.data else name for word in started["command"][1:]]
    where = started["data"]
    lines = [
        f"# {file.stem}",
        "",
        f"Dr. Retina with {about.detector.backbone}, trained with `--loss {about.loss}`. {options.licence}",
        "",
        "| | |",
        "|---|---|",
        f"| file | `{file.name}`, {file.stat().st_size / 1e6:.1f} MB, weights in half precision |",
        f"| SHA-256 | `{sha256(file.read_bytes()).hexdigest()}` |",
        f"| classes | {', '.join(about.class_names)} |",
        f"| started from | {started['started_from'][0]} |",
        f"| trained on | {name}, split train: {where['images']} images |",
        f"| evaluated on | {name}, split {options.split}: {images} images, which it has not seen |",
        f"| AP | {metrics['AP']:.2f}; 95 % interval over the images: {interval} |",
        f"| others | {', '.join(f'{m} {percent(metrics[m])}' for m in METRICS[1:])} |",
        f"| threshold | {about.threshold:.3f}, with the best F1 on the split val |",
        f"| images | short side {about.detector.short_side} pixels, longest side {about.detector.max_side} |",
        f"| seed | {config['seed']} |",
        f"| drloss | {started['drloss']}, commit {started['commit']} |",
        f"| with | Python {started['python']}, {', '.join(f'{p} {v}' for p, v in started['versions'].items())} |",
        f"| on | {started['device']}, {started['threads']} thread(s) |",
        "",
        "To make it again, up to the last bits of another processor:",
        "",
        f"    drloss {join(command)}",
        f"    python tools/model_card.py RUN --data {name} --split {options.split} --licence ... --out {options.out}",
        "",
        "It shows what the preset reaches in some ten minutes on a laptop. It is no medical device, and was tried on",
        "no images but these.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
