"""The sums on a CPU, by a small C file that is compiled on the user's machine when it is first needed.

Why this and not torch's extension builder or Numba: the C file uses neither torch nor Python, so one wheel serves
every version of both; it compiles once, in about a second, for this very processor; and without a compiler, the
chunked backend replaces it. Threads come from the OpenMP library that torch has loaded.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from drloss.losses.fused.layout import NO_FIRST_PASS, Batch, Level

SOURCE = Path(__file__).with_name("kernels.c")
DTYPES = (torch.float32, torch.bfloat16)
_FLAGS = ("-std=c11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_TRIES = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
_TOP, _SUMS, _SLOPE = 0, {"dr": 1, "focal": 3}, {"dr": 2, "focal": 4}  # the enum of kernels.c


class _Sign(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("rate", "v0", "w0", "threshold", "share")]


class _Level(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("anchors", "classes", "places", "per_place")],
        ("labels", ctypes.c_void_p),
        ("dense", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * 2),
        ("by_anchor", ctypes.c_int64 * 2),
        ("by_class", ctypes.c_int64 * 2),
        ("signs", ctypes.POINTER(_Sign)),
        ("slopes", ctypes.c_void_p),
        ("by_class_sums", ctypes.c_int64),
    ]


def available() -> bool:
    """Whether the compiled library can be loaded; compiles it if necessary."""
    return _library() is not None


@cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("cc") or shutil.which("gcc")
    for tuned in _TRIES if compiler else ():
        assert compiler is not None
        try:
            library = ctypes.CDLL(str(_compiled(compiler, (*_FLAGS, *tuned))))
        except (OSError, subprocess.SubprocessError):
            continue
        library.drloss_blocks.restype = ctypes.c_int64
        library.drloss_level.restype = None
        return library
    return None


def _compiled(compiler: str, flags: tuple[str, ...]) -> Path:
    """The shared library for this source, compiler and processor, from the user's cache or newly compiled."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=20).stdout
    key = b"\0".join([SOURCE.read_bytes(), version, " ".join(flags).encode(), _processor().encode()])
    folder = _folder()
    target = folder / f"kernels-{hashlib.sha256(key).hexdigest()[:24]}.so"
    if not _is_whole(target):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / target.name
            command = [compiler, *flags, str(SOURCE), "-o", str(made)]
            subprocess.run(command, capture_output=True, check=True, timeout=120)
            with made.open("ab") as file:
                file.write(_seal(made.read_bytes()))
            made.replace(target)  # atomic: other processes may compile it at the same time
    return target


def _seal(library: bytes) -> bytes:
    """Checksum at the end of a library: loading a file that a power failure cut off would kill the process."""
    return hashlib.sha256(library).digest()


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return _seal(content[:-32]) == content[-32:]


def _folder() -> Path:
    """The folder of the library: the user's cache, or one of this process if other users could write to the cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drloss"
    with suppress(OSError, RuntimeError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
        if own and os.access(folder, os.W_OK):
            return folder
    private = tempfile.mkdtemp(prefix="drloss-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def _processor() -> str:
    """Features of the processor: machines with different processors may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def hardest(batch: Batch) -> Tensor:
    """As :func:`drloss.losses.fused.chunked.hardest`."""
    found = torch.full((batch.images, 6), -torch.inf, dtype=torch.float64, device="cpu")
    for n, level in batch.each_level():
        _call(batch, level, n, _TOP, out=found[n])
    return found[:, ::3]


def sums(batch: Batch) -> Tensor:
    """As :func:`drloss.losses.fused.chunked.sums`."""
    found = torch.zeros(batch.sums_shape, dtype=torch.float64, device="cpu")
    for n, level in batch.each_level():
        _call(batch, level, n, _SUMS[batch.kind], out=found[n])
    return found


def gradient(batch: Batch, factors: Tensor, coefficients: Tensor, into: list[Tensor]) -> None:
    """As :func:`drloss.losses.fused.chunked.gradient`."""
    coefficients = batch.spread_coefficients(factors, coefficients)
    for n, level in batch.each_level():
        _call(batch, level, n, _SLOPE[batch.kind], coefficients=coefficients[n], into=into[level.number])


def _call(
    batch: Batch,
    level: Level,
    n: int,
    task: int,
    coefficients: Tensor | None = None,
    into: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    library = _library()
    assert library is not None
    first_pass = [NO_FIRST_PASS] * 2 if batch.first_pass is None else batch.first_pass[n].tolist()
    signs = (_Sign * 2)(*[_Sign(rate, *found) for rate, found in zip(batch.rates, first_pass, strict=True)])
    described = _Level(level.anchors, batch.classes, level.places if level.planes else 0, level.per_place)
    described.by_class_sums = batch.by_class
    described.signs = signs
    if coefficients is not None:
        coefficients = coefficients.float().contiguous()
        described.slopes = coefficients.data_ptr()
    described.labels = batch.labels[n, level.first :].data_ptr()
    if batch.dense is not None:
        described.dense = batch.dense[n, level.first :].data_ptr()
    for sign, weights in enumerate(batch.weights):
        if weights is not None:
            described.weights[sign] = weights[n, level.first :].data_ptr()
            described.by_anchor[sign], described.by_class[sign] = weights.stride(1), weights.stride(2)
    sets = batch.classes if batch.by_class else 1
    count = 6 * sets * library.drloss_blocks(ctypes.byref(described))
    slots = torch.empty(count, dtype=torch.float64, device="cpu")
    own = level.logits[n] if level.pitch == batch.classes else level.logits[n].contiguous()
    library.drloss_level(
        ctypes.byref(described),
        ctypes.c_void_p(own.data_ptr()),
        None if into is None else ctypes.c_void_p(into[n].data_ptr()),
        task,
        ctypes.c_void_p(slots.data_ptr()),
        None if out is None else ctypes.c_void_p(out.data_ptr()),
        int(level.logits.dtype == torch.bfloat16),
        torch.get_num_threads(),
    )
