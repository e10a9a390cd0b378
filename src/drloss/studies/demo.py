"""``drloss demo``: focal and DR from the same start on the same data, side by side in one page.

The two runs share the seed, and with it the initial weights but for the classifier's bias, the order of the images
and their augmentation; and the schedule, the learning rate and the budget. Each has its own best-known prior and
weight: what :func:`drloss.losses.make_loss` gives it.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.data.formats.opening import DataSource
from drloss.detector.detections import Detection
from drloss.distributed.ranks import Ranks
from drloss.errors import UserError
from drloss.evaluation.coco import METRICS, evaluate, percent, undefined_ap
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.limits import full_images
from drloss.evaluation.running import run_detector
from drloss.evaluation.thresholds import threshold_sweep
from drloss.inference.evaluate import observe_scores
from drloss.io.atomic import write_json
from drloss.studies.jobs import Job, train_jobs
from drloss.studies.report.gallery import gallery
from drloss.studies.report.sections import RunSummary, write_report
from drloss.training.checkpoints import load_run
from drloss.training.config import Config, make_loss, override
from drloss.training.log import EVALUATIONS, environment, read_scalars
from drloss.training.log import METRICS as SCALARS
from drloss.training.presets import PRESETS
from drloss.training.runs import require_boxes, warn

LOSSES = {"focal": "Focal", "dr": "DR"}
"""The two losses and what the report calls them."""
REPORT = "report.html"
SUMMARY = "summary.json"
FAIRNESS = (
    "Both runs have the same initial weights but for the classifier's bias, the same order of images, augmentation, "
    "schedule, learning rate and budget, and each loss its own best-known prior and weight. The focal loss "
    "is divided by the positives of all images of a step's micro-batch; the DR loss is divided by nothing."
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
    require_boxes(train)
    if problem := undefined_ap(val):
        raise UserError(f"{problem}, and nothing can be compared")
    settings: dict[str, object] = {"seed": seed} if max_iters is None else {"seed": seed, "max_iters": max_iters}
    configs = {loss: override(PRESETS["cpu"], {**settings, "loss": loss}) for loss in LOSSES}
    jobs = [
        Job(
            name=name,
            out=out / loss,
            iterations=configs[loss].max_iters,
            options=[
                *("--data", source.name, "--preset", "cpu", "--loss", loss),
                *("--seed", str(seed), "--max-iters", str(configs[loss].max_iters)),
            ],
        )
        for loss, name in LOSSES.items()
    ]
    train_jobs(jobs, ranks.device, len(jobs), console)
    summaries, detections = [], []
    for loss, name in LOSSES.items():
        summary, found = _summarise(name, configs[loss], out / loss, val, ranks)
        if problem := full_images(found, configs[loss].detector.max_detections):
            warn(console, f"{name}: {problem}")
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
        mosaic=gallery(val, detections, _shown(val)),
        conclusion=FAIRNESS,
    )
    write_json(out / SUMMARY, _to_json(summaries, facts))
    for summary in summaries:
        numbers = ", ".join(f"{m} {percent(summary.evaluation.metrics[m])}" for m in METRICS)
        console.print(f"[bold]{summary.name}[/]: {numbers}")
    console.print(
        f"{seconds / 60:.1f} minutes on {ranks.device}, {torch.get_num_threads()} threads; report: {report}"
    )
    return report


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


def _shown(val: Annotations) -> list[int]:
    """The first images with three objects or more; any, where there is none."""
    filled = [i for i in range(len(val)) if val.first_box[i + 1] - val.first_box[i] >= 3]
    return (filled or list(range(len(val))))[:PICTURES]


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
