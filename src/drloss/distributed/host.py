"""Settings of the process that make a training step on a CPU faster. They change no result."""

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's ``mallopt`` for the two sizes below."""
_LARGEST_BLOCK, _LARGEST_FREE = 1 << 30, (1 << 31) - 1


def wait_passively() -> None:
    """Have threads that wait for others sleep instead of spinning; has an effect before torch is imported only.

    Beside data-loading processes or other programs, threads that spin take the cores from those they wait for: on two
    cores beside one busy program a step took two to three times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step; elsewhere this does nothing.

    By default it returns every large block to the system, and a step's tensors are such blocks: their pages are made
    anew, and filled with zeros, in each step.
    """
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, _LARGEST_FREE)
