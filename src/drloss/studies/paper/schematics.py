"""Figures 2 and 3 of the paper, drawn from its equations. Each has its data as plain arrays, and a drawing of them.

Scores are counted in bins. A bin acts as one candidate whose prior is its count, so ten million points are as cheap
as a few hundred.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from drloss.evaluation.densities import Floats
from drloss.evaluation.plotting import DASHED, NEUTRAL, OTHER, PALETTE, legend, new_figure, save_figure
from drloss.losses.distribution import drifted_weights
from drloss.losses.surrogates import hinge, logistic, quadratic
from drloss.studies.paper.names import POINTS

MEAN, STDS = 0.4, (0.05, 0.1)
LAMBDAS = (1.0, 0.2, 0.1, 0.05)
"""The Gaussians and λ of Figure 2. The paper does not state them; with these, the scores lie between 0 and 1."""
_LOW, _HIGH, _BINS = -0.4, 1.2, 320  # eight standard deviations to either side
_CHUNK = 1_000_000
RHOS, SMOOTHNESSES = (0.2, 0.5), (4.0, 6.0, 8.0, 10.0)
"""ρ and L of Table 2, for Figure 3."""


def derived(counts: Floats, scores: Floats, *, lam: float, positive: bool) -> Floats:
    """Weights of Proposition 1 (negatives) or 2 (positives) on binned scores.

    Args:
        counts: (M,) scores in each bin, not all 0: the prior.
        scores: (M,) mean score of each bin.
        lam: λ > 0, in score units.
        positive: whether to apply Proposition 2 instead of 1.
    Returns:
        (M,) weights of the bins, which sum to 1.
    """
    easiness = torch.from_numpy(scores if positive else 1 - scores).unsqueeze(0)
    weights = drifted_weights(easiness, torch.from_numpy(counts.astype(np.float64)).unsqueeze(0), lam=lam)
    return np.asarray(weights[0].numpy(), dtype=np.float64)


# ---------------------------------------------------------------------- Figure 2


@dataclass(frozen=True)
class Gaussian:
    """One panel of Figure 2.

    Attributes:
        std: standard deviation of the given scores.
        lambdas: (C,) λ of each curve; None for the given distribution.
        means: (C,) expected scores.
        densities: (C, M) densities over the bins, each with integral 1.
    """

    std: float
    lambdas: list[float | None]
    means: list[float]
    densities: list[Floats]


@dataclass(frozen=True)
class Drifts:
    """Data of Figure 2: points per Gaussian, their mean, the seed, the (M + 1,) edges of the bins, and the panels."""

    points: int
    mean: float
    seed: int
    edges: Floats
    panels: list[Gaussian]


def drift_gaussians(points: int = POINTS, *, seed: int = 0, lambdas: Sequence[float] = LAMBDAS) -> Drifts:
    """Data of Figure 2: the derived distributions of Proposition 1 for two Gaussians of the same mean.

    Args:
        points: random points of each Gaussian, at least 1. At most a million at a time are in memory.
        seed: seed of the random numbers.
        lambdas: λ of the curves.
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
    """Number of points in each bin, and their mean score, which for an empty bin is its middle."""
    counts, sums = np.zeros(_BINS), np.zeros(_BINS)
    for first in range(0, points, _CHUNK):
        scores = MEAN + std * rng.standard_normal(min(_CHUNK, points - first))
        bins = ((scores - _LOW) * (_BINS / (_HIGH - _LOW))).astype(np.int64).clip(0, _BINS - 1)
        counts += np.bincount(bins, minlength=_BINS)
        sums += np.bincount(bins, weights=scores, minlength=_BINS)
    middle = _LOW + (np.arange(_BINS) + 0.5) * (_HIGH - _LOW) / _BINS
    return counts, np.where(counts > 0, sums / np.maximum(counts, 1), middle)


def draw_drifts(data: Drifts) -> Figure:
    """Figure 2: a panel for each variance, with the given density dashed and a derived one for each λ."""
    figure, panels = new_figure(2, height=4.8)
    middle = (data.edges[1:] + data.edges[:-1]) / 2
    names = [*PALETTE.values(), OTHER]
    for axes, panel in zip(panels, data.panels, strict=True):
        for index, (lam, density) in enumerate(zip(panel.lambdas, panel.densities, strict=True)):
            colour, dashes = (NEUTRAL, DASHED) if lam is None else (names[(index - 1) % len(names)], "-")
            label = "given" if lam is None else f"λ = {lam:g}"
            axes.plot(middle, density, color=colour, linestyle=dashes, linewidth=1.8, label=label)
        axes.set(xlim=(0, 1), ylabel=f"density, σ = {panel.std:g}")
        axes.set_ylim(bottom=0)
    panels[0].tick_params(labelbottom=False)
    legend(panels[0], columns=3)
    panels[1].set_xlabel("score")
    return figure


# ---------------------------------------------------------------------- Figure 3


@dataclass(frozen=True)
class Surrogate:
    """One curve of Figure 3: its name, its parameter (ρ or L), and its (Z,) values at each z."""

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
    figure, panels = new_figure(2, height=4.8)
    names = [*PALETTE.values(), OTHER]
    for axes, kind, letter in ((panels[0], "quadratic", "ρ"), (panels[1], "logistic", "L")):
        shown = [c for c in data.curves if c.name == kind]
        for curve, colour in zip(shown, names, strict=False):
            axes.plot(data.z, curve.values, color=colour, linewidth=1.8, label=f"{letter} = {curve.parameter:g}")
        flat = next(c for c in data.curves if c.name == "hinge")
        axes.plot(data.z, flat.values, color=NEUTRAL, linestyle=DASHED, linewidth=1.8, label="hinge")
        axes.set(xlim=(data.z[0], data.z[-1]), ylabel=f"{kind} loss")
        axes.set_ylim(bottom=0)
        legend(axes, columns=3)
    panels[0].tick_params(labelbottom=False)
    panels[1].set_xlabel("violation of the margin, z")
    return figure


# ---------------------------------------------------------------------- files


def save_drifts(folder: Path, points: int) -> list[Path]:
    """Write Figure 2 and its data; return the files."""
    data = drift_gaussians(points)
    words = f"Densities of two Gaussians, {points} points each, and of Proposition 1"
    return save_figure(folder, "figure2", draw_drifts(data), data, words)


def save_surrogates(folder: Path) -> list[Path]:
    """Write Figure 3 and its data; return the files."""
    data = compare_surrogates()
    return save_figure(folder, "figure3", draw_surrogates(data), data, "The hinge loss and its smooth variants")
