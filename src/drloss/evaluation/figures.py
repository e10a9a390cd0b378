"""The figures of an evaluation and of a comparison.

Each function returns a Matplotlib figure, which :func:`drloss.evaluation.plotting.to_svg` and ``to_png`` render.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from drloss.evaluation.coco import Evaluation, percent
from drloss.evaluation.densities import Floats, ScoreHistogram
from drloss.evaluation.plotting import (
    DASHED,
    FONT,
    NEUTRAL,
    any_letters,
    colours,
    is_wide,
    legend,
    looks,
    new_figure,
    save_png,
    shortened,
    variants,
)
from drloss.evaluation.thresholds import ThresholdCurve
from drloss.io.atomic import write_atomic

MANY = 50
"""Number of values from which on a curve is smoothed."""
CLASSES = 30
"""Most classes in a bar chart."""
PANELS = 8
"""Most classes that have a panel each."""


@dataclass(frozen=True)
class Series:
    """One line of a figure: name of the run, its loss (which decides the colour), and the points."""

    name: str
    loss: str
    x: Sequence[float]
    y: Sequence[float]


def training_curves(series: Sequence[Series], label: str) -> Figure:
    """One quantity over training: the values of each run in a light colour, and their running mean on top.

    Args:
        series: one for each run.
        label: label of the vertical axis.
    """
    figure, (axes,) = new_figure(1)
    for line, (colour, dashes, marker) in zip(series, looks([s.loss for s in series]), strict=True):
        x, y = _finite(line)
        if len(x) >= MANY:
            axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
        style = {"linestyle": dashes, "marker": "" if len(x) >= MANY else marker}
        axes.plot(x, running_mean(y), color=colour, linewidth=2, **style, label=line.name)
    # Losses start high, which would press the rest of the curve onto the axis.
    settled = [v for line in series for v in _finite(line)[1][len(line.y) // 20 :]]
    if settled and min(settled) >= 0:
        axes.set_ylim(0, 1.08 * float(np.quantile(settled, 0.995)) or 1.0)
    axes.set_xlim(left=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    legend(axes)
    return figure


def expected_scores(positive: Sequence[Series], negative: Sequence[Series]) -> Figure:
    """P̂₊ (solid) and P̂₋ (dashed) over training, the expected scores of Eq. (6) of the paper.

    A second run of a loss has markers.

    Args:
        positive: P̂₊ of each run.
        negative: P̂₋ of each run, in the same order.
    """
    figure, (axes,) = new_figure(1)
    for group, dashes, sign in ((positive, "-", "₊"), (negative, (0, (4, 2)), "₋")):
        losses = [s.loss for s in group]
        for line, (colour, _, marker), before in zip(group, looks(losses), variants(losses), strict=True):
            x, y = _finite(line)
            style: dict[str, Any] = {"linestyle": dashes, "marker": marker if before else "", "markevery": 0.12}
            axes.plot(x, running_mean(y), color=colour, linewidth=2, **style, label=f"{line.name} P̂{sign}")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel("expected score")
    legend(axes, columns=2)
    return figure


def threshold_curves(sweeps: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]], metric: str = "AP") -> Figure:
    """A metric against the score threshold (Table 5 of the paper).

    Args:
        sweeps: name, loss and :func:`drloss.evaluation.thresholds.threshold_sweep` of each run.
        metric: name of the metric.
    """
    figure, (axes,) = new_figure(1)
    for (name, _, sweep), (colour, dashes, marker) in zip(sweeps, looks([s[1] for s in sweeps]), strict=True):
        x = [record["threshold"] for record in sweep]
        style = {"linestyle": dashes, "marker": marker}
        axes.plot(x, [record[metric] for record in sweep], color=colour, linewidth=2, **style, label=name)
    values = [float(record[metric]) for _, _, sweep in sweeps for record in sweep if not isnan(record[metric])]
    axes.set_ylim(0, 1.08 * max(values, default=0) or 1)
    axes.set_xlabel("score threshold")
    axes.set_ylabel(f"{metric} (%)")
    legend(axes)
    return figure


def threshold_choice(curve: ThresholdCurve, colour: str) -> Figure:
    """Precision, recall and F1 against the score threshold, and the threshold with the best F1.

    Args:
        curve: of all classes together.
        colour: of F1.
    """
    figure, (axes,) = new_figure(1)
    points = curve.points()
    lines = (("F1", colour, "-", 2.4), ("precision", NEUTRAL, DASHED, 1.6), ("recall", NEUTRAL, "-", 1.6))
    for name, own, dashes, width in lines:
        values = [getattr(point, name.lower()) for point in points]
        axes.plot(curve.threshold, values, color=own, linestyle=dashes, linewidth=width, label=name)
    best = curve.best()
    if best is not None:
        label = f"best F1, {best.f1:.2f} at {best.threshold:.3f}"
        axes.axvline(best.threshold, color=colour, linestyle=(0, (1, 2)), linewidth=1.6, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score threshold")
    legend(axes)
    return figure


def score_densities(histograms: Sequence[tuple[str, str, ScoreHistogram]]) -> Figure:
    """Densities of the scores of positives (above) and of negatives (below, log scale), as in Figure 4 of the paper.

    Args:
        histograms: name, loss and scores of each run.
    """
    figure, panels = new_figure(2, height=4.6)
    for (name, _, histogram), (colour, dashes, _) in zip(histograms, looks([h[1] for h in histograms]), strict=True):
        sides = (
            (panels[0], histogram.positive_density(), histogram.positive_mean),
            (panels[1], histogram.negative_density(), histogram.negative_mean),
        )
        for axes, density, mean in sides:
            coarse = density.reshape(40, -1).mean(axis=1)
            edges = np.linspace(0, 1, 41)
            label = f"{name}, none" if isnan(mean) else f"{name}, mean {mean:.3f}"
            axes.stairs(coarse, edges, color=colour, alpha=0.14, fill=True)
            axes.stairs(coarse, edges, color=colour, linewidth=1.8, linestyle=dashes, label=label)
            axes.axvline(mean, color=colour, linestyle=DASHED, linewidth=1.2)
    panels[0].set_ylabel("positives")
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylabel("negatives (log)")
    if any(histogram.negative.any() for _, _, histogram in histograms):
        panels[1].set_yscale("log")
        panels[1].yaxis.set_major_formatter("{x:g}")  # exponents are too small to read on a phone
    panels[1].set_xlabel("score")
    panels[0].tick_params(labelbottom=False)
    for axes in panels:
        axes.set_xlim(0, 1)
        legend(axes)
    return figure


def precision_recall(name: str, loss: str, evaluation: Evaluation, *, colour: str | None = None) -> Figure:
    """Precision against recall at IoU .50: the mean over the classes in bold, each class in a light line."""
    figure, (axes,) = new_figure(1)
    colour = colour or colours([loss])[0]
    defined = evaluation.precision[(evaluation.precision > -1).all(axis=1)]
    for index, row in enumerate(defined):
        label = "each class" if index == 0 else None
        axes.plot(evaluation.recall_points, row, color=colour, alpha=0.5, linewidth=1.1, label=label)
    if len(defined):
        label = f"{name}, mean: AP50 {percent(evaluation.metrics['AP50'])}"
        axes.plot(evaluation.recall_points, defined.mean(axis=0), color=colour, linewidth=2.6, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    legend(axes)
    return figure


def classes_in_panels(evaluations: Sequence[Evaluation]) -> list[str]:
    """The classes with objects. Of more than :data:`PANELS`, those of highest and lowest AP50, highest first."""
    names = [
        name
        for name, precision in zip(evaluations[0].per_class, evaluations[0].precision, strict=True)
        if (precision > -1).all()
    ]
    if len(names) <= PANELS:
        return names
    mean = {name: float(np.mean([e.per_class[name]["AP50"] for e in evaluations])) for name in names}
    names.sort(key=lambda name: -mean[name])
    return names[: PANELS // 2] + names[-PANELS // 2 :]


def class_precision_recall(runs: Sequence[tuple[str, str, Evaluation]]) -> Figure:
    """Precision against recall at IoU .50, a panel for each class of :func:`classes_in_panels`.

    Args:
        runs: name, loss and evaluation of each run.
    """
    names = classes_in_panels([evaluation for _, _, evaluation in runs])
    rows = -(-len(names) // 2)
    figure, panels = new_figure(len(names), columns=2, height=1.2 + 1.6 * rows)
    for index, (name, axes) in enumerate(zip(names, panels, strict=True)):
        for (run, _, evaluation), (colour, dashes, _) in zip(runs, looks([r[1] for r in runs]), strict=True):
            precision = evaluation.precision[list(evaluation.per_class).index(name)]
            axes.plot(evaluation.recall_points, precision, color=colour, linestyle=dashes, linewidth=1.8, label=run)
        # A dollar sign in the name of a class starts no formula.
        axes.set_title(shortened(name, 20), fontsize=FONT, color=NEUTRAL, loc="left", pad=3, parse_math=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
        below, left = index + 2 >= len(names), index % 2 == 0
        axes.tick_params(labelbottom=below, labelleft=left)
        axes.set(xlabel="recall" if below else "", ylabel="precision" if left else "")
    legend(panels[0], whole=True)
    return figure


def reliability(curves: Sequence[tuple[str, str, Floats, Floats]]) -> Figure:
    """Share of right detections against their score. On the dotted line the score is a probability.

    Args:
        curves: name and loss of each run, and mean score and precision of each bin, NaN for empty bins.
    """
    figure, (axes,) = new_figure(1)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=(0, (1, 2)), linewidth=1.2)
    for (name, _, score, precision), look in zip(curves, looks([c[1] for c in curves]), strict=True):
        there = np.isfinite(score)
        style = dict(zip(("color", "linestyle", "marker"), look, strict=True))
        axes.plot(score[there], precision[there], linewidth=2, **style, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="right at IoU .50")
    legend(axes)
    return figure


def class_differences(names: Sequence[str], differences: Sequence[float], colour: str) -> Figure:
    """Differences in AP per class, largest at the top. Of more than :data:`CLASSES`, the largest and smallest.

    Args:
        names: names of the K classes.
        differences: K differences in percent AP; NaN is left out.
        colour: colour of the bars.
    """
    pairs = sorted((d, n) for n, d in zip(names, differences, strict=True) if not isnan(d))
    if len(pairs) > CLASSES:
        pairs = pairs[: CLASSES // 2] + pairs[-CLASSES // 2 :]
    figure, (axes,) = new_figure(1, height=1.2 + 0.24 * max(len(pairs), 2))
    axes.barh(range(len(pairs)), [d for d, _ in pairs], color=colour, height=0.7)
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    axes.set_xlabel("difference in AP")
    axes.set_ylim(-0.7, max(len(pairs), 2) - 0.3)
    axes.grid(visible=False, axis="y")
    shown = [shortened(name) for _, name in pairs]
    with mpl.rc_context({"text.parse_math": False}), any_letters():
        # Matplotlib's font has no wide letters: the layout is made with dashes, which are as wide.
        axes.set_yticks(range(len(pairs)), ["".join("—" if is_wide(c) else c for c in name) for name in shown])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        axes.set_yticklabels(shown)
    return figure


def save_evaluation_figures(
    folder: Path,
    evaluation: Evaluation,
    sweep: Sequence[Mapping[str, float]],
    histogram: ScoreHistogram | None = None,
    *,
    loss: str,
) -> list[Path]:
    """Write the figures of one evaluated run as PNG files.

    Args:
        folder: where the files go; it is made if it does not exist.
        evaluation: for ``precision_recall.png``.
        sweep: for ``thresholds.png``.
        histogram: for ``densities.png``; None for no such file.
        loss: loss of the run, which decides the colour and is the name in the legends.

    Returns:
        The files written.
    """
    drawn = {
        "precision_recall": precision_recall(loss, loss, evaluation),
        "thresholds": threshold_curves([(loss, loss, sweep)]),
    }
    if histogram is not None:
        drawn["densities"] = score_densities([(loss, loss, histogram)])
    paths = []
    for stem, figure in drawn.items():
        path = folder / f"{stem}.png"
        write_atomic(path, partial(save_png, figure))
        paths.append(path)
    return paths


def _finite(series: Series) -> tuple[Floats, Floats]:
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def running_mean(values: Floats) -> Floats:
    """Mean of the n / 25 values around each of n values. Fewer than :data:`MANY` values stay as they are."""
    reach = len(values) // MANY
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    first, last = np.maximum(0, centre - reach), np.minimum(len(values), centre + reach + 1)
    return np.asarray((sums[last] - sums[first]) / (last - first), dtype=np.float64)
