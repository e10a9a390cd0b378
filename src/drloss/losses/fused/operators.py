"""The fused losses as operators of torch, which its compiler and vmap do not look into; each calls a backend.

The arguments ``kind``, ``numbers`` and both choices describe the rule of the loss (:mod:`drloss.losses.fused.rules`).
Where nothing looks at operators, :data:`FUNCTIONS` does the same without torch's dispatcher, in half the time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, List, NamedTuple, Sequence  # noqa: UP035 - what custom_op reads before torch 2.7

import torch
from torch import Tensor, library

from drloss.losses.derivatives import nothing_looks
from drloss.losses.fused import chunked
from drloss.losses.fused.backends import backend_of
from drloss.losses.fused.layout import NO_FIRST_PASS, FirstPass, make_batch
from drloss.losses.fused.rules import read_rule


def _first_pass(
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    classes: int,
    mined: Sequence[int],
    shifted: Sequence[bool],
    pooled: bool,
    backend: str,
) -> Tensor:
    """The tensor of :class:`drloss.losses.fused.layout.FirstPass`, (N, 2, 4) float32.

    ``mined`` are the numbers n̂ of hard mining, 0 for all candidates; ``shifted`` says which exponents need a shift.
    """
    batch = make_batch(logits, labels, dense, pos_weights, neg_weights, None, (1.0, 1.0), classes, "dr")
    n = batch.images
    found = labels.new_empty(n, 2, 4, dtype=torch.float32)
    columns = FirstPass(*found.unbind(2))
    for column, value in zip(columns, NO_FIRST_PASS, strict=True):  # a tensor of the values would wait for the device
        column.fill_(value)
    if any(mined):
        thresholds, shares = chunked.mined(batch, mined, pooled).unbind(2)
        columns.threshold.copy_(thresholds)
        columns.share.copy_(shares)
    if any(shifted):
        hardest = backend_of(backend, logits[0]).hardest(batch)
        if pooled and n:
            hardest = hardest.amax(dim=0, keepdim=True).expand(n, 2)
        for sign in range(2):
            if shifted[sign]:
                columns.score[:, sign] = hardest[:, sign].sigmoid()
                columns.easiness[:, sign] = (-hardest[:, sign]).sigmoid()
    return found


find_first_pass = library.custom_op("drloss::first_pass", _first_pass, mutates_args=())


@find_first_pass.register_fake
def _(logits: Sequence[Tensor], labels: Tensor, *_: Any) -> Tensor:
    return labels.new_empty(labels.shape[0], 2, 4, dtype=torch.float32)


def _losses(
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    first_pass: Tensor | None,
    numbers: Tensor,
    classes: int,
    kind: str,
    backend: str,
    first_choice: str,
    second_choice: str,
    by_class: bool,
    pooled: bool,
) -> tuple[Tensor, Tensor]:
    """Losses (R,) and coefficients (R, 2, 2), float32; R is N, or 1 if the images are pooled.

    By class the coefficients are (R, K, 2, 2), from which :func:`gradients` knows it.
    """
    four = numbers.tolist()
    batch = make_batch(
        logits, labels, dense, pos_weights, neg_weights, first_pass, four, classes, kind, by_class=by_class
    )
    rule = read_rule(kind, four, (first_choice, second_choice), pooled=pooled, by_class=by_class)
    module = backend_of(backend, logits[0])
    if hasattr(module, "losses"):
        found: tuple[Tensor, Tensor] = module.losses(batch, rule)
        return found
    sums = module.sums(batch)
    if pooled and batch.images:
        sums = sums.sum(dim=0, keepdim=True)
    losses, coefficients = rule.finish(sums, first_pass)
    return losses.float(), coefficients.float()


losses_and_coefficients = library.custom_op("drloss::losses", _losses, mutates_args=())


@losses_and_coefficients.register_fake
def _(logits: Sequence[Tensor], labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows = min(labels.shape[0], 1) if rest[-1] else labels.shape[0]  # pooled is the last
    losses = labels.new_empty(rows, dtype=torch.float32)
    by_class, classes = rest[-2], rest[5]
    return losses, losses.new_empty(*(rows, classes) if by_class else (rows,), 2, 2)


def _gradients(
    factors: Tensor,
    coefficients: Tensor,
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    first_pass: Tensor | None,
    numbers: Tensor,
    classes: int,
    kind: str,
    backend: str,
) -> List[Tensor]:  # noqa: UP006
    """Gradient of each level; ``factors`` (R,) are the incoming gradients, one for each loss."""
    into = [torch.empty_like(level) for level in logits]
    rest = (labels, dense, pos_weights, neg_weights, first_pass, numbers.tolist(), classes, kind)
    batch = make_batch(logits, *rest, by_class=coefficients.ndim == 4)
    backend_of(backend, logits[0]).gradient(batch, factors, coefficients, into)
    return into


gradients = library.custom_op("drloss::gradients", _gradients, mutates_args=())


@gradients.register_fake
def _(factors: Tensor, coefficients: Tensor, logits: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(level) for level in logits]


@library.custom_op("drloss::gradients_in_place", mutates_args={"logits"})
def gradients_in_place(
    factors: Tensor,
    coefficients: Tensor,
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    first_pass: Tensor | None,
    numbers: Tensor,
    classes: int,
    kind: str,
    backend: str,
) -> None:
    """As :data:`gradients`, written over the logits."""
    rest = (labels, dense, pos_weights, neg_weights, first_pass, numbers.tolist(), classes, kind)
    batch = make_batch(logits, *rest, by_class=coefficients.ndim == 4)
    backend_of(backend, logits[0]).gradient(batch, factors, coefficients, list(logits))


class Calls(NamedTuple):
    """The steps of a fused loss, as operators or as functions, and whether they are functions.

    Ask :attr:`plain`: the compiler of torch 2.6 takes ``is`` between named tuples for a comparison of their parts.
    """

    first_pass: Callable[..., Tensor]
    losses: Callable[..., tuple[Tensor, Tensor]]
    gradients: Callable[..., list[Tensor]]
    plain: bool


OPERATORS = Calls(find_first_pass, losses_and_coefficients, gradients, plain=False)
FUNCTIONS = Calls(_first_pass, _losses, _gradients, plain=True)


def calls(*tensors: Tensor | None) -> Calls:
    """How to call a backend with these tensors: as functions where no compiler, mode or transform must see it."""
    return FUNCTIONS if nothing_looks(tensors) else OPERATORS


def _one_by_one(op: Any) -> Any:
    """How vmap calls an operator: once for each entry of the mapped dimension."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        found = [op(*map(partial(_pick, i), args, in_dims)) for i in range(info.batch_size)]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return type(found[0])(torch.stack(parts) for parts in zip(*found, strict=True)), type(found[0])(
            0 for _ in found[0]
        )

    return rule


def _pick(i: int, value: Any, dim: Any) -> Any:
    """Entry i of an argument along the dimension that vmap maps over; the argument itself where it maps over none."""
    if isinstance(value, (list, tuple)) and isinstance(dim, (list, tuple)):
        return [_pick(i, v, d) for v, d in zip(value, dim, strict=True)]
    return value.select(dim, i).contiguous() if isinstance(value, Tensor) and dim is not None else value


for _op in (find_first_pass, losses_and_coefficients, gradients):
    _op.register_vmap(_one_by_one(_op))
