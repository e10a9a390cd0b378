"""The fused loss of each image, with its derivatives in reverse and forward mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from drloss.losses.candidates import reduce_images
from drloss.losses.derivatives import differentiated, forward_mode, last_derivative, transformed
from drloss.losses.fused.layout import readable
from drloss.losses.fused.operators import calls, gradients, gradients_in_place
from drloss.losses.fused.rules import Rule
from drloss.losses.inputs import Inputs
from drloss.losses.summation import total


def fused_loss(
    inputs: Inputs, rule: Rule, mined: tuple[int, int], backend: str, inplace: bool, reduction: str
) -> Tensor:
    """The loss, float32: a scalar, (N,) without a reduction, or (1,) if pooled; see :func:`drloss.dr_loss`.

    Args:
        inputs: float32, bfloat16 or float16 logits on one device.
        rule: the rule that computes the loss from sums.
        mined: numbers n̂ of hard mining of positives and of negatives, 0 for all candidates.
        backend: ``"auto"``, ``"cpu"``, ``"triton"`` or ``"chunked"``.
        inplace: whether the gradient may be written over the logits.
        reduction: over the losses of the images.
    """
    logits = [readable(x) for x in inputs.logits]
    if inplace:
        _check_inplace(inputs.logits)
        inplace = all(x.ndim == 4 or x.is_contiguous() for x in logits)  # not over a part of wider rows
    if inputs.labels is not None:
        labels, dense = inputs.labels.contiguous(), None
    else:
        assert inputs.targets is not None
        dense = inputs.targets.to(torch.uint8)
        if inputs.ignore is not None:
            dense = dense.masked_fill(inputs.ignore.unsqueeze(2), 2)
        labels, dense = dense.new_zeros(dense.shape[:2], dtype=torch.int64), dense.contiguous()
    rest = (labels, dense, *inputs.weights)
    how = calls(*rest, *logits)
    numbers = torch.tensor(rule.numbers, dtype=torch.float64, device="cpu") if how.plain else _stacked(rule)
    first_pass = None
    if any(mined) or any(rule.shifted):
        detached = [x.detach() for x in logits]
        first_pass = how.first_pass(detached, *rest, inputs.classes, mined, rule.shifted, rule.pooled, backend)
    options = _Options(inputs.classes, rule.kind, backend, *rule.choices, rule.by_class, rule.pooled)
    if not differentiated(logits):
        detached = [x.detach() for x in logits]
        return reduce_images(how.losses(detached, *rest, first_pass, numbers, *options.of_losses)[0], reduction)
    tensors = (*rest, first_pass, numbers, *logits)
    if how.plain and not forward_mode():
        found: Tensor = _PlainLoss.apply(reduction, options, inplace, *tensors)[0]
        return found
    function = _ForwardLosses if forward_mode() else _Losses
    return reduce_images(function.apply(options, inplace, *tensors)[0], reduction)


def _stacked(rule: Rule) -> Tensor:
    """The numbers of a rule as a tensor: those that change between calls would be constants of a compiled graph."""
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack([one * number for number in rule.numbers])


@dataclass(frozen=True)
class _Options:
    """Arguments of the operators that are no tensors."""

    classes: int
    kind: str
    backend: str
    first_choice: str
    second_choice: str
    by_class: bool
    pooled: bool

    @property
    def of_losses(self) -> tuple[int, str, str, str, str, bool, bool]:
        """The last arguments of ``drloss::losses``."""
        choices = (self.first_choice, self.second_choice, self.by_class, self.pooled)
        return self.classes, self.kind, self.backend, *choices

    @property
    def of_gradients(self) -> tuple[int, str, str]:
        """The last arguments of ``drloss::gradients``."""
        return self.classes, self.kind, self.backend


def _check_inplace(levels: list[Tensor]) -> None:
    if any(map(transformed, levels)):
        raise ValueError("inplace must be False within a transform of torch.func, got True")
    if any(x.is_leaf and x.requires_grad for x in levels):
        raise ValueError(
            "inplace must be False for logits that are leaves of the graph: their values would be lost, got a tensor "
            "whose own gradient is wanted"
        )
    spans = sorted((x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in levels)
    if any(end > begin for (_, end), (begin, _) in pairwise(spans)):
        raise ValueError("inplace must be False for levels that share their memory")


_FIRST_LEVEL = 6
"""Number of tensors before the levels of logits: labels, dense, both weights, first_pass and numbers."""
_ONCE = "a fused loss (backend 'torch' is not)"


def _times_gradient(
    of_levels: Sequence[Tensor | None], levels: Sequence[Tensor], coefficients: Tensor, *rest: Any
) -> Tensor:
    """(R,) inner products of cotangents or tangents of the levels with the gradient of each loss."""
    # In float32: without the factor that a loss is scaled by, the gradient may be too small for 16 bits.
    widened = [x.detach().float() for x in levels]
    by_level = gradients(coefficients.new_ones(len(coefficients)), coefficients, widened, *rest)
    products = [
        total((g * v.float()).flatten(1)).squeeze(1)
        for g, v in zip(by_level, of_levels, strict=True)
        if v is not None
    ]
    by_image = torch.stack(products).sum(dim=0)
    found = (by_image if len(coefficients) == len(by_image) else by_image.sum(dim=0, keepdim=True)).float()
    for x in levels:
        found = last_derivative(found, x, _ONCE)
    return found


def _saved(ctx: Any) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    """The saved tensors: coefficients, those before the levels, and the levels."""
    coefficients, *rest = ctx.saved_tensors  # read once: a checkpoint recomputes them each time
    return coefficients, rest[:_FIRST_LEVEL], rest[_FIRST_LEVEL:]


class _Losses(torch.autograd.Function):
    """Losses (R,) and coefficients; the levels of logits come last."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options: _Options, inplace: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        levels, others = list(tensors[_FIRST_LEVEL:]), tensors[:_FIRST_LEVEL]
        return calls(*tensors).losses(levels, *others, *options.of_losses)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        options, ctx.inplace, *tensors = inputs
        ctx.options = options
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)
        ctx.save_for_forward(output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, factors: Tensor, _: Tensor) -> tuple[Any, ...]:
        coefficients, others, levels = _saved(ctx)
        if ctx.inplace:
            unscaled = [x.detach() for x in levels]
            gradients_in_place(factors.detach(), coefficients, unscaled, *others, *ctx.options.of_gradients)
            found = [last_derivative(g, factors, "a loss with inplace=True") for g in unscaled]
        elif torch.is_grad_enabled() or forward_mode():
            function = _ForwardGradients if forward_mode() else _Gradients
            found = function.apply(ctx.options, factors, coefficients, *others, *levels)
        else:
            call = calls(factors, coefficients, *others, *levels).gradients
            found = call(factors, coefficients, levels, *others, *ctx.options.of_gradients)
        once = [last_derivative(g, x, _ONCE) for g, x in zip(found, levels, strict=True)]
        return *[None] * (2 + _FIRST_LEVEL), *once


class _PlainLoss(_Losses):
    """The reduced loss of plain tensors, in less time.

    Torch reads the signature of a function with ``setup_context`` at each call, and each operator has its cost.
    """

    setup_context = torch.autograd.Function.setup_context

    @staticmethod
    def forward(ctx: Any, reduction: str, *inputs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        losses, coefficients = _Losses.forward(*inputs)
        _Losses.setup_context(ctx, inputs, (losses, coefficients))
        ctx.reduction, ctx.rows = reduction, len(losses)
        return reduce_images(losses, reduction), coefficients

    @staticmethod
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Any, ...]:
        if ctx.reduction == "mean":
            factor = factor / max(ctx.rows, 1)
        return None, *_Losses.backward(ctx, factor.expand(ctx.rows), _)


class _ForwardLosses(_Losses):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        coefficients, others, levels = _saved(ctx)
        of_levels = tangents[2 + _FIRST_LEVEL :]
        return _times_gradient(of_levels, levels, coefficients, *others, *ctx.options.of_gradients), None


class _Gradients(torch.autograd.Function):
    """Gradient of each level as a function of the incoming gradients of the losses; it is linear in them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options: _Options, *tensors: Any) -> tuple[Tensor, ...]:
        factors, coefficients, *rest = tensors
        levels, others = rest[_FIRST_LEVEL:], rest[:_FIRST_LEVEL]
        return tuple(gradients(factors, coefficients, levels, *others, *options.of_gradients))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        coefficients, others, levels = _saved(ctx)
        by_factors = _times_gradient(cotangents, levels, coefficients, *others, *ctx.options.of_gradients)
        return None, by_factors, *[None] * (1 + len(others) + len(levels))


class _ForwardGradients(_Gradients):
    @staticmethod
    def jvp(ctx: Any, _: Any, factors: Tensor | None, *__: Any) -> tuple[Tensor, ...]:
        coefficients, others, levels = _saved(ctx)
        if factors is None:
            factors = torch.zeros_like(coefficients[:, 0, 0])
        detached = [x.detach() for x in levels]
        return tuple(gradients(factors, coefficients, detached, *others, *ctx.options.of_gradients))
