"""Evaluated runs as records: what the pages of the reproduction are made of, from folders or a file of them."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from drloss.errors import UserError
from drloss.evaluation.coco import METRICS
from drloss.evaluation.densities import ScoreHistogram
from drloss.files import write_text
from drloss.studies.evaluate import METRICS as METRICS_FILE
from drloss.studies.paper import Settings
from drloss.training.runs import CONFIG, ENVIRONMENT


@dataclass(frozen=True)
class Record:
    """One evaluation of a run.

    Attributes:
        config: the run's ``config.json``.
        environment: the last entry of its ``environment.json``.
        metrics: ``metrics.json`` of the evaluation.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]

    def values(self, threshold: float | None = None) -> dict[str, float]:
        """The metrics in percent, at a score threshold or at the run's own; NaN for what is not defined."""
        found = self.metrics["metrics"]
        if threshold is not None:
            found = next((r for r in self.metrics["thresholds"] if r["threshold"] == threshold), {})
        return {m: nan if found.get(m) is None else float(found[m]) for m in METRICS}

    @property
    def histogram(self) -> ScoreHistogram | None:
        """Scores of its candidates, where they were kept."""
        scores = self.metrics.get("scores")
        return None if scores is None else ScoreHistogram.from_json(scores)


Records = Mapping[tuple[str, str], Mapping[int, Record]]
"""By :attr:`Settings.key`, by seed."""


def run_folder(out: Path, name: str) -> Path:
    """Folder of a run."""
    return out / "runs" / name


def read_runs(out: Path, chosen: Iterable[Settings]) -> Records:
    """The evaluated runs with some settings, from their folders in ``out``."""
    return {settings.key: dict(sorted(_read_runs(out, settings))) for settings in chosen}


def _read_runs(out: Path, settings: Settings) -> Iterable[tuple[int, Record]]:
    for folder in run_folder(out, "").glob(f"{settings.name}-seed*"):
        seed = re.fullmatch(re.escape(settings.name) + r"-seed(\d+)", folder.name)
        metrics = folder / settings.evaluation / METRICS_FILE
        if seed and metrics.is_file():
            environments = _load(folder / ENVIRONMENT)
            yield int(seed[1]), Record(_load(folder / CONFIG), environments[-1], _load(metrics))


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_records(path: Path, scale: str, records: Records, with_scores: Collection[tuple[str, str]]) -> None:
    """Write what the page needs of all runs to one file, a line for each, with a checksum over them.

    Args:
        path: to write.
        scale: of the runs.
        records: the runs.
        with_scores: keys of those whose densities are drawn; of the others they are left out.
    """
    lines = []
    for key, seeds in records.items():
        kept = ["metrics", "thresholds", "data", *(["scores"] if key in with_scores else [])]
        for seed, record in seeds.items():
            metrics = {name: record.metrics[name] for name in kept if name in record.metrics}
            run = {"run": key[0], "evaluation": key[1], "seed": seed, "config": record.config}
            environment = {
                k: v for k, v in record.environment.items() if k != "command"
            }  # it names the user's folders
            lines.append(json.dumps(run | {"environment": environment, "metrics": metrics}))
    runs = "[\n" + ",\n".join(lines) + "\n]"
    write_text(path, f'{{"scale": "{scale}", "sha256": "{_digest(json.loads(runs))}", "runs": {runs}}}\n')


def read_records(path: Path) -> tuple[str, Records]:
    """Scale and runs that :func:`write_records` wrote.

    Raises:
        UserError: if they are not as they were written.
    """
    kept = _load(path)
    if kept["sha256"] != _digest(kept["runs"]):
        raise UserError(f"{path}: the records are not those that were written: their checksum differs")
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for run in kept["runs"]:
        record = Record(run["config"], run["environment"], run["metrics"])
        found.setdefault((run["run"], run["evaluation"]), {})[run["seed"]] = record
    return kept["scale"], found


def _digest(runs: Any) -> str:
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()
