"""One optimiser step: micro-batches, gradient scaling, and the agreement of all ranks whether to go on."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from drloss.data.batches import Batch
from drloss.detector.model import HeadOutputs
from drloss.detector.objective import LossTerms
from drloss.detector.precision import autocast
from drloss.errors import UserError
from drloss.losses import DRLoss, first_loss_problem
from drloss.losses.diagnostics import dr_expectations
from drloss.training.checkpoints import newest_first
from drloss.training.messages import warn
from drloss.training.run_folder import CHECKPOINTS
from drloss.training.schedule import learning_rate, set_learning_rate
from drloss.training.trainer import Trainer


class NonFiniteLoss(UserError):
    """The loss or its gradient is NaN or infinite on some rank. The weights were not updated in that step."""


@dataclass(frozen=True)
class StepReport:
    """Result of one step, the same on every rank.

    Attributes:
        loss, cls, box: the loss and its two terms, means over the batch.
        stop: whether some rank was asked to stop.
        statistics: what the DR loss sees (see :func:`summary`); None in steps that are not logged.
    """

    loss: float
    cls: float
    box: float
    stop: bool
    statistics: dict[str, float] | None


def take_step(trainer: Trainer, micro_batches: list[Batch], logged: bool) -> StepReport:
    """Take one optimiser step on this rank's micro-batches.

    The host waits for the device once, for the sums over ranks; with several GPUs also for its own forward pass, and
    in the first step of a run for its loss.

    Raises:
        NonFiniteLoss: on every rank, if the loss or its gradient is not finite on one of them.
    """
    optimizer, scaler, ranks = trainer.optimizer, trainer.scaler, trainer.ranks
    set_learning_rate(optimizer, learning_rate(trainer.config, trainer.iteration))
    optimizer.zero_grad(set_to_none=True)
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    statistics: list[Tensor] = []
    forward_done = None
    for number, batch in enumerate(micro_batches):
        ranks.at("computing", slow=trainer.config.compile)  # a new image size may need a compilation
        with _no_sync(trainer, number < len(micro_batches) - 1):
            outputs, terms = forward(trainer, batch)
            forward_done = ranks.mark()  # the last backward waits for the other ranks
            scaler.scale(terms.total / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
        totals += torch.stack([terms.total, terms.cls, terms.box]).detach() / len(micro_batches)
        if trainer.iteration == 0 and number == 0:
            _check_first_loss(trainer, terms)
        if logged:
            statistics.append(_statistics(trainer, outputs, terms))
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.clip_norm or math.inf)
    ranks.at("agreeing")
    (loss, cls, box, *seen), stop = _agree(trainer, totals, statistics, norm, micro_batches, forward_done)
    scaler.step(optimizer)
    scaler.update()
    if trainer.average is not None:
        trainer.average.update(trainer.model)
    return StepReport(loss, cls, box, stop, summary(seen) if logged else None)


def forward(trainer: Trainer, batch: Batch) -> tuple[HeadOutputs, LossTerms]:
    """Outputs and loss terms of one micro-batch."""
    device = trainer.ranks.device
    with autocast(device, trainer.config.precision):
        outputs = trainer.parallel(batch.images.to(device, non_blocking=True), batch.sizes)
    return outputs, trainer.objective(outputs, batch.objects.to(device))


def _no_sync(trainer: Trainer, more: bool) -> AbstractContextManager[Any]:
    """While more micro-batches follow, do not average the gradients over ranks yet."""
    if more and isinstance(trainer.parallel, DistributedDataParallel):
        return trainer.parallel.no_sync()
    return nullcontext()


def _agree(
    trainer: Trainer,
    totals: Tensor,
    statistics: list[Tensor],
    norm: Tensor,
    micro_batches: list[Batch],
    forward_done: torch.cuda.Event | None,
) -> tuple[list[float], bool]:
    """Decide with the other ranks: raise, stop after this step (True) or go on.

    In fp16 a gradient that is not finite is normal: the scaler skips the step and lowers its scale.

    Returns:
        The means over ranks of ``totals`` and, if there are any, of the statistics; and whether to stop.
    """
    loss_bad = ~torch.isfinite(totals).all()
    bad = loss_bad if trainer.scaler.is_enabled() else loss_bad | ~torch.isfinite(norm)
    stop = torch.full((), trainer.stop.received, device=bad.device)
    seen = [torch.stack(statistics).mean(dim=0).double()] if statistics else []
    values = torch.cat([torch.stack([bad, stop]).double(), totals, *seen])
    bad_ranks, stopped, *sums = trainer.ranks.sum(values, after=forward_done)
    if bad_ranks:
        _refuse_step(trainer, bool(loss_bad), micro_batches)
    return [value / trainer.ranks.size for value in sums], stopped > 0


def _refuse_step(trainer: Trainer, loss_bad: bool, micro_batches: list[Batch]) -> NoReturn:
    """Raise NonFiniteLoss; it names the images of the ranks whose loss is bad, or of all if only the gradient is."""
    ids = [int(trainer.train.image_ids[i]) for b in micro_batches for i in b.indices]
    everyone = list(enumerate(trainer.ranks.gather((loss_bad, ids))))
    # All ranks share the averaged gradient, so blame only ranks whose own loss is bad.
    causes = [(r, i) for r, (bad, i) in everyone if bad]
    what = "loss" if causes else "gradient"
    causes = causes or [(r, i) for r, (_, i) in everyone]
    where = "; ".join(f"rank {r}, image ids {', '.join(map(str, i))}" for r, i in causes)
    kept = newest_first(trainer.out / CHECKPOINTS)[:1]
    raise NonFiniteLoss(
        f"iteration {trainer.iteration + 1}: the {what} is not finite ({where}); "
        + (f"the last good checkpoint is {kept[0].name}" if kept else "there is no checkpoint yet")
        + "; a lower --lr, a longer --warmup-iters or a --clip-norm may help"
    )


_OF_POSITIVES = ("expected_pos", "effective_pos")
"""Statistics that are undefined for an image without positives."""
_STATISTICS = (*_OF_POSITIVES, "expected_neg", "effective_neg", "positives", "with_positives")


def _statistics(trainer: Trainer, outputs: HeadOutputs, terms: LossTerms) -> Tensor:
    """Means over the images of :data:`_STATISTICS`.

    An image without positives adds 0 to :data:`_OF_POSITIVES`; :func:`summary` divides them by ``with_positives``.
    """
    loss = trainer.objective.loss
    options = {k: v for k, v in loss.options.items() if k != "reduction"} if isinstance(loss, DRLoss) else {}
    of_batch = terms.of_batch if isinstance(loss, DRLoss) else {}
    s = dr_expectations([level.detach() for level in outputs.maps], terms.labels, **options, **of_batch)
    positives = (terms.labels > 0).sum(dim=1).float()
    some = positives > 0
    of_positives = (torch.where(some, v, 0.0) for v in (s.expected_pos, s.effective_pos))
    each = (*of_positives, s.expected_neg, s.effective_neg, positives, some.float())
    return torch.stack([value.mean() for value in each])


def summary(means: list[float]) -> dict[str, float]:
    """What the DR loss sees, in the order of the log: P̂₊, P̂₋, their margin, effective numbers, positives.

    Args:
        means: means over the images of :data:`_STATISTICS`.
    """
    seen = dict(zip(_STATISTICS, means, strict=True))
    some = seen.pop("with_positives")
    seen |= {name: seen[name] / some if some else math.nan for name in _OF_POSITIVES}
    return {
        "expected_pos": seen["expected_pos"],
        "expected_neg": seen["expected_neg"],
        "margin": seen["expected_pos"] - seen["expected_neg"],
        **{name: seen[name] for name in ("effective_pos", "effective_neg", "positives")},
    }


def _check_first_loss(trainer: Trainer, terms: LossTerms) -> None:
    """Warn if a DR loss does not start at the value that follows from the theory."""
    loss, bias = trainer.objective.loss, trainer.model.cls_head.predict.bias
    if trainer.ranks.first and isinstance(loss, DRLoss) and bias is not None and not bool(bias.any()):
        problem = first_loss_problem(
            terms.cls.item(), loss, terms.labels, len(trainer.train.class_names), **terms.of_batch
        )
        if problem:
            warn(trainer.console, problem)
