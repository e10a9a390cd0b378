"""``drloss compare``: should I change my loss? Several losses on the user's own data, one page with the answer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape

from drloss.data.annotations import Annotations
from drloss.data.checks.images import check_images
from drloss.data.source import DataSource
from drloss.distributed.ranks import Ranks
from drloss.errors import UserError
from drloss.evaluation.thresholds import counted, fair_threshold
from drloss.io.atomic import write_json, write_text
from drloss.studies.compare.differences import (
    Comparison,
    Contender,
    conclusion,
    configurations,
    difference,
    disagreements,
    slug,
    title,
)
from drloss.studies.compare.exports import markdown, to_json
from drloss.studies.compare.measure import is_finished, measure_run
from drloss.studies.compare.page import count, write_page
from drloss.studies.jobs import job_of, run_folder, train_jobs
from drloss.studies.report.gallery import gallery
from drloss.training.config import Config, make_loss
from drloss.training.preparation import require_boxes
from drloss.training.records import environment
from drloss.training.run_folder import settings_of

REPORT, MARKDOWN, JSON_REPORT = "report.html", "report.md", "report.json"
PICTURES = 6
"""Images in the gallery: those on which the first two losses differ most."""


def run_compare(
    source: DataSource,
    losses: Sequence[str],
    seeds: Sequence[int],
    base: Config,
    splits: tuple[str, str],
    out: Path,
    ranks: Ranks,
    *,
    at_once: int,
    start: str,
    data: Sequence[str],
    skip_bad: bool = False,
    console: Console,
) -> Path:
    """Train each loss with each seed, measure the runs and write the report.

    Args:
        source: data set with both ``splits``.
        losses: at least one, as ``drloss train --loss`` takes them; the first is the one to beat.
        seeds: seeds of the runs of each loss.
        base: configuration of every run, except its loss and its seed.
        splits: names of the split to train on and of the split to evaluate on.
        out: folder for ``runs/``, ``report.html``, ``report.md`` and ``report.json``; finished runs in it are kept.
        ranks: device of the runs.
        at_once: number of runs at a time.
        start: preset or file that ``base`` started from, for the report.
        data: options of ``drloss train`` for the data set.
        skip_bad: whether to leave out bad images and boxes.
        console: where to print.
    Returns:
        Path of the HTML page.
    Raises:
        UserError: if options, data or folder do not fit, or a run fails.
    """
    configs = configurations(losses, seeds, base)
    train, val = (_read(source, split, skip_bad) for split in splits)
    if not counted(val):
        raise UserError(f"{source.name}: split {splits[1]} has no objects to compare on")
    require_boxes(train)
    data = [*data, "--train-split", splits[0], "--val-split", splits[1], *(["--skip-bad"] if skip_bad else [])]
    folders = {(spec, seed): run_folder(out, slug(spec, seed)) for spec, seed in configs}
    jobs = [
        job_of(f"{title(spec)}, seed {seed}", folders[spec, seed], config, data)
        for (spec, seed), config in configs.items()
        if not is_finished(folders[spec, seed], config, train, val)
    ]
    if len(jobs) < len(configs):
        console.print(f"{len(configs) - len(jobs)} of {count(len(configs), 'run')} done already", soft_wrap=True)
    if jobs:
        train_jobs(jobs, ranks.device, at_once, console)
    contenders = []
    for spec in losses:
        runs = []
        for seed in seeds:
            console.print(f"measuring {escape(title(spec))}, seed {seed}", soft_wrap=True)
            runs.append(measure_run(folders[spec, seed], configs[spec, seed], val, ranks))
        contenders.append(Contender(spec, runs))
    first, *others = contenders
    console.print("resampling the images")
    differences = [difference(other, first) for other in others]
    conclusions = [conclusion(d, len(val)) for d in differences]
    facts = _facts(source.name, train, val, ranks, configs[losses[0], seeds[0]])
    settings = {
        spec: _settings(configs[spec, seeds[0]], start, [folders[spec, seed] for seed in seeds]) for spec in losses
    }
    name = f"{', '.join(map(title, losses))} on {source.name}"
    comparison = Comparison(name, contenders, differences, conclusions, facts, settings)
    write_page(out / REPORT, comparison, _gallery(val, contenders))
    write_text(out / MARKDOWN, markdown(comparison))
    write_json(out / JSON_REPORT, to_json(comparison))
    for line in conclusions:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"report: {out / REPORT}", markup=False, soft_wrap=True)
    return out / REPORT


def _read(source: DataSource, split: str, skip_bad: bool) -> Annotations:
    annotations, report = source.read(split, strict=not skip_bad)
    return check_images(annotations, report, strict=False)[0] if skip_bad else annotations


def _facts(name: str, train: Annotations, val: Annotations, ranks: Ranks, config: Config) -> dict[str, str]:
    where = environment(ranks.device, ranks.size)
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    return {
        "data": f"{name}: {count(len(train), 'image')} to train on, {len(val)} to evaluate on, "
        f"{count(counted(val), 'object')} in {'it' if len(val) == 1 else 'them'}",
        "detector": f"{config.detector.backbone}, images of {config.detector.short_side} pixels",
        "device": f"{where['device']}, {count(torch.get_num_threads(), 'thread')}",
        "date": where["started"],
        "drloss": f"{where['drloss']}, commit {where['commit'] or 'unknown'}",
        "versions": f"Python {where['python']}, {versions}",
    }


def _settings(config: Config, start: str, folders: Sequence[Path]) -> dict[str, str]:
    precisions = {str((settings_of(folder) or {}).get("precision", config.precision)) for folder in folders}
    loss = make_loss(config.loss)
    watched = {"average of the weights": f"decay {config.ema:g}"} if config.ema else {}
    every = f"{count(config.patience, 'evaluation')}, one every {count(config.eval_every, 'iteration')}"
    watched |= {"patience": every} if config.patience else {}
    return {
        "loss": repr(loss),
        "prior probability": f"{loss.prior_probability:g}",
        "preset": start,
        "weights": config.weights,
        "optimiser": f"{config.optimizer}, learning rate {config.lr:g}, {config.schedule}",
        "batch": str(config.batch_size),
        "iterations": str(config.max_iters),
        **watched,
        "precision": ", ".join(sorted(precisions)),
        "score threshold": f"{config.detector.score_threshold:g}",
        "NMS threshold": f"{config.detector.nms_threshold:g}",
    }


def _gallery(val: Annotations, contenders: Sequence[Contender]) -> Image.Image:
    """The images on which the first seeds of the first two losses differ most."""
    shown = [contender.runs[0] for contender in contenders]
    first, second = shown[0], shown[min(1, len(shown) - 1)]
    thresholds = [fair_threshold(run.detections, counted(val)) for run in (first, second)]
    ranked = disagreements(first.matches, second.matches, *thresholds)
    return gallery(val, [run.detections for run in shown], ranked[:PICTURES])
