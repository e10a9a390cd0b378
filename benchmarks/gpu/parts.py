"""Running the parts one after the other, and their record."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drloss.io.atomic import json_of, write_json

PARTS = {
    "machine": ("benchmarks.gpu.machine", 20),
    "correctness": ("benchmarks.gpu.correctness", 95),
    "large": ("benchmarks.gpu.large", 70),
    "loss": ("benchmarks.gpu.timing", 105),
    "step": ("benchmarks.gpu.step", 110),
    "training": ("benchmarks.gpu.training", 80),
}
"""By name the module of each part and its share of the time, in seconds of eight minutes."""
_ROOT = Path(__file__).parents[2]
_LAST_LINES = 3000
"""Letters of what a part wrote to its standard error that are kept where it failed."""

Parts = Mapping[str, tuple[str, float]]


def run_parts(out: Path, names: Sequence[str], device: str, seconds: float, parts: Parts = PARTS) -> dict[str, Any]:
    """Run some parts, and write the record after each.

    Args:
        out: the record; what it has of other parts stays.
        names: which parts, in their order.
        device: ``"cuda"`` or ``"cpu"``.
        seconds: for all of them; time that a part leaves over is for the later ones.
        parts: module and share of the time of each.
    Returns:
        The record: ``{"parts": {name: {"status", "seconds", "limit_s", "commit", "when", "found", "error"}}}``. The
        status is ``"done"``, ``"failed"`` or ``"timed out"``.
    """
    record = json_of(out) or {}
    record |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "parts": record.get("parts", {})}
    ends = time.monotonic() + seconds
    for number, name in enumerate(names):
        share = parts[name][1] / sum(parts[other][1] for other in names[number:])
        limit = max((ends - time.monotonic()) * share, 1)
        print(f"\n{name}: at most {limit:.0f} s", flush=True)
        record["parts"][name] = found = run_part(parts[name][0], device, limit, out.with_name(f".{out.stem}-{name}"))
        write_json(out, record)
        print(f"{name}: {found['status']} after {found['seconds']:.0f} s", flush=True)
    return record


def run_part(module: str, device: str, limit: float, beside: Path) -> dict[str, Any]:
    """Run a part in a process, and give its entry in the record.

    Args:
        module: which has a function ``run``.
        device: ``"cuda"`` or ``"cpu"``.
        limit: seconds until the process and those that it started are killed.
        beside: file for what it has found so far; it is removed in the end.
    """
    began = time.monotonic()
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.part", module, device, f"{limit:.1f}", str(beside)]
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, stderr=errors, cwd=_ROOT, start_new_session=True
        )
        try:
            status = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            _kill(process)
        errors.seek(max(errors.seek(0, os.SEEK_END) - _LAST_LINES, 0))
        said = errors.read().decode(errors="replace")
    kept = json_of(beside) or {"found": {}, "error": None}
    beside.unlink(missing_ok=True)
    found: dict[str, Any] = {
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "limit_s": round(limit, 1),
        "commit": os.environ.get("DRLOSS_COMMIT"),
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "found": kept["found"],
    }
    if status != "done":
        code = process.returncode
        found["error"] = kept["error"] or f"exit status {code}; it wrote:\n{said}"
        print(found["error"][-1500:], flush=True)
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
