"""Sums over millions of candidates that are accurate and the same on any number of threads.

torch computes long tensors in parts, one a thread. Two things then depend on the number of threads: which elements of
a part fall into the vector loop and which into its scalar tail, whose ``exp`` differs in the last bit; and the order
of a sum. Against the first, rows are padded so that the parts of 1 to 8 threads (or of any of their divisors) end on
whole vectors; against the second, a sum is taken over blocks of fixed length, each by one thread, and over the blocks
in float64. That total is also right where a sum of float32 drifts: 6e-2 over 16 million terms in one running sum.
"""

from math import gcd

import torch
from torch import Tensor

_LANES = 32  # two AVX-512 registers of float32: what torch's vector loop takes at a time
_PARTS = 840  # the least common multiple of 1..8
_SERIAL = 32_768  # torch's grain: fewer elements are left to one thread


def block_length(rows: int) -> int:
    """Elements that a row of ``rows`` rows is padded to a multiple of: 26,880 over their common divisor with 840."""
    return _LANES * (_PARTS // gcd(rows, _PARTS))


def padded_length(rows: int, length: int) -> int:
    """Length to which rows are padded, at least 1."""
    if rows * length < _SERIAL:
        return max(length, 1)
    block = block_length(rows)
    return -(-length // block) * block


def wide(x: Tensor) -> Tensor:
    """float64, or float32 on a device that has none."""
    return x.float() if x.device.type == "mps" else x.double()


def total(x: Tensor) -> Tensor:
    """Sum of each row, (N, M) float32 or float64 -> (N, 1) float64."""
    blocks = _blocks(x)
    if blocks > 1:
        x = x.reshape(x.shape[0], blocks, x.shape[1] // blocks).sum(dim=2)
    return wide(x).sum(dim=1, keepdim=True)


def spread(x: Tensor, like: Tensor) -> Tensor:
    """One number for each row, (N, 1), over the columns of ``like`` (N, M); its gradient is a :func:`total`."""
    blocks = _blocks(like)
    spread_over_blocks = x.expand(-1, blocks).to(like.dtype)
    return spread_over_blocks.unsqueeze(2).expand(-1, -1, like.shape[1] // blocks).flatten(1)


def _blocks(x: Tensor) -> int:
    rows, length = x.shape
    block = block_length(max(rows, 1))
    return length // block if length > block and length % block == 0 else 1


class LastDerivative(torch.autograd.Function):
    """A gradient that cannot be differentiated again, and says so where somebody tries.

    torch's ``once_differentiable`` does so only where the incoming gradient depends on the input; where it is a
    constant, a second derivative would silently lack a term. So the gradient is tied to its input here.
    """

    @staticmethod
    def forward(gradient: Tensor, of: Tensor, what: str) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.what = inputs[2]

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        raise RuntimeError(f"{ctx.what} can be differentiated once, not twice")


def last_derivative(gradient: Tensor, of: Tensor, what: str) -> Tensor:
    """``gradient``, as the last one with respect to ``of``; ``what`` is named in the error."""
    if not torch.is_grad_enabled():
        return gradient
    tied: Tensor = LastDerivative.apply(gradient, of, what)
    return tied
