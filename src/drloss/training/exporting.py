"""The detectors that a run leaves behind: the last one, and the best one."""

from math import isnan
from pathlib import Path

from drloss.detector.exported import DetectorFile, save_detector
from drloss.training.log import read_scalars
from drloss.training.run_folder import BEST, EVALUATIONS_FILE, MODEL, THRESHOLD
from drloss.training.trainer import Trainer


def export_last(trainer: Trainer) -> None:
    """Have rank 0 write the detector, and wait for it."""
    trainer.ranks.at("saving", slow=True)
    if trainer.ranks.first:
        _export(trainer, MODEL)
    trainer.ranks.wait()


def note_best(trainer: Trainer) -> None:
    """Compare the last evaluation with the best before it; if it is better, have rank 0 write the detector.

    Every rank gets rank 0's AP, so that all agree whether the run goes on.
    """
    trainer.last_ap = trainer.ranks.gather(trainer.last_ap)[0]
    trainer.best = trainer.best.after(trainer.iteration, trainer.last_ap)
    if trainer.best.iteration == trainer.iteration and trainer.ranks.first:
        trainer.ranks.at("saving", slow=True)
        _export(trainer, BEST)
    trainer.ranks.wait()


def _export(trainer: Trainer, name: str) -> None:
    description = DetectorFile(
        detector=trainer.model.config,
        class_names=trainer.train.class_names,
        category_ids=tuple(int(i) for i in trainer.train.category_ids),
        loss=trainer.config.loss,
        threshold=last_threshold(trainer.out),
        iteration=trainer.iteration,
        ap=None if isnan(trainer.last_ap) else trainer.last_ap,
    )
    save_detector(trainer.out / name, trainer.detector.state_dict(), description)


def last_threshold(out: Path) -> float | None:
    """The threshold of the last evaluation; None if there is none, or it found nothing."""
    curves = read_scalars(out / EVALUATIONS_FILE)
    iterations, values = curves.get(THRESHOLD, ([], []))
    last = max((steps[-1] for steps, _ in curves.values()), default=None)
    return values[-1] if values and iterations[-1] == last else None
