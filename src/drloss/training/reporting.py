"""What a run reports while it trains: logged steps, evaluations, the progress bar."""

import math
import time
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from drloss.evaluation.coco import evaluate, percent, undefined_ap
from drloss.evaluation.detecting import run_detector
from drloss.evaluation.limits import full_images
from drloss.evaluation.matching import match_detections
from drloss.evaluation.thresholds import threshold_curve
from drloss.training.best import has_ended
from drloss.training.exporting import keeps_best, note_best
from drloss.training.messages import warn
from drloss.training.run_folder import BEST, EVALUATIONS_FILE, METRICS_FILE, THRESHOLD
from drloss.training.samples import log_samples
from drloss.training.schedule import learning_rate
from drloss.training.step import StepReport
from drloss.training.trainer import Trainer


def log_step(trainer: Trainer, report: StepReport, seconds: float, steps: int) -> None:
    """Write a step's losses and statistics to the log, and print a line where there is no progress bar.

    Args:
        trainer: the run after the step.
        report: result of the step.
        seconds: time since the last logged step, without evaluations.
        steps: number of steps in that time.
    """
    if trainer.log is None or report.statistics is None:
        return
    trainer.ranks.at("logging", slow=True)
    values = {"loss": report.loss, "loss_cls": report.cls, "loss_box": report.box, **report.statistics}
    values |= {"lr": learning_rate(trainer.config, trainer.iteration - 1), "seconds": seconds}
    trainer.log.write(METRICS_FILE, trainer.iteration, values)
    if not trainer.console.is_terminal:
        speed = steps * trainer.config.batch_size / max(seconds, 1e-9)
        left = timedelta(seconds=round((trainer.config.max_iters - trainer.iteration) * seconds / steps))
        positive = "-" if math.isnan(values["expected_pos"]) else f"{values['expected_pos']:.3f}"
        trainer.console.print(
            f"{trainer.iteration}/{trainer.config.max_iters} loss {report.loss:.4f} (cls {report.cls:.4f}, box "
            f"{report.box:.4f}) P+ {positive} P- {values['expected_neg']:.3f}, {speed:.3g} images/s, {left} left",
            soft_wrap=True,
        )


def evaluate_split(trainer: Trainer) -> float:
    """Evaluate the detector on the validation split, and keep it if it is the best; returns the seconds it took."""
    assert trainer.val is not None
    config, began = trainer.config, time.perf_counter()
    detections = run_detector(
        trainer.detector,
        trainer.val,
        trainer.ranks,
        batch_size=config.eval_batch_size,
        workers=config.workers,
        compiled=config.compile,
        precision=config.precision,
    )
    if trainer.log is not None:
        metrics = evaluate(trainer.val, detections).metrics
        trainer.last_ap = metrics["AP"]
        best = threshold_curve(match_detections(trainer.val, detections)).best()
        row = metrics | {THRESHOLD: math.nan if best is None else best.threshold}
        trainer.log.write(EVALUATIONS_FILE, trainer.iteration, row)
        numbers = ", ".join(f"{k} {percent(v)}" for k, v in metrics.items())
        trainer.console.print(f"iteration {trainer.iteration}: {numbers}")
        log_samples(trainer, detections)
    note_best(trainer)
    problems = [undefined_ap(trainer.val)]
    if has_ended(trainer.iteration, trainer.best, config):  # before the end, many scores are above the threshold
        problems.append(full_images(detections, config.detector.max_detections))
    for problem in filter(None, problems):
        warn(trainer.console, problem)
    trainer.evaluated = True
    return time.perf_counter() - began


def say_best(trainer: Trainer) -> None:
    """Print why a run ended early, if it did, and which of its evaluations was the best."""
    best, config = trainer.best, trainer.config
    if trainer.iteration < config.max_iters:
        trainer.console.print(
            f"ended after {trainer.iteration} of {config.max_iters} iterations: no better AP in {best.waited} "
            "evaluation(s); --resume with a larger --patience goes on",
            soft_wrap=True,
        )
    if best.iteration:
        where = f": {trainer.out / BEST}" if keeps_best(trainer.out, best) else ", whose detector is not kept"
        trainer.console.print(
            f"best AP {percent(best.ap)}, after iteration {best.iteration}{where}",
            markup=False,
            soft_wrap=True,
        )


def progress_bar(trainer: Trainer) -> Progress:
    """Progress bar with the loss and the last AP, shown by rank 0 on a terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]} AP {task.fields[ap]}"))
    hidden = not trainer.ranks.first or not trainer.console.is_terminal
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=trainer.console, disable=hidden)
