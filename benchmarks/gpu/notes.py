"""What a part finds, on the disk at once: a part may be stopped at any time."""

import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drloss.io.atomic import write_json


class Notes:
    """What a part is told, and what it has found.

    Args:
        device: ``"cuda"`` or ``"cpu"``; on a CPU everything is small.
        seconds: time that the part may take.
        path: file for ``{"found": ..., "finished": ..., "error": ...}``.
    """

    def __init__(self, device: str, seconds: float, path: Path) -> None:
        self.device, self.path = device, path
        self.small = device == "cpu"
        self.found: dict[str, Any] = {}
        self._ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the part must have ended."""
        return self._ends - time.monotonic()

    def note(self, name: str, value: Any, say: str = "") -> None:
        """Keep a finding, of JSON's types, and print it, or what ``say`` says of it."""
        self.found[name] = value
        text = say or str(value)
        print(f"  {name}: {text if len(text) < 220 else f'{text[:200]} ...'}", flush=True)
        self.write(finished=False)

    def attempt(self, name: str, run: Callable[[], Any], *, needs: float = 0) -> None:
        """Note what ``run`` returns; if it raises, its traceback; if too little time is left, that it was not run.

        Args:
            name: of the finding.
            run: gives its value.
            needs: seconds that must be left.
        """
        if self.left < needs:
            self.note(name, {"not_run": f"{max(self.left, 0):.0f} s were left, and it needs {needs:.0f}"})
            return
        try:
            self.note(name, run())
        except Exception as error:
            self.note(name, failure(error))

    def write(self, *, finished: bool, error: str | None = None) -> None:
        """Write everything found so far."""
        write_json(self.path, {"found": _finite(self.found), "finished": finished, "error": error})


def failure(error: Exception) -> dict[str, str]:
    """What is kept of an exception: ``{"error", "traceback"}``, or ``{"not_run"}`` if a package is missing."""
    if isinstance(error, ModuleNotFoundError):
        return {"not_run": f"{error.name} is missing"}
    lines = str(error).strip().splitlines() or [""]
    return {"error": f"{type(error).__name__}: {lines[0][:300]}", "traceback": traceback.format_exc()[-4000:]}


def words(row: dict[str, Any]) -> str:
    """Why a row has no numbers."""
    return str(row.get("error") or f"not run: {row.get('not_run')}")


def _finite(value: Any) -> Any:
    """The value with infinities as text, which JSON lacks."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and math.isinf(value) else value
