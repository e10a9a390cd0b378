"""``drloss eval``: evaluate a trained detector on a split, and write metrics, results and plots."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from drloss.data.annotations import Annotations
from drloss.data.batches import Batch
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, read_description, save_detector
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
from drloss.evaluation.matching import MatchedDetections, match_detections
from drloss.evaluation.thresholds import OperatingPoint, ThresholdCurve, threshold_curve, threshold_sweep
from drloss.inference.detector import THRESHOLD
from drloss.io.atomic import json_of, write_json
from drloss.io.untrusted import read_safetensors
from drloss.structures import Detection
from drloss.training.fingerprint import fingerprint
from drloss.training.messages import warn
from drloss.training.run_folder import MODEL
from drloss.training.trained import load_run, precision_of

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.json"
PAGE = "report.html"
PLOTS = ("precision_recall.png", "thresholds.png", "densities.png", PAGE)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        description: the detector.
        evaluation: its metrics.
        detections: of each image of the split, on the CPU.
        curve: precision, recall and F1 of all classes together, by the score threshold.
        best: the threshold with the best F1 for each class, by its name; None where nothing is found.
        used: the threshold to use: with the best F1, or 0.5 where there is none.
    """

    description: DetectorFile
    evaluation: Evaluation
    detections: Sequence[Detection]
    curve: ThresholdCurve
    best: dict[str, OperatingPoint | None]

    @property
    def used(self) -> float:
        best = self.curve.best()
        return THRESHOLD if best is None else best.threshold


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
    keep_threshold: bool | None = False,
    console: Console,
) -> Evaluated | None:
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
        keep_threshold: whether the threshold with the best F1 is written into the exported ``.safetensors`` file,
            from which ``drloss predict`` takes it; None: if that file has none.
        console: where rank 0 prints.
    Returns:
        What was found on rank 0, None on the others.
    Raises:
        UserError: if the run cannot be loaded, its classes are not those of the data, or a threshold cannot be kept.
    """
    exported = _exported_file(run, score_threshold, test_scales, keep_threshold)
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
    matches = match_detections(annotations, detections)
    found = Evaluated(description, evaluation, detections, threshold_curve(matches), _best(annotations, matches))
    sweep = threshold_sweep(annotations, detections)
    write_results(out / RESULTS_FILE, annotations, detections)
    metrics = evaluation.to_json() | {"data": annotations.name, "fingerprint": fingerprint(annotations)}
    metrics |= {"run": str(run), "thresholds": sweep, "best_f1": _best_to_json(found)}
    metrics |= {"test_scales": list(test_scales)} if histogram is None else {"scores": histogram.to_json()}
    write_json(out / METRICS_FILE, metrics)
    save_evaluation_figures(out, evaluation, sweep, histogram, loss=description.loss)
    console.print(metrics_table(evaluation))
    console.print(threshold_table(found))
    for problem in (undefined_ap(annotations), full_images(detections, config.max_detections)):
        if problem:
            warn(console, problem)
    if exported is not None:
        _keep(exported, found, keep_threshold, console)
    console.print(f"results, metrics and plots are in {out}", markup=False, soft_wrap=True)
    return found


def _best(annotations: Annotations, matches: MatchedDetections) -> dict[str, OperatingPoint | None]:
    """The threshold with the best F1 for each class."""
    return {name: threshold_curve(matches, k + 1).best() for k, name in enumerate(annotations.class_names)}


def _best_to_json(found: Evaluated) -> dict[str, Any]:
    points = {"all": found.curve.best()}, found.best
    every, each = ({name: p and p.to_json() for name, p in group.items()} for group in points)
    return every | {"per_class": each}


def threshold_table(found: Evaluated) -> Table:
    """A table for the terminal: the threshold with the best F1, over all classes and of each class."""
    table = Table(title="score threshold with the best F1 at IoU .50", title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("threshold", "F1", "precision", "recall"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, point in (("all", found.curve.best()), *found.best.items()):
        numbers = [] if point is None else [point.threshold, point.f1, point.precision, point.recall]
        cells = [f"{value:.3f}" for value in numbers] or ["–"] * 4
        table.add_row(Text(name), *cells, end_section=name == "all")
    return table


def _exported_file(
    run: Path, score_threshold: float | None, test_scales: Sequence[int], keep: bool | None
) -> Path | None:
    """The file that can keep a threshold; None if there is none.

    Raises:
        UserError: if one is to be kept, and cannot be.
    """
    file = run / MODEL if run.is_dir() else run
    problem = None
    if score_threshold is not None or test_scales:
        problem = "not with --score-threshold or --test-scales: the threshold must be that of the detector as it is"
    elif file.suffix == SUFFIX:
        problem = f"{file}: an ONNX file stays as it was checked; evaluate the run, and export it again"
    elif not file.is_file():
        problem = f"{run}: the run has not ended, and has no exported file yet"
    if problem and keep:
        raise UserError(f"--keep-threshold: {problem}")
    return None if problem else file


def _keep(file: Path, found: Evaluated, keep: bool | None, console: Console) -> None:
    """Write the threshold into an exported file, and say which threshold is in it."""
    best, own = found.curve.best(), found.description.threshold
    if best is None or keep is False or (keep is None and own is not None):
        if own is not None:
            console.print(
                f"{file} keeps its threshold {own:.3f}; --keep-threshold writes the one above",
                markup=False,
                soft_wrap=True,
            )
        return
    try:
        if read_description(file) != found.description:
            raise UserError(f"{file} is another detector by now; evaluate it again")
        save_detector(file, read_safetensors(file)[0], replace(found.description, threshold=best.threshold))
    except UserError as error:  # such as a folder that cannot be written: the evaluation is whole without it
        if keep:
            raise
        warn(console, f"the threshold is not written into the file: {error}")
        return
    console.print(f"threshold {best.threshold:.3f} is written into {file}", markup=False, soft_wrap=True)


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
