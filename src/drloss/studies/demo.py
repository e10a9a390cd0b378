"""``drloss demo``: focal and DR from the same start on the same data, side by side in one page.

The two runs share the seed, and with it the initial weights but for the classifier's bias, the order of the images
and their augmentation; and the schedule, the learning rate and the budget. Each has its own best-known prior and
weight: what :data:`drloss.losses.LOSSES` gives it.
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from drloss.data.annotations import Annotations
from drloss.data.sources import DataSource
from drloss.detector.detections import Detection
from drloss.errors import UserError
from drloss.evaluation.coco import METRICS, evaluate
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.drawing import draw_detections, mosaic
from drloss.evaluation.inference import run_detector
from drloss.evaluation.thresholds import threshold_sweep
from drloss.files import write_json
from drloss.ranks import Ranks
from drloss.studies.evaluate import observe_scores
from drloss.studies.report import RunSummary, write_report
from drloss.training.checkpoints import load_run
from drloss.training.config import Config, make_loss, override
from drloss.training.log import EVALUATIONS, environment, read_scalars
from drloss.training.log import METRICS as SCALARS
from drloss.training.presets import PRESETS

LOSSES = {"focal": "Focal", "dr": "DR"}
"""The two losses and what the report calls them."""
REPORT = "report.html"
SUMMARY = "summary.json"
FAIRNESS = (
    "Both runs have the same initial weights but for the classifier's bias, the same order of images, augmentation, "
    "schedule, learning rate and budget, and each loss its own best-known prior and weight. The focal loss of an "
    "image is divided by that image's positives; the DR loss is divided by nothing."
)
PICTURES = 6
"""Images of the validation split in the mosaic."""


def run_demo(
    source: DataSource, out: Path, ranks: Ranks, *, max_iters: int | None, seed: int, console: Console
) -> Path:
    """Train both losses with the ``cpu`` preset, evaluate them and write ``report.html``.

    Args:
        source: data with the splits train and val.
        out: folder of the report and of one run folder per loss; a run that was interrupted is resumed.
        ranks: for the device.
        max_iters: iterations of each run, or the preset's.
        seed: of both.
        console: where to print.
    Returns:
        The report's path.
    Raises:
        UserError: if the data or the folder do not fit, or a run failed.
    """
    began = time.perf_counter()
    train, _ = source.read("train")
    val, _ = source.read("val")
    settings: dict[str, object] = {"seed": seed} if max_iters is None else {"seed": seed, "max_iters": max_iters}
    configs = {loss: override(PRESETS["cpu"], {**settings, "loss": loss}) for loss in LOSSES}
    _train_both(source.name, configs, out, ranks, console)
    summaries, detections = [], []
    for loss, name in LOSSES.items():
        summary, found = _summarise(name, configs[loss], out / loss, val, ranks)
        summaries.append(summary)
        detections.append(found)
    seconds = time.perf_counter() - began
    facts = _facts(source.name, train, val, ranks, seconds)
    report = out / REPORT
    write_report(
        report,
        summaries,
        title=f"Focal and DR loss on {source.name}",
        facts=facts,
        mosaic_png=_mosaic(val, detections),
        conclusion=FAIRNESS,
    )
    write_json(out / SUMMARY, _to_json(summaries, facts))
    for summary in summaries:
        numbers = ", ".join(f"{m} {summary.evaluation.metrics[m]:.1f}" for m in METRICS)
        console.print(f"[bold]{summary.name}[/]: {numbers}")
    console.print(
        f"{seconds / 60:.1f} minutes on {ranks.device}, {torch.get_num_threads()} threads; report: {report}"
    )
    return report


def _train_both(data: str, configs: dict[str, Config], out: Path, ranks: Ranks, console: Console) -> None:
    """Train the runs at the same time, each as ``drloss train`` on half of the cores.

    Small convolutions keep two cores busier than four: side by side the two runs take two thirds of the time that
    they take one after the other, and what else the machine does slows both alike.
    """
    threads = max(1, torch.get_num_threads() // len(configs))
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    out.mkdir(parents=True, exist_ok=True)
    children: dict[str, subprocess.Popen[bytes]] = {}
    console.print(
        f"training {' and '.join(LOSSES.values())} side by side, {threads} thread(s) each, on {ranks.device}"
    )
    for loss, config in configs.items():
        command = [sys.executable, "-m", "drloss", "train", "--data", data, "--preset", "cpu", "--resume"]
        command += [
            "--loss",
            loss,
            "--out",
            str(out / loss),
            "--device",
            str(ranks.device),
            "--seed",
            str(config.seed),
        ]
        command += ["--max-iters", str(config.max_iters)]
        with (out / f"{loss}.log").open("wb") as log:
            children[loss] = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
    try:
        failed = _watch(children, configs, out, console)
    finally:
        for child in children.values():
            child.terminate()  # a run that has ended does not mind; another writes its checkpoint and ends
        for child in children.values():
            child.wait()
    if failed:
        last = (out / f"{failed}.log").read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"the {failed} run failed ({out / failed}.log): {''.join(last)}")


def _watch(
    children: dict[str, "subprocess.Popen[bytes]"], configs: dict[str, Config], out: Path, console: Console
) -> str | None:
    """Show how far each run is, from its own records, until all have ended or one has failed, which is returned."""
    words = TextColumn("{task.description:<6}"), TextColumn("{task.fields[state]}")
    times = TimeElapsedColumn(), TimeRemainingColumn()
    printed = -20.0
    with Progress(words[0], BarColumn(), MofNCompleteColumn(), words[1], *times, console=console) as progress:
        tasks = {k: progress.add_task(LOSSES[k], total=c.max_iters, state="") for k, c in configs.items()}
        while True:
            states = {loss: _state(out / loss) for loss in tasks}
            for loss, (done, state) in states.items():
                progress.update(tasks[loss], completed=done, state=state)
            if not console.is_terminal and time.monotonic() >= printed + 20:
                printed = time.monotonic()
                for loss, (done, state) in states.items():
                    console.print(f"{LOSSES[loss]}: {done}/{configs[loss].max_iters} {state}")
            codes = {loss: child.poll() for loss, child in children.items()}
            if any(codes.values()):
                return next(loss for loss, code in codes.items() if code)
            if all(code == 0 for code in codes.values()):
                return None
            time.sleep(1)


def _state(run: Path) -> tuple[int, str]:
    """Iterations that a run has logged, and its last loss and AP50 in words."""
    curves = read_scalars(run / SCALARS) | read_scalars(run / EVALUATIONS)
    if "loss" not in curves:
        return 0, ""
    ap50 = f", AP50 {curves['AP50'][1][-1]:.1f}" if "AP50" in curves else ""
    return int(curves["loss"][0][-1]), f"loss {curves['loss'][1][-1]:.3f}{ap50}"


def _summarise(
    name: str, config: Config, run: Path, val: Annotations, ranks: Ranks
) -> tuple[RunSummary, list[Detection]]:
    """Evaluate a finished run and gather what the report shows of it."""
    model, about = load_run(run)
    model.to(ranks.device)
    histogram = ScoreHistogram()
    detections = run_detector(
        model,
        val,
        ranks,
        batch_size=config.eval_batch_size,
        workers=config.workers,
        observe=lambda outputs, batch: observe_scores(histogram, model, outputs, batch),
    )
    curves = read_scalars(run / SCALARS) | read_scalars(run / EVALUATIONS)
    loss = make_loss(config.loss)
    settings = {
        "loss": repr(loss),
        "prior probability": f"{loss.prior_probability:g}",
        "backbone": f"{about.detector.backbone}, {about.detector.norm} norm, random weights",
        "optimiser": f"{config.optimizer}, learning rate {config.lr:g}, {config.schedule}",
        "batch": str(config.batch_size),
        "iterations": str(config.max_iters),
        "seed": str(config.seed),
        "score threshold": f"{about.detector.score_threshold:g}",
        "NMS threshold": f"{about.detector.nms_threshold:g}",
    }
    summary = RunSummary(
        name=name,
        loss=config.loss,
        evaluation=evaluate(val, detections),
        sweep=threshold_sweep(val, detections),
        histogram=histogram,
        curves=curves,
        settings=settings,
        seconds=sum(curves["seconds"][1]),
        iterations=config.max_iters,
    )
    return summary, detections


def _facts(name: str, train: Annotations, val: Annotations, ranks: Ranks, seconds: float) -> dict[str, str]:
    where = environment(ranks.device, ranks.size)
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    return {
        "data": f"{name}: {len(train)} images to train on, {len(val)} to evaluate on",
        "device": f"{where['device']}, {torch.get_num_threads()} threads, both runs at the same time",
        "time": f"{seconds / 60:.1f} minutes in the call that wrote this page",
        "date": where["started"],
        "drloss": f"{where['drloss']}, commit {where['commit'] or 'unknown'}",
        "versions": f"Python {where['python']}, {versions}",
    }


def _mosaic(val: Annotations, detections: Sequence[list[Detection]]) -> bytes:
    """PNG with a row per image: the truth, then what each run detects."""
    filled = [i for i in range(len(val)) if val.first_box[i + 1] - val.first_box[i] >= 3]
    thresholds = [_threshold(found, len(val.boxes)) for found in detections]
    tiles = []
    for i in (filled or list(range(len(val))))[:PICTURES]:
        own = val.boxes_of(i)
        truth: Detection = {
            "boxes": torch.from_numpy(val.boxes[own]).float(),
            "scores": torch.ones(own.stop - own.start),
            "labels": torch.from_numpy(val.labels[own]),
        }
        image = val.load_image(i)
        tiles.append(draw_detections(image, truth, val.class_names, threshold=0.0, show_scores=False))
        for found, threshold in zip(detections, thresholds, strict=True):
            tiles.append(draw_detections(image, found[i], val.class_names, threshold=threshold))
    buffer = io.BytesIO()
    mosaic(tiles, columns=1 + len(detections)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _threshold(detections: Sequence[Detection], objects: int) -> float:
    """Score that as many detections reach as there are objects: the same number of boxes for every loss."""
    scores = torch.cat([d["scores"] for d in detections]).sort(descending=True).values
    return float(scores[min(objects, len(scores)) - 1]) if len(scores) and objects else 1.0


def _to_json(summaries: Sequence[RunSummary], facts: dict[str, str]) -> dict[str, object]:
    runs = [
        {
            "name": s.name,
            "loss": s.loss,
            "settings": s.settings,
            "seconds": s.seconds,
            "evaluation": s.evaluation.to_json(),
            "thresholds": s.sweep,
        }
        for s in summaries
    ]
    return {"facts": facts, "runs": runs}
