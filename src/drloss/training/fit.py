"""The training loop: plain torch, one process or many under ``torchrun``.

A loop of our own, and not a trainer's, because what it must promise is decided here and nowhere else: the batch of an
iteration is a function of (seed, iteration), so that a run can be resumed in the middle of an epoch and on another
number of devices; and all ranks agree once a step whether to go on.
"""

import json
import math
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from drloss.data.annotations import Annotations
from drloss.data.batches import Batch, TrainingImages
from drloss.data.checks.problems import Report, require_place
from drloss.data.order import Key, TrainingOrder
from drloss.data.transforms import Augmentation
from drloss.data.workers import load_batches
from drloss.detector.model import HeadOutputs, RetinaNet
from drloss.detector.objective import LossTerms, Objective
from drloss.detector.start import Start, initialise, resolve_norm
from drloss.detector.weights import DetectorFile, load_weights, save_detector
from drloss.distributed.ranks import Ranks
from drloss.errors import DataError, UserError, first_line
from drloss.evaluation.coco import evaluate, percent, undefined_ap
from drloss.evaluation.limits import full_images
from drloss.evaluation.running import run_detector
from drloss.io.atomic import remove_unfinished
from drloss.losses import DRLoss, dr_statistics, first_loss_problem
from drloss.training.checkpoints import (
    CHECKPOINTS,
    MODEL,
    fingerprint,
    newest_first,
    only_writer,
    random_state,
    require_space,
    save_checkpoint,
    set_random_state,
)
from drloss.training.config import Config, make_loss, to_json
from drloss.training.log import EVALUATIONS, METRICS, ScalarLog
from drloss.training.runs import (
    announce,
    is_finished,
    require_boxes,
    require_new_run,
    saved_state,
    settings_of,
    versions,
    warn,
    write_records,
)
from drloss.training.schedule import (
    build_optimizer,
    learning_rate,
    load_optimizer,
    set_learning_rate,
    state_size,
)


class NonFiniteLoss(UserError):
    """The loss or its gradient became NaN or infinite; the last checkpoint is from before."""


class Stopped(Exception):
    """The run was asked to stop by a signal and has written a checkpoint: its work is not done, nor lost."""


_OF_POSITIVES = ("expected_pos", "effective_pos")
"""Figures that an image without positives has not."""
_SEEN = (*_OF_POSITIVES, "expected_neg", "effective_neg", "positives", "with_positives")
_LOGGED = ("expected_pos", "expected_neg", "margin", "effective_pos", "effective_neg", "positives")
"""What is logged of what the DR loss sees, in the order of the columns: P̂₊, P̂₋, their margin, effective numbers."""


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, means over the global batch."""

    loss: float
    cls: float
    box: float


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
    console: Console | None = None,
) -> None:
    """Train a detector and leave it in ``out``.

    Args:
        config: what to compute.
        train: training split.
        val: split to evaluate on, or None.
        out: run folder: ``config.json``, ``environment.json``, ``metrics.csv``, ``evaluations.csv``,
            ``tensorboard/``, ``checkpoints/`` and, at the end, ``model.safetensors``.
        ranks: this process among its peers.
        resume: go on from the newest checkpoint in ``out``.
        force: resume although the data or the settings are others than those the run began with.
        reports: what was left out of the splits, to be written to ``out`` under these names.
        console: where rank 0 prints.
    Raises:
        UserError: if the configuration, the data or the run folder do not fit.
        NonFiniteLoss: if the loss is not finite on some rank.
        Stopped: after a stop signal, with a checkpoint written.
    """
    console = console or Console(quiet=not ranks.first)
    reports = reports or {}
    # Before the lock, which would leave its file in a folder that is not ours.
    if not (resume and (newest_first(out / CHECKPOINTS) or settings_of(out))):
        require_new_run(out)
    for name in reports:
        require_place(out / name)
    require_boxes(train)
    if resume and config.detector.norm == "auto":
        config = replace(config, detector=replace(config.detector, norm=_norm_so_far(out)))
    trainer = _Trainer(config, train, val, out, ranks=ranks, console=console)
    if not newest_first(out / CHECKPOINTS):
        trainer.start()  # before there is a folder: weights that cannot be had leave none
    with trainer.stop_signals(), only_writer(out) if ranks.first else nullcontext():
        if trainer.prepare(resume, force, reports):
            trainer.run()


def _norm_so_far(out: Path) -> Literal["auto", "frozen", "group"]:
    """The norm of a run that is resumed, for which the file of its first weights need not be there any more."""
    settings = settings_of(out) if newest_first(out / CHECKPOINTS) else None
    norm = settings["detector"].get("norm") if settings else None
    return "frozen" if norm == "frozen" else "group" if norm == "group" else "auto"


class _Trainer:
    def __init__(
        self,
        config: Config,
        train: Annotations,
        val: Annotations | None,
        out: Path,
        *,
        ranks: Ranks,
        console: Console,
    ) -> None:
        self.share = config.batch_size // ranks.size
        self.micro = min(config.micro_batch, self.share)
        if config.batch_size % ranks.size or self.share % self.micro:
            raise UserError(
                f"batch_size must be a multiple of {ranks.size} processes × {max(self.micro, 1)} images at a time "
                f"(micro_batch), got {config.batch_size}"
            )
        if ranks.device.type == "cpu" and config.precision == "fp16":
            raise UserError("precision fp16 needs a CUDA device; use bf16 or fp32 on the CPU")
        if val is not None and val.class_names != train.class_names:
            raise UserError(
                f"{val.name} has other classes than {train.name}: {val.class_names} != {train.class_names}"
            )
        self.config = replace(config, detector=resolve_norm(config.detector, config.weights))
        self.train, self.val, self.out, self.ranks, self.console = train, val, out, ranks, console
        self.augmentation = Augmentation(
            short_sides=(config.train_short_sides[0], config.train_short_sides[-1]),
            max_side=config.detector.max_side,
            flip=config.flip,
        )
        torch.manual_seed(config.seed)
        loss = make_loss(config.loss)
        self.model = RetinaNet(self.config.detector, len(train.class_names), loss.prior_probability)
        self.objective = Objective(loss, self.config.detector)
        self.started: Start | None = None
        self.iteration = 0
        self.last_ap = math.nan
        self.evaluated = True  # whether the evaluation that the last step asked for is done
        self.signalled = False  # this process was asked to stop
        self.stop_wanted = False  # all processes agreed to stop after this step

    # ------------------------------------------------------------------ before the first step

    def start(self) -> Start:
        """Give the model the weights that it is to start from, once."""
        if self.started is None:
            self.ranks.at("fetching weights", slow=True)
            self.started = initialise(self.model, self.config.weights, self.train.class_names)
        return self.started

    def prepare(self, resume: bool, force: bool, reports: Mapping[str, Report]) -> bool:
        """Initialise or resume, move to the device, and write down what is about to happen.

        Returns:
            False if the run has ended already, and nothing was written.
        """
        require_space(self.out, state_size(self.model, self.config))
        self.fingerprint = " ".join(fingerprint(split) for split in (self.train, self.val) if split is not None)
        state = None
        if resume:
            state = saved_state(self.out, self.config, self.fingerprint, self.console, force=force)
            if state is None and (self.out / MODEL).exists():
                raise UserError(f"--resume {self.out}: holds {MODEL} and no checkpoint; name another folder")
        started = Start("a checkpoint") if state else self.start()
        self.model.to(self.ranks.device)
        if self.config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, self.config)
        self.scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=self.config.precision == "fp16")
        if state:
            self._restore(state)
        self._same_on_all_ranks()
        if state and self.evaluated and is_finished(self.out, state, self.config):
            self.console.print(
                f"the run has ended already, with its {self.iteration} iterations: nothing is left to do, and "
                "nothing was changed (--force with a larger --max-iters goes on)",
                soft_wrap=True,
            )
            return False
        self.parallel = self._parallel()
        announce(self.config, self.train, self.val, self.ranks, started, self.console)
        if self.iteration:
            self.console.print(f"resuming after iteration {self.iteration}")
        self.ranks.wait()
        if self.ranks.first:
            remove_unfinished(self.out)
            if self.iteration < self.config.max_iters:
                (self.out / MODEL).unlink(missing_ok=True)  # of a shorter run that is now forced to go on
            write_records(self.out, self.config, self.train, self.ranks, self.iteration, started, self.console)
            for name, report in reports.items():
                report.write(self.out / name)
            self.log = ScalarLog(self.out, self.iteration, evaluated=self.evaluated)
        self.ranks.wait()
        return True

    def _same_on_all_ranks(self) -> None:
        """Raise UserError if processes see other data or another checkpoint than rank 0 does."""
        own = {"data": self.fingerprint, "checkpoint": f"iteration {self.iteration}"}
        everyone = self.ranks.gather(own)
        for rank, seen in enumerate(everyone):
            for what, value in seen.items():
                if value != everyone[0][what]:
                    raise UserError(
                        f"rank {rank} has another {what} than rank 0 ({value} and {everyone[0][what]}): --data and "
                        "--out must be the same on every machine, on a disk that they share"
                    )

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. The learning rate and the order of the images follow from the iteration."""
        source = f"--resume {self.out}: its checkpoint"
        try:
            load_weights(self.model, dict(state["model"]), source)
            load_optimizer(self.optimizer, state["optimizer"])
            if state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            set_random_state(state["random"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
            raise UserError(f"{source} does not fit this run: {first_line(error)}") from None
        self.iteration, self.last_ap = state["iteration"], state["last_ap"]
        self.evaluated = state["evaluated"] or self.val is None

    def _parallel(self) -> torch.nn.Module:
        if self.config.compile:
            for part in (self.model.backbone, self.model.cls_head, self.model.box_head):
                part.compile()
        if self.ranks.size == 1:
            return self.model
        if self.ranks.device.type == "cuda":
            return DistributedDataParallel(self.model, device_ids=[self.ranks.device])
        # After its first step DDP sorts its buckets anew, and with three processes or more another order is another
        # sum: a resumed run would not have the bits of the uninterrupted one. DDP leaves them where it looks for
        # parameters that are not used, of which there are none.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True")
        return DistributedDataParallel(self.model, find_unused_parameters=True)

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Train to the last iteration, evaluate, and write the weights."""
        try:
            with self._progress() as progress, self._batches() as batches:
                bar = progress.add_task("", total=self.config.max_iters, completed=self.iteration, loss="-", ap="-")
                self._loop(batches, progress, bar)
        finally:
            if self.ranks.first:
                self.log.close()
        self.ranks.at("saving", slow=True)
        if self.ranks.first:
            about = DetectorFile(
                detector=self.config.detector,
                class_names=self.train.class_names,
                category_ids=tuple(int(i) for i in self.train.category_ids),
                loss=self.config.loss,
            )
            save_detector(self.out / MODEL, self.model.state_dict(), about)
        self.ranks.wait()

    def _loop(self, batches: Iterator[Batch], progress: Progress, bar: Any) -> None:
        config = self.config
        self.model.train()
        if not self.evaluated:  # the run was ended in the middle of it
            self._evaluate()
            self._save()
        last = time.perf_counter()
        while self.iteration < config.max_iters:
            self.ranks.at("loading", self.iteration + 1)
            logged = (self.iteration + 1) % config.log_every == 0 or self.iteration + 1 == config.max_iters
            report, statistics = self._step(self._load(batches), logged)
            self.iteration += 1
            progress.update(bar, completed=self.iteration, loss=f"{report.loss:.3f}", ap=f"{self.last_ap:.1f}")
            if logged:
                now = time.perf_counter()
                self._log(report, statistics, now - last)
                last = now
            done = self.iteration == config.max_iters
            if self.val is not None and (done or (config.eval_every and self.iteration % config.eval_every == 0)):
                self.evaluated = False
                self._save()  # an evaluation may take longer than who wants the run to end will wait
                last += self._evaluate()
            if done or self.stop_wanted or self.iteration % config.checkpoint_every == 0:
                self._save()
            if self.stop_wanted and not done:
                raise Stopped(f"stopped after iteration {self.iteration}; go on with --resume")

    def _load(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of the next step; if an image cannot be read, what was trained so far is saved."""
        try:
            return [next(batches) for _ in range(self.share // self.micro)]
        except DataError as error:
            # Of several processes the others are in the step already, and none can wait for all.
            if self.ranks.size == 1 and self.iteration:
                with suppress(UserError):  # such as a full disk: the image is what is to be told
                    self._save()
                    error.add_note(f"the run is saved after iteration {self.iteration}")
            error.add_note("once the image is mended, --resume goes on; --resume --force --skip-bad leaves it out")
            raise

    def _step(self, micro_batches: list[Batch], logged: bool) -> tuple[StepReport, Tensor | None]:
        """One optimiser step; what it reports is the same on every rank."""
        set_learning_rate(self.optimizer, learning_rate(self.config, self.iteration))
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)
        statistics: list[Tensor] = []
        for number, batch in enumerate(micro_batches):
            self.ranks.at("computing", slow=self.config.compile)  # a compiler may begin at any new size
            with self._no_sync(number < len(micro_batches) - 1):
                outputs, terms = self._forward(batch)
                self.scaler.scale(terms.total / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
            totals += torch.stack([terms.total, terms.cls, terms.box]).detach() / len(micro_batches)
            if self.iteration == 0 and number == 0:
                self._check_first_loss(terms)
            if logged:
                statistics.append(self._statistics(outputs, terms))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
        self.ranks.at("agreeing")
        self._agree(totals, norm, micro_batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        mean = self.ranks.mean(torch.stack(statistics).mean(dim=0)) if logged else None
        loss, cls, box = totals.tolist()
        return StepReport(loss, cls, box), mean

    def _forward(self, batch: Batch) -> tuple[HeadOutputs, LossTerms]:
        device, precision = self.ranks.device, self.config.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32"):
            outputs = self.parallel(batch.images.to(device, non_blocking=True), batch.sizes)
        return outputs, self.objective(outputs, [o.to(device) for o in batch.objects])

    def _agree(self, totals: Tensor, norm: Tensor, micro_batches: list[Batch]) -> None:
        """Average the loss over ranks in place, and decide together whether to go on.

        In fp16 a gradient that is not finite is everyday: the scaler skips the step and lowers its scale.
        """
        loss_bad = ~torch.isfinite(totals).all()
        bad = loss_bad if self.scaler.is_enabled() else loss_bad | ~torch.isfinite(norm)
        flags = torch.stack([bad.double(), bad.new_tensor(self.signalled).double()])
        shared = self.ranks.sum(torch.cat([totals, flags]))
        if shared[3] > 0:
            self._refuse_step(bool(loss_bad), micro_batches)
        self.stop_wanted = bool(shared[4] > 0)
        totals.copy_(shared[:3] / self.ranks.size)

    def _refuse_step(self, loss_bad: bool, micro_batches: list[Batch]) -> NoReturn:
        ids = [int(self.train.image_ids[i]) for b in micro_batches for i in b.indices]
        everyone = list(enumerate(self.ranks.gather((loss_bad, ids))))
        # The sum over ranks spreads a bad gradient to all of them: where a loss is bad, that rank is the cause.
        causes = [(r, i) for r, (bad, i) in everyone if bad]
        what = "loss" if causes else "gradient"
        causes = causes or [(r, i) for r, (_, i) in everyone]
        where = "; ".join(f"rank {r}, image ids {', '.join(map(str, i))}" for r, i in causes)
        kept = newest_first(self.out / CHECKPOINTS)[:1]
        raise NonFiniteLoss(
            f"iteration {self.iteration + 1}: the {what} is not finite ({where}); "
            + (f"the last good checkpoint is {kept[0].name}" if kept else "there is no checkpoint yet")
            + "; a lower --lr, a longer --warmup-iters or a --clip-norm may help"
        )

    def _statistics(self, outputs: HeadOutputs, terms: LossTerms) -> Tensor:
        """Means over the images of what the DR loss sees: :data:`_SEEN`.

        An image without positives counts 0 in what is said of positives: those are divided by ``with_positives``.
        """
        loss = self.objective.loss
        options = {k: v for k, v in loss.options.items() if k != "reduction"} if isinstance(loss, DRLoss) else {}
        s = dr_statistics([level.detach() for level in outputs.logits], terms.labels, **options)
        positives = (terms.labels > 0).sum(dim=1).float()
        some = positives > 0
        of_positives = (torch.where(some, v, 0.0) for v in (s.expected_pos, s.effective_pos))
        each = (*of_positives, s.expected_neg, s.effective_neg, positives, some.float())
        return torch.stack([value.mean() for value in each])

    def _check_first_loss(self, terms: LossTerms) -> None:
        """Say so where a DR loss does not start where the theory has it, once a run."""
        loss, bias = self.objective.loss, self.model.cls_head.predict.bias
        if self.ranks.first and isinstance(loss, DRLoss) and bias is not None and not bool(bias.any()):
            problem = first_loss_problem(terms.cls.item(), loss, terms.labels, len(self.train.class_names))
            if problem:
                self.console.print(f"warning: {problem}")

    def _no_sync(self, wait: bool) -> AbstractContextManager[Any]:
        if wait and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    def _batches(self) -> AbstractContextManager[Iterator[Batch]]:
        config, rank, share = self.config, self.ranks.rank, self.share
        order = TrainingOrder(self.train, self.augmentation, config.batch_size, config.seed, config.keep_empty)

        def own_keys() -> Iterator[list[Key]]:
            for keys in order.batches(self.iteration):
                for first in range(rank * share, (rank + 1) * share, self.micro):
                    yield keys[first : first + self.micro]

        images = TrainingImages(self.train, self.augmentation, config.seed)
        return load_batches(images, own_keys(), config.workers, self.ranks.device)

    # ------------------------------------------------------------------ now and then

    def _log(self, report: StepReport, statistics: Tensor | None, seconds: float) -> None:
        if not self.ranks.first or statistics is None:
            return
        self.ranks.at("logging", slow=True)
        seen = dict(zip(_SEEN, statistics.tolist(), strict=True))
        some = seen.pop("with_positives")
        seen |= {name: seen[name] / some if some else math.nan for name in _OF_POSITIVES}
        seen["margin"] = seen["expected_pos"] - seen["expected_neg"]
        values = {"loss": report.loss, "loss_cls": report.cls, "loss_box": report.box}
        values |= {name: seen[name] for name in _LOGGED}
        values |= {"lr": learning_rate(self.config, self.iteration - 1), "seconds": seconds}
        self.log.write(METRICS, self.iteration, values)
        if not self.console.is_terminal:
            positive = f"{values['expected_pos']:.3f}" if some else "-"
            self.console.print(
                f"{self.iteration}/{self.config.max_iters} loss {report.loss:.4f} (cls {report.cls:.4f}, box "
                f"{report.box:.4f}) P+ {positive} "
                f"P- {values['expected_neg']:.3f}"
            )

    def _evaluate(self) -> float:
        """Evaluate on the validation split; returns the seconds it took."""
        assert self.val is not None
        began = time.perf_counter()
        detections = run_detector(
            self.model,
            self.val,
            self.ranks,
            batch_size=self.config.eval_batch_size,
            workers=self.config.workers,
            compiled=self.config.compile,
        )
        if self.ranks.first:
            metrics = evaluate(self.val, detections).metrics
            self.last_ap = metrics["AP"]
            self.log.write(EVALUATIONS, self.iteration, metrics)
            numbers = ", ".join(f"{k} {percent(v)}" for k, v in metrics.items())
            self.console.print(f"iteration {self.iteration}: {numbers}")
            words = [undefined_ap(self.val)]
            if self.iteration == self.config.max_iters:  # before it, scores are still on their way
                words.append(full_images(detections, self.config.detector.max_detections))
            for word in words:
                if word:
                    warn(self.console, word)
        self.ranks.wait()
        self.evaluated = True
        return time.perf_counter() - began

    def _save(self) -> None:
        """Write down all that the next step depends on.

        The schedule and the place in the data are functions of the iteration, and an image's augmentation one of
        (seed, epoch, index). No step draws from the random generators today; they are kept for one that might.
        """
        if self.ranks.first:
            self.ranks.at("saving", slow=True)
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random_state(),
                "iteration": self.iteration,
                "last_ap": self.last_ap,
                "evaluated": self.evaluated,
                "versions": versions(),
                "config": json.dumps(to_json(self.config)),
                "class_names": list(self.train.class_names),
                "category_ids": [int(i) for i in self.train.category_ids],
                "data": self.fingerprint,
            }
            save_checkpoint(self.out / CHECKPOINTS, self.iteration, state)
        self.ranks.wait()

    @contextmanager
    def stop_signals(self) -> Iterator[None]:
        """Have SIGTERM, SIGHUP and Ctrl-C end the run after the step that is under way, with a checkpoint."""
        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signals.append(signal.SIGHUP)
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            self.console.quiet = True  # its terminal is closed, and would refuse what is printed
        self.signalled = True

    def _progress(self) -> Progress:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]} AP {task.fields[ap]}"))
        hidden = not self.ranks.first or not self.console.is_terminal
        return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, disable=hidden)
