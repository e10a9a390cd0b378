"""One part in a process of its own: python -m benchmarks.gpu.part MODULE DEVICE SECONDS FILE"""

import faulthandler
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.notes import Notes

_BEFORE_THE_END = 3
"""Seconds before its limit at which a part shows where it is."""


def main(module: str, device: str, seconds: str, path: str) -> int:
    """Run the function ``run`` of a module, and keep its findings in a file; the exit status is 1 if it raised."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(float(seconds) - _BEFORE_THE_END, 1))
    notes = Notes(device, float(seconds), Path(path))
    try:
        import_module(module).run(notes)
    except Exception:
        notes.write(finished=False, error=traceback.format_exc()[-6000:])
        traceback.print_exc()
        return 1
    notes.write(finished=True)
    return 0


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without waiting for processes of its own, which are killed with it
