"""The report of ``drloss compare`` as Markdown and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import isnan, nan
from typing import Any

from drloss.evaluation.coco import METRICS, percent, signed
from drloss.evaluation.matching import calibration
from drloss.studies.compare.differences import Comparison, Contender, recommended_threshold, title
from drloss.studies.compare.page import costs, fairness, interval, plus_minus, recommended

EXPECTED = {"expected_pos": "P̂₊", "expected_neg": "P̂₋"}


def markdown(comparison: Comparison) -> str:
    """The numbers of the page as Markdown."""
    contenders, settings = comparison.contenders, comparison.settings
    first = contenders[0]
    titles = [c.title for c in contenders]
    seeds = [run.seed for run in first.runs]
    lines = [f"# {comparison.name}", "", *comparison.conclusions, "", fairness([c.spec for c in contenders]), ""]
    lines += _table(
        ["loss", *METRICS],
        ([c.title, *(plus_minus(c.mean(m), c.spread(m)) for m in METRICS)] for c in contenders),
    )
    lines += [f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}.", ""]
    lines += [*_differences(comparison, seeds), "## Score threshold", ""]
    lines += _table(
        ["above", *(f"{t}: {part}" for t in titles for part in ("AP", "candidates to NMS", "post-processing, ms"))],
        (
            [f"{records[0]['threshold']:g}"]
            + [
                _number(record.get(key, nan), digits)
                for record in records
                for key, digits in (("AP", 1), ("candidates", 0), ("postprocess_ms", 1))
            ]
            for records in zip(*(c.sweep() for c in contenders), strict=True)
        ),
    )
    lines += ["## Scores and cost", "", *_table(["", *titles], _scores(contenders) + costs(contenders))]
    lines += ["## Settings", ""]
    lines += _table(
        ["", *titles], ([key, *(settings[c.spec][key] for c in contenders)] for key in settings[first.spec])
    )
    lines += [f"- {key}: {value}" for key, value in comparison.facts.items()]
    return "\n".join(lines) + "\n"


def _differences(comparison: Comparison, seeds: Sequence[int]) -> list[str]:
    """AP of each loss minus that of the first: over the seeds, and in each class."""
    contenders = comparison.contenders
    first, *others = contenders
    if not others:
        return []
    by_seed = _table(
        ["AP", "mean", "95 % interval over the images", *(f"seed {seed}" for seed in seeds)],
        (
            [f"{title(d.ahead)} − {title(d.behind)}", signed(d.mean), interval(d), *map(signed, d.per_seed)]
            for d in comparison.differences
        ),
    )
    by_class = _table(
        ["AP of class", *(c.title for c in contenders), *(f"{c.title} − {first.title}" for c in others)],
        (
            [name, *(percent(c.class_mean(name)) for c in contenders)]
            + [signed(c.class_mean(name) - first.class_mean(name)) for c in others]
            for name in first.evaluation.per_class
        ),
    )
    return ["## Differences", "", *by_seed, *by_class]


def _scores(contenders: Sequence[Contender]) -> list[list[str]]:
    """Rows of what the scores are like, a cell for each loss."""
    rows = [
        ["recommended threshold", *map(recommended, contenders)],
        ["expected calibration error", *(_number(c.calibration_error, 3) for c in contenders)],
        ["mean score of positives", *(_number(c.histogram.positive_mean, 3) for c in contenders)],
        ["mean score of negatives", *(_number(c.histogram.negative_mean, 5) for c in contenders)],
    ]
    for key, sign in EXPECTED.items():
        last = [c.curves[key][1][-1] if key in c.curves else nan for c in contenders]
        rows.append([f"expected score {sign}, last logged", *(_number(value, 3) for value in last)])
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table whose first column is text, and an empty line."""
    shown = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in shown]
    return [lines[0], f"|---|{'---:|' * (len(head) - 1)}", *lines[1:], ""]


def _number(value: float, digits: int) -> str:
    return "–" if isnan(value) else f"{value:.{digits}f}"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All that the page shows, except pictures, in plain types; NaN where a number is not defined."""
    return {
        "facts": comparison.facts,
        "verdicts": list(comparison.conclusions),
        "losses": [_loss(contender, comparison.settings[contender.spec]) for contender in comparison.contenders],
        "runs": [
            _run(contender, index) for contender in comparison.contenders for index in range(len(contender.runs))
        ],
        "differences": [
            {**asdict(d), "per_seed": d.per_seed.tolist(), "mean": d.mean, "told": d.conclusive, "certain": d.certain}
            for d in comparison.differences
        ],
    }


def _loss(contender: Contender, settings: dict[str, str]) -> dict[str, Any]:
    """A loss: means over its seeds, and the scores of all seeds together."""
    return {
        "loss": contender.spec,
        "title": contender.title,
        "settings": settings,
        "mean": {metric: contender.mean(metric) for metric in METRICS},
        "spread": {metric: contender.spread(metric) for metric in METRICS},
        "per_class": contender.evaluation.per_class,
        "thresholds": contender.sweep(),
        "recommended_threshold": recommended_threshold(contender),
        "calibration_error": contender.calibration_error,
        "densities": contender.histogram.to_json(),
        "curves": {
            key: dict(zip(("iteration", "value"), curve, strict=True)) for key, curve in contender.curves.items()
        },
        "seconds_per_iteration": contender.seconds_per_iteration,
        "cost": contender.cost,
    }


def _run(contender: Contender, index: int) -> dict[str, Any]:
    """One run: what was measured and logged."""
    run = contender.runs[index]
    curve = calibration(run.matches)
    iterations, ap50 = run.curves.get("AP50", ([], []))
    positives = run.curves.get("positives", ([], [nan]))[1][-1]
    return {
        "loss": contender.spec,
        "seed": run.seed,
        "folder": run.folder.name,
        "evaluation": run.evaluation.to_json(),
        "thresholds": run.sweep,
        "calibration_error": curve.error,
        "reliability": {key: getattr(curve, key).tolist() for key in ("score", "precision", "count")},
        "positives": positives,
        "progress": dict(zip(map(int, iterations), ap50, strict=True)),
        "seconds": run.seconds,
        "cost": run.cost,
    }
