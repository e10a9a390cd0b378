"""The figures of ``drloss compare``: several losses on the same data, several seeds each, and what may be concluded.

What is matched between the losses: for each seed the initial weights (but for the classifier's bias), the order of
the images, their augmentation, the schedule, the learning rate and the budget. What is not: the starting probability
and the weight of a loss, and what focal loss is divided by, which are its own best-known ones
(:data:`drloss.losses.LOSSES`, :data:`drloss.losses.BEST_KNOWN`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan, sqrt
from pathlib import Path

import numpy as np

from drloss.errors import UserError
from drloss.evaluation.coco import METRICS, Evaluation, signed
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.matching import Floats, Matches, average_precision, calibration
from drloss.losses import LossSpec
from drloss.studies.compare.measure import RunResult
from drloss.training.config import Config, make_loss, override

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
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Two-sided 95 % quantile of Student's t by degrees of freedom, 1 to 30."""
_Z_95 = 1.960
FEW = 4
"""Seeds up to which their agreement in sign counts: Student's interval of so few is wide."""


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

    @property
    def calibration_error(self) -> float:
        """Mean over the seeds of the expected calibration error."""
        return float(np.mean([calibration(run.matches).error for run in self.runs]))

    @property
    def cost(self) -> dict[str, float]:
        """Mean over the seeds of what a step costs, and ``share`` of the loss in it; empty where it is not known."""
        costs = [run.cost for run in self.runs]
        if not all(costs):
            return {}
        mean = {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}
        return mean | {"share": mean["loss_ms"] / mean["step_ms"]}

    @property
    def seconds_per_iteration(self) -> float:
        """Mean over the seeds, as they were logged; NaN where nothing was."""
        return float(np.mean([run.seconds / run.iterations for run in self.runs]))

    def sweep(self) -> list[dict[str, float]]:
        """The runs' sweeps as one, means over the seeds."""
        return [
            {key: float(np.mean([run.sweep[i][key] for run in self.runs])) for key in record}
            for i, record in enumerate(self.runs[0].sweep)
        ]

    def class_mean(self, name: str) -> float:
        """AP of a class, mean over the seeds."""
        return float(np.mean([run.evaluation.per_class[name]["AP"] for run in self.runs]))


@dataclass(frozen=True)
class RunSummary:
    """What a report shows of one run.

    Attributes:
        name: what the report calls it, such as ``"DR"``.
        loss: its loss by the name of the command line; it says the colour.
        evaluation: on the split that all runs of the report are evaluated on.
        sweep: what :func:`drloss.evaluation.thresholds.threshold_sweep` returned, the same thresholds for all runs.
        histogram: scores of the candidates of that split.
        curves: iterations and values of ``loss``, ``loss_cls``, ``loss_box``, ``expected_pos``, ``expected_neg`` and
            ``AP50``; those that are missing are not shown, others are not looked at.
        settings: setting to value.
        seconds: that training took; NaN where that is not known.
        iterations: that training took.
    """

    name: str
    loss: str
    evaluation: Evaluation
    sweep: Sequence[Mapping[str, float]]
    histogram: ScoreHistogram
    curves: dict[str, tuple[list[float], list[float]]]
    settings: dict[str, str]
    seconds: float
    iterations: int


@dataclass(frozen=True)
class Difference:
    """AP of one contender minus that of another, with the seeds paired.

    Attributes:
        ahead, behind: their specs.
        per_seed: (seeds,) differences.
        low, high: 95 % interval of the mean difference over resamplings of the images; NaN for one image.
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
        return self.told and self.margin < abs(self.mean)

    @property
    def told(self) -> bool:
        """Whether the two can be told apart.

        The images' interval must lie on one side of 0; and so must the interval over seeds or, up to :data:`FEW`, all
        of them.
        """
        few = 1 < len(self.per_seed) <= FEW
        return self.one_side and ((few and self.agree == len(self.per_seed)) or self.margin < abs(self.mean))

    @property
    def one_side(self) -> bool:
        """Whether the images' interval lies on the mean's side of 0."""
        return self.low > 0 < self.mean or self.high < 0 > self.mean

    @property
    def agree(self) -> int:
        """Seeds whose difference has the mean's sign."""
        return int((np.sign(self.per_seed) == np.sign(self.mean)).sum())


def title(spec: str) -> str:
    """What tables call a loss."""
    loss = LossSpec.parse(spec)
    return TITLES.get(loss.name, loss.name) + (f" ({', '.join(loss.assignments)})" if loss.parameters else "")


def slug(spec: str, seed: int) -> str:
    """Name of a run folder."""
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', spec)}-seed{seed}"


def configurations(losses: Sequence[str], seeds: Sequence[int], base: Config) -> dict[tuple[str, int], Config]:
    """A configuration for each loss and seed, which differs from ``base`` in nothing else.

    Raises:
        UserError: if a loss, in whatever spelling, or a seed is given twice, or is unknown.
    """
    for option, given in (("--losses", list(losses)), ("--seeds", [str(seed) for seed in seeds])):
        if twice := [value for value in given if given.count(value) > 1]:
            raise UserError(f"{option}: {twice[0]} is given twice")
    if not losses or not seeds:
        raise UserError("--losses and --seeds need at least one each")
    spelled: dict[str, str] = {}
    for spec in losses:
        if (same := spelled.setdefault(repr(make_loss(spec)), spec)) != spec:
            raise UserError(f"--losses: {same} and {spec} are the same loss")
    base = replace(base, expects="")
    return {(spec, seed): override(base, {"loss": spec, "seed": seed}) for spec in losses for seed in seeds}


def difference(ahead: Contender, behind: Contender, resamples: int = RESAMPLES) -> Difference:
    """Difference in AP, with a paired bootstrap over the images.

    The images of the split are drawn with replacement, the same for every run; the AP of each run is computed anew,
    and the mean over seeds of the differences is kept. The interval is from the 2.5th to the 97.5th percentile; one
    image has none.
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
    """Two-sided 95 % quantile of Student's t: from the table or, beyond, the normal one and a first correction."""
    return _T_95[freedom - 1] if freedom <= len(_T_95) else _Z_95 + (_Z_95**3 + _Z_95) / (4 * freedom)


def _mean_ap(runs: Sequence[RunResult], weights: "np.typing.NDArray[np.int64]") -> float:
    return float(np.mean([average_precision(run.matches, weights) for run in runs]))


def verdict(found: Difference, images: int) -> str:
    """What may be concluded, in a sentence or two."""
    ahead, behind, n = title(found.ahead), title(found.behind), len(found.per_seed)
    margin = f" ± {found.margin:.1f}" if np.isfinite(found.margin) else ""
    size = f"{abs(found.mean):.1f}{margin}" if abs(found.mean) >= 0.05 else "less than 0.05"
    over = f"over {n} seeds" if n > 1 else "with one seed"
    told = found.told or (n == 1 and found.one_side)
    low, high = (-found.high, -found.low) if told and found.mean < 0 else (found.low, found.high)
    interval = f"95 % interval over the {images} images: {signed(low)} to {signed(high)}"
    if images < 2:
        interval = "one image has no interval: it says nothing of others"
    if not told:
        return (
            f"No difference between {ahead} and {behind} can be told at this size: "
            f"{signed(found.mean)}{margin} AP {over} ({interval})."
        )
    if found.mean < 0:
        ahead, behind = behind, ahead
    if n == 1:
        return (
            f"{ahead} is ahead of {behind} by {size} AP with one seed ({interval}). "
            "One seed does not say how much of that is chance: run more."
        )
    agreed = "every seed agrees" if found.agree == n else f"{found.agree} of {n} seeds agree"
    if found.certain:
        return f"{ahead} is ahead of {behind} by {size} AP {over} ({interval}); {agreed}."
    return (
        f"{ahead} is probably ahead of {behind}, by {size} AP {over} ({interval}): {agreed}, but they "
        "differ so much that the ± includes 0. More seeds would tell."
    )


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
    return RunSummary(
        name=contender.title,
        loss=contender.spec,
        evaluation=evaluation,
        sweep=contender.sweep(),
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


def recommended_threshold(contender: Contender) -> float | None:
    """The highest of the sweep's thresholds that costs at most 0.2 AP, or 2 % of it where that is less.

    Both are of the mean AP over the seeds, and against the lowest threshold. None where nothing is found there.
    """
    sweep = [(record["threshold"], record["AP"]) for record in contender.sweep()]
    most = sweep[0][1]
    if not most > 0:
        return None
    return max(threshold for threshold, ap in sweep if ap >= most - min(0.2, 0.02 * most))


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
