"""``reproduction.md``: the paper's tables with our numbers below the paper's, from run folders alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from statistics import mean, stdev

from drloss.detector.starting_weights import resolve_detector
from drloss.evaluation.coco import METRICS
from drloss.evaluation.densities import ScoreHistogram
from drloss.studies.compare.differences import TITLES
from drloss.studies.paper.claims import CLAIMS, Claim, Comparison
from drloss.studies.paper.names import FIGURES, TABLES
from drloss.studies.paper.numbers import NEEDS, NOTES, ROWS, Settings, figure_settings, number, rows_of, settings
from drloss.studies.paper.records import Record, Records
from drloss.training.config import override, to_json
from drloss.training.presets import PRESETS
from drloss.training.resume import HOW_IT_RUNS, changed_settings

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


def reproduction_page(scale: str, records: Records, figures: str = "") -> str:
    """The page, in Markdown.

    Args:
        scale: ``"paper"`` or ``"laptop"``.
        records: runs at that scale.
        figures: folder of the figures, relative to the page, with a slash at the end.
    """
    chosen = [settings(row, scale) for row in ROWS]
    found = [records.get(s.key, {}) if isinstance(s, Settings) else {} for s in chosen]
    every = [s for s in chosen if isinstance(s, Settings)] + [
        figure_settings(loss, scale) for loss in FIGURES["figure4"]
    ]
    runs = {f"{s.name}-seed{seed}": (s, record) for s in every for seed, record in records.get(s.key, {}).items()}
    lines = [f"# The paper's tables, at a {scale}'s scale" if scale == "laptop" else "# The paper's tables", ""]
    lines += [_INTRO[scale], "", *_facts(runs)]
    values = {
        row.key: {seed: record.values(row.threshold) for seed, record in seeds.items()}
        for row, seeds in zip(ROWS, found, strict=True)
    }
    data = {
        row.key: {record.metrics.get("fingerprint", record.metrics["data"]) for record in seeds.values()}
        for row, seeds in zip(ROWS, found, strict=True)
    }
    for table, title in TABLES.items():
        lines += ["", f"## {title}", ""]
        if scale == "paper":
            lines += [f"Needs {NEEDS[table]}", ""]
        lines += _table(table, scale, values) + _reasons(table, scale, values)
        lines += ["", NOTES[table]] if table in NOTES else []
        lines += _reached(table, values) if scale == "paper" else []
        claims = [claim for claim in CLAIMS if claim.table == table]
        if claims:
            lines += ["", "What the paper concludes, and whether it holds here:", ""]
            lines += [
                f"- {claim.text} ({claim.cited_at}): {_checked_outcome(claim, values, data)}" for claim in claims
            ]
    lines += ["", "## Figures 1, 4 and 5. Densities of scores", "", *_densities(scale, records, figures)]
    return "\n".join(lines) + "\n"


Values = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]
"""Metrics in percent, by the key of a row, seed and name."""
Data = Mapping[tuple[str, str], Iterable[str]]
"""Fingerprints of the data on which the runs of a row were evaluated, by the key of the row."""


def _facts(runs: Mapping[str, tuple[Settings, Record]]) -> list[str]:
    """Lines about data, machine and versions of the runs, and about settings that differ from the presets."""
    if not runs:
        return ["No run has been evaluated yet."]
    last = [record.environment for _, record in runs.values()]
    versions = {f"Python {e['python']}, " + ", ".join(f"{p} {v}" for p, v in e["versions"].items()) for e in last}
    facts = {
        "runs": {str(len(runs))},
        "trained on": _named(
            (f"{e['data']['name']} ({e['data']['images']} images)", e["data"].get("fingerprint")) for e in last
        ),
        "evaluated on": _named((r.metrics["data"], r.metrics.get("fingerprint")) for _, r in runs.values()),
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


def _named(data: Iterable[tuple[str, str | None]]) -> set[str]:
    """Names of data sets. A name that has stood for different data comes with their fingerprints."""
    found: dict[str, set[str]] = {}
    for name, fingerprint in data:
        found.setdefault(name, set()).update([fingerprint[:8]] if fingerprint else [])
    return {
        f"{name}, **changed in between** (fingerprints {', '.join(sorted(prints))})" if len(prints) > 1 else name
        for name, prints in found.items()
    }


def _changes(chosen: Settings, record: Record) -> list[str]:
    """The settings of a run that neither its preset nor its row explains."""
    config = override(PRESETS[chosen.preset], {**chosen.values, "seed": record.config["seed"]})
    wanted = to_json(replace(config, detector=resolve_detector(config.detector, config.weights)))
    changed = changed_settings(wanted, record.config, HOW_IT_RUNS)
    precision = record.config.get("precision", "fp32")
    if config.precision == "auto" and precision != "fp32":  # which the paper's runs had
        changed["precision"] = ("fp32", precision)
    return [f"{name} is {now}, not {was}" for name, (was, now) in changed.items()]


def _table(table: str, scale: str, values: Values) -> list[str]:
    metrics = [m for m in METRICS if any(m in row.metrics for row in rows_of(table))]
    lines = [f"| row | method | | {' | '.join(metrics)} | seeds |", f"|---|---|---|{'---:|' * (len(metrics) + 1)}"]
    for row in rows_of(table):
        method = f"{row.method} {row.published}".strip()
        printed = [number(row.metrics[m]) if m in row.metrics else "–" for m in metrics]
        whose = "others" if row.is_control and row.published else "paper"
        lines.append(f"| {row.label or '–'} | {method} | {whose}, {row.split} | {' | '.join(printed)} | |")
        seeds, chosen = values[row.key], settings(row, scale)
        run = f"`{chosen.name}`" if isinstance(chosen, Settings) else ""
        ours = [_mean_and_spread([v[m] for v in seeds.values()]) for m in metrics] if seeds else ["not run"]
        ours += [""] * (len(metrics) - len(ours))
        lines.append(f"| | {run} | ours | {' | '.join(ours)} | {', '.join(map(str, seeds))} |")
    return lines


def _mean_and_spread(numbers: Sequence[float], digits: int = 1) -> str:
    if any(map(isnan, numbers)):
        return "–"
    spread = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.{digits}f}{spread}"


def _reasons(table: str, scale: str, values: Values) -> list[str]:
    """Why rows have no number of ours, and where numbers come from that are not the paper's own."""
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


def _reached(table: str, values: Values) -> list[str]:
    """Which rows reach the paper's AP at the paper's scale, by the printed mean over the seeds."""
    said: dict[str, list[str]] = {"reached": [], "not reached": []}
    for row in rows_of(table):
        found = [v["AP"] for v in values[row.key].values()]
        if row.is_control or not row.metrics or not found or any(map(isnan, found)):
            continue
        ours = round(mean(found), 1)
        name = f"{row.name} ({ours:.1f} of {number(row.metrics['AP'])})"
        said["reached" if ours >= row.metrics["AP"] else "not reached"].append(name)
    if not any(said.values()):
        return []
    return ["", "The paper's AP, by the mean of ours:", ""] + [f"- {k}: {'; '.join(v)}" for k, v in said.items() if v]


def _checked_outcome(claim: Claim, values: Values, data: Data) -> str:
    """:func:`outcome` of a claim. A claim on other data has none if its runs have the same data as other tables."""
    if claim.on_other_data:
        own = {seen for comparison in claim.comparisons for row in comparison.rows for seen in data[row.key]}
        if own & {seen for row in ROWS if row.table != claim.table for seen in data[row.key]}:
            return "not run (its runs are evaluated on the same data as those of the other tables)"
    return outcome(claim, values)


def outcome(claim: Claim, values: Values) -> str:
    """Whether a claim holds in each seed and on average, in words, over the seeds that all of its rows have."""
    wanted = [row for comparison in claim.comparisons for row in comparison.rows]
    seeds = sorted(set.intersection(*(set(values[row.key]) for row in wanted)))
    if not seeds:
        missing = list(dict.fromkeys(row.name for row in wanted if not values[row.key]))
        more = [f"{len(missing) - 3} more"] if len(missing) > 3 else []
        return f"not run ({'; '.join(missing[:3] + more) or 'no seed that all its rows have'})"
    differences = [[_difference(c, values, seed) for seed in seeds] for c in claim.comparisons]
    if any(isnan(d) for of_claim in differences for d in of_claim):
        return "cannot be told: an AP of its rows is not defined"
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
    return comparison.difference(lambda row: values[row.key][seed]["AP"])


CAPTIONS = {
    "figure1": "Figure 1. Scores of DR's candidates as they are and re-weighted by Propositions 1 and 2",
    "figure4": "Figure 4. Densities of the scores of positives and of negatives with each loss",
    "figure5": "Figure 5. Negatives and positives with DR (above), and with the negatives divided by ten (below)",
}


def histograms(loss: str, scale: str, records: Records) -> dict[int, ScoreHistogram]:
    """The scores of a loss in Figures 1, 4 and 5, by seed."""
    found = records.get(figure_settings(loss, scale).key, {})
    return {seed: record.histogram for seed, record in found.items() if record.histogram is not None}


def _densities(scale: str, records: Records, figures: str) -> list[str]:
    """Expected scores of positives and negatives by loss, the paper's conclusions about them, and the figures."""
    ce, focal, dr = (histograms(loss, scale, records) for loss in FIGURES["figure4"])
    lines = ["| loss | expected score of positives | of negatives | seeds |", "|---|---:|---:|---:|"]
    for loss, found in zip(FIGURES["figure4"], (ce, focal, dr), strict=True):
        sides = [h.positive_mean for h in found.values()], [h.negative_mean for h in found.values()]
        shown = [_mean_and_spread(side, digits=3) for side in sides] if found else ["not run", ""]
        lines.append(f"| {TITLES[loss]} | {' | '.join(shown)} | {', '.join(map(str, found))} |")
    held = {
        "with DR the expected score of positives is above 0.5": [h.positive_mean > 0.5 for h in dr.values()],
        "with DR that of negatives is below 0.1": [h.negative_mean < 0.1 for h in dr.values()],
        "positives score higher with DR than with focal loss or cross-entropy": [
            h.positive_mean > max(ce[seed].positive_mean, focal[seed].positive_mean)
            for seed, h in dr.items()
            if seed in ce and seed in focal
        ],
    }
    lines += ["", "What the paper concludes (§4.3, effect of DR loss):", ""]
    lines += [f"- {text}: {f'in {sum(h)} of {len(h)} seeds' if h else 'not run'}" for text, h in held.items()]
    for name, losses in FIGURES.items():
        if all(histograms(loss, scale, records) for loss in losses):
            lines += ["", f"![{CAPTIONS[name]}]({figures}{name}.png)", "", f"{CAPTIONS[name]}."]
    return lines
