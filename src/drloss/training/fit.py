"""The training loop: plain torch, one process or many under ``torchrun``.

The loop is drloss's own because of what it guarantees: the batch of an iteration is a function of (seed, iteration),
so a run can be resumed in the middle of an epoch and on another number of devices; and in every step all ranks agree
whether to go on.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.data.batches import Batch, TrainingImages, image_cache
from drloss.data.checks.problems import Report, require_place
from drloss.data.images.cache import cache_folder
from drloss.data.order import Key, TrainingOrder
from drloss.data.splitting import Splits
from drloss.data.transforms import Augmentation
from drloss.data.workers import load_batches
from drloss.distributed.ranks import Ranks
from drloss.errors import DataError, UserError
from drloss.training.best import has_ended
from drloss.training.checkpoints import newest_first
from drloss.training.config import Config
from drloss.training.exporting import export_last
from drloss.training.preparation import new_detector, prepare, require_boxes, require_fit
from drloss.training.reporting import evaluate_split, log_step, progress_bar, say_best
from drloss.training.run_folder import CHECKPOINTS, only_writer, require_new_run, settings_of
from drloss.training.signals import stop_signals
from drloss.training.state import save
from drloss.training.step import take_step
from drloss.training.trackers import Trackers, require_trackers
from drloss.training.trainer import Trainer


class Stopped(Exception):
    """The run stopped on a signal, after writing a checkpoint."""


def fit(
    config: Config,
    train: Annotations,
    val: Annotations | None,
    out: Path,
    ranks: Ranks,
    *,
    resume: bool = False,
    force: bool = False,
    reports: Mapping[str, Report] | None = None,
    splits: Splits | None = None,
    trackers: Sequence[str] = (),
    console: Console | None = None,
) -> bool:
    """Train a detector and leave it in ``out``.

    Args:
        config: settings.
        train: training split.
        val: split to evaluate on, or None.
        out: run folder; :mod:`drloss.training.run_folder` lists its files.
        ranks: this process among the others.
        resume: go on from the newest checkpoint in ``out``.
        force: resume even if the data or the settings have changed since the run began.
        reports: reports of what was left out of the splits, by the file name they get in ``out``.
        splits: which images ``train`` and ``val`` are, if they were one split.
        trackers: of :data:`drloss.training.config.TRACKERS`: what gets the scalars beside TensorBoard.
        console: where rank 0 prints.
    Returns:
        Whether there was anything to do; False for a run that has ended already.
    Raises:
        UserError: if the settings, the data or the run folder cannot be used.
        NonFiniteLoss: if the loss is not finite on some rank.
        Stopped: after a stop signal, with a checkpoint written.
    """
    console, reports = console or Console(quiet=not ranks.first), reports or {}
    require_trackers(trackers)
    # Check first: taking the lock creates a file, even in a folder that is not a run's.
    if not (resume and (newest_first(out / CHECKPOINTS) or settings_of(out))):
        require_new_run(out)
    for name in reports:
        require_place(out / name)
    require_boxes(train)
    require_fit(config, train, val, ranks)
    new = new_detector(config, train, out, ranks, resume=resume)
    with stop_signals(console) as stop, only_writer(out) if ranks.first else nullcontext():
        records = reports, splits
        trainer = prepare(new, train, val, out, ranks, console, stop, records, resume=resume, force=force)
        if trainer is None:
            return False
        _train(trainer, trackers)
        export_last(trainer)
        say_best(trainer)
    return True


def _train(trainer: Trainer, trackers: Sequence[str]) -> None:
    """Train until the run has ended, with the evaluations and checkpoints that are due on the way."""
    config, ranks = trainer.config, trainer.ranks
    log = closing(trainer.log) if trainer.log else nullcontext()
    with log, progress_bar(trainer) as progress, own_batches(trainer) as batches:
        if trainer.log is not None and trackers:
            trainer.log.trackers = Trackers(trackers, trainer.out, config, trainer.console)
        bar = progress.add_task("", total=config.max_iters, completed=trainer.iteration, loss="-", ap="-")
        trainer.model.train()
        if not trainer.evaluated:  # the run was stopped during an evaluation
            evaluate_split(trainer)
            save(trainer)
        last, steps = time.perf_counter(), 0
        while not has_ended(trainer.iteration, trainer.best, config):
            number = trainer.iteration + 1
            done = number == config.max_iters
            logged = done or number % config.log_every == 0
            ranks.at("loading", number)
            report = take_step(trainer, _load(trainer, batches), logged)
            trainer.iteration = number
            progress.update(bar, completed=number, loss=f"{report.loss:.3f}", ap=f"{trainer.last_ap:.1f}")
            steps += 1
            if logged:
                now = time.perf_counter()
                log_step(trainer, report, now - last, steps)
                last, steps = now, 0
            if trainer.val is not None and (done or (config.eval_every and number % config.eval_every == 0)):
                trainer.evaluated = False
                save(trainer)  # save first, so that a kill during evaluation loses no step
                last += evaluate_split(trainer)
                done = has_ended(number, trainer.best, config)
            if done or report.stop or number % config.checkpoint_every == 0:
                save(trainer)
            if report.stop and not done:
                raise Stopped(f"stopped after iteration {number}; go on with --resume")
        if trainer.log is not None:
            trainer.log.finished = True


def own_batches(trainer: Trainer) -> AbstractContextManager[Iterator[Batch]]:
    """This rank's micro-batches, from the next step on."""
    config, share, start = trainer.config, trainer.share, trainer.iteration
    augmentation = Augmentation(
        short_sides=(config.train_short_sides[0], config.train_short_sides[-1]),
        max_side=config.detector.max_side,
        flip=config.flip,
        zoom=(config.zoom[0], config.zoom[1]),
    )
    order = TrainingOrder(trainer.train, augmentation, config.batch_size, config.seed, config.keep_empty)
    own = range(trainer.ranks.rank * share, (trainer.ranks.rank + 1) * share, trainer.micro_batch)

    def own_keys() -> Iterator[list[Key]]:
        for keys in order.batches(start):
            for first in own:
                yield keys[first : first + trainer.micro_batch]

    cache = image_cache(config.cache, trainer.train, augmentation, cache_folder())
    images = TrainingImages(trainer.train, augmentation, config.seed, cache)
    return load_batches(images, own_keys(), config.workers, trainer.ranks.device)


def _load(trainer: Trainer, batches: Iterator[Batch]) -> list[Batch]:
    """The micro-batches of the next step; if an image cannot be read, the steps so far are saved."""
    try:
        return [next(batches) for _ in range(trainer.share // trainer.micro_batch)]
    except DataError as error:
        # With several ranks the others are in the step already, and saving would wait for them.
        if trainer.ranks.size == 1 and trainer.iteration:
            with suppress(UserError):  # such as a full disk: the message is about the image
                save(trainer)
                error.add_note(f"the run is saved after iteration {trainer.iteration}")
        error.add_note("once the image is mended, --resume goes on; --resume --force --skip-bad leaves it out")
        raise
