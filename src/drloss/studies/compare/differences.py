"""The numbers of ``drloss compare``: several losses on the same data with several seeds, and what they show.

For each seed, all losses share the initial weights (except the classifier's bias), the order of the images, the
augmentation, the schedule, the number of iterations and, unless a loss names its own, the learning rate. Each loss
keeps its own best-known prior probability, weight and normaliser (:data:`drloss.losses.LOSSES`,
:data:`drloss.losses.BEST_KNOWN`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan, sqrt
from typing import Any

import numpy as np

from drloss.errors import UserError
from drloss.evaluation.coco import METRICS, Evaluation, signed
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.matching import Floats, MatchedDetections, average_precision, calibration
from drloss.losses import LossSpec
from drloss.studies.compare.measure import RunResult
from drloss.training.config import Config, make_loss, override

TITLES = {
    "dr": "DR",
    "dr+": "DR+",
    "focal": "Focal",
    "ce": "Cross-entropy",
    "ohem": "OHEM",
    "qfl": "Quality focal",
    "ap": "AP-loss",
}
RESAMPLES = 1000
"""How often the images are resampled for the interval of a difference."""
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Two-sided 95 % quantile of Student's t by degrees of freedom, 1 to 30."""
_Z_95 = 1.960
FEW = 4
"""With at most this many seeds, all agreeing in sign is enough: Student's interval is very wide for so few."""


@dataclass(frozen=True)
class Contender:
    """One loss and its runs, one for each seed. Numbers without a seed are means over the seeds.

    Attributes:
        spec: the loss as ``--losses`` names it: ``dr`` or ``dr:neg_lambda=0.05``.
        runs: in the order of the seeds.
    """

    spec: str
    runs: list[RunResult]

    @property
    def title(self) -> str:
        """Name of the loss in tables."""
        return title(self.spec)

    def values(self, metric: str) -> Floats:
        """A metric of each seed, (seeds,), in percent."""
        return np.array([run.evaluation.metrics[metric] for run in self.runs])

    def mean(self, metric: str) -> float:
        """Mean of a metric over the seeds, in percent."""
        return float(self.values(metric).mean())

    def spread(self, metric: str) -> float:
        """Standard deviation of a metric over the seeds; NaN for one seed."""
        return float(self.values(metric).std(ddof=1)) if len(self.runs) > 1 else nan

    @property
    def calibration_error(self) -> float:
        """Expected calibration error."""
        return float(np.mean([calibration(run.matches).error for run in self.runs]))

    @property
    def cost(self) -> dict[str, float]:
        """Cost of a step as in :class:`RunResult`, and the loss's ``share`` of its time; empty if not known."""
        costs = [run.cost for run in self.runs]
        if not all(costs):
            return {}
        mean = {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}
        return mean | {"share": mean["loss_ms"] / mean["step_ms"]}

    @property
    def seconds_per_iteration(self) -> float:
        """Logged training time of an iteration; NaN if it was not logged."""
        return float(np.mean([run.seconds / run.iterations for run in self.runs]))

    @property
    def seconds(self) -> float:
        """Training time of a run; NaN if it was not logged."""
        return float(np.mean([run.seconds for run in self.runs]))

    @property
    def iterations(self) -> float:
        """Mean number of iterations of a run. All have the same, unless a patience has ended some early."""
        return float(np.mean([run.iterations for run in self.runs]))

    @property
    def lengths(self) -> list[int]:
        """The numbers of iterations of the runs, each once, rising."""
        return sorted({run.iterations for run in self.runs})

    @cached_property
    def evaluation(self) -> Evaluation:
        """Means over the seeds of all metrics, of the metrics of each class, and of the precision at each recall."""
        first, *_ = every = [run.evaluation for run in self.runs]
        return Evaluation(
            metrics={metric: self.mean(metric) for metric in METRICS},
            per_class={
                name: {m: float(np.mean([e.per_class[name][m] for e in every])) for m in METRICS}
                for name in first.per_class
            },
            precision=np.mean([e.precision for e in every], axis=0),
            recall_points=first.recall_points,
        )

    @cached_property
    def histogram(self) -> ScoreHistogram:
        """Scores of all seeds together."""
        histogram = ScoreHistogram()
        for run in self.runs:
            histogram.merge(run.histogram)
        return histogram

    @cached_property
    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Each quantity at the iterations at which all runs logged it: these, and its means over the runs."""
        found = {}
        for name in self.runs[0].curves:
            own = [dict(zip(*run.curves.get(name, ([], [])), strict=True)) for run in self.runs]
            common = [x for x in own[0] if all(x in values for values in own)]
            if common:
                found[name] = (common, [float(np.mean([values[x] for values in own])) for x in common])
        return found

    def sweep(self) -> list[dict[str, float]]:
        """One record per score threshold, as of :func:`drloss.evaluation.thresholds.threshold_sweep`."""
        return [
            {key: float(np.mean([run.sweep[i][key] for run in self.runs])) for key in record}
            for i, record in enumerate(self.runs[0].sweep)
        ]

    def class_mean(self, name: str) -> float:
        """AP of a class."""
        return self.evaluation.per_class[name]["AP"]


@dataclass(frozen=True)
class Difference:
    """AP of ``ahead`` minus AP of ``behind``, seed by seed.

    Attributes:
        ahead, behind: specs of the two losses.
        per_seed: (seeds,) differences.
        low, high: 95 % interval of the mean difference, from resampling the images; NaN for one image.
        margin: half of the 95 % interval of the mean difference over the seeds (Student's t); NaN for one seed.
    """

    ahead: str
    behind: str
    per_seed: Floats
    low: float
    high: float
    margin: float

    @property
    def mean(self) -> float:
        """Mean difference over the seeds, in percent AP."""
        return float(self.per_seed.mean())

    @property
    def certain(self) -> bool:
        """Whether both intervals, over the images and over the seeds, leave out 0."""
        return self.conclusive and self.margin < abs(self.mean)

    @property
    def conclusive(self) -> bool:
        """Whether one loss is ahead: the difference is :attr:`certain`, or few seeds agree.

        Few seeds agree if the interval over the images leaves out 0, and 2 to :data:`FEW` seeds all have the sign of
        the mean.
        """
        few = 1 < len(self.per_seed) <= FEW
        return self.one_side and ((few and self.agree == len(self.per_seed)) or self.margin < abs(self.mean))

    @property
    def one_side(self) -> bool:
        """Whether the interval over the images leaves out 0, on the side of the mean."""
        return self.low > 0 < self.mean or self.high < 0 > self.mean

    @property
    def agree(self) -> int:
        """Number of seeds whose difference has the sign of the mean."""
        return int((np.sign(self.per_seed) == np.sign(self.mean)).sum())


@dataclass(frozen=True)
class Comparison:
    """What the page, the Markdown and the JSON file of a comparison show.

    Attributes:
        name: title of the page.
        contenders: at least one; the first is the one to beat.
        differences: each further contender minus the first.
        conclusions: a sentence or two for each difference.
        facts: data, machine and versions.
        settings: settings of each loss, by its spec.
    Raises:
        ValueError: if there is no contender.
    """

    name: str
    contenders: Sequence[Contender]
    differences: Sequence[Difference]
    conclusions: Sequence[str]
    facts: Mapping[str, str]
    settings: Mapping[str, dict[str, str]]

    def __post_init__(self) -> None:
        if not self.contenders:
            raise ValueError("a comparison needs at least one loss")


def title(spec: str) -> str:
    """Name of a loss in tables."""
    loss = LossSpec.parse(spec)
    return TITLES.get(loss.name, loss.name) + (f" ({', '.join(loss.assignments)})" if loss.parameters else "")


def slug(spec: str, seed: int) -> str:
    """Name of the run folder of a loss and a seed."""
    name, colon, parameters = spec.partition(":")
    return f"{re.sub(r'[^A-Za-z0-9+-]+', '_', name)}{re.sub(r'[^A-Za-z0-9.=-]+', '_', colon + parameters)}-seed{seed}"


def without_rate(spec: str) -> tuple[str, Any]:
    """The loss of a contender, in the words it was given in, and the learning rate that it names, or None.

    >>> without_rate("dr:neg_lambda=5e-2,lr=0.002")
    ('dr:neg_lambda=5e-2', 0.002)
    """
    name, _, options = spec.partition(":")
    kept = [option for option in options.split(",") if option.partition("=")[0].strip() != "lr"]
    rate = LossSpec.parse(spec).parameters.get("lr")
    return (spec if rate is None else ":".join(filter(None, (name, ",".join(kept))))), rate


def configurations(losses: Sequence[str], seeds: Sequence[int], base: Config) -> dict[tuple[str, int], Config]:
    """The configuration of each loss and seed; all else is as in ``base``.

    A parameter ``lr`` of a loss is the learning rate of its runs: ``dr:lr=0.002``.

    Raises:
        UserError: if a loss (in any spelling) or a seed is given twice, or a loss is unknown.
    """
    for option, given in (("--losses", list(losses)), ("--seeds", [str(seed) for seed in seeds])):
        if twice := [value for value in given if given.count(value) > 1]:
            raise UserError(f"{option}: {twice[0]} is given twice")
    if not losses or not seeds:
        raise UserError("--losses and --seeds need at least one each")
    spelled: dict[tuple[str, float], str] = {}
    found: dict[tuple[str, int], Config] = {}
    for spec in losses:
        try:
            alone, rate = without_rate(spec)
        except ValueError as error:
            raise UserError(str(error)) from None
        config = override(replace(base, expects=""), {"loss": alone} | ({} if rate is None else {"lr": rate}))
        if (same := spelled.setdefault((repr(make_loss(alone)), config.lr), spec)) != spec:
            raise UserError(f"--losses: {same} and {spec} are the same loss")
        found |= {(spec, seed): replace(config, seed=seed) for seed in seeds}
    return found


def difference(ahead: Contender, behind: Contender, resamples: int = RESAMPLES) -> Difference:
    """Difference in AP, with a paired bootstrap over the images.

    Each resample draws images with replacement, the same images for every run, and recomputes the AP of each run and
    the mean difference over the seeds. The interval runs from the 2.5th to the 97.5th percentile of these means. One
    image has no interval.
    """
    per_seed = ahead.values("AP") - behind.values("AP")
    images = ahead.runs[0].matches.images
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples if images > 1 else 0):
        weights = np.bincount(rng.integers(0, images, images), minlength=images)
        drawn.append(_mean_ap(ahead.runs, weights) - _mean_ap(behind.runs, weights))
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if drawn else (nan, nan)
    n = len(per_seed)
    margin = students_t(n - 1) * float(per_seed.std(ddof=1)) / sqrt(n) if n > 1 else nan
    return Difference(ahead.spec, behind.spec, per_seed, float(low), float(high), margin)


def students_t(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t: the table, then the normal quantile with a first correction."""
    return _T_95[freedom - 1] if freedom <= len(_T_95) else _Z_95 + (_Z_95**3 + _Z_95) / (4 * freedom)


def _mean_ap(runs: Sequence[RunResult], weights: "np.typing.NDArray[np.int64]") -> float:
    return float(np.mean([average_precision(run.matches, weights) for run in runs]))


def verdict(found: Difference) -> str:
    """What may be concluded from a difference, in one sentence without its full stop."""
    ahead, behind, n = title(found.ahead), title(found.behind), len(found.per_seed)
    margin = f" ± {found.margin:.1f}" if np.isfinite(found.margin) else ""
    over = f"AP over {n} seeds" if n > 1 else "AP with one seed"
    if not _one_is_ahead(found):
        size = f"{signed(found.mean)}{margin}"
        return f"No difference between {ahead} and {behind} can be told at this size: {size} {over}"
    if found.mean < 0:
        ahead, behind = behind, ahead
    size = f"{abs(found.mean):.1f}{margin}" if abs(found.mean) >= 0.05 else "less than 0.05"
    probably = "" if found.certain or n == 1 else "probably "
    return f"{ahead} is {probably}ahead of {behind} by {size} {over}"


def conclusion(found: Difference, images: int) -> str:
    """The verdict and what it rests on, in a sentence or two."""
    n, ahead = len(found.per_seed), _one_is_ahead(found)
    low, high = (-found.high, -found.low) if ahead and found.mean < 0 else (found.low, found.high)
    interval = f"95 % interval over the {images} images: {signed(low)} to {signed(high)}"
    if images < 2:
        interval = "one image has no interval: it says nothing of others"
    told = f"{verdict(found)} ({interval})"
    if not ahead:
        return f"{told}."
    if n == 1:
        return f"{told}. One seed does not say how much of that is chance: run more."
    agreed = "every seed agrees" if found.agree == n else f"{found.agree} of {n} seeds agree"
    if found.certain:
        return f"{told}; {agreed}."
    return f"{told}: {agreed}, but they differ so much that the ± includes 0. More seeds would tell."


def _one_is_ahead(found: Difference) -> bool:
    return found.conclusive or (len(found.per_seed) == 1 and found.one_side)


def recommended_threshold(contender: Contender) -> float | None:
    """The highest threshold of the sweep that loses at most 0.2 AP, or 2 % of the AP if that is less.

    The loss is in mean AP over the seeds, against the lowest threshold. None if the AP there is 0 or undefined.
    """
    sweep = [(record["threshold"], record["AP"]) for record in contender.sweep()]
    most = sweep[0][1]
    if not most > 0:
        return None
    return max(threshold for threshold, ap in sweep if ap >= most - min(0.2, 0.02 * most))


def disagreements(
    first: MatchedDetections, second: MatchedDetections, first_threshold: float, second_threshold: float
) -> list[int]:
    """Indices of the images, sorted by how much the scores of two runs differ; the largest difference is first.

    A run's score on an image is the number of objects found at IoU .50 minus that of false detections, among the
    detections that reach the run's threshold.
    """
    scores = []
    for matches, threshold in ((first, first_threshold), (second, second_threshold)):
        shown = (matches.score >= threshold) & matches.counted[0]
        right = np.bincount(matches.image[shown & matches.found[0]], minlength=matches.images)
        wrong = np.bincount(matches.image[shown & ~matches.found[0]], minlength=matches.images)
        scores.append(right - wrong)
    gap = np.abs(scores[0] - scores[1])
    return [int(i) for i in np.argsort(-gap, kind="stable")]
