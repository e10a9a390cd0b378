"""Figures 1, 4 and 5 of the paper, from the scores of trained detectors. Figure 1 can also have synthetic scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drloss.errors import UserError
from drloss.evaluation.densities import Floats, ScoreHistogram
from drloss.evaluation.figures import score_densities
from drloss.evaluation.plotting import DASHED, FONT, NEUTRAL, OTHER, PALETTE, legend, new_figure, save_figure
from drloss.losses import dr
from drloss.studies.paper.schematics import derived

SYNTHETIC = "synthetic scores, Beta(4, 1.8) for positives and Beta(1.5, 9) for negatives"


# ---------------------------------------------------------------------- Figure 1


@dataclass(frozen=True)
class Sides:
    """Positives and negatives at one stage of Figure 1.

    Attributes:
        positive, negative: (M,) densities over the bins, each with integral 1.
        positive_mean, negative_mean: expected scores.
    """

    positive: Floats
    negative: Floats
    positive_mean: float
    negative_mean: float


@dataclass(frozen=True)
class Reweighting:
    """Data of Figure 1: scores before and after Propositions 1 and 2.

    Attributes:
        source: where the scores come from, in words.
        edges: (M + 1,) edges of the bins.
        given: the scores as they are.
        derived: the scores re-weighted by Propositions 1 and 2; the expected scores are P̂₊ and P̂₋ of Eq. (6).
        pos_lambda, neg_lambda, margin: λ₊, λ₋ and γ, in score units.
    """

    source: str
    edges: Floats
    given: Sides
    derived: Sides
    pos_lambda: float = dr.POS_LAMBDA
    neg_lambda: float = dr.NEG_LAMBDA
    margin: float = dr.MARGIN

    @property
    def violation(self) -> float:
        """The violation of the margin, z = P̂₋ - P̂₊ + γ, which is the argument of the surrogate."""
        return self.derived.negative_mean - self.derived.positive_mean + self.margin


def reweight_scores(histogram: ScoreHistogram | None = None, source: str = SYNTHETIC) -> Reweighting:
    """Data of Figure 1, from a run's scores or from synthetic ones.

    Args:
        histogram: scores of a run, or None for synthetic ones. All images count together here; the loss ranks each
            image by itself.
        source: where the scores come from, in words.
    Raises:
        UserError: if there are no positives or no negatives.
    """
    edges = np.linspace(0.0, 1.0, 201)
    middle = (edges[1:] + edges[:-1]) / 2
    if histogram is None:
        positive, negative = middle**3 * (1 - middle) ** 0.8, middle**0.5 * (1 - middle) ** 8
    else:
        positive, negative = histogram.positive.astype(np.float64), histogram.negative.astype(np.float64)
        if not positive.any() or not negative.any():
            raise UserError(f"{source}: there must be positive and negative candidates to draw")
    given = _sides(positive / positive.sum(), negative / negative.sum(), middle, edges)
    moved = (
        derived(positive, middle, lam=dr.POS_LAMBDA, positive=True),
        derived(negative, middle, lam=dr.NEG_LAMBDA, positive=False),
    )
    return Reweighting(source, edges, given, _sides(*moved, middle, edges))


def _sides(positive: Floats, negative: Floats, middle: Floats, edges: Floats) -> Sides:
    width = np.diff(edges)
    return Sides(positive / width, negative / width, float(positive @ middle), float(negative @ middle))


def draw_reweighting(data: Reweighting) -> Figure:
    """Figure 1: the given scores above and the re-weighted ones below, with the expected scores and the margin."""
    figure, panels = new_figure(2, height=4.8)
    peaks = [(float(s.positive.max()), float(s.negative.max())) for s in (data.given, data.derived)]
    # The negatives of a trained detector have a peak next to 0, which would press all else onto the axis.
    top = 1.4 * min(max(map(max, peaks)), 3 * max(positive for positive, _ in peaks))
    middle = (data.edges[1:] + data.edges[:-1]) / 2
    for axes, sides, hat in ((panels[0], data.given, ""), (panels[1], data.derived, "\u0302")):
        for density, mean, colour, sign, word in (
            (sides.positive, sides.positive_mean, PALETTE["dr"], "₊", "positives"),
            (sides.negative, sides.negative_mean, OTHER, "₋", "negatives"),
        ):
            axes.fill_between(middle, density, color=colour, alpha=0.14, linewidth=0)
            axes.plot(middle, density, color=colour, linewidth=1.8, label=f"{word}, P{hat}{sign} = {mean:.2f}")
            axes.plot([mean, mean], [0, 0.8 * top], color=colour, linestyle=DASHED, linewidth=1.2)
        axes.set(xlim=(0, 1), ylim=(0, top))
        legend(axes)
    panels[0].set_ylabel("given")
    panels[0].tick_params(labelbottom=False)
    panels[1].set_ylabel("re-weighted")
    panels[1].set_xlabel("score (synthetic)" if data.source == SYNTHETIC else "score")
    _draw_margin(panels[1], data, top)
    return figure


def _draw_margin(axes: Axes, data: Reweighting, top: float) -> None:
    """An arrow between the expected scores, with their distance and whether it is below the margin."""
    low, high = data.derived.negative_mean, data.derived.positive_mean
    arrow = {"arrowstyle": "<->", "color": NEUTRAL, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (low, 0.8 * top), (high, 0.8 * top), arrowprops=arrow)
    word = "below" if high - low < data.margin else "not below"
    text = f"{high - low:.2f} apart, {word} γ = {data.margin:g}"
    axes.text((low + high) / 2, 0.83 * top, text, ha="center", va="bottom", color=NEUTRAL, fontsize=FONT)


# ---------------------------------------------------------------------- Figures 4 and 5


Histogram = tuple[str, str, str, ScoreHistogram]
"""Name of a loss in tables, its name on the command line, the names of the runs, and their scores."""


@dataclass(frozen=True)
class Density:
    """One loss in Figure 4 or 5.

    Attributes:
        name: name of the loss in tables.
        loss: name of the loss on the command line.
        source: names of the runs.
        positive_mean, negative_mean: expected scores.
        positive, negative: (M,) densities over the bins, each with integral 1.
    """

    name: str
    loss: str
    source: str
    positive_mean: float
    negative_mean: float
    positive: Floats
    negative: Floats


@dataclass(frozen=True)
class Densities:
    """Data of Figures 4 and 5: the (M + 1,) edges of the bins, and the losses."""

    edges: Floats
    losses: list[Density]


def compare_densities(histograms: Sequence[Histogram]) -> Densities:
    """Data of Figures 4 and 5, from the scores of each loss."""
    losses = [
        Density(name, loss, source, h.positive_mean, h.negative_mean, h.positive_density(), h.negative_density())
        for name, loss, source, h in histograms
    ]
    return Densities(ScoreHistogram().edges, losses)


def save_reweighting(folder: Path, data: Reweighting) -> list[Path]:
    """Write Figure 1 and its data; return the files."""
    words = f"Densities of scores before and after re-weighting, from {data.source}"
    return save_figure(folder, "figure1", draw_reweighting(data), data, words)


DECAY = 10
"""Divisor of the density of the negatives in Figure 5 (b)."""


def draw_separation(data: Densities) -> Figure:
    """Figure 5: negatives and positives of one loss in a panel, and below with the negatives divided by ten."""
    figure, panels = new_figure(2, height=4.6)
    (only,) = data.losses
    coarse = np.linspace(0, 1, 41)
    positive, negative = (d.reshape(40, -1).mean(axis=1) for d in (only.positive, only.negative))
    for axes, decay, label in ((panels[0], 1, "density"), (panels[1], DECAY, f"negatives / {DECAY}")):
        for values, colour, word in (
            (negative / decay, OTHER, f"negatives, mean {only.negative_mean:.3f}"),
            (positive, PALETTE["dr"], f"positives, mean {only.positive_mean:.3f}"),
        ):
            axes.stairs(values, coarse, color=colour, alpha=0.14, fill=True)
            axes.stairs(values, coarse, color=colour, linewidth=1.8, label=word)
        axes.set(xlim=(0, 1), ylabel=label)
        axes.set_ylim(bottom=0)
    panels[0].tick_params(labelbottom=False)
    legend(panels[0])
    panels[1].set_xlabel("score")
    return figure


def save_densities(folder: Path, shown: Sequence[Histogram]) -> list[Path]:
    """Write Figure 4 and its data; return the files."""
    figure = score_densities([(name, loss, histogram) for name, loss, _, histogram in shown])
    return save_figure(folder, "figure4", figure, compare_densities(shown), "Densities of scores with each loss")


def save_separation(folder: Path, shown: Histogram) -> list[Path]:
    """Write Figure 5 and its data; return the files."""
    data, words = compare_densities([shown]), "Densities of the scores of negatives and positives with DR loss"
    return save_figure(folder, "figure5", draw_separation(data), data, words)
