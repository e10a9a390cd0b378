"""The HTML page of ``drloss compare``: what each loss reaches on the user's data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from drloss.evaluation import figures
from drloss.evaluation.coco import METRICS, percent, signed
from drloss.evaluation.matching import calibration
from drloss.evaluation.plotting import colours, to_svg
from drloss.io.atomic import write_text
from drloss.losses import LossSpec
from drloss.studies.compare.differences import (
    FEW,
    Comparison,
    Contender,
    Difference,
    recommended_threshold,
    title,
    verdict,
    without_rate,
)
from drloss.studies.report.rendering import picture, render
from drloss.training.config import make_loss

FAIRNESS = (
    "For each seed, all runs have the same initial weights (except the classifier's bias), order of images, "
    "augmentation, schedule{rate} and number of iterations. "
    "Each loss has its own best-known prior and weight{own}. "
)
SCOPES = {
    "per_image": "each image",
    "pooled": "all images that a device takes at a time",
    "per_class": "each class of an image",
    "pooled_per_class": "each class of all images that a device takes at a time",
}
"""What a loss takes together, by its scope."""
CURVES = {
    "loss_cls": ("classification loss", "Each loss has its own scale: compare the shapes, not the heights."),
    "loss_box": ("box loss", "Every run has the same box loss, so the heights can be compared."),
    "loss": ("total loss", "Weighted sum of the parts: the heights of different losses cannot be compared."),
    "AP50": ("AP50 (%)", "On the validation images, during training."),
}


def fairness(specs: Sequence[str]) -> str:
    """What the compared losses share, and what each is divided by."""
    own = any(without_rate(spec)[1] is not None for spec in specs)
    shared = FAIRNESS.format(
        rate="" if own else ", learning rate",
        own=", and a learning rate of its own where one is named" if own else "",
    )
    return shared + " ".join(f"{title(spec)} {_divided(spec)}." for spec in specs)


def _divided(spec: str) -> str:
    options = make_loss(without_rate(spec)[0]).options
    scope = SCOPES[options["scope"]]
    if "interpolate" in options:
        return f"is itself a mean over the positives of {scope}"
    if "normalizer" not in options:
        return f"ranks the candidates of {scope} and is divided by nothing"
    divisor = "their positives" if options["normalizer"] == "positives" else "nothing"
    return f"is summed over the candidates of {scope} and divided by {divisor}"


@dataclass(frozen=True)
class _Column(Contender):
    """A loss with its colour and its settings, as the page shows it."""

    colour: str
    settings: dict[str, str]


def write_page(path: Path, comparison: Comparison, gallery: Image.Image) -> None:
    """Write the page, atomically.

    Args:
        path: HTML file to write.
        comparison: what it shows.
        gallery: picture of ``1 + len(contenders)`` columns: the truth, then the detections of each one's first run.
    """
    contenders = comparison.contenders
    specs = [c.spec for c in contenders]
    columns = [
        _Column(c.spec, c.runs, colour, comparison.settings[c.spec])
        for c, colour in zip(contenders, colours(specs), strict=True)
    ]
    told = comparison.differences
    headline = verdict(told[0]) if told else f"{contenders[0].title} reaches AP {percent(contenders[0].mean('AP'))}"
    differing, equal = _settings(columns)
    page = render(
        "compare.html",
        _FILTERS,
        title=comparison.name,
        headline=f"{headline}.",
        conclusions=comparison.conclusions,
        fairness=fairness(specs),
        losses=columns,
        seeds=[run.seed for run in contenders[0].runs],
        few_seeds=FEW,
        names={c.spec: c.title for c in contenders},
        metrics=METRICS,
        differences=comparison.differences,
        sweeps=list(zip(*(c.sweep() for c in columns), strict=True)),
        deployed=all("candidates" in run.sweep[0] for c in contenders for run in c.runs),
        advice="; ".join(f"{c.title}: {recommended(c)}" for c in contenders),
        calibration_errors="; ".join(
            f"{c.title} {c.calibration_error:.3f}" for c in contenders if not isnan(c.calibration_error)
        ),
        own_expectations=len(columns) > 1 and any(map(_has_own_expectations, specs)),
        drawn=_drawings(columns),
        gallery=picture(gallery),
        costs=costs(contenders),
        differing=differing,
        times=[
            ["training time", *(_duration(c.seconds) for c in columns)],
            ["per iteration", *(_per_iteration(c.seconds / max(1, c.iterations)) for c in columns)],
        ],
        equal=equal,
        facts=comparison.facts,
    )
    write_text(path, page)


def _has_own_expectations(spec: str) -> bool:
    """Whether a run logs expected scores with other parameters than DR's defaults."""
    loss = LossSpec.parse(spec)
    return loss.name == "dr+" or (loss.name == "dr" and bool(loss.parameters.keys() - {"lr"}))


def _drawings(columns: Sequence[_Column]) -> dict[str, Any]:
    """The figures of the page by section, with their captions where these depend on the losses."""
    curves = [(c.title, c.spec, calibration(c.runs[0].matches)) for c in columns]
    positive, negative = _series(columns, "expected_pos"), _series(columns, "expected_neg")
    paired = positive and [s.name for s in positive] == [s.name for s in negative]
    return {
        "classes": _class_differences(columns),
        "thresholds": _svg(
            figures.threshold_curves([(c.title, c.spec, c.sweep()) for c in columns]),
            "thresholds",
            "AP against score threshold, one line per run",
        ),
        "calibration": _svg(
            figures.reliability([(name, spec, curve.score, curve.precision) for name, spec, curve in curves]),
            "calibration",
            "share of right detections against their score",
        ),
        "densities": _svg(
            figures.score_densities([(c.title, c.spec, c.histogram) for c in columns]),
            "densities",
            "densities of positive and of negative scores",
        ),
        "curves": [
            (
                _svg(figures.training_curves(series, label), f"curve-{name}", f"{label} over training"),
                f"{label[0].upper()}{label[1:]}. {caption}",
            )
            for name, (label, caption) in CURVES.items()
            if (series := _series(columns, name))
        ],
        "expected": paired
        and _svg(
            figures.expected_scores(positive, negative),
            "expected",
            "expected scores over training, two lines per run",
        ),
        "pr": [
            _svg(
                figures.precision_recall(c.title, c.spec, c.evaluation, colour=c.colour),
                f"pr-{index}",
                f"precision against recall of {c.title}",
            )
            for index, c in enumerate(columns)
        ],
        "pr_classes": _class_precision_recall(columns),
    }


def _class_differences(columns: Sequence[_Column]) -> list[tuple[Markup, str]]:
    """For each loss except the first, the AP of each class minus that of the first loss, and a caption."""
    first, *others = columns
    names = list(first.evaluation.per_class)
    drawn = []
    for index, other in enumerate(others):
        gaps = [other.class_mean(n) - first.class_mean(n) for n in names]
        caption = f"{other.title} minus {first.title}: AP per class, mean over seeds."
        if sum(not isnan(gap) for gap in gaps) > figures.CLASSES:
            caption += f" Of {len(gaps)} classes the {figures.CLASSES // 2} at either end."
        figure = figures.class_differences(names, gaps, other.colour)
        description = f"AP of {other.title} minus AP of {first.title}, per class"
        drawn.append((_svg(figure, f"classes-{index}", description), caption))
    return drawn


def _class_precision_recall(columns: Sequence[_Column]) -> tuple[Markup, str] | None:
    shown = figures.classes_in_panels([c.evaluation for c in columns])
    if len(shown) < 2:
        return None
    figure = figures.class_precision_recall([(c.title, c.spec, c.evaluation) for c in columns])
    caption = "The classes, a panel each: the area below a line is the AP50 of the class."
    objects = sum((precision > -1).all() for precision in columns[0].evaluation.precision)
    if objects > len(shown):
        half = len(shown) // 2
        caption += f" Of {objects} classes with objects the {half} of highest and the {half} of lowest AP50."
    return _svg(figure, "pr-classes", "precision against recall of each class, one line per run"), caption


def _series(columns: Sequence[_Column], name: str) -> list[figures.Series]:
    """The curves of a quantity that have more than one point."""
    return [
        figures.Series(c.title, c.spec, *c.curves[name]) for c in columns if len(c.curves.get(name, ([], []))[0]) > 1
    ]


def _svg(figure: Figure, name: str, description: str) -> Markup:
    return Markup(to_svg(figure, name, description))


def _settings(columns: Sequence[_Column]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the settings that differ, and of those that are equal."""
    keys = list(dict.fromkeys(key for c in columns for key in c.settings))
    values = {key: [c.settings.get(key, "–") for c in columns] for key in keys}
    differing = [[key, *row] for key, row in values.items() if len(set(row)) > 1]
    return differing, [[key, row[0]] for key, row in values.items() if len(set(row)) == 1]


def plus_minus(mean: float, spread: float) -> str:
    """``mean ± standard deviation`` for tables; the mean alone where there is no spread."""
    return percent(mean) if isnan(mean) or isnan(spread) else f"{mean:.1f} ± {spread:.1f}"


def interval(difference: Difference) -> str:
    """The interval over the images, for tables."""
    low, high = difference.low, difference.high
    return "–" if isnan(low) else f"{signed(low)} to {signed(high)}"


def recommended(contender: Contender) -> str:
    """The recommended score threshold, in words."""
    threshold = recommended_threshold(contender)
    return "none, nothing is found" if threshold is None else f"{threshold:g}"


def costs(contenders: Sequence[Contender]) -> list[list[str]]:
    """Rows of a table: what is measured, then a cell for each loss, a mean over its seeds."""
    rows = [["training, per iteration", *(_per_iteration(c.seconds_per_iteration) for c in contenders)]]
    known = [c.cost for c in contenders]
    if all(known):
        rows += [
            ["one step alone", *(f"{cost['step_ms']:.0f} ms for {count(cost['images'], 'image')}" for cost in known)],
            ["of it the classification loss", *(f"{cost['share']:.1%}" for cost in known)],
            ["peak memory of the step", *(f"{cost['peak_mb']:.0f} MB" for cost in known)],
        ]
    return rows


def count(number: float, what: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number:.0f} {what}" + ("" if number == 1 else "s")


def best(values: Iterable[float]) -> str | None:
    """The highest value as tables print it; None if all print alike or there is only one."""
    shown = {percent(v) for v in values if not isnan(v)}
    return max(shown, key=float) if len(shown) > 1 else None


def _of_class(columns: Sequence[_Column], name: str, metric: str) -> list[float]:
    return [c.evaluation.per_class[name][metric] for c in columns]


def _per_iteration(seconds: float) -> str:
    return "–" if isnan(seconds) else f"{seconds:.3g} s"


def _duration(seconds: float) -> str:
    if isnan(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_FILTERS: dict[str, Callable[..., str | list[float] | None]] = {
    "percent": percent,
    "signed": signed,
    "interval": interval,
    "plus_minus": plus_minus,
    "count": count,
    "best": best,
    "of_class": _of_class,
}
