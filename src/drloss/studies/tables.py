"""``reproduction.md``: the paper's tables with our numbers under its own, made from run folders alone."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from drloss.detector.weights import resolve_norm
from drloss.evaluation.coco import METRICS
from drloss.files import write_text
from drloss.studies.claims import CLAIMS, Claim, Comparison
from drloss.studies.evaluate import METRICS as METRICS_FILE
from drloss.studies.paper import NEEDS, ROWS, TABLES, Settings, rows_of, settings
from drloss.training.config import override, to_json
from drloss.training.presets import PRESETS
from drloss.training.runs import CONFIG, ENVIRONMENT, HOW_IT_RUNS, changed_settings

PAGE = "reproduction.md"
_INTRO = {
    "paper": (
        "Each row of the paper, and under it what a run of drloss with the paper's settings reaches. Rows of "
        "test-dev are evaluated on val: only COCO's server has the annotations of test-dev."
    ),
    "laptop": (
        "Each row of the paper, and under it what the same loss reaches in a short run of the preset `cpu` on other "
        "data. **The two cannot be compared in AP**; what can be is which row is ahead of which, said below each "
        "table, and even that only where the seeds agree: a few of them tell a large difference from chance, not a "
        "small one. Beside `ours` is the name of the run folders; tables share their runs."
    ),
}


@dataclass(frozen=True)
class Record:
    """A run folder that has been evaluated.

    Attributes:
        config: ``config.json``.
        environment: ``environment.json``.
        metrics: ``metrics.json`` of the evaluation.
    """

    config: dict[str, Any]
    environment: list[dict[str, Any]]
    metrics: dict[str, Any]

    def values(self, threshold: float | None) -> dict[str, float]:
        """The metrics in percent, at a score threshold or at the run's own; NaN for what is not defined."""
        found = self.metrics["metrics"]
        if threshold is not None:
            found = next((r for r in self.metrics["thresholds"] if r["threshold"] == threshold), {})
        return {m: nan if found.get(m) is None else float(found[m]) for m in METRICS}


def run_folder(out: Path, name: str) -> Path:
    """Folder of a run."""
    return out / "runs" / name


def evaluation_folder(run: Path, split: str) -> Path:
    """Folder of a run's evaluation on a split: where ``drloss eval`` puts it, too."""
    return run / f"eval_{split}"


def read_records(out: Path, chosen: Settings) -> dict[int, Record]:
    """The evaluated runs with some settings, by seed."""
    found = {}
    for folder in sorted(run_folder(out, "").glob(f"{chosen.name}-seed*")):
        seed = re.fullmatch(re.escape(chosen.name) + r"-seed(\d+)", folder.name)
        metrics = evaluation_folder(folder, chosen.splits[1]) / METRICS_FILE
        if seed and metrics.is_file():
            paths = (folder / CONFIG, folder / ENVIRONMENT, metrics)
            found[int(seed[1])] = Record(*(json.loads(path.read_text(encoding="utf-8")) for path in paths))
    return dict(sorted(found.items()))


def write_page(out: Path, scale: str) -> Path:
    """Write ``reproduction.md`` from the run folders in ``out``.

    Args:
        out: folder with ``runs/``.
        scale: ``"paper"`` or ``"laptop"``; runs of the other scale are not looked at.
    Returns:
        The page's path.
    """
    chosen = [settings(row, scale) for row in ROWS]
    by_name = {s.name: read_records(out, s) for s in chosen if isinstance(s, Settings)}
    records = [by_name[s.name] if isinstance(s, Settings) else {} for s in chosen]
    runs = {
        f"{s.name}-seed{n}": (s, r) for s in chosen if isinstance(s, Settings) for n, r in by_name[s.name].items()
    }
    lines = [f"# The paper's tables, at a {scale}'s scale" if scale == "laptop" else "# The paper's tables", ""]
    lines += [_INTRO[scale], "", *_facts(runs)]
    values = {
        row.key: {seed: record.values(row.threshold) for seed, record in found.items()}
        for row, found in zip(ROWS, records, strict=True)
    }
    for table, title in TABLES.items():
        lines += ["", f"## {title}", ""]
        if scale == "paper":
            lines += [f"Needs {NEEDS[table]}", ""]
        lines += _table(table, scale, values) + _reasons(table, scale, values)
        claims = [claim for claim in CLAIMS if claim.table == table]
        if claims:
            lines += ["", "What the paper concludes, and whether it holds here:", ""]
            lines += [f"- {claim.text} ({claim.source}): {verdict(claim, values)}" for claim in claims]
    path = out / PAGE
    write_text(path, "\n".join(lines) + "\n")
    return path


Values = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]
"""By the key of a row, by seed, the metrics in percent."""


def _facts(runs: Mapping[str, tuple[Settings, Record]]) -> list[str]:
    """What the runs have in common, and what is otherwise than their presets."""
    if not runs:
        return ["No run has been evaluated yet."]
    last = [record.environment[-1] for _, record in runs.values()]
    versions = {f"Python {e['python']}, " + ", ".join(f"{p} {v}" for p, v in e["versions"].items()) for e in last}
    facts = {
        "runs": {str(len(runs))},
        "trained on": {f"{e['data']['name']} ({e['data']['images']} images)" for e in last},
        "evaluated on": {record.metrics["data"] for _, record in runs.values()},
        "device": {f"{e['device']}, {e['processes']} process(es), {e['threads']} thread(s)" for e in last},
        "drloss": {f"{e['drloss']}, commit {e['commit'] or 'unknown'}" for e in last},
        "versions": versions,
        "begun": {f"{min(e['started'] for e in last)[:10]} to {max(e['started'] for e in last)[:10]}"},
    }
    otherwise: dict[str, list[str]] = {}
    for name, (chosen, record) in runs.items():
        for text in _changes(chosen, record):
            otherwise.setdefault(text, []).append(name)
    lines = [f"- {key}: {'; '.join(sorted(values))}" for key, values in facts.items()]
    for text, names in otherwise.items():
        where = "all runs" if len(names) == len(runs) else ", ".join(names)
        lines.append(f"- **otherwise than the preset**: {text} ({where})")
    return lines


def _changes(chosen: Settings, record: Record) -> list[str]:
    """Settings of a run that neither its preset nor its row has."""
    config = override(PRESETS[chosen.preset], {**chosen.values, "seed": record.config["seed"]})
    wanted = to_json(replace(config, detector=resolve_norm(config.detector, config.weights)))
    changed = changed_settings(wanted, record.config, HOW_IT_RUNS)
    return [f"{name} is {now}, not {was}" for name, (was, now) in changed.items()]


def _table(table: str, scale: str, values: Values) -> list[str]:
    metrics = [m for m in METRICS if any(m in row.metrics for row in rows_of(table))]
    lines = [f"| row | method | | {' | '.join(metrics)} | seeds |", f"|---|---|---|{'---:|' * (len(metrics) + 1)}"]
    for row in rows_of(table):
        method = f"{row.method} {row.published}".strip()
        printed = [f"{row.metrics[m]:.1f}" if m in row.metrics else "–" for m in metrics]
        lines.append(f"| {row.label or '–'} | {method} | paper, {row.split} | {' | '.join(printed)} | |")
        seeds, chosen = values[row.key], settings(row, scale)
        run = f"`{chosen.name}`" if isinstance(chosen, Settings) else ""
        ours = [_mean_and_spread([v[m] for v in seeds.values()]) for m in metrics] if seeds else ["not run"]
        ours += [""] * (len(metrics) - len(ours))
        lines.append(f"| | {run} | ours | {' | '.join(ours)} | {', '.join(map(str, seeds))} |")
    return lines


def _mean_and_spread(numbers: Sequence[float]) -> str:
    if any(map(isnan, numbers)):
        return "–"
    spread = f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.1f}{spread}"


def _reasons(table: str, scale: str, values: Values) -> list[str]:
    """Why rows have no number of ours, and what the paper's numbers are where they are not its own."""
    lines = (
        ["", "Ours: mean ± standard deviation over the seeds."] if any(values[r.key] for r in rows_of(table)) else []
    )
    reasons: dict[str, list[str]] = {}
    for row in rows_of(table):
        chosen = settings(row, scale)
        if isinstance(chosen, str):
            reasons.setdefault(f"not run: {chosen}", []).append(row.name)
        elif row.reason:
            reasons.setdefault(row.reason, []).append(row.name)
    if reasons:
        lines += ["", *(f"- {'; '.join(names)}: {reason}." for reason, names in reasons.items())]
    return lines


def verdict(claim: Claim, values: Values) -> str:
    """Whether a claim holds, in words, over the seeds that all of its rows have: seed by seed, and on average."""
    wanted = [row for comparison in claim.comparisons for row in comparison.rows]
    seeds = sorted(set.intersection(*(set(values[row.key]) for row in wanted)))
    if not seeds:
        missing = list(dict.fromkeys(row.name for row in wanted if not values[row.key]))
        more = [f"{len(missing) - 3} more"] if len(missing) > 3 else []
        return f"not run ({'; '.join(missing[:3] + more) or 'no seed that all its rows have'})"
    differences = [[_difference(c, values, seed) for seed in seeds] for c in claim.comparisons]
    confirmed = sum(
        all(c.confirmed_by(d) for c, d in zip(claim.comparisons, of_seed, strict=True))
        for of_seed in zip(*differences, strict=True)
    )
    least = min(range(len(differences)), key=lambda i: mean(differences[i]))
    pair, difference = claim.comparisons[least], differences[least]
    on_average = all(c.confirmed_by(mean(d)) for c, d in zip(claim.comparisons, differences, strict=True))
    if len(seeds) == 1:
        said = f"{'holds' if on_average else 'does **not** hold'} in the one seed run"
    elif confirmed == len(seeds):
        said = "holds in every seed"
    elif on_average:
        said = f"holds on average, but only in {confirmed} of {len(seeds)} seeds"
    else:
        said = f"does **not** hold (in {confirmed} of {len(seeds)} seeds)"
    spread = f" ± {stdev(difference):.1f}" if len(seeds) > 1 else ""
    between = f" ({pair.ahead[0].name} over {pair.behind[0].name})" if len(claim.comparisons) > 1 else ""
    return f"{said}; {'smallest ' if between else ''}difference {mean(difference):+.1f}{spread} AP{between}"


def _difference(comparison: Comparison, values: Values, seed: int) -> float:
    ahead, behind = (
        sum(values[row.key][seed]["AP"] for row in side) for side in (comparison.ahead, comparison.behind)
    )
    return ahead - behind
