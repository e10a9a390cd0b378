r"""The fused losses: one differentiable operator from logits and labels to the loss of each image.

For the candidates of one sign with hardness $v$ (a score for a negative, 1 minus a score for a positive), prior $o$
and $e = \exp((v - c)/\lambda)$, the sums $Z = \sum o e$, $S = \sum o e (v - c)$ and $M = \sum o$ are all that
Eq. (9) needs:

- $V = c + S/Z$ is $\hat P_-$ for the negatives and $1 - \hat P_+$ for the positives (Eq. 6);
- $c + \lambda \log(Z/M)$ is the dual value, whose gradient is q;
- so $z = V_- + V_+ - 1 + \gamma$, and the loss is $\ell(z)$ (Eq. 9).

Their gradient needs no more than the logits again: it is $o e (\alpha + \beta (v - c)) v (1 - v)$ with
$\alpha = (1 - (V - c)/\lambda)\,\ell'(z)/Z$ and $\beta = \ell'(z)/(\lambda Z)$, which is Appendix A; with the
weights held fixed, $\alpha = \ell'(z)/Z$ and $\beta = 0$.

The shift c is 0 while 1/λ is at most 16: scores lie in (0, 1), so that e^16 · 16 million is far from overflowing, and
their rounding divided by λ stays below 1e-6. For a smaller λ a pass before finds the hardest candidate, whose v is c.

Each backend computes the sums and the gradient in one file of its own: ``cpu`` (C, compiled on the user's machine),
``triton`` (CUDA) and ``chunked`` (plain torch, everywhere).
"""

import os
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, List, Sequence  # noqa: UP035 - what custom_op reads before torch 2.7

import torch
from torch import Tensor, library

from drloss.losses.derivatives import differentiated, forward_mode, last_derivative, transformed
from drloss.losses.fused import chunked, cpu
from drloss.losses.fused.layout import describe, in_place
from drloss.losses.inputs import Inputs
from drloss.losses.parameters import require_choice
from drloss.losses.summation import total
from drloss.losses.surrogates import choose_surrogate, surrogate_slope

BACKENDS = ("auto", "torch", "cpu", "triton", "chunked")

MOST_RATE = 16.0
"""1/λ up to which no shift is needed."""
HAS_TRITON = find_spec("triton") is not None


@dataclass(frozen=True)
class Rule:
    """What is made of the sums of an image.

    Attributes:
        kind: ``"dr"`` or ``"focal"``.
        rates: 1/λ₊ and 1/λ₋ of the DR loss, twice γ of the focal loss.
        surrogate: its name, for the DR loss; ``"positives"`` or ``"none"``, what the focal loss is divided by.
        weights_grad: see :func:`drloss.dr_loss`; ``""`` for the focal loss.
        numbers: margin and parameter of the surrogate (L or ρ); weights of positives and negatives.
        pooled: whether all images are one.
    """

    kind: str
    rates: tuple[float, float]
    surrogate: str
    weights_grad: str
    numbers: tuple[float, float]
    pooled: bool


def choose_backend(name: str, inputs: Inputs, *, inplace: bool, cannot: str = "") -> str:
    """The backend of that name if it can do what is asked, else ``"torch"`` for ``"auto"``.

    Args:
        cannot: what of the loss's options the fused backends do not have, or "".
    Raises:
        ValueError: if the name is unknown, or is that of a backend that cannot.
    """
    require_choice("backend", name, BACKENDS)
    if not isinstance(inplace, bool):
        raise ValueError(f"inplace must be True or False, got {inplace!r}")
    x = inputs.logits[0]
    if any(level.dtype != x.dtype or level.device != x.device for level in inputs.logits):
        cannot = cannot or "levels of several dtypes or devices"
    elif x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        cannot = cannot or f"{x.dtype} logits"
    empty = not any(level.numel() for level in inputs.logits)
    if name == "cpu" and not cannot and not empty:
        if x.device.type != "cpu" or x.dtype not in cpu.DTYPES:
            cannot = f"{x.dtype} logits on {x.device.type}"
        elif not torch.compiler.is_compiling() and not cpu.available():
            cannot = "a machine without a C compiler (cc, gcc or $CC)"
    if name == "triton" and not cannot and not empty:
        if not HAS_TRITON:
            cannot = "a machine without the package triton"
        elif not (x.is_cuda or "TRITON_INTERPRET" in os.environ):
            cannot = f"logits on {x.device.type}"
    if name == "auto" and cannot:
        return "torch"
    if name != "torch" and cannot:
        raise ValueError(f"backend must be 'auto' or 'torch' for {cannot}, got {name!r}")
    if name == "torch" and inplace:
        raise ValueError("inplace must be False with backend 'torch'")
    return "chunked" if empty and name != "torch" else name


def fused_losses(inputs: Inputs, rule: Rule, mined: tuple[int, int], backend: str, inplace: bool) -> Tensor:
    """Loss of each image, (N,) float32, or (1,) if they are pooled; see :func:`drloss.dr_loss`.

    Args:
        inputs: float32, bfloat16 or float16 logits on one device.
        rule: the loss.
        mined: n̂ of positives and of negatives, 0 for all.
        backend: ``"auto"``, ``"cpu"``, ``"triton"`` or ``"chunked"``.
        inplace: whether the gradient may take the logits' memory.
    """
    logits = [in_place(x) for x in inputs.logits]
    if inplace:
        _check_inplace(inputs.logits)
    if inputs.labels is not None:
        labels, dense = inputs.labels.contiguous(), None
    else:
        assert inputs.targets is not None
        dense = inputs.targets.to(torch.uint8)
        if inputs.ignore is not None:
            dense = dense.masked_fill(inputs.ignore.unsqueeze(2), 2)
        labels, dense = dense.new_zeros(dense.shape[:2], dtype=torch.int64), dense.contiguous()
    # A tensor, because numbers that change between calls would be constants of a compiled graph.
    one = torch.ones((), dtype=torch.float64, device="cpu")
    numbers = torch.stack([one * number for number in (*rule.rates, *rule.numbers)])
    rest = (labels, dense, *inputs.weights)
    shifted = [rule.kind == "dr" and rate > MOST_RATE for rate in rule.rates]
    extremes = None
    if any(mined) or any(shifted):
        extremes = _extremes(
            [x.detach() for x in logits], *rest, inputs.classes, mined, shifted, rule.pooled, backend
        )
    options = _Options(inputs.classes, rule.kind, backend, rule.surrogate, rule.weights_grad, rule.pooled)
    if not differentiated(logits):
        alone: Tensor = _losses([x.detach() for x in logits], *rest, extremes, numbers, *options.of_losses)[0]
        return alone
    function = _ForwardLosses if forward_mode() else _Losses
    losses: Tensor = function.apply(options, inplace, *rest, extremes, numbers, *logits)[0]
    return losses


@dataclass(frozen=True)
class _Options:
    """What the operators are told beside tensors."""

    classes: int
    kind: str
    backend: str
    surrogate: str
    weights_grad: str
    pooled: bool

    @property
    def of_losses(self) -> tuple[int, str, str, str, str, bool]:
        """The last arguments of ``drloss::losses``."""
        return self.classes, self.kind, self.backend, self.surrogate, self.weights_grad, self.pooled

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


def backend_of(name: str, x: Tensor) -> Any:
    """The module that does the work: the one of that name, or for ``"auto"`` the fastest that can."""
    if name == "cpu" or (name == "auto" and x.device.type == "cpu" and x.dtype in cpu.DTYPES and cpu.available()):
        return cpu
    if name == "triton" or (name == "auto" and x.is_cuda and HAS_TRITON):
        from drloss.losses.fused import triton

        return triton
    return chunked


def finish(sums: Tensor, extremes: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor]:
    """Losses (R,) and α and β of positives and negatives, (R, 2, 2), of sums (R, 2, 3), all float64.

    R is N, or 1 if the images are pooled.
    """
    z_sum, s_sum, mass = sums.unbind(2)
    if rule.kind == "focal":
        by_sign = sums.new_tensor(rule.numbers)
        by_sign = (
            by_sign / mass[:, :1].clamp(min=1) if rule.surrogate == "positives" else by_sign.expand(len(sums), 2)
        )
        return (z_sum * by_sign).sum(dim=1), torch.stack([by_sign, torch.zeros_like(by_sign)], dim=2)
    there = mass > 0
    z_sum = torch.where(there, z_sum, 1.0)
    lam = 1 / sums.new_tensor(rule.rates)
    above = torch.where(there, s_sum / z_sum, 0.0)
    shift: Tensor | float = 0.0
    if extremes is not None:
        score, easiness = extremes[: len(sums), :, :2].to(sums.dtype).unbind(2)
        shift = torch.where(there, torch.where(score > 0.5, 1 - easiness, score), 0.0)
    value = shift + above
    if rule.weights_grad == "dual":
        value = torch.where(there, shift + lam * (z_sum / torch.where(there, mass, 1.0)).log(), 0.0)
    violation = value.sum(dim=1) - 1 + rule.numbers[0]
    parameters = {"smoothness": rule.numbers[1], "rho": rule.numbers[1]}
    slope = surrogate_slope(rule.surrogate, **parameters)(violation)
    alpha, beta = 1 / z_sum, torch.zeros_like(z_sum)
    if rule.weights_grad == "exact":
        alpha, beta = (1 - above / lam) / z_sum, 1 / (lam * z_sum)
    coefficients = torch.stack([alpha, beta], dim=2) * (there * slope.unsqueeze(1)).unsqueeze(2)
    return choose_surrogate(rule.surrogate, **parameters)(violation), coefficients


@library.custom_op("drloss::extremes", mutates_args=())
def _extremes(
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
    """Of :class:`drloss.losses.fused.layout.Problem`."""
    problem = describe(logits, labels, dense, pos_weights, neg_weights, None, (1.0, 1.0), classes, "dr")
    n = problem.images
    found = labels.new_tensor([0.0, 1.0, -torch.inf, 1.0], dtype=torch.float32).repeat(n, 2, 1)
    if any(mined):
        found[:, :, 2:] = chunked.mined(problem, mined, pooled)
    if any(shifted):
        hardest = backend_of(backend, logits[0]).hardest(problem)
        if pooled and n:
            hardest = hardest.amax(dim=0, keepdim=True).expand(n, 2)
        for sign in range(2):
            if shifted[sign]:
                found[:, sign, 0] = hardest[:, sign].sigmoid()
                found[:, sign, 1] = (-hardest[:, sign]).sigmoid()
    return found


@_extremes.register_fake
def _(logits: Sequence[Tensor], labels: Tensor, *_: Any) -> Tensor:
    return labels.new_empty(labels.shape[0], 2, 4, dtype=torch.float32)


@library.custom_op("drloss::losses", mutates_args=())
def _losses(
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    extremes: Tensor | None,
    numbers: Tensor,
    classes: int,
    kind: str,
    backend: str,
    surrogate: str,
    weights_grad: str,
    pooled: bool,
) -> tuple[Tensor, Tensor]:
    """Losses (R,) and coefficients (R, 2, 2), float32; ``numbers`` are a rule's rates and numbers, float64."""
    *rates, first, second = numbers.tolist()
    problem = describe(logits, labels, dense, pos_weights, neg_weights, extremes, rates, classes, kind)
    rule = Rule(kind, (rates[0], rates[1]), surrogate, weights_grad, (first, second), pooled)
    module = backend_of(backend, logits[0])
    if hasattr(module, "losses"):
        found: tuple[Tensor, Tensor] = module.losses(problem, rule)
        return found
    sums = module.sums(problem)
    if pooled and problem.images:
        sums = sums.sum(dim=0, keepdim=True)
    losses, coefficients = finish(sums, extremes, rule)
    return losses.float(), coefficients.float()


@_losses.register_fake
def _(logits: Sequence[Tensor], labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows = min(labels.shape[0], 1) if rest[-1] else labels.shape[0]  # pooled is the last
    losses = labels.new_empty(rows, dtype=torch.float32)
    return losses, losses.new_empty(rows, 2, 2)


@library.custom_op("drloss::gradients", mutates_args=())
def _gradients(
    factors: Tensor,
    coefficients: Tensor,
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    extremes: Tensor | None,
    numbers: Tensor,
    classes: int,
    kind: str,
    backend: str,
) -> List[Tensor]:  # noqa: UP006
    """Gradient of each level for factors (R,), the derivative of what follows by each loss."""
    into = [torch.empty_like(level) for level in logits]
    problem = describe(logits, labels, dense, pos_weights, neg_weights, extremes, numbers.tolist(), classes, kind)
    backend_of(backend, logits[0]).gradient(problem, factors, coefficients, into)
    return into


@_gradients.register_fake
def _(factors: Tensor, coefficients: Tensor, logits: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(level) for level in logits]


@library.custom_op("drloss::gradients_in_place", mutates_args={"logits"})
def _gradients_in_place(
    factors: Tensor,
    coefficients: Tensor,
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    extremes: Tensor | None,
    numbers: Tensor,
    classes: int,
    kind: str,
    backend: str,
) -> None:
    """As ``gradients``, written over the logits."""
    problem = describe(logits, labels, dense, pos_weights, neg_weights, extremes, numbers.tolist(), classes, kind)
    backend_of(backend, logits[0]).gradient(problem, factors, coefficients, list(logits))


def _one_by_one(op: Any) -> Any:
    """The rule of an operator under vmap: each of the many problems on its own."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        found = [op(*map(partial(_pick, i), args, in_dims)) for i in range(info.batch_size)]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return type(found[0])(torch.stack(parts) for parts in zip(*found, strict=True)), type(found[0])(
            0 for _ in found[0]
        )

    return rule


def _pick(i: int, value: Any, dim: Any) -> Any:
    """Entry i of an argument along the dimension that vmap has put in, if it has."""
    if isinstance(value, (list, tuple)) and isinstance(dim, (list, tuple)):
        return [_pick(i, v, d) for v, d in zip(value, dim, strict=True)]
    return value.select(dim, i).contiguous() if isinstance(value, Tensor) and dim is not None else value


for _op in (_extremes, _losses, _gradients):
    _op.register_vmap(_one_by_one(_op))

_ONCE = "a fused loss (backend 'torch' is not)"


def _times_gradient(
    of_levels: Sequence[Tensor | None], levels: Sequence[Tensor], coefficients: Tensor, *rest: Any
) -> Tensor:
    """(R,) inner products of the levels' cotangents or tangents with each loss's gradient."""
    # In float32: without the factor that a loss is scaled by, the gradient may be too small for 16 bits.
    wide = [x.detach().float() for x in levels]
    gradients = _gradients(torch.ones_like(coefficients[:, 0, 0]), coefficients, wide, *rest)
    products = [
        total((g * v.float()).flatten(1)).squeeze(1)
        for g, v in zip(gradients, of_levels, strict=True)
        if v is not None
    ]
    by_image = torch.stack(products).sum(dim=0)
    found = (by_image if len(coefficients) == len(by_image) else by_image.sum(dim=0, keepdim=True)).float()
    for x in levels:
        found = last_derivative(found, x, _ONCE)
    return found


class _Losses(torch.autograd.Function):
    """Losses (R,) with their gradient; the levels come last."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options: _Options, inplace: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _losses(list(tensors[6:]), *tensors[:6], *options.of_losses)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        options, ctx.inplace, *tensors = inputs
        ctx.options = options
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)
        ctx.save_for_forward(output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, factors: Tensor, _: Tensor) -> tuple[Any, ...]:
        coefficients, *rest = ctx.saved_tensors
        levels = rest[6:]
        if ctx.inplace:
            unscaled = [x.detach() for x in levels]
            _gradients_in_place(factors.detach(), coefficients, unscaled, *rest[:6], *ctx.options.of_gradients)
            gradients = [last_derivative(g, factors, "a loss with inplace=True") for g in unscaled]
        elif torch.is_grad_enabled() or forward_mode():
            function = _ForwardGradients if forward_mode() else _Gradients
            gradients = function.apply(ctx.options, factors, coefficients, *rest)
        else:
            gradients = _gradients(factors, coefficients, levels, *rest[:6], *ctx.options.of_gradients)
        return *[None] * 8, *[last_derivative(g, x, _ONCE) for g, x in zip(gradients, levels, strict=True)]


class _ForwardLosses(_Losses):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        coefficients, *rest = ctx.saved_tensors
        return _times_gradient(tangents[8:], rest[6:], coefficients, *rest[:6], *ctx.options.of_gradients), None


class _Gradients(torch.autograd.Function):
    """Gradient of each level as a function of the factors, in which it is linear."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options: _Options, *tensors: Any) -> tuple[Tensor, ...]:
        factors, coefficients, *rest = tensors
        return tuple(_gradients(factors, coefficients, rest[6:], *rest[:6], *options.of_gradients))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        coefficients, *rest = ctx.saved_tensors
        by_factors = _times_gradient(cotangents, rest[6:], coefficients, *rest[:6], *ctx.options.of_gradients)
        return None, by_factors, *[None] * len(ctx.saved_tensors)


class _ForwardGradients(_Gradients):
    @staticmethod
    def jvp(ctx: Any, _: Any, factors: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
        coefficients, *rest = ctx.saved_tensors
        if factors is None:
            factors = torch.zeros_like(coefficients[:, 0, 0])
        return tuple(
            _gradients(factors, coefficients, [x.detach() for x in rest[6:]], *rest[:6], *ctx.options.of_gradients)
        )
