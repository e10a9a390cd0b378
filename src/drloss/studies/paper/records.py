"""Evaluated runs as records, read from run folders or from one file. The pages of the reproduction show them."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from drloss.errors import UserError, first_line
from drloss.evaluation.coco import METRICS
from drloss.evaluation.densities import ScoreHistogram
from drloss.inference.evaluate import METRICS_FILE
from drloss.io.atomic import write_text
from drloss.studies.jobs import run_folder
from drloss.studies.paper.numbers import Settings
from drloss.training.run_folder import CONFIG, ENVIRONMENT


@dataclass(frozen=True)
class Record:
    """One evaluation of a run.

    Attributes:
        config: ``config.json`` of the run.
        environment: last entry of the run's ``environment.json``.
        metrics: ``metrics.json`` of the evaluation.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]

    def values(self, threshold: float | None = None) -> dict[str, float]:
        """The metrics in percent, at a score threshold or at the run's own; NaN if a metric is undefined."""
        found = self.metrics["metrics"]
        if threshold is not None:
            found = next((r for r in self.metrics["thresholds"] if r["threshold"] == threshold), {})
        return {m: nan if found.get(m) is None else float(found[m]) for m in METRICS}

    @property
    def histogram(self) -> ScoreHistogram | None:
        """Scores of the candidates; None if they were not kept."""
        scores = self.metrics.get("scores")
        return None if scores is None else ScoreHistogram.from_json(scores)


Records = Mapping[tuple[str, str], Mapping[int, Record]]
"""Records by :attr:`Settings.key` and seed."""


def read_runs(out: Path, chosen: Iterable[Settings]) -> Records:
    """The evaluated runs in ``out`` with the chosen settings."""
    return {settings.key: dict(sorted(_read_runs(out, settings))) for settings in chosen}


def _read_runs(out: Path, settings: Settings) -> Iterable[tuple[int, Record]]:
    for folder in run_folder(out, "").glob(f"{settings.name}-seed*"):
        seed = re.fullmatch(re.escape(settings.name) + r"-seed(\d+)", folder.name)
        metrics = read_metrics(folder / settings.evaluation)
        if seed and metrics is not None:
            yield int(seed[1]), Record(read_of_run(folder / CONFIG), read_of_run(folder / ENVIRONMENT)[-1], metrics)


def read_metrics(evaluation: Path) -> dict[str, Any] | None:
    """``metrics.json`` of an evaluation; None if it is missing or damaged, so that the run is evaluated again."""
    try:
        found = json.loads((evaluation / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"metrics", "thresholds", "data"} <= found.keys() else None


def read_of_run(path: Path) -> Any:
    """``config.json`` or ``environment.json`` of a run folder.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found:
            return found
        reason = "it is empty"
    except (OSError, ValueError) as error:
        reason = first_line(error)
    raise UserError(f"{path}: cannot be read ({reason}); put it back, or delete its folder to train the run anew")


def write_records(path: Path, scale: str, records: Records, with_scores: Collection[tuple[str, str]]) -> None:
    """Write what the page needs of all runs to one file, one run per line, with a checksum.

    Args:
        path: file to write.
        scale: scale of the runs.
        records: the runs.
        with_scores: keys of the runs whose scores are drawn. The scores of the others are not written.
    """
    lines = []
    for key, seeds in records.items():
        kept = ["metrics", "thresholds", "data", "fingerprint", *(["scores"] if key in with_scores else [])]
        for seed, record in seeds.items():
            metrics = {name: record.metrics[name] for name in kept if name in record.metrics}
            run = {"run": key[0], "evaluation": key[1], "seed": seed, "config": record.config}
            # The command has the names of the user's folders.
            environment = {k: v for k, v in record.environment.items() if k != "command"}
            lines.append(json.dumps(run | {"environment": environment, "metrics": metrics}))
    runs = "[\n" + ",\n".join(lines) + "\n]"
    write_text(path, f'{{"scale": "{scale}", "sha256": "{_digest(json.loads(runs))}", "runs": {runs}}}\n')


def read_records(path: Path) -> tuple[str, Records]:
    """The scale and the runs that :func:`write_records` wrote.

    Raises:
        UserError: if the file was changed since.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["sha256"] != _digest(kept["runs"]):
        raise UserError(f"{path}: the records are not those that were written: their checksum differs")
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for run in kept["runs"]:
        record = Record(run["config"], run["environment"], run["metrics"])
        found.setdefault((run["run"], run["evaluation"]), {})[run["seed"]] = record
    return kept["scale"], found


def join_records(parts: Sequence[Records]) -> Records:
    """The runs of all parts. Of two with the same evaluation and seed, the one in the later part stays.

    Raises:
        UserError: if runs were trained or evaluated on different data of the same split.
    """
    joined: dict[tuple[str, str], dict[int, Record]] = {}
    for key, seeds in (item for part in parts for item in part.items()):
        joined[key] = dict(sorted({**joined.get(key, {}), **seeds}.items()))
    seen: dict[str, str] = {}
    for record in (record for seeds in joined.values() for record in seeds.values()):
        trained, metrics = record.environment["data"], record.metrics
        for name, found in ((trained["name"], trained["fingerprint"]), (metrics["data"], metrics.get("fingerprint"))):
            split = name.rsplit(" ", 1)[-1]
            if found and seen.setdefault(split, found) != found:
                raise UserError(f"the records are of runs on different data of the split {split}: they make no page")
    return joined


def _digest(runs: Any) -> str:
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()
