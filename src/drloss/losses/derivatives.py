"""Derivatives that are written by hand, for every transform of torch.

A hand-written gradient is an ordinary function of the incoming gradient, which may itself be differentiated, as
GradNorm does. It works in forward mode (``torch.func.jvp``, ``jacfwd``, ``forward_ad``) and under ``vmap``, and
raises an error if a derivative is asked for that it does not have.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.autograd import Function, forward_ad

from drloss.losses.summation import total


def forward_mode() -> bool:
    """Whether tangents may be computed: within jvp, jacfwd, hessian or a dual level.

    A function with a ``jvp`` cannot be compiled, so each function here has two classes, with and without it.
    """
    return bool(forward_ad._current_level >= 0)


def transformed(x: Tensor) -> bool:
    """Whether a tensor belongs to a transform of torch.func: it may stand for many, and has no memory of its own."""
    return not torch.compiler.is_compiling() and bool(is_functorch_wrapped_tensor(x))


def nothing_looks(tensors: Sequence[Tensor | None]) -> bool:
    """Whether plain tensors are computed with at once: not compiled, exported, traced, transformed or watched."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._len_torch_dispatch_stack() or peek_interpreter_stack() is not None:
        return False
    plain = (Tensor, torch.nn.Parameter)
    return all(x is None or (type(x) in plain and not is_functorch_wrapped_tensor(x)) for x in tensors)


def differentiated(inputs: Sequence[Tensor]) -> bool:
    """Whether a derivative with respect to the inputs may be asked for.

    If not, no autograd function is needed, which the compiler before torch 2.15 could not trace here.
    """
    return forward_mode() or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))


def last_derivative(gradient: Tensor, of: Tensor, what: str) -> Tensor:
    """``gradient``; differentiating it with respect to ``of`` raises an error that names ``what``.

    torch's ``once_differentiable`` raises one only if the incoming gradient depends on the input. If it is a
    constant, a second derivative would silently lack a term. So a zero that depends on the input is added, whose
    derivative is the error.
    """
    if not (torch.is_grad_enabled() or forward_mode()):
        return gradient
    zero: Tensor = (_ForwardTie if forward_mode() else _Tie).apply(of, what)
    return gradient + zero


class _Tie(Function):
    """A zero whose derivative is an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(of: Tensor, what: str) -> Tensor:
        return of.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(f"{ctx.what} can be differentiated once, not twice")


class _ForwardTie(_Tie):
    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"{ctx.what} can be differentiated once, not twice")


def with_slopes(value: Tensor, slopes: Sequence[Tensor], of: Sequence[Tensor], what: str) -> Tensor:
    """``value`` (N, 1), whose derivative with respect to each tensor (N, M) of ``of`` is the slope (N, M) beside it.

    Values and slopes are constants: a second derivative is an error that names ``what``.
    """
    if not differentiated(of):
        return value
    function = _ForwardWithSlopes if forward_mode() else _WithSlopes
    found: Tensor = function.apply(value.detach(), what, *[s.detach() for s in slopes], *of)
    return found


class _WithSlopes(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, what: str, *slopes_and_inputs: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.what, *rest = inputs
        ctx.save_for_backward(*rest)
        ctx.save_for_forward(*rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes them each time
        half = len(saved) // 2
        found = zip(saved[:half], saved[half:], strict=True)
        gradients = [last_derivative(slope * grad.to(slope.dtype), x, ctx.what) for slope, x in found]
        return *[None] * (2 + half), *gradients


class _ForwardWithSlopes(_WithSlopes):
    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Tensor | None) -> Tensor:
        saved = ctx.saved_tensors
        half = len(saved) // 2
        slopes, inputs = saved[:half], saved[half:]
        moved = [total(s * t) for s, t in zip(slopes, tangents[half:], strict=True) if t is not None]
        found = torch.stack(moved).sum(dim=0)
        for x in inputs:
            found = last_derivative(found, x, ctx.what)
        return found
