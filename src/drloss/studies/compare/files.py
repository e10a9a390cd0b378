"""The page of ``drloss compare`` as Markdown, and all that it shows as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isnan, nan
from typing import Any

from drloss.evaluation.coco import METRICS, percent, signed
from drloss.evaluation.matching import calibration
from drloss.studies.compare.differences import Contender, Difference, recommended_threshold, summary, title
from drloss.studies.compare.page import costs, fairness, interval, plus_minus, recommended

EXPECTED = {"expected_pos": "P̂₊", "expected_neg": "P̂₋"}


def markdown(
    contenders: Sequence[Contender],
    differences: Sequence[Difference],
    told: Sequence[str],
    *,
    name: str,
    facts: Mapping[str, str],
    settings: Mapping[str, dict[str, str]],
) -> str:
    """The numbers of the page as Markdown; arguments as of :func:`drloss.studies.compare.page.write_page`."""
    first, *others = contenders
    titles = [c.title for c in contenders]
    seeds = [run.seed for run in first.runs]
    lines = [f"# {name}", "", *told, "", fairness([c.spec for c in contenders]), ""]
    lines += _table(
        ["loss", *METRICS],
        ([c.title, *(plus_minus(c.mean(m), c.spread(m)) for m in METRICS)] for c in contenders),
    )
    lines += [f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}.", ""]
    if others:
        lines += ["## Differences", ""]
        lines += _table(
            ["AP", "mean", "95 % interval over the images", *(f"seed {seed}" for seed in seeds)],
            (
                [f"{title(d.ahead)} − {title(d.behind)}", signed(d.mean), interval(d)]
                + [signed(value) for value in d.per_seed]
                for d in differences
            ),
        )
        lines += _table(
            ["AP of class", *titles, *(f"{c.title} − {first.title}" for c in others)],
            (
                [name, *(percent(c.class_mean(name)) for c in contenders)]
                + [signed(c.class_mean(name) - first.class_mean(name)) for c in others]
                for name in first.runs[0].evaluation.per_class
            ),
        )
    lines += ["## Score threshold", ""]
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
    lines += ["## Scores and cost", ""]
    summaries = [summary(c, settings[c.spec]) for c in contenders]
    rows = [
        ["recommended threshold", *map(recommended, contenders)],
        ["expected calibration error", *(_number(c.calibration_error, 3) for c in contenders)],
        ["mean score of positives", *(_number(s.histogram.positive_mean, 3) for s in summaries if s.histogram)],
        ["mean score of negatives", *(_number(s.histogram.negative_mean, 5) for s in summaries if s.histogram)],
    ]
    for key, sign in EXPECTED.items():
        last = [s.curves[key][1][-1] if key in s.curves else nan for s in summaries]
        rows.append([f"expected score {sign}, last logged", *(_number(value, 3) for value in last)])
    lines += _table(["", *titles], rows + costs(contenders))
    lines += ["## Settings", ""]
    lines += _table(
        ["", *titles], ([key, *(settings[c.spec][key] for c in contenders)] for key in settings[first.spec])
    )
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, its first column text, and an empty line."""
    shown = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in shown]
    return [lines[0], f"|---|{'---:|' * (len(head) - 1)}", *lines[1:], ""]


def _number(value: float, digits: int) -> str:
    return "–" if isnan(value) else f"{value:.{digits}f}"


def to_json(
    contenders: Sequence[Contender],
    differences: Sequence[Difference],
    told: Sequence[str],
    facts: Mapping[str, str],
    settings: Mapping[str, dict[str, str]],
) -> dict[str, Any]:
    """All that the page shows, but for pictures, in plain types; NaN where a number is not defined."""
    return {
        "facts": facts,
        "verdicts": list(told),
        "losses": [_loss(contender, settings[contender.spec]) for contender in contenders],
        "runs": [_run(contender, index) for contender in contenders for index in range(len(contender.runs))],
        "differences": [
            {**asdict(d), "per_seed": d.per_seed.tolist(), "mean": d.mean, "told": d.told, "certain": d.certain}
            for d in differences
        ],
    }


def _loss(contender: Contender, settings: dict[str, str]) -> dict[str, Any]:
    """What the page shows of a loss: means over the seeds, scores of all seeds together."""
    shown = summary(contender, settings)
    return {
        "loss": contender.spec,
        "title": contender.title,
        "settings": settings,
        "mean": {metric: contender.mean(metric) for metric in METRICS},
        "spread": {metric: contender.spread(metric) for metric in METRICS},
        "per_class": shown.evaluation.per_class,
        "thresholds": contender.sweep(),
        "recommended_threshold": recommended_threshold(contender),
        "calibration_error": contender.calibration_error,
        "densities": None if shown.histogram is None else shown.histogram.to_json(),
        "curves": {key: dict(zip(("iteration", "value"), curve, strict=True)) for key, curve in shown.curves.items()},
        "seconds_per_iteration": contender.seconds_per_iteration,
        "cost": contender.cost,
    }


def _run(contender: Contender, index: int) -> dict[str, Any]:
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
