"""The command: see :mod:`benchmarks.gpu`."""

import argparse
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.parts import PARTS, run_parts
from benchmarks.gpu.table import table
from drloss.io.atomic import json_of

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together (default: 8)")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, metavar="FILE", help="record to write, or to complete")
    parser.add_argument("--table", type=Path, metavar="FILE", help="show the table of a record, and measure nothing")
    options = parser.parse_args()
    if options.table:
        record = json_of(options.table)
        if record is None:
            parser.error(f"--table {options.table}: there is no such record")
        print("\n".join(table(record)))
        return
    out = options.out or RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-gpu-{_name(options.device)}.json"
    names = [name for name in PARTS if not options.only or name in options.only]
    record = run_parts(out.resolve(), names, options.device, options.minutes * 60)
    print("\n" + "\n".join(table(record)) + f"\n\nrecorded in {out}")


def _name(device: str) -> str:
    """Name of the device as part of a file's name."""
    if device == "cpu" or not shutil.which("nvidia-smi"):
        return device
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout
    first = said.strip().splitlines()[0] if said.strip() else device
    return re.sub(r"[^a-z0-9]+", "-", first.lower().removeprefix("nvidia ")).strip("-")


if __name__ == "__main__":
    main()
