"""Figures 1-3 of the paper, drawn from its equations: each has its data as plain arrays, and a picture of them.

The scores lie in bins: a bin is a candidate whose prior is the number of scores in it, so that ten million points
cost as much as a few hundred.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drloss.errors import UserError
from drloss.evaluation.densities import Floats, ScoreHistogram
from drloss.files import write_atomic, write_json, write_text
from drloss.losses import dr
from drloss.losses.distribution import drifted_weights
from drloss.losses.surrogates import hinge, logistic, quadratic
from drloss.studies.figures import FONT, NEUTRAL, OTHER, PALETTE, _figure, _legend, to_png, to_svg

POINTS = 10_000_000
"""Of Figure 2, for each variance."""
MEAN, STDS = 0.4, (0.05, 0.1)
LAMBDAS = (1.0, 0.2, 0.1, 0.05)
"""The Gaussians and λ of Figure 2. The paper states none of them; these keep the scores within 0 and 1."""
_LOW, _HIGH, _BINS = -0.4, 1.2, 320  # eight standard deviations to either side
_CHUNK = 1_000_000
RHOS, SMOOTHNESSES = (0.2, 0.5), (4.0, 6.0, 8.0, 10.0)
"""ρ and L of Table 2, for Figure 3."""
SYNTHETIC = "synthetic scores, Beta(4, 1.8) for positives and Beta(1.5, 9) for negatives"
_DASHED = (0, (3, 2))


def derived(counts: Floats, scores: Floats, *, lam: float, positive: bool) -> Floats:
    """Weights of Proposition 1 (negatives) or 2 (positives) on binned scores.

    Args:
        counts: (M,) scores in each bin, not all 0: the prior.
        scores: (M,) mean score of each bin.
        lam: λ > 0, in score units.
        positive: Proposition 2.
    Returns:
        (M,) weights of the bins, of sum 1.
    """
    easiness = torch.from_numpy(scores if positive else 1 - scores).unsqueeze(0)
    weights = drifted_weights(easiness, torch.from_numpy(counts.astype(np.float64)).unsqueeze(0), lam=lam)
    return np.asarray(weights[0].numpy(), dtype=np.float64)


# ---------------------------------------------------------------------- Figure 1


@dataclass(frozen=True)
class Sides:
    """Positives and negatives at one stage of Figure 1.

    Attributes:
        positive, negative: (M,) densities over the bins, of integral 1.
        positive_mean, negative_mean: expected scores.
    """

    positive: Floats
    negative: Floats
    positive_mean: float
    negative_mean: float


@dataclass(frozen=True)
class Ranking:
    """Data of Figure 1.

    Attributes:
        source: what the scores are.
        edges: (M + 1,) of the bins.
        given: the scores as they are.
        derived: the same, re-weighted by Propositions 1 and 2; its expected scores are P̂₊ and P̂₋ of Eq. (6).
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
        """z = P̂₋ - P̂₊ + γ, what the surrogate is taken of."""
        return self.derived.negative_mean - self.derived.positive_mean + self.margin


def rank_scores(histogram: ScoreHistogram | None = None, source: str = SYNTHETIC) -> Ranking:
    """Data of Figure 1, from a run's scores or from synthetic ones.

    Args:
        histogram: scores of a run; of all its images together, where the loss takes each image by itself.
        source: what they are.
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
    return Ranking(source, edges, given, _sides(*moved, middle, edges))


def _sides(positive: Floats, negative: Floats, middle: Floats, edges: Floats) -> Sides:
    width = np.diff(edges)
    return Sides(positive / width, negative / width, float(positive @ middle), float(negative @ middle))


def draw_ranking(data: Ranking) -> Figure:
    """Figure 1: given scores above, re-weighted ones below, with their expectations and the margin."""
    figure, panels = _figure(2, height=4.8)
    peaks = [(float(s.positive.max()), float(s.negative.max())) for s in (data.given, data.derived)]
    # A trained detector's negatives lie next to 0, in a peak that would press all the rest onto the axis.
    top = 1.4 * min(max(map(max, peaks)), 3 * max(positive for positive, _ in peaks))
    middle = (data.edges[1:] + data.edges[:-1]) / 2
    for axes, sides, hat in ((panels[0], data.given, ""), (panels[1], data.derived, "\u0302")):
        for density, mean, colour, sign, word in (
            (sides.positive, sides.positive_mean, PALETTE["dr"], "₊", "positives"),
            (sides.negative, sides.negative_mean, OTHER, "₋", "negatives"),
        ):
            axes.fill_between(middle, density, color=colour, alpha=0.14, linewidth=0)
            axes.plot(middle, density, color=colour, linewidth=1.8, label=f"{word}, P{hat}{sign} = {mean:.2f}")
            axes.plot([mean, mean], [0, 0.8 * top], color=colour, linestyle=_DASHED, linewidth=1.2)
        axes.set(xlim=(0, 1), ylim=(0, top))
        _legend(axes)
    panels[0].set_ylabel("given")
    panels[0].tick_params(labelbottom=False)
    panels[1].set_ylabel("re-weighted")
    panels[1].set_xlabel("score (synthetic)" if data.source == SYNTHETIC else "score")
    _draw_margin(panels[1], data, top)
    return figure


def _draw_margin(axes: Axes, data: Ranking, top: float) -> None:
    """An arrow between the expectations, and how far it is from the margin."""
    low, high = data.derived.negative_mean, data.derived.positive_mean
    arrow = {"arrowstyle": "<->", "color": NEUTRAL, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (low, 0.8 * top), (high, 0.8 * top), arrowprops=arrow)
    word = "below" if high - low < data.margin else "not below"
    text = f"{high - low:.2f} apart, {word} γ = {data.margin:g}"
    axes.text((low + high) / 2, 0.83 * top, text, ha="center", va="bottom", color=NEUTRAL, fontsize=FONT)


# ---------------------------------------------------------------------- Figure 2


@dataclass(frozen=True)
class Gaussian:
    """One panel of Figure 2.

    Attributes:
        std: standard deviation of the scores that were drawn.
        lambdas: (C,) λ of each curve; None for the given distribution.
        means: (C,) expected scores.
        densities: (C, M) over the bins, each of integral 1.
    """

    std: float
    lambdas: list[float | None]
    means: list[float]
    densities: list[Floats]


@dataclass(frozen=True)
class Drifts:
    """Data of Figure 2: points drawn for each Gaussian, their mean, the seed, the (M + 1,) edges, the panels."""

    points: int
    mean: float
    seed: int
    edges: Floats
    panels: list[Gaussian]


def drift_gaussians(points: int = POINTS, *, seed: int = 0, lambdas: Sequence[float] = LAMBDAS) -> Drifts:
    """Data of Figure 2: the derived distributions of Proposition 1 for two Gaussians of the same mean.

    Args:
        points: drawn for each Gaussian, at least 1; they are counted a million at a time.
        seed: of the random numbers.
        lambdas: of the curves.
    """
    edges = np.linspace(_LOW, _HIGH, _BINS + 1)
    panels = []
    for std in STDS:
        counts, scores = _draw_gaussian(points, std, np.random.default_rng(seed))
        weights = [counts / counts.sum(), *(derived(counts, scores, lam=lam, positive=False) for lam in lambdas)]
        densities = [w / np.diff(edges) for w in weights]
        panels.append(Gaussian(std, [None, *lambdas], [float(w @ scores) for w in weights], densities))
    return Drifts(points, MEAN, seed, edges, panels)


def _draw_gaussian(points: int, std: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Number of points in each bin, and their mean score; the bin's middle where there is none."""
    counts, sums = np.zeros(_BINS), np.zeros(_BINS)
    for first in range(0, points, _CHUNK):
        scores = MEAN + std * rng.standard_normal(min(_CHUNK, points - first))
        bins = ((scores - _LOW) * (_BINS / (_HIGH - _LOW))).astype(np.int64).clip(0, _BINS - 1)
        counts += np.bincount(bins, minlength=_BINS)
        sums += np.bincount(bins, weights=scores, minlength=_BINS)
    middle = _LOW + (np.arange(_BINS) + 0.5) * (_HIGH - _LOW) / _BINS
    return counts, np.where(counts > 0, sums / np.maximum(counts, 1), middle)


def draw_drifts(data: Drifts) -> Figure:
    """Figure 2: a panel for each variance; the given density dashed, the derived ones by λ."""
    figure, panels = _figure(2, height=4.8)
    middle = (data.edges[1:] + data.edges[:-1]) / 2
    names = [*PALETTE.values(), OTHER]
    for axes, panel in zip(panels, data.panels, strict=True):
        for index, (lam, density) in enumerate(zip(panel.lambdas, panel.densities, strict=True)):
            colour, dashes = (NEUTRAL, _DASHED) if lam is None else (names[(index - 1) % len(names)], "-")
            label = "given" if lam is None else f"λ = {lam:g}"
            axes.plot(middle, density, color=colour, linestyle=dashes, linewidth=1.8, label=label)
        axes.set(xlim=(0, 1), ylabel=f"density, σ = {panel.std:g}")
        axes.set_ylim(bottom=0)
    panels[0].tick_params(labelbottom=False)
    _legend(panels[0], columns=3)
    panels[1].set_xlabel("score")
    return figure


# ---------------------------------------------------------------------- Figure 3


@dataclass(frozen=True)
class Surrogate:
    """One curve of Figure 3: its name, the parameter that it has (ρ or L) and (Z,) values at each z."""

    name: str
    parameter: float | None
    values: Floats


@dataclass(frozen=True)
class Surrogates:
    """Data of Figure 3: (Z,) margin violations z in score units, and the curves."""

    z: Floats
    curves: list[Surrogate]


def compare_surrogates() -> Surrogates:
    """Data of Figure 3: the hinge, Eq. (7) for each ρ and Eq. (8) for each L of Table 2."""
    z = torch.linspace(-0.75, 0.75, 301, dtype=torch.float64)

    def curve(name: str, parameter: float | None, function: Callable[[torch.Tensor], torch.Tensor]) -> Surrogate:
        return Surrogate(name, parameter, np.asarray(function(z).numpy(), dtype=np.float64))

    curves = [curve("hinge", None, hinge)]
    curves += [curve("quadratic", rho, partial(quadratic, rho=rho)) for rho in RHOS]
    curves += [curve("logistic", smooth, partial(logistic, smoothness=smooth)) for smooth in SMOOTHNESSES]
    return Surrogates(np.asarray(z.numpy(), dtype=np.float64), curves)


def draw_surrogates(data: Surrogates) -> Figure:
    """Figure 3: the quadratic surrogates above, the logistic ones below, the hinge dashed in both."""
    figure, panels = _figure(2, height=4.8)
    names = [*PALETTE.values(), OTHER]
    for axes, kind, letter in ((panels[0], "quadratic", "ρ"), (panels[1], "logistic", "L")):
        shown = [c for c in data.curves if c.name == kind]
        for curve, colour in zip(shown, names, strict=False):
            axes.plot(data.z, curve.values, color=colour, linewidth=1.8, label=f"{letter} = {curve.parameter:g}")
        flat = next(c for c in data.curves if c.name == "hinge")
        axes.plot(data.z, flat.values, color=NEUTRAL, linestyle=_DASHED, linewidth=1.8, label="hinge")
        axes.set(xlim=(data.z[0], data.z[-1]), ylabel=f"{kind} loss")
        axes.set_ylim(bottom=0)
        _legend(axes, columns=3)
    panels[0].tick_params(labelbottom=False)
    panels[1].set_xlabel("violation of the margin, z")
    return figure


# ---------------------------------------------------------------------- files


def write_schematic(folder: Path, name: str, points: int, ranking: Ranking | None = None) -> list[Path]:
    """Write a figure as SVG and PNG and its data as JSON.

    Args:
        folder: where to; it is made if need be.
        name: ``"figure1"``, ``"figure2"`` or ``"figure3"``.
        points: of Figure 2.
        ranking: data of Figure 1; from synthetic scores if left out.
    Returns:
        The files written.
    """
    if name == "figure1":
        ranking = ranking or rank_scores()
        figure, plain = draw_ranking(ranking), _plain(ranking) | {"violation": ranking.violation}
        words = f"Densities of scores before and after re-weighting, from {ranking.source}"
    elif name == "figure2":
        drifts = drift_gaussians(points)
        figure, plain = draw_drifts(drifts), _plain(drifts)
        words = f"Densities of {points} points of two Gaussians, re-weighted by Proposition 1"
    else:
        surrogates = compare_surrogates()
        figure, plain = draw_surrogates(surrogates), _plain(surrogates)
        words = "The hinge loss and its smooth variants"
    paths = [folder / f"{name}{suffix}" for suffix in (".svg", ".png", ".json")]
    # By itself the picture stands on any ground: its text has the colour that does on all of them.
    svg = to_svg(figure, name, words).replace("<svg ", f'<svg color="{NEUTRAL}" ', 1)
    write_text(paths[0], svg + "\n")
    write_atomic(paths[1], lambda beside: beside.write_bytes(to_png(figure)))
    write_json(paths[2], plain)
    return paths


def _plain(data: Any) -> dict[str, Any]:
    """A record in JSON types."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        return [convert(item) for item in value] if isinstance(value, (list, tuple)) else value

    plain: dict[str, Any] = convert(asdict(data))
    return plain
