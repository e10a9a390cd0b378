"""Sums over millions of candidates that are accurate and the same on any number of threads.

torch computes long tensors in parts, one for each thread. Two things then depend on the number of threads: which
elements of a part are computed by the vector loop and which by its scalar tail, whose ``exp`` differs in the last
bit; and the order of a sum. Against the first, rows are padded so that the parts of 1 to 8 threads (or of any of
their divisors) end on whole vectors. Against the second, a sum is taken over blocks of fixed length, each by one
thread, and then over the blocks in float64. This total is also accurate: one running sum of 16 million terms in
float32 is 6e-2 off.
"""

from torch import Tensor

_LANES = 32  # two AVX-512 registers of float32: what torch's vector loop takes at a time
_PARTS = 840  # the least common multiple of 1..8
_SERIAL = 32_768  # torch's grain size: one thread computes fewer elements


def block_length(rows: int) -> int:
    """Rows are padded to a multiple of this length: 26,880 over the common divisor of ``rows`` and 840."""
    common, rest = _PARTS, rows
    while rest:  # Euclid's algorithm, not math.gcd: to the compiler the rows may be a symbol
        common, rest = rest, common % rest
    return _LANES * (_PARTS // common)


def padded_length(rows: int, length: int) -> int:
    """Length that rows are padded to, at least 1."""
    if rows * length < _SERIAL:
        return max(length, 1)
    block = block_length(rows)
    return -(-length // block) * block


def wide(x: Tensor) -> Tensor:
    """The tensor in float64, or in float32 on a device without float64."""
    return x.float() if x.device.type == "mps" else x.double()


def total(x: Tensor) -> Tensor:
    """Sum of each row, (N, M) float32 or float64 -> (N, 1) float64."""
    blocks = _blocks(x)
    if blocks > 1:
        x = x.reshape(x.shape[0], blocks, x.shape[1] // blocks).sum(dim=2)
    return wide(x).sum(dim=1, keepdim=True)


def spread(x: Tensor, like: Tensor) -> Tensor:
    """Repeat one number for each row, (N, 1), to the shape of ``like`` (N, M); its gradient is a :func:`total`."""
    blocks = _blocks(like)
    spread_over_blocks = x.expand(-1, blocks).to(like.dtype)
    return spread_over_blocks.unsqueeze(2).expand(-1, -1, like.shape[1] // blocks).flatten(1)


def _blocks(x: Tensor) -> int:
    rows, length = x.shape
    block = block_length(max(rows, 1))
    return length // block if length > block and length % block == 0 else 1
