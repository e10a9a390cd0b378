"""The page of ``drloss compare``: what several losses reach on the user's data, with several seeds each."""

from collections.abc import Iterable, Mapping, Sequence
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
    Contender,
    Difference,
    RunSummary,
    recommended_threshold,
    summary,
    title,
)
from drloss.studies.report.page import picture, render
from drloss.training.config import make_loss

FAIRNESS = (
    "For each seed the runs have the same initial weights but for the classifier's bias, the same order of images, "
    "augmentation, schedule, learning rate and budget; each loss has its own best-known prior and weight. "
)
CURVES = {
    "loss_cls": ("classification loss", "Each loss has its own scale: look at the shape, not at which is lower."),
    "loss_box": ("box loss", "The same loss for every run, so that heights can be compared."),
    "loss": ("total loss", "Weighted sum of the parts: heights cannot be compared between losses."),
    "AP50": ("AP50 (%)", "On the validation images, during training."),
}


def fairness(specs: Sequence[str]) -> str:
    """What is the same for some losses, and what each is divided by."""
    return FAIRNESS + " ".join(f"{title(spec)} {_divided(spec)}." for spec in specs)


def _divided(spec: str) -> str:
    options = make_loss(spec).options
    scope = {"per_image": "each image", "pooled": "all images that a device takes at a time"}[options["scope"]]
    if "interpolate" in options:
        return f"is itself a mean over the positives of {scope}"
    if "normalizer" not in options:
        return f"ranks the candidates of {scope} and is divided by nothing"
    divisor = "their positives" if options["normalizer"] == "positives" else "nothing"
    return f"is summed over the candidates of {scope} and divided by {divisor}"


@dataclass(frozen=True)
class _Column:
    """One loss as the page shows it: means over its seeds, and its colour."""

    contender: Contender
    shown: RunSummary
    colour: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)

    @property
    def spread(self) -> dict[str, float]:
        """Standard deviation over the seeds, of each metric."""
        return {metric: self.contender.spread(metric) for metric in METRICS}

    @property
    def by_seed(self) -> list[float]:
        """AP of each seed."""
        return [float(value) for value in self.contender.values("AP")]


def write_page(
    path: Path,
    contenders: Sequence[Contender],
    differences: Sequence[Difference],
    told: Sequence[str],
    *,
    name: str,
    facts: Mapping[str, str],
    settings: Mapping[str, dict[str, str]],
    gallery: Image.Image,
) -> None:
    """Write the page, atomically.

    Args:
        path: HTML file to write.
        contenders: at least one; the first is the one to beat.
        differences: of each further one to the first.
        told: a verdict for each difference.
        name: title of the page.
        facts: about data and machine.
        settings: of each loss by its spec.
        gallery: image of ``1 + len(contenders)`` columns: the truth, and what the first run of each detects.
    Raises:
        ValueError: if there is no contender.
    """
    if not contenders:
        raise ValueError("a comparison needs at least one loss")
    shown = [summary(contender, settings[contender.spec]) for contender in contenders]
    runs = [
        _Column(contender, run, colour)
        for contender, run, colour in zip(contenders, shown, colours([c.spec for c in contenders]), strict=True)
    ]
    headline = told[0] if told else f"{contenders[0].title} reaches AP {percent(contenders[0].mean('AP'))}."
    differing, equal = _settings(shown)
    specs = [LossSpec.parse(c.spec) for c in contenders]
    page = render(
        "compare.html",
        _FILTERS,
        title=name,
        headline=headline,
        verdicts=told[1:],
        fairness=fairness([c.spec for c in contenders]),
        runs=runs,
        seeds=[run.seed for run in contenders[0].runs],
        few_seeds=FEW,
        names={c.spec: c.title for c in contenders},
        metrics=METRICS,
        differences=differences,
        sweeps=list(zip(*(run.sweep for run in shown), strict=True)),
        deployed=all("candidates" in run.sweep[0] for c in contenders for run in c.runs),
        advice="; ".join(f"{c.title}: {recommended(c)}" for c in contenders),
        calibration_errors="; ".join(
            f"{c.title} {c.calibration_error:.3f}" for c in contenders if not isnan(c.calibration_error)
        ),
        own_expectations=len(runs) > 1 and any(spec.name == "dr" and spec.parameters for spec in specs),
        drawn=_drawings(contenders, runs),
        gallery=picture(gallery),
        costs=costs(contenders),
        differing=differing,
        times=[
            ["training time", *(_duration(run.seconds) for run in shown)],
            ["per iteration", *(_per_iteration(run.seconds / max(1, run.iterations)) for run in shown)],
        ],
        equal=equal,
        facts=facts,
    )
    write_text(path, page)


def _drawings(contenders: Sequence[Contender], runs: Sequence[_Column]) -> dict[str, Any]:
    """The figures of the page by section, with captions where these depend on the runs."""
    named = [(run.name, run.loss) for run in runs]
    curves = [(c.title, c.spec, calibration(c.runs[0].matches)) for c in contenders]
    positive, negative = _series(runs, "expected_pos"), _series(runs, "expected_neg")
    paired = positive and [s.name for s in positive] == [s.name for s in negative]
    return {
        "classes": _class_differences(contenders),
        "thresholds": _svg(
            figures.threshold_curves([(*names, run.sweep) for names, run in zip(named, runs, strict=True)]),
            "thresholds",
            "AP against score threshold, one line per run",
        ),
        "calibration": _svg(
            figures.reliability([(name, spec, curve.score, curve.precision) for name, spec, curve in curves]),
            "calibration",
            "share of right detections against their score",
        ),
        "densities": _svg(
            figures.score_densities([(*names, run.histogram) for names, run in zip(named, runs, strict=True)]),
            "densities",
            "densities of positive and of negative scores",
        ),
        "curves": [
            (
                _svg(figures.training_curves(series, label), f"curve-{name}", f"{label} over training"),
                f"{label[0].upper()}{label[1:]}. {caption}",
            )
            for name, (label, caption) in CURVES.items()
            if (series := _series(runs, name))
        ],
        "expected": paired
        and _svg(
            figures.expected_scores(positive, negative),
            "expected",
            "expected scores over training, two lines per run",
        ),
        "pr": [
            _svg(
                figures.precision_recall(run.name, run.loss, run.evaluation, colour=run.colour),
                f"pr-{index}",
                f"precision against recall of {run.name}",
            )
            for index, run in enumerate(runs)
        ],
        "pr_classes": _class_precision_recall(runs),
    }


def _class_differences(contenders: Sequence[Contender]) -> list[tuple[Markup, str]]:
    """For each loss but the first, AP of each class minus that of the first, with its caption."""
    first = contenders[0]
    names = list(first.runs[0].evaluation.per_class)
    paint = colours([c.spec for c in contenders])
    drawn = []
    for index, other in enumerate(contenders[1:]):
        gaps = [other.class_mean(n) - first.class_mean(n) for n in names]
        caption = f"{other.title} minus {first.title}: AP per class, mean over seeds."
        if sum(not isnan(gap) for gap in gaps) > figures.CLASSES:
            caption += f" Of {len(gaps)} classes the {figures.CLASSES // 2} at either end."
        figure = figures.class_differences(names, gaps, paint[index + 1])
        description = f"AP of {other.title} minus AP of {first.title}, per class"
        drawn.append((_svg(figure, f"classes-{index}", description), caption))
    return drawn


def _class_precision_recall(runs: Sequence[_Column]) -> tuple[Markup, str] | None:
    shown = figures.classes_in_panels([run.evaluation for run in runs])
    if len(shown) < 2:
        return None
    figure = figures.class_precision_recall([(run.name, run.loss, run.evaluation) for run in runs])
    caption = "The classes, a panel each: the area below a line is the AP50 of the class."
    objects = sum((precision > -1).all() for precision in runs[0].evaluation.precision)
    if objects > len(shown):
        half = len(shown) // 2
        caption += f" Of {objects} classes with objects the {half} of highest and the {half} of lowest AP50."
    return _svg(figure, "pr-classes", "precision against recall of each class, one line per run"), caption


def _series(runs: Sequence[_Column], name: str) -> list[figures.Series]:
    return [figures.Series(r.name, r.loss, *r.curves[name]) for r in runs if len(r.curves.get(name, ([], []))[0]) > 1]


def _svg(figure: Figure, name: str, description: str) -> Markup:
    return Markup(to_svg(figure, name, description))


def _settings(runs: Sequence[RunSummary]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the settings that differ, and of those that are equal."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    values = {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    differing = [[key, *row] for key, row in values.items() if len(set(row)) > 1]
    return differing, [[key, row[0]] for key, row in values.items() if len(set(row)) == 1]


def plus_minus(mean: float, spread: float) -> str:
    """A mean and a standard deviation, as tables show them."""
    return percent(mean) if isnan(mean) or isnan(spread) else f"{mean:.1f} ± {spread:.1f}"


def interval(difference: Difference) -> str:
    """The interval of a difference over the images, as tables show it."""
    low, high = difference.low, difference.high
    return "–" if isnan(low) else f"{signed(low)} to {signed(high)}"


def recommended(contender: Contender) -> str:
    """The recommended threshold, in words."""
    threshold = recommended_threshold(contender)
    return "none, nothing is found" if threshold is None else f"{threshold:g}"


def costs(contenders: Sequence[Contender]) -> list[list[str]]:
    """Rows of what each loss costs, the first cell their name; means over the seeds."""
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
    """The highest value as it is printed, or None where all are equal or there is but one."""
    shown = {percent(v) for v in values if not isnan(v)}
    return max(shown, key=float) if len(shown) > 1 else None


def _of_class(runs: Sequence[_Column], name: str, metric: str) -> list[float]:
    return [run.evaluation.per_class[name][metric] for run in runs]


def _per_iteration(seconds: float) -> str:
    return "–" if isnan(seconds) else f"{seconds:.3g} s"


def _duration(seconds: float) -> str:
    if isnan(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_FILTERS = {
    "percent": percent,
    "signed": signed,
    "interval": interval,
    "plus_minus": plus_minus,
    "count": count,
    "best": best,
    "of_class": _of_class,
}
