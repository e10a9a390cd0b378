"""The figures of a comparison: drawn once, shown on light and on dark pages.

Every function returns a Matplotlib figure without a ground of its own; :func:`to_svg` and :func:`to_png` render it.
A loss has the same colour in every figure, and a second run of it a paler one and other dashes or markers.
"""

import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from io import BytesIO
from math import isnan
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from drloss.evaluation.coco import Evaluation, percent
from drloss.evaluation.densities import ScoreHistogram
from drloss.io.atomic import write_atomic, write_json, write_text

# Told apart by the colour-blind, and of about the same contrast on white and on near-black.
PALETTE = {
    **{"dr": "#2B83D6", "focal": "#D96B00", "ce": "#0E9A74"},
    **{"ohem": "#B25C9E", "qfl": "#708C4D", "ap": "#D90034"},
}
OTHER = "#8A7F78"
# Text and axes. In SVG it gives way to the colour of the page's text; in PNG it has to do on any ground.
NEUTRAL = "#7f8081"
WIDTH = 5.2
FONT = 10.5
DASHED = (0, (3, 2))
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D")
"""Of the first, second... run of a loss."""
MANY = 50
"""Values from which on a curve is smoothed."""
CLASSES = 30
"""Most classes in one figure."""
PANELS = 8
"""Most classes with a panel of their own."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line: the run it belongs to, that run's loss (which says the colour) and its points."""

    name: str
    loss: str
    x: Sequence[float]
    y: Sequence[float]


def colours(losses: Sequence[str]) -> list[str]:
    """A colour for each run, given the runs' losses: the loss's own, paler for each further run of it.

    Parameters, as in ``dr:neg_lambda=0.05``, make no other loss.
    """
    chosen = []
    for loss, before in zip(losses, variants(losses), strict=True):
        base = PALETTE.get(loss.partition(":")[0], OTHER)
        share = 0.45**before
        ends = zip(_rgb(base), _rgb("#9a9a9a"), strict=True)
        chosen.append("#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in ends))
    return chosen


def variants(losses: Sequence[str]) -> list[int]:
    """How many runs of the same loss stand before each run, given the runs' losses."""
    names = [loss.partition(":")[0] for loss in losses]
    return [names[:index].count(name) for index, name in enumerate(names)]


def _looks(losses: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Colour, dashes and marker of each run."""
    for colour, before in zip(colours(losses), variants(losses), strict=True):
        yield colour, DASHES[before % len(DASHES)], MARKERS[before % len(MARKERS)]


def training_curves(series: Sequence[Series], label: str) -> Figure:
    """One quantity over training: each run's own values light, their running mean on top.

    Args:
        series: one per run.
        label: what the vertical axis says.
    """
    figure, (axes,) = new_figure(1)
    for line, (colour, dashes, marker) in zip(series, _looks([s.loss for s in series]), strict=True):
        x, y = _finite(line)
        if len(x) >= MANY:
            axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
        style = {"linestyle": dashes, "marker": "" if len(x) >= MANY else marker}
        axes.plot(x, running_mean(y), color=colour, linewidth=2, **style, label=line.name)
    # Losses start with a burst that would press all the rest onto the axis.
    settled = [v for line in series for v in _finite(line)[1][len(line.y) // 20 :]]
    if settled and min(settled) >= 0:
        axes.set_ylim(0, 1.08 * float(np.quantile(settled, 0.995)) or 1.0)
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    legend(axes)
    return figure


def expected_scores(positive: Sequence[Series], negative: Sequence[Series]) -> Figure:
    """P̂₊ (solid) and P̂₋ (dashed) over training, the expected scores of Equations 5 and 6 of the paper.

    A second run of a loss has markers.

    Args:
        positive: P̂₊ of each run.
        negative: P̂₋ of each run, in the same order.
    """
    figure, (axes,) = new_figure(1)
    for group, dashes, sign in ((positive, "-", "₊"), (negative, (0, (4, 2)), "₋")):
        losses = [s.loss for s in group]
        for line, (colour, _, marker), before in zip(group, _looks(losses), variants(losses), strict=True):
            x, y = _finite(line)
            style: dict[str, Any] = {"linestyle": dashes, "marker": marker if before else "", "markevery": 0.12}
            axes.plot(x, running_mean(y), color=colour, linewidth=2, **style, label=f"{line.name} P̂{sign}")
    axes.set_ylim(0, 1)
    axes.set_xlabel("iteration")
    axes.set_ylabel("expected score")
    legend(axes, columns=2)
    return figure


def threshold_curves(sweeps: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]], metric: str = "AP") -> Figure:
    """A metric against the score threshold (Table 5 of the paper).

    Args:
        sweeps: of each run its name, its loss and what :func:`drloss.evaluation.thresholds.threshold_sweep` returned.
        metric: its name.
    """
    figure, (axes,) = new_figure(1)
    for (name, _, sweep), (colour, dashes, marker) in zip(sweeps, _looks([s[1] for s in sweeps]), strict=True):
        x = [record["threshold"] for record in sweep]
        style = {"linestyle": dashes, "marker": marker}
        axes.plot(x, [record[metric] for record in sweep], color=colour, linewidth=2, **style, label=name)
    values = [float(record[metric]) for _, _, sweep in sweeps for record in sweep if not isnan(record[metric])]
    axes.set_ylim(0, 1.08 * max(values, default=0) or 1)
    axes.set_xlabel("score threshold")
    axes.set_ylabel(f"{metric} (%)")
    legend(axes)
    return figure


def score_densities(histograms: Sequence[tuple[str, str, ScoreHistogram]]) -> Figure:
    """Densities of the scores of positives (above) and of negatives (below, log scale), as in Figure 4 of the paper.

    Args:
        histograms: of each run its name, its loss and its scores.
    """
    figure, panels = new_figure(2, height=4.6)
    for (name, _, histogram), (colour, dashes, _) in zip(histograms, _looks([h[1] for h in histograms]), strict=True):
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
        panels[1].yaxis.set_major_formatter("{x:g}")  # exponents would be too small to read on a phone
    panels[1].set_xlabel("score")
    panels[0].tick_params(labelbottom=False)
    for axes in panels:
        axes.set_xlim(0, 1)
        legend(axes)
    return figure


def precision_recall(name: str, loss: str, evaluation: Evaluation, *, colour: str | None = None) -> Figure:
    """Precision against recall at IoU .50: the mean over classes bold, each class light; in the loss's colour."""
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
    """The classes with objects; of more than :data:`PANELS` the best and the worst in mean AP50, the best first."""
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
        runs: of each run its name, its loss and its evaluation.
    """
    names = classes_in_panels([evaluation for _, _, evaluation in runs])
    rows = -(-len(names) // 2)
    figure, panels = new_figure(len(names), columns=2, height=1.2 + 1.6 * rows)
    for index, (name, axes) in enumerate(zip(names, panels, strict=True)):
        for (run, _, evaluation), (colour, dashes, _) in zip(runs, _looks([r[1] for r in runs]), strict=True):
            precision = evaluation.precision[list(evaluation.per_class).index(name)]
            axes.plot(evaluation.recall_points, precision, color=colour, linestyle=dashes, linewidth=1.8, label=run)
        # The user names the classes: a dollar sign in a name starts no formula.
        axes.set_title(_shortened(name, 20), fontsize=FONT, color=NEUTRAL, loc="left", pad=3, parse_math=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
        below, left = index + 2 >= len(names), index % 2 == 0
        axes.tick_params(labelbottom=below, labelleft=left)
        axes.set(xlabel="recall" if below else "", ylabel="precision" if left else "")
    legend(panels[0], whole=True)
    return figure


def reliability(curves: Sequence[tuple[str, str, Floats, Floats]]) -> Figure:
    """Share of right detections against their score; the dotted line is where a score is a probability.

    Args:
        curves: of each run its name, its loss, and mean score and precision of each bin, NaN where it is empty.
    """
    figure, (axes,) = new_figure(1)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=(0, (1, 2)), linewidth=1.2)
    for (name, _, score, precision), look in zip(curves, _looks([c[1] for c in curves]), strict=True):
        there = np.isfinite(score)
        style = dict(zip(("color", "linestyle", "marker"), look, strict=True))
        axes.plot(score[there], precision[there], linewidth=2, **style, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="right at IoU .50")
    legend(axes)
    return figure


def class_differences(names: Sequence[str], differences: Sequence[float], colour: str) -> Figure:
    """Differences in AP per class, the largest above; of more than :data:`CLASSES` those at either end.

    Args:
        names: (K,) of the classes.
        differences: (K,) in percent AP; NaN is left out.
        colour: of the bars.
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
    shown = [_shortened(name) for _, name in pairs]
    with mpl.rc_context({"text.parse_math": False}), _any_letters():
        # Matplotlib's font knows no wide letters: it makes room for dashes, which are as wide.
        axes.set_yticks(range(len(pairs)), ["".join("—" if _wide(c) else c for c in name) for name in shown])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        axes.set_yticklabels(shown)
    return figure


def _shortened(name: str, most: int = 24) -> str:
    """The name without its middle, where it is wider than so many letters: names of a kind differ at either end."""
    keep, shown = len(name), name
    while _width(shown) > most:
        keep -= 1
        shown = f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"
    return shown


def _width(text: str) -> int:
    """In narrow letters."""
    return sum(1 + _wide(letter) for letter in text)


def _wide(letter: str) -> bool:
    return east_asian_width(letter) in "WF"


@contextmanager
def _any_letters() -> Iterator[None]:
    """No warning of letters that Matplotlib's font lacks: in an SVG the reader's fonts draw them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def save_evaluation_figures(
    folder: Path,
    evaluation: Evaluation,
    sweep: Sequence[Mapping[str, float]],
    histogram: ScoreHistogram | None = None,
    *,
    loss: str,
    name: str | None = None,
) -> list[Path]:
    """Write the figures of one evaluated run as PNG files.

    Args:
        folder: where to; it is made if need be.
        evaluation: at IoU .50 it gives ``precision_recall.png``.
        sweep: it gives ``thresholds.png``.
        histogram: it gives ``densities.png``; without it there is no such file.
        loss: that the run was trained with; it says the colour.
        name: what the legends call the run; the loss if left out.

    Returns:
        The files written.
    """
    name = name or loss
    drawn = {
        "precision_recall": precision_recall(name, loss, evaluation),
        "thresholds": threshold_curves([(name, loss, sweep)]),
    }
    if histogram is not None:
        drawn["densities"] = score_densities([(name, loss, histogram)])
    paths = []
    for stem, figure in drawn.items():
        path = folder / f"{stem}.png"
        write_atomic(path, partial(_save_png, figure))
        paths.append(path)
    return paths


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element to stand in a page.

    Args:
        figure: to render. Its text and axes take the colour of the page's text.
        name: prefix of the ids inside, unique in the page: letters, digits and hyphens.
        description: said by screen readers.
    """
    file = BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "drloss"}), _any_letters():
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # A page shows several figures, and an id may stand in it once.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(NEUTRAL, "currentColor")
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1).strip()


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file of about 1040 pixels width, without ground."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=200, transparent=True)
    return file.getvalue()


def save_figure(folder: Path, name: str, figure: Figure, data: Any, description: str) -> list[Path]:
    """Write a figure as SVG and PNG, and what it shows as JSON.

    Args:
        folder: where to; it is made if need be.
        name: of the files, without suffix.
        figure: to render.
        data: a dataclass of numbers, arrays, lists and such dataclasses.
        description: said by screen readers.
    Returns:
        The files written.
    """
    paths = [folder / f"{name}{suffix}" for suffix in (".svg", ".png", ".json")]
    # By itself the picture stands on any ground: its text has the colour that does on all of them.
    svg = to_svg(figure, name, description).replace("<svg ", f'<svg color="{NEUTRAL}" ', 1)
    write_text(paths[0], svg + "\n")
    write_atomic(paths[1], partial(_save_png, figure))
    write_json(paths[2], _plain(asdict(data)))
    return paths


def _plain(value: Any) -> Any:
    """A value in JSON types, its arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _save_png(figure: Figure, path: Path) -> None:
    path.write_bytes(to_png(figure))


def new_figure(panels: int, *, columns: int = 1, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """Panels one below the other, or in rows of so many columns, with what all figures share."""
    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    shown = [figure.add_subplot(-(-panels // columns), columns, index + 1) for index in range(panels)]
    for axes in shown:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(NEUTRAL)
        axes.tick_params(which="both", colors=NEUTRAL, labelsize=FONT)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=NEUTRAL, fontsize=FONT)
        axes.grid(color=NEUTRAL, alpha=0.18, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, shown


def legend(axes: Axes, *, columns: int = 2, whole: bool = False) -> None:
    """Above the panel, where it hides nothing; in fewer columns than asked for where its words need the room.

    ``whole`` where it is that of all panels, and stands above the first row.
    """
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    names = [textwrap.fill(name, 44, break_on_hyphens=False) for name in names]
    columns = next(
        c for c in range(min(columns, len(names)), 0, -1) if c == 1 or _legend_width(names, c) < WIDTH - 0.6
    )
    rows = max(sum(1 + n.count("\n") for n in column) for column in np.array_split(names, columns))
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_figheight(figure.get_figheight() + max(0, rows - 2) * 1.6 * FONT / 72)
    # The user names the runs: a dollar sign in a name starts no formula.
    with mpl.rc_context({"text.parse_math": False}):
        (figure if whole else axes).legend(
            handles,
            names,
            **({"loc": "outside upper left"} if whole else {"loc": "lower left", "bbox_to_anchor": (0, 1)}),
            ncols=columns,
            frameon=False,
            fontsize=FONT,
            labelcolor=NEUTRAL,
            handlelength=2,
            columnspacing=1.2,
            borderaxespad=0.2,
        )


def _legend_width(names: Sequence[str], columns: int) -> float:
    """Inches that the names take about, side by side in columns."""
    widest = [
        max(_width(line) for name in column for line in name.split("\n")) for column in np.array_split(names, columns)
    ]
    return sum(0.58 * letters + 3.8 for letters in widest) * FONT / 72


def _finite(series: Series) -> tuple[Floats, Floats]:
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def running_mean(values: Floats) -> Floats:
    """Mean over a twenty-fifth of the values around each (n,); fewer than :data:`MANY` stay as they are."""
    reach = len(values) // MANY
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    first, last = np.maximum(0, centre - reach), np.minimum(len(values), centre + reach + 1)
    return np.asarray((sums[last] - sums[first]) / (last - first), dtype=np.float64)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
