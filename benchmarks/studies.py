"""Put finished studies on record: runs of ``drloss reproduce`` and reports of ``drloss compare``.

python -m benchmarks.studies --reproduction FOLDER ... --compare NAME=FOLDER ...

The records are dated files in ``benchmarks/results/``, from which ``python -m benchmarks.page`` makes pages. To add
new runs of the reproduction to a record, name the record before the folder.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.loss import RESULTS
from drloss.errors import UserError
from drloss.evaluation.coco import METRICS
from drloss.io.atomic import write_text
from drloss.studies.compare.differences import title
from drloss.studies.paper.names import FIGURES
from drloss.studies.paper.numbers import figure_settings
from drloss.studies.paper.records import join_records, read_records, write_records

COMPARISON, REPRODUCTION = "compare", "reproduction"


def newest(kind: str) -> dict[str, Path]:
    """The newest record of each study of a kind, by name."""
    found = {}
    for path in sorted(RESULTS.glob(f"*-{kind}-*.json")):
        found[path.stem.split(f"-{kind}-", 1)[1]] = path
    return found


def write_comparison(to: Path, report: Path) -> None:
    """Write the parts of a report's JSON that pages show, with a checksum; only the last part of the data's path."""
    kept = json.loads(report.read_text(encoding="utf-8"))
    kept.pop("losses", None)
    path_of_data, about = kept["facts"]["data"].split(": ", 1)
    kept["facts"]["data"] = f"{Path(path_of_data).name}: {about}"
    for run in kept["runs"]:
        run["metrics"] = run.pop("evaluation")["metrics"]
    text = json.dumps(kept, sort_keys=True)
    write_text(to, json.dumps({"sha256": sha256(text.encode()).hexdigest(), **kept}, indent=1) + "\n")


def write_reproduction(to: Path, date: str, parts: Sequence[Path]) -> Path:
    """Write one record of several folders of ``drloss reproduce`` or records of them.

    Raises:
        UserError: if their scales or their data differ, or a record was changed since it was written.
    """
    found = [read_records(part / "records.json" if part.is_dir() else part) for part in parts]
    scales = sorted({scale for scale, _ in found})
    if len(scales) > 1:
        raise UserError(f"--reproduction: the records are of the scales {' and '.join(scales)}: name those of one")
    path = to / f"{date}-{REPRODUCTION}-{scales[0]}.json"
    drawn = [figure_settings(loss, scales[0]).key for loss in FIGURES["figure4"]]
    write_records(path, scales[0], join_records([records for _, records in found]), drawn)
    return path


def read_comparison(path: Path) -> dict[str, Any]:
    """A record that :func:`write_comparison` wrote.

    Raises:
        UserError: if it was changed since.
    """
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    digest = kept.pop("sha256")
    if digest != sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest():
        raise UserError(f"{path}: the record is not that which was written: its checksum differs")
    return kept


def comparison(name: str) -> list[str]:
    """Table, conclusions and facts of the newest comparison with this name."""
    record = read_comparison(newest(COMPARISON)[name])
    by_loss: dict[str, list[dict[str, Any]]] = {}
    for run in record["runs"]:
        by_loss.setdefault(run["loss"], []).append(run)
    steps = list(record["runs"][0]["progress"])[:-1]
    head = [*METRICS, *(f"AP50 at {step}" for step in steps), "calibration error", "minutes"]
    lines = [f"| loss | {' | '.join(head)} |", f"|---|{'---:|' * len(head)}"]
    for loss, runs in by_loss.items():
        cells = [plus_minus([run["metrics"][metric] for run in runs]) for metric in METRICS]
        cells += [plus_minus([run["progress"][step] for run in runs]) for step in steps]
        cells += [plus_minus([run["calibration_error"] for run in runs], digits=3)]
        cells += [f"{mean(run['seconds'] for run in runs) / 60:.1f}"]
        lines.append(f"| {title(loss)} | {' | '.join(cells)} |")
    seeds = sorted({run["seed"] for run in record["runs"]})
    positives = mean(run["positives"] for run in record["runs"])
    facts = record["facts"]
    lines += [
        "",
        *record["verdicts"],
        "",
        f"{facts['data']}; some {positives:.0f} positive anchors an image; {facts['detector']}; seeds "
        f"{', '.join(map(str, seeds))}; {facts['device']}; {facts['date'][:10]}; drloss {facts['drloss']}.",
    ]
    return lines


def plus_minus(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean and standard deviation; a dash if a value is undefined."""
    numbers = [v for v in values if v is not None]
    if len(numbers) < len(values):
        return "–"
    spread = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--reproduction",
        nargs="+",
        default=[],
        type=Path,
        metavar="FOLDER_OR_RECORD",
        help="--out of drloss reproduce, or a record of it; of a run in several of them the last is taken",
    )
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME=FOLDER", help="--out of drloss compare")
    options = parser.parse_args()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    written = []
    if options.reproduction:
        written.append(write_reproduction(RESULTS, today, options.reproduction))
    for pair in options.compare:
        name, _, folder = pair.partition("=")
        written.append(RESULTS / f"{today}-{COMPARISON}-{name}.json")
        write_comparison(written[-1], Path(folder) / "report.json")
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
