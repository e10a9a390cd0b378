"""What machine it is: versions, packages, memory, and how fast it copies."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu.clock import copy_seconds, times
from benchmarks.gpu.notes import Notes
from benchmarks.measure import surroundings

_PACKAGES = (
    *("numpy", "PIL", "rich", "tensorboard", "timm", "safetensors", "matplotlib", "yaml", "jinja2", "msgspec"),
    *("faster_coco_eval", "pycocotools", "scipy", "hypothesis", "pytest"),
)
_TOOLS = ("nvidia-smi", "compute-sanitizer", "ncu", "nvcc", "cc")


def run(notes: Notes) -> None:
    """Note it; see :mod:`benchmarks.gpu`."""
    notes.attempt("versions", lambda: surroundings(notes.device))
    notes.attempt("packages", lambda: {name: find_spec(name) is not None for name in _PACKAGES})
    notes.attempt("tools", lambda: {name: shutil.which(name) for name in _TOOLS})
    notes.attempt("host", _host)
    if not notes.small:
        notes.attempt("device", _device)
        notes.attempt("nvidia-smi", _nvidia_smi)
    notes.attempt("copy", lambda: _copies(notes))
    one = torch.zeros(1, device=notes.device)
    notes.attempt("launch_us", lambda: round(1e6 * times([lambda _: one.add_(1)], notes.device, 200)[1][0], 2))


def _host() -> dict[str, Any]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    files = subprocess.run(["bash", "-c", "ulimit -n"], capture_output=True, text=True, check=False).stdout.strip()
    return {"cores": os.cpu_count(), "memory_gb": pages // 10**9, "shm_gb": shared / 1e9, "open_files": files}


def _device() -> dict[str, Any]:
    about = torch.cuda.get_device_properties(0)
    found = {name: getattr(about, name, None) for name in ("name", "total_memory", "multi_processor_count")}
    found |= {"capability": f"{about.major}.{about.minor}", "l2_bytes": getattr(about, "L2_cache_size", None)}
    return found | {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def _nvidia_smi() -> str:
    what = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used"
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()


def _copies(notes: Notes) -> dict[str, float]:
    """TB/s of a copy, read and written, and of a sum, which only reads."""
    size = 2**20 if notes.small else 2**30
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(size // dtype.itemsize, device=notes.device).to(dtype)
        name = str(dtype).removeprefix("torch.")
        found[f"{name}, copied"] = 2 * size / copy_seconds([x], notes.device) / 1e12
        found[f"{name}, summed"] = size / times([lambda _, x=x: x.sum()], notes.device, 20)[0][0] / 1e12
    return {name: round(value, 3) for name, value in found.items()}
