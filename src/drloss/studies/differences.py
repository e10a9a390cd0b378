"""The figures of ``drloss compare``: several losses on the same data, several seeds each, and what may be concluded.

What is matched between the losses: for each seed the initial weights (but for the classifier's bias), the order of
the images, their augmentation, the schedule, the learning rate and the budget. What is not: the starting probability
and the weight of a loss, and what focal loss is divided by, which are its own best-known ones
(:data:`drloss.losses.LOSSES`, :data:`drloss.losses.BEST_KNOWN`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan, sqrt
from pathlib import Path

import numpy as np

from drloss.errors import UserError
from drloss.evaluation.coco import METRICS, Evaluation
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.matching import Floats, Matches, average_precision
from drloss.studies.measure import RunResult
from drloss.studies.report import RunSummary
from drloss.training.config import Config, make_loss, override
from drloss.training.presets import PRESETS

TITLES = {
    "dr": "DR",
    "focal": "Focal",
    "ce": "Cross-entropy",
    "ohem": "OHEM",
    "qfl": "Quality focal",
    "ap": "AP-loss",
}
RESAMPLES = 1000
"""Of the images, for the interval of a difference."""
_T_95 = (nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantile of Student's t by degrees of freedom, 1 to 9."""


@dataclass(frozen=True)
class Contender:
    """One loss and its runs, one for each seed.

    Attributes:
        spec: as ``--losses`` named it: ``dr`` or ``dr:neg_lambda=0.05``.
        runs: in the order of the seeds.
    """

    spec: str
    runs: list[RunResult]

    @property
    def title(self) -> str:
        """What tables call it."""
        return title(self.spec)

    def values(self, metric: str) -> Floats:
        """(seeds,) of a metric, in percent."""
        return np.array([run.evaluation.metrics[metric] for run in self.runs])

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return float(self.values(metric).mean())

    def spread(self, metric: str) -> float:
        """Standard deviation over the seeds; NaN for one."""
        return float(self.values(metric).std(ddof=1)) if len(self.runs) > 1 else nan


@dataclass(frozen=True)
class Difference:
    """AP of one contender minus that of another, with the seeds paired.

    Attributes:
        ahead, behind: their specs.
        per_seed: (seeds,) differences.
        low, high: 95 % interval of the mean difference over resamplings of the images.
        margin: half of the 95 % interval of the mean difference over seeds (Student's t); NaN for one seed.
    """

    ahead: str
    behind: str
    per_seed: Floats
    low: float
    high: float
    margin: float

    @property
    def mean(self) -> float:
        """Over the seeds, in percent AP."""
        return float(self.per_seed.mean())

    @property
    def certain(self) -> bool:
        """Whether the interval over seeds lies on one side of 0, too."""
        return self.told and not self.margin >= abs(self.mean)

    @property
    def told(self) -> bool:
        """Whether the two can be told apart: the images' interval lies on one side of 0, and all seeds do."""
        one_side = self.low > 0 or self.high < 0
        return bool(one_side and len(self.per_seed) > 1 and (np.sign(self.per_seed) == np.sign(self.mean)).all())


def title(spec: str) -> str:
    """What tables call a loss."""
    name, _, options = spec.partition(":")
    return TITLES.get(name, name) + (f" ({options.replace(',', ', ')})" if options else "")


def slug(spec: str, seed: int) -> str:
    """Name of a run folder."""
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', spec)}-seed{seed}"


def configurations(
    losses: Sequence[str], seeds: Sequence[int], preset: str, settings: dict[str, object]
) -> dict[tuple[str, int], Config]:
    """A configuration for each loss and seed.

    Raises:
        UserError: if a loss or seed is given twice, is unknown, or a setting does not fit.
    """
    for option, given in (("--losses", list(losses)), ("--seeds", [str(seed) for seed in seeds])):
        if twice := [value for value in given if given.count(value) > 1]:
            raise UserError(f"{option}: {twice[0]} is given twice")
    if not losses or not seeds:
        raise UserError("--losses and --seeds need at least one each")
    found = {}
    for spec in losses:
        make_loss(spec)
        for seed in seeds:
            config = override(PRESETS[preset], {**settings, "loss": spec, "seed": seed})
            found[spec, seed] = replace(config, expects="")
    return found


def difference(ahead: Contender, behind: Contender, resamples: int = RESAMPLES) -> Difference:
    """Difference in AP, with a paired bootstrap over the images.

    The images of the split are drawn with replacement, the same for every run; the AP of each run is computed anew,
    and the mean over seeds of the differences is kept. The interval is from the 2.5th to the 97.5th percentile.
    """
    per_seed = ahead.values("AP") - behind.values("AP")
    images = ahead.runs[0].matches.images
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, images, images), minlength=images)
        drawn.append(_mean_ap(ahead.runs, weights) - _mean_ap(behind.runs, weights))
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if drawn else (nan, nan)
    n = len(per_seed)
    margin = _T_95[n - 1] * float(per_seed.std(ddof=1)) / sqrt(n) if 1 < n <= len(_T_95) else nan
    return Difference(ahead.spec, behind.spec, per_seed, float(low), float(high), margin)


def _mean_ap(runs: Sequence[RunResult], weights: "np.typing.NDArray[np.int64]") -> float:
    return float(np.mean([average_precision(run.matches, weights) for run in runs]))


def verdict(found: Difference, images: int) -> str:
    """What may be concluded, in a sentence or two."""
    ahead, behind, n = title(found.ahead), title(found.behind), len(found.per_seed)
    low, high = found.low, found.high
    if found.mean < 0 and (found.told or n == 1):
        ahead, behind, low, high = behind, ahead, -high, -low
    size = f"{abs(found.mean):.1f}" + (f" ± {found.margin:.1f}" if np.isfinite(found.margin) else "")
    over = f"over {n} seeds" if n > 1 else "with one seed"
    interval = f"95 % interval over the {images} images: {_signed(low)} to {_signed(high)}"
    if n == 1:
        return (
            f"{ahead} is ahead of {behind} by {size} AP with one seed ({interval}). "
            "One seed does not say how much of that is chance: run more."
        )
    if found.certain:
        return f"{ahead} is ahead of {behind} by {size} AP {over} ({interval}); every seed agrees."
    if found.told:
        return (
            f"{ahead} is probably ahead of {behind}, by {size} AP {over} ({interval}): every seed agrees, but they "
            "differ so much that the ± includes 0. More seeds would tell."
        )
    sign = "−" if found.mean < 0 else "+"
    return (
        f"No difference between {ahead} and {behind} can be told at this size: {sign}{size} AP {over} ({interval})."
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def summary(contender: Contender, settings: dict[str, str]) -> RunSummary:
    """A contender as the report shows a run: means over its seeds, scores of all of them together."""
    runs = contender.runs
    histogram = ScoreHistogram()
    for run in runs:
        histogram.merge(run.histogram)
    evaluation = Evaluation(
        metrics={m: contender.mean(m) for m in METRICS},
        per_class={
            name: {m: float(np.mean([r.evaluation.per_class[name][m] for r in runs])) for m in METRICS}
            for name in runs[0].evaluation.per_class
        },
        precision=np.mean([r.evaluation.precision for r in runs], axis=0),
        recall_points=runs[0].evaluation.recall_points,
    )
    sweep = [
        {key: float(np.mean([r.sweep[i][key] for r in runs])) for key in record}
        for i, record in enumerate(runs[0].sweep)
    ]
    return RunSummary(
        name=contender.title,
        loss=contender.spec,
        evaluation=evaluation,
        sweep=sweep,
        histogram=histogram,
        curves=_mean_curves(runs),
        settings=settings,
        seconds=float(np.mean([r.seconds for r in runs])),
        iterations=runs[0].iterations,
    )


def _mean_curves(runs: Sequence[RunResult]) -> dict[str, tuple[list[float], list[float]]]:
    """Curves averaged over the runs, where all have them at the same iterations."""
    found = {}
    for name, (iterations, _) in runs[0].curves.items():
        own = [run.curves.get(name, ([], [])) for run in runs]
        if all(x == iterations for x, _ in own):
            found[name] = (iterations, np.mean([y for _, y in own], axis=0).tolist())
    return found


def recommended_threshold(contender: Contender, loses: float = 0.2) -> float:
    """The highest of the sweep's thresholds at which the mean AP is at most ``loses`` below that at the lowest."""
    sweep = [
        (run.sweep[i]["threshold"], np.mean([r.sweep[i]["AP"] for r in contender.runs]))
        for run in contender.runs[:1]
        for i in range(len(run.sweep))
    ]
    fit = [threshold for threshold, ap in sweep if not ap < sweep[0][1] - loses]
    return float(max(fit, default=sweep[0][0]))


def disagreements(first: Matches, second: Matches, first_threshold: float, second_threshold: float) -> list[int]:
    """Images in falling order of how differently two runs do on them.

    An image's score is the objects found at IoU .50 minus the false detections, among those from the threshold on.
    """
    scores = []
    for matches, threshold in ((first, first_threshold), (second, second_threshold)):
        shown = (matches.score >= threshold) & matches.counted[0]
        right = np.bincount(matches.image[shown & matches.found[0]], minlength=matches.images)
        wrong = np.bincount(matches.image[shown & ~matches.found[0]], minlength=matches.images)
        scores.append(right - wrong)
    gap = np.abs(scores[0] - scores[1])
    return [int(i) for i in np.argsort(-gap, kind="stable")]


def run_folder(out: Path, spec: str, seed: int) -> Path:
    """Where a run of a comparison lies."""
    return out / "runs" / slug(spec, seed)
