"""``drloss eval``: evaluate a trained detector on a split, and write metrics, results and plots."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from drloss.data.annotations import Annotations
from drloss.data.batches import Batch
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile
from drloss.detector.model import HeadOutputs, RetinaNet
from drloss.detector.objective import assign_batch
from drloss.detector.onnx_file import SUFFIX, OnnxDetector
from drloss.distributed.ranks import Ranks
from drloss.errors import UserError
from drloss.evaluation.coco import Evaluation, evaluate, metrics_table, undefined_ap, write_results
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.detecting import run_detector, run_multi_scale, run_onnx
from drloss.evaluation.figures import save_evaluation_figures
from drloss.evaluation.limits import full_images
from drloss.evaluation.thresholds import threshold_sweep
from drloss.io.atomic import json_of, write_json
from drloss.structures import Detection
from drloss.training.fingerprint import fingerprint
from drloss.training.messages import warn
from drloss.training.trained import load_run, precision_of

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.json"
PLOTS = ("precision_recall.png", "thresholds.png", "densities.png")


def evaluate_run(
    run: Path,
    annotations: Annotations,
    out: Path,
    ranks: Ranks,
    *,
    batch_size: int,
    workers: int,
    score_threshold: float | None,
    test_scales: Sequence[int] = (),
    console: Console,
) -> Evaluation | None:
    """Evaluate a trained detector on a split; write its detections, metrics and plots.

    On a GPU the detector of a run folder computes in the precision of its training, an exported file in float32.

    Args:
        run: run folder, or ``.safetensors`` or ``.onnx`` file. An ``.onnx`` file gives no score densities.
        annotations: the split.
        out: folder for ``results.json`` (COCO results format), ``metrics.json`` and the plots.
        ranks: this process and the others of the job.
        batch_size: images at a time.
        workers: data-loading processes.
        score_threshold: replaces the detector's own; None keeps that.
        test_scales: short sides in pixels of a multi-scale test, which has no score densities; empty for none.
        console: where rank 0 prints.
    Returns:
        The evaluation on rank 0, None on the others.
    Raises:
        UserError: if the run cannot be loaded, or its classes are not those of the data.
    """
    file = OnnxDetector(run, ranks.device) if run.suffix == SUFFIX else None
    if file is None:
        model, description = load_run(run)
        model.to(ranks.device)
        config = model.config
    else:
        description, config = file.description, file.description.detector
        _require_onnx_can(run, config, score_threshold, test_scales)
    require_same_classes(description, annotations, run)
    if score_threshold is not None:
        config = replace(config, score_threshold=score_threshold)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    with Progress(console=console, disable=not ranks.first) as progress:
        task = progress.add_task("evaluating", total=len(annotations) * max(1, len(test_scales)))
        options["progress"] = lambda images: progress.advance(task, images * ranks.size)
        if file is None:
            model.config = config
            options["precision"] = precision_of(run)
            detections, histogram = _found_by_model(model, annotations, ranks, test_scales, **options)
        else:
            detections, histogram = run_onnx(file, annotations, ranks, config=config, **options), None
    if not ranks.first:
        return None
    evaluation = evaluate(annotations, detections)
    sweep = threshold_sweep(annotations, detections)
    write_results(out / RESULTS_FILE, annotations, detections)
    metrics = evaluation.to_json() | {"data": annotations.name, "fingerprint": fingerprint(annotations)}
    metrics |= {"run": str(run), "thresholds": sweep}
    metrics |= {"test_scales": list(test_scales)} if histogram is None else {"scores": histogram.to_json()}
    write_json(out / METRICS_FILE, metrics)
    save_evaluation_figures(out, evaluation, sweep, histogram, loss=description.loss)
    console.print(metrics_table(evaluation))
    for problem in (undefined_ap(annotations), full_images(detections, config.max_detections)):
        if problem:
            warn(console, problem)
    console.print(f"results, metrics and plots are in {out}")
    return evaluation


def _found_by_model(
    model: RetinaNet, annotations: Annotations, ranks: Ranks, test_scales: Sequence[int], **options: Any
) -> tuple[list[Detection], ScoreHistogram | None]:
    """What a detector finds in a split, and its scores; None in a test at several scales."""
    if test_scales:
        return run_multi_scale(model, annotations, ranks, test_scales, **options), None
    histogram = ScoreHistogram()

    def observe(outputs: HeadOutputs, batch: Batch) -> None:
        observe_scores(histogram, model, outputs, batch)

    detections = run_detector(model, annotations, ranks, **options, observe=observe)
    for other in ranks.gather(histogram.to_json())[1:]:
        histogram.merge(ScoreHistogram.from_json(other))
    return detections, histogram


def _require_onnx_can(file: Path, own: DetectorConfig, threshold: float | None, test_scales: Sequence[int]) -> None:
    """Raise UserError for an option that an ONNX file, whose graph is as it is, cannot follow."""
    if test_scales:
        raise UserError(f"--test-scales goes with a run or a .safetensors file, not with {file}")
    if threshold is not None and threshold < own.score_threshold:
        raise UserError(
            f"--score-threshold {threshold:g}: {file} drops what scores less than {own.score_threshold:g}; name a "
            "higher one, or evaluate the run"
        )


def require_own_results(out: Path) -> None:
    """Raise UserError if the evaluation would overwrite a file in ``out`` that drloss did not write."""
    there = json_of(out / METRICS_FILE)
    if isinstance(there, dict) and {"metrics", "data", "run", "thresholds"} <= there.keys():
        return
    for name in (RESULTS_FILE, METRICS_FILE, *PLOTS):
        if (out / name).exists():
            raise UserError(
                f"--out {out}: {name} is there, of no evaluation by drloss, and would be overwritten; "
                "name another folder"
            )


def observe_scores(histogram: ScoreHistogram, model: RetinaNet, outputs: HeadOutputs, batch: Batch) -> None:
    """Add the scores of a batch to a histogram. Training's rules decide which of its candidates are positive."""
    device = outputs.logits[0].device
    targets = assign_batch(outputs, batch.objects.to(device), model.config)
    histogram.update(outputs.logits, targets.labels)


def require_same_classes(description: DetectorFile, annotations: Annotations, run: Path) -> None:
    """Raise UserError unless the detector has exactly the classes of the data, in the same order."""
    if description.class_names != annotations.class_names:
        raise UserError(
            f"{run} was trained on the classes {json.dumps(description.class_names)}, but {annotations.name} has "
            f"{json.dumps(annotations.class_names)}"
        )
