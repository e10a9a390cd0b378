"""The measurements of one finished run for a comparison. They are kept beside the detector until its file changes."""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import torch

from drloss.data.annotations import Annotations
from drloss.data.batches import Batch
from drloss.detector.detections import detect
from drloss.detector.exported import read_description
from drloss.detector.model import HeadOutputs, RetinaNet
from drloss.detector.objective import Objective, assign_batch, options_of_batch
from drloss.detector.precision import autocast
from drloss.detector.starting_weights import resolve_detector
from drloss.distributed.ranks import Ranks
from drloss.evaluation.coco import Evaluation, evaluate
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.detecting import run_detector
from drloss.evaluation.matching import MatchedDetections, match_detections
from drloss.evaluation.thresholds import THRESHOLDS, above, threshold_sweep
from drloss.inference.evaluate import observe_scores
from drloss.io.atomic import write_json
from drloss.structures import Detection
from drloss.training.config import Config, make_loss, to_json
from drloss.training.device import DeviceConfig, for_device
from drloss.training.fingerprint import fingerprint
from drloss.training.log import read_scalars
from drloss.training.resume import HOW_IT_RUNS, changed_settings
from drloss.training.run_folder import CONFIG, ENVIRONMENT, EVALUATIONS_FILE, METRICS_FILE, MODEL, settings_of
from drloss.training.trained import load_run

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages of the memory profiler
MEASUREMENTS = "measured.json"
_VERSION = 2
TIMED_BATCHES = 4
"""Number of batches whose post-processing is timed at each threshold."""


@dataclass(frozen=True)
class RunResult:
    """The measurements of a finished run on the validation split.

    Attributes:
        folder: run folder.
        seed: seed of the run.
        evaluation: metrics at the run's own score threshold.
        sweep: records of :func:`drloss.evaluation.thresholds.threshold_sweep`. Each also has ``candidates``, the
            number per image that reaches NMS, and ``postprocess_ms``, the time per image.
        histogram: scores of the candidates.
        detections: of every image, above the run's own score threshold.
        matches: the same detections, matched to objects.
        curves: what the run logged, if the files are still there.
        seconds: training time without evaluation; NaN if it was not logged.
        iterations: iterations of training.
        cost: of one training step on ``images`` images: its time ``step_ms``, the time of the classification loss
            ``loss_ms``, and its peak memory ``peak_mb``; empty if the split has no image.
    """

    folder: Path
    seed: int
    evaluation: Evaluation
    sweep: list[dict[str, float]]
    histogram: ScoreHistogram
    detections: list[Detection]
    matches: MatchedDetections
    curves: dict[str, tuple[list[float], list[float]]]
    seconds: float
    iterations: int
    cost: dict[str, float]


def measure_run(folder: Path, config: Config, val: Annotations, ranks: Ranks) -> RunResult:
    """Measure a finished run, or read the kept measurements if neither its detector's file nor the data have changed.

    A threshold that ``drloss eval`` writes into that file changes it, too.

    Args:
        folder: run folder.
        config: configuration of the run.
        val: split to evaluate on.
        ranks: device of the detector.
    """
    key = f"{_VERSION} {hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()} {fingerprint(val)}"
    if _kept(folder).get("key") != key:
        write_json(folder / MEASUREMENTS, _measure(folder, config, val, ranks) | {"key": key})
    kept = _kept(folder)
    detections = [
        {
            "boxes": torch.tensor(d["boxes"], dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor(d["scores"], dtype=torch.float32),
            "labels": torch.tensor(d["labels"], dtype=torch.int64),
        }
        for d in kept["detections"]
    ]
    curves = read_scalars(folder / METRICS_FILE) | read_scalars(folder / EVALUATIONS_FILE)
    return RunResult(
        folder=folder,
        seed=config.seed,
        evaluation=Evaluation.from_json(kept["evaluation"]),
        sweep=[{k: nan if v is None else v for k, v in record.items()} for record in kept["sweep"]],
        histogram=ScoreHistogram.from_json(kept["histogram"]),
        detections=detections,
        matches=match_detections(val, detections),
        curves=curves,
        seconds=sum(curves["seconds"][1]) if "seconds" in curves else nan,
        iterations=_length(folder, config),
        cost=kept["cost"],
    )


def _length(folder: Path, config: Config) -> int:
    """Number of iterations of a finished run, which its patience may have ended."""
    about = read_description(folder / MODEL)
    return config.max_iters if about is None or about.iteration is None else about.iteration


def _kept(folder: Path) -> dict[str, Any]:
    """The kept measurements; empty if they cannot be read."""
    try:
        kept = json.loads((folder / MEASUREMENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def is_finished(folder: Path, config: Config, train: Annotations, val: Annotations) -> bool:
    """Whether a folder holds the finished run of a configuration on these data. Its checkpoints may be gone.

    If the folder holds another run, ``drloss train --resume`` reports the difference.
    """
    try:
        was = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        data = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))[-1]["data"]["fingerprint"]
        now = to_json(replace(config, detector=resolve_detector(config.detector, config.weights)))
        same = data == fingerprint(train) and not changed_settings(was, now, HOW_IT_RUNS)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    measured = str(_kept(folder).get("key", ""))
    return same and (folder / MODEL).is_file() and (not measured or measured.endswith(fingerprint(val)))


def _measure(folder: Path, config: Config, val: Annotations, ranks: Ranks) -> dict[str, Any]:
    model, _ = load_run(folder)
    model.to(ranks.device)
    histogram = ScoreHistogram()
    timed: list[tuple[HeadOutputs, Batch]] = []

    def observe(outputs: HeadOutputs, batch: Batch) -> None:
        observe_scores(histogram, model, outputs, batch)
        if len(timed) < TIMED_BATCHES:
            timed.append((outputs, batch))

    # The lowest threshold gives the detections at every higher one, too: see threshold_sweep.
    own = model.config
    model.config = replace(own, score_threshold=min(own.score_threshold, *THRESHOLDS))
    settings = for_device(config, ranks.device, so_far=settings_of(folder))
    options: dict[str, Any] = {"workers": settings.workers, "precision": settings.precision}
    everything = run_detector(model, val, ranks, batch_size=config.eval_batch_size, observe=observe, **options)
    model.config = own
    detections = above(everything, own.score_threshold)
    sweep = [
        record | _post_processing(model, timed, record["threshold"]) for record in threshold_sweep(val, everything)
    ]
    return {
        "evaluation": evaluate(val, detections).to_json(),
        "sweep": sweep,
        "histogram": histogram.to_json(),
        "detections": [{name: value.tolist() for name, value in d.items()} for d in detections],
        "cost": _cost(model, settings, timed, ranks.device) if timed else {},
    }


def _post_processing(model: RetinaNet, timed: list[tuple[HeadOutputs, Batch]], threshold: float) -> dict[str, float]:
    """Number of candidates that reach NMS, and milliseconds from logits to detections, per image at a threshold."""
    config = replace(model.config, score_threshold=threshold)
    images = sum(len(batch.indices) for _, batch in timed)
    if not images:
        return {}
    candidates = sum(
        min(int((scores.float().sigmoid() > threshold).sum()), config.level_candidates)
        for outputs, _ in timed
        for level in outputs.logits
        for scores in level
    )
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for outputs, batch in timed:
            detect(outputs, batch.frames, config)
        if timed[0][0].logits[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {"candidates": candidates / images, "postprocess_ms": 1e3 * statistics.median(times) / images}


def _cost(
    model: RetinaNet, config: DeviceConfig, timed: list[tuple[HeadOutputs, Batch]], device: torch.device
) -> dict[str, float]:
    """Time and peak memory of a training step on a micro-batch of validation images, and the time of its loss.

    The step has the precision and memory format of the run, but is not compiled.
    """
    batch = timed[0][1]
    n = min(config.micro_batch, len(batch.indices))
    images, objects = batch.images[:n].to(device), batch.objects[:n].to(device)
    loss = make_loss(config.loss).to(device)
    objective = Objective(loss, model.config)
    model.train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)

    def forward() -> HeadOutputs:
        with autocast(device, config.precision):
            outputs: HeadOutputs = model(images)
        return outputs

    def step() -> None:
        model.zero_grad(set_to_none=True)
        objective(forward(), objects).total.backward()

    with torch.no_grad():
        outputs = forward()
    targets = assign_batch(outputs, objects, model.config)
    of_batch = options_of_batch(loss, targets, torch.cat(outputs.deltas, dim=1), torch.cat(outputs.anchors))
    maps = [m.detach().requires_grad_() for m in outputs.maps]

    def loss_alone() -> None:
        loss(maps, targets.labels, **of_batch).backward()
        for m in maps:
            m.grad = None

    found = {"step_ms": _milliseconds(step, device), "loss_ms": _milliseconds(loss_alone, device)}
    model.zero_grad(set_to_none=True)  # else the step starts by freeing these gradients
    return found | {"peak_mb": _peak_mb(step, device), "images": float(n)}


def _milliseconds(run: Callable[[], None], device: torch.device, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def _peak_mb(run: Callable[[], None], device: torch.device) -> float:
    """Peak of the memory that torch allocates during a call, in megabytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(profile_memory=True, activities=activities, acc_events=True) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 1e6
