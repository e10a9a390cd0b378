"""Which backend computes a loss: by its name, or the fastest that can."""

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from drloss.losses.fused import chunked, cpu
from drloss.losses.inputs import Inputs
from drloss.losses.parameters import require_choice

BACKENDS = ("auto", "torch", "cpu", "triton", "chunked")
HAS_TRITON = find_spec("triton") is not None


def check_backend(name: str, *, inplace: bool, cannot: str = "") -> None:
    """Raise ValueError if the options do not go together; see :func:`choose_backend`."""
    require_choice("backend", name, BACKENDS)
    if not isinstance(inplace, bool):
        raise ValueError(f"inplace must be True or False, got {inplace!r}")
    if name not in ("auto", "torch") and cannot:
        raise ValueError(f"backend must be 'auto' or 'torch' for {cannot}, got {name!r}")
    if name == "torch" and inplace:
        raise ValueError("inplace must be False with backend 'torch'")


def choose_backend(name: str, inputs: Inputs, *, inplace: bool, cannot: str = "") -> str:
    """The backend of that name; for ``"auto"``, ``"torch"`` if no fused backend can compute this loss.

    Args:
        name: one of :data:`BACKENDS`.
        inputs: the loss's inputs.
        inplace: whether the gradient may be written over the logits.
        cannot: an option of the loss that the fused backends do not have, or "".
    Raises:
        ValueError: if the name is unknown, or the backend cannot compute this loss of these inputs.
    """
    check_backend(name, inplace=inplace, cannot=cannot)
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
    check_backend(name, inplace=inplace, cannot=cannot)
    return "chunked" if empty and name != "torch" else name


def backend_of(name: str, x: Tensor) -> Any:
    """The module of the backend of that name, or for ``"auto"`` the fastest that can read this tensor."""
    if name == "cpu" or (name == "auto" and x.device.type == "cpu" and x.dtype in cpu.DTYPES and cpu.available()):
        return cpu
    if name == "triton" or (name == "auto" and x.is_cuda and HAS_TRITON):
        from drloss.losses.fused import triton

        return triton
    return chunked
