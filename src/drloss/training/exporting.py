"""The detectors that a run leaves behind: the last one, and the best one."""

from pathlib import Path

from drloss.detector.exported import DetectorFile, read_description, save_detector
from drloss.errors import UserError
from drloss.training.best import Best
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


def keeps_best(out: Path, best: Best) -> bool:
    """Whether the best detector in a run folder is that of the evaluation ``best``.

    It can be of another when a resumed run has fallen back to a checkpoint from before it.
    """
    try:
        description = read_description(out / BEST)
    except UserError:  # missing or damaged
        return False
    return description is not None and description.iteration == best.iteration


def _export(trainer: Trainer, name: str) -> None:
    found = evaluated_after(trainer.out, trainer.iteration)
    description = DetectorFile(
        detector=trainer.model.config,
        class_names=trainer.train.class_names,
        category_ids=tuple(int(i) for i in trainer.train.category_ids),
        loss=trainer.config.loss,
        threshold=found.get(THRESHOLD),
        iteration=trainer.iteration,
        ap=trainer.last_ap if "AP" in found else None,  # the file has fewer digits
    )
    save_detector(trainer.out / name, trainer.detector.state_dict(), description)


def evaluated_after(out: Path, iteration: int) -> dict[str, float]:
    """What the last evaluation of a run found, by column; empty if it was not made after this iteration."""
    curves = read_scalars(out / EVALUATIONS_FILE)
    return {name: values[-1] for name, (iterations, values) in curves.items() if iterations[-1] == iteration}
