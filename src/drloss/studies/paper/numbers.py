"""Every number of Tables 1-7 of the paper as a record, and the run that has to reach it.

AP is in percent. λ₊ = 1/log h₊ and λ₋ = 0.1/log h₋ (§4.3). A row with a recipe can be run. :func:`settings` returns
its settings. At the paper's scale they are those of the preset that must reach the number. At a laptop's scale they
are those of the preset ``cpu`` with the same loss. A row that is in several tables, such as DR with its defaults, is
one run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import e

from drloss.evaluation.coco import METRICS
from drloss.losses import LossSpec, lambda_from_log_base
from drloss.studies.paper.names import CONTROLS, SCALES
from drloss.training.device import FEW
from drloss.training.presets import PRESETS

MINIVAL, TEST_DEV, VOC_TEST = "minival", "test-dev", "VOC2007 test"

_COCO = "COCO 2017 (118k images to train on, minival = val2017) and ImageNet weights, which torchvision downloads"
_SERVER = "the paper's number is of test-dev, which only COCO's server evaluates; ours is of val"
NEEDS = {
    "table1": f"{_COCO}; 90k iterations of 16 images for each row.",
    "table2": f"{_COCO}; 90k iterations of 16 images for each row.",
    "table3": f"{_COCO}; 90k iterations of 16 images for each row.",
    "table4": f"{_COCO}; ResNet-101 for 180k and ResNeXt-101-32x8d for 135k iterations; {_SERVER}.",
    "table5": f"{_COCO}; the two runs of Table 2, evaluated at six thresholds.",
    "table6": f"{_COCO}; 90k iterations of 16 images for each row; {_SERVER}.",
    "table7": "PASCAL VOC2007 (splits trainval and test) and ImageNet weights; 8,750 iterations for each row.",
    CONTROLS: f"{_COCO}; 90k iterations for each ResNet-50 row, 180k for ResNet-101.",
}
"""Data and iterations that the rows of a table need at the paper's scale."""

VOC_ALONE = (
    "table7 is left out: it needs PASCAL VOC2007 and the others COCO; run it by itself, with the same --out: "
    "drloss reproduce table7 --scale paper --data VOC2007"
)
"""Message if ``all`` is asked for at the paper's scale."""

NOTES = {
    "table2": (
        "Focal loss is divided by the positives of all images that a device takes at a time, as in the codebase that "
        "the paper used. Divided image by image, as torchvision does, it is another rival: the row "
        "`focal:scope=per_image` of the controls, below."
    ),
    CONTROLS: (
        "`pooled` means all images that a device takes at a time, its micro-batch: "
        f"{FEW} on each GPU at the paper's scale, {PRESETS['cpu'].micro_batch} in the "
        "preset `cpu`. For DR they share one distribution, as in the authors' code; for focal loss they share the "
        "count of positives by which their sum is divided, as in the codebase that the paper used, which adds the "
        "number of images to it. The box loss stays one of each image."
    ),
}
"""Notes below a table."""

_BACKBONE = "needs its backbone, which is what the row compares: too much for a CPU"
_NO_NUMBER = "the paper gives no number, because training does not reach a meaningful result"
TEST_SCALES = tuple(range(400, 1201, 100))
"""Short sides of the multi-scale test, in pixels."""
_CPU_SIDE = PRESETS["cpu"].detector.short_side
_MULTI_SCALE = (
    "ours is tested at short sides 400, 500, ... 1200 without flips, and the detections of all scales go through NMS "
    "once more: the paper states neither flips nor merging"
)


@dataclass(frozen=True)
class Recipe:
    """How a row is trained.

    Attributes:
        preset: name of a preset of :data:`drloss.training.presets.PRESETS`.
        loss: loss, as ``drloss train --loss`` takes it.
        laptop: settings that replace some of the preset ``cpu``, so that the row differs from others as it does in
            the paper; or the reason why the row cannot run on a laptop.
        splits: split to train on and split to evaluate on.
        test_scales: short sides of a multi-scale test, in pixels at the paper's scale; empty for the preset's own.
    """

    preset: str = "r50_1x"
    loss: str = "dr"
    laptop: Mapping[str, object] | str = field(default_factory=dict)
    splits: tuple[str, str] = ("train", "val")
    test_scales: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        table: key of :data:`drloss.studies.paper.names.TABLES`.
        label: the difference between the row and its neighbours.
        method: the loss; in Table 4 the detector.
        metrics: the paper's numbers in percent, by name; empty if it gives none.
        split: split of these numbers.
        cited_at: where these numbers are printed: a table of the paper, or another place.
        recipe: how the row is run; None if it cannot be run.
        reason: why the row cannot be run, or why the number is not the paper's own.
        threshold: score below which detections are dropped, if the table varies it.
        scale: short side of the input in pixels, if the table varies it.
        published: reference to the paper of the number, if that is another paper.
    """

    table: str
    label: str
    method: str
    metrics: Mapping[str, float]
    split: str
    cited_at: str
    recipe: Recipe | None
    reason: str = ""
    threshold: float | None = None
    scale: int | None = None
    published: str = ""

    @property
    def name(self) -> str:
        """Label and method. No other row of the table has the same name."""
        return ", ".join(dict.fromkeys(part for part in (self.label, self.method) if part))

    @property
    def key(self) -> tuple[str, str]:
        """Table and name. No other row has the same key."""
        return self.table, self.name

    @property
    def is_control(self) -> bool:
        """Whether the paper has no such row. The number is that of the nearest row, or another paper's."""
        return self.table == CONTROLS

    @property
    def goal(self) -> str:
        """The number that a run of this row has to reach, in words."""
        if not self.metrics:
            return self.reason
        nearest = "no number of its own, the nearest is " if self.is_control and self.recipe else ""
        return f"{nearest}AP {number(self.metrics['AP'])} on {self.split}"


def number(value: float) -> str:
    """A number with one decimal, or with two if it has two."""
    return f"{value:.2f}".removesuffix("0")


@dataclass(frozen=True)
class Settings:
    """Arguments of ``drloss train``, except the data, the seed and the run folder.

    Attributes:
        preset: name of the preset.
        values: settings that replace the preset's, including the loss.
        splits: split to train on and split to evaluate on.
        test_scales: short sides of a multi-scale test in pixels; empty for the preset's own.
    """

    preset: str
    values: Mapping[str, object]
    splits: tuple[str, str]
    test_scales: tuple[int, ...] = ()

    @property
    def evaluation(self) -> str:
        """Name of the evaluation's folder inside the run folder."""
        return f"eval_{self.splits[1]}" + ("_multi-scale" if self.test_scales else "")

    @property
    def key(self) -> tuple[str, str]:
        """Name and evaluation. Rows with equal keys have the same numbers of ours, except for the score threshold."""
        return self.name, self.evaluation

    @property
    def name(self) -> str:
        """Start of the run folder's name. Settings that train alike have the same name."""
        values = {k: v for k, v in self.values.items() if k != "loss"}
        parts = [self.preset, str(self.values["loss"]), *(f"{k}={v}" for k, v in values.items())]
        return re.sub(r"[^A-Za-z0-9.=-]+", "_", "-".join(parts))


def settings(row: Row, scale: str) -> Settings | str:
    """The settings that run a row, or the reason why there are none.

    Args:
        row: of :data:`ROWS`.
        scale: ``"paper"`` for the preset that must reach the number; ``"laptop"`` for the same loss and, where
            possible, the same relative change, on the preset ``cpu``.
    Raises:
        ValueError: if the scale is neither of them.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if row.recipe is None:
        return row.reason
    recipe = row.recipe
    if scale == "paper":
        return Settings(recipe.preset, {"loss": _spelt_out(recipe.loss)}, recipe.splits, recipe.test_scales)
    if isinstance(recipe.laptop, str):
        return recipe.laptop
    values = {"loss": _spelt_out(recipe.loss), **recipe.laptop}
    return Settings("cpu", values, ("train", "val"), _laptop_scales(recipe))


def _spelt_out(loss: str) -> str:
    """A loss with its default parameters written out, so that a run's name says what the loss was divided by."""
    return str(LossSpec.parse(loss).complete())


def _laptop_scales(recipe: Recipe) -> tuple[int, ...]:
    return tuple(_laptop_side(side) for side in recipe.test_scales)


def _laptop_side(side: int) -> int:
    return round(side * _CPU_SIDE / PRESETS["r50_1x"].detector.short_side)


def expectation(run: Settings) -> str:
    """What a run must reach, in words: the numbers of all the rows that need it."""
    found = [(row, settings(row, scale)) for row in ROWS for scale in SCALES]
    served = [row for row, s in found if isinstance(s, Settings) and s.name == run.name]
    if not served:
        return "no number: the paper shows its scores only (Figure 4)"
    goals: dict[str, list[str]] = {}
    for row in [row for row in served if not row.is_control] or served:
        goals.setdefault(row.goal, []).append(row.cited_at)
    words = ", ".join(f"{goal} ({'; '.join(dict.fromkeys(sources))})" for goal, sources in goals.items())
    return f"its place among the rows, not AP; the paper's: {words}" if run.preset == "cpu" else words


def figure_settings(loss: str, scale: str) -> Settings:
    """The settings of a run whose scores Figures 1, 4 and 5 show, which are those of Table 2.

    Args:
        loss: name of the loss on the command line.
        scale: one of :data:`drloss.studies.paper.names.SCALES`.
    """
    return Settings({"paper": "r50_1x", "laptop": "cpu"}[scale], {"loss": _spelt_out(loss)}, ("train", "val"))


def _metrics(numbers: str) -> dict[str, float]:
    return dict(zip(METRICS, map(float, numbers.split()), strict=False))


def _ablation(table: str, label: str, method: str, numbers: str, loss: str, reason: str = "") -> Row:
    """A row with ResNet-50, 1× and minival."""
    source = table.replace("table", "Table ")
    return Row(table, label, method, _metrics(numbers), MINIVAL, source, Recipe(loss=loss), reason)


def _log_bases(pos_base: float, neg_base: float, numbers: str) -> Row:
    pos, neg = lambda_from_log_base(pos_base, scale=1.0), lambda_from_log_base(neg_base, scale=0.1)
    options = [f"pos_lambda={pos:.6g}"] * (pos_base != e) + [f"neg_lambda={neg:.6g}"] * (neg_base != 3.5)
    shown = ["e" if base == e else f"{base:g}" for base in (pos_base, neg_base)]
    label = f"h₊ = {shown[0]}, h₋ = {shown[1]}"
    return _ablation("table1", label, "DR", numbers, ":".join(["dr", ",".join(options)]).rstrip(":"))


def _published(method: str, reference: str, backbone: str, numbers: str, recipe: Recipe | None = None) -> Row:
    reason = "a published number of another paper's detector"
    reason += ", trained its own way" if recipe else ", which drloss does not have: it cannot be rerun here"
    metrics = _metrics(numbers)
    return Row("table4", backbone, method, metrics, TEST_DEV, "Table 4", recipe, reason, published=reference)


def _dr_retina(backbone: str, preset: str, numbers: str) -> Row:
    recipe = Recipe(preset, laptop=_BACKBONE)
    return Row("table4", backbone, "Dr. Retina", _metrics(numbers), TEST_DEV, "Table 4", recipe)


def _multi_scale(backbone: str, preset: str, numbers: str) -> Row:
    label, recipe = f"{backbone}, multi-scale test", Recipe(preset, laptop=_BACKBONE, test_scales=TEST_SCALES)
    source = "Table 4, multi-scale test"
    return Row("table4", label, "Dr. Retina", _metrics(numbers), TEST_DEV, source, recipe, _MULTI_SCALE)


def _thresholds(threshold: float, focal: str, dr: str) -> list[Row]:
    rows = []
    for method, loss, numbers in (("Focal", "focal", focal), ("DR", "dr", dr)):
        metrics, label = _metrics(numbers), f"threshold {threshold:g}"
        recipe, source = Recipe(loss=loss), f"Table 5, {label}"
        rows.append(Row("table5", label, method, metrics, MINIVAL, source, recipe, threshold=threshold))
    return rows


def _scales(side: int, focal: str, dr: str) -> list[Row]:
    preset = "r50_1x" if side == 800 else f"r50_1x_{side}"
    smaller: dict[str, object] = {} if side == 800 else {"short_side": _laptop_side(side)}
    rows = []
    for method, loss, numbers, reference in (("Focal", "focal", focal, "[17]"), ("DR", "dr", dr, "")):
        recipe = Recipe(preset, loss, smaller)
        reason = "a published number of another paper's detector, trained its own way" if reference else ""
        row = Row("table6", f"scale {side}", method, _metrics(numbers), TEST_DEV, "Table 6", recipe, reason)
        rows.append(replace(row, scale=side, published=reference))
    return rows


def _voc(method: str, loss: str, numbers: str) -> Row:
    recipe = Recipe("voc07", loss, splits=("trainval", "test"))
    return Row("table7", "", method, _metrics(numbers), VOC_TEST, "Table 7", recipe)


def _control(label: str, method: str, numbers: str, source: str, recipe: Recipe) -> Row:
    split = TEST_DEV if source == "Table 4" else MINIVAL
    reason = f"the paper has no such row; the number is that of its nearest, {source}"
    if recipe.test_scales:
        reason += f"; {_MULTI_SCALE}; on images of {_CPU_SIDE} pixels the scales are smaller in proportion, "
        reason += ", ".join(map(str, _laptop_scales(recipe)))
    return Row(CONTROLS, label, method, _metrics(numbers), split, source, recipe, reason)


def _elsewhere(label: str, method: str, ap: float, source: str, reference: str) -> Row:
    reason = f"published by others ({source}), of a RetinaNet trained with settings of their own: to hold beside ours"
    return Row(CONTROLS, label, method, {"AP": ap}, MINIVAL, source, None, reason, published=reference)


_DEFAULT = "37.4 56.0 40.0 20.8 41.2 50.5"
_FOCAL = "36.1 55.0 38.7 19.5 39.5 49.0"
_R101, _X101 = "ResNet-101-FPN", "ResNeXt-32x8d-101-FPN"
_AUTHORS = {"negative_iou": 0.5, "score_threshold": 0.2}

ROWS: tuple[Row, ...] = (
    _log_bases(e, e, "37.1 56.1 39.4 19.7 40.9 50.1"),
    _log_bases(e, 3.5, _DEFAULT),
    _log_bases(e, 5.5, "37.2 55.7 40.0 19.6 41.2 50.4"),
    _log_bases(e, 20, "36.6 54.7 39.4 19.6 40.5 50.3"),
    _log_bases(5.5, 3.5, "36.7 55.2 39.4 19.9 40.4 50.0"),
    _log_bases(20, 3.5, "35.6 54.2 38.1 19.2 39.7 48.3"),
    _ablation("table2", "", "Focal", _FOCAL, "focal"),
    _ablation("table2", "", "Hinge", "35.8 54.0 38.3 19.3 39.5 47.6", "dr:surrogate=hinge"),
    _ablation("table2", "ρ = 0.2", "DR", "36.9 55.5 39.5 21.1 40.7 49.6", "dr:surrogate=quadratic,rho=0.2"),
    _ablation("table2", "ρ = 0.5", "DR", "37.2 56.0 39.8 21.1 41.1 50.4", "dr:surrogate=quadratic,rho=0.5"),
    _ablation("table2", "L = 4", "DR", "37.2 55.9 39.9 20.3 41.0 50.3", "dr:smoothness=4"),
    _ablation("table2", "L = 6", "DR", _DEFAULT, "dr"),
    _ablation("table2", "L = 8", "DR", "37.1 55.7 39.7 19.5 41.2 50.5", "dr:smoothness=8"),
    _ablation("table2", "L = 10", "DR", "36.8 55.4 39.4 20.0 40.7 50.0", "dr:smoothness=10"),
    _ablation("table3", "", "All", "12.9 23.0 12.6 8.8 16.7 15.0", "dr:pairing=all_pairs"),
    _ablation("table3", "", "NegOnly", "37.0 55.5 39.5 19.8 40.7 50.5", "dr:pairing=neg_only"),
    _ablation("table3", "", "DR", _DEFAULT, "dr"),
    _ablation("table3", "", "Worst case", "", "dr:pairing=worst_case", _NO_NUMBER),
    _published("Faster R-CNN+++", "[13]", "ResNet-101-C4", "34.9 55.7 37.4 15.6 38.7 50.9"),
    _published("Faster R-CNN w FPN", "[16]", _R101, "36.2 59.1 39.0 18.2 39.0 48.2"),
    _published("Deformable R-FCN", "[4]", "Aligned-Inception-ResNet", "37.5 58.0 40.8 19.4 40.1 52.5"),
    _published("Mask R-CNN", "[12]", _R101, "38.2 60.3 41.7 20.1 41.1 50.2"),
    _published("YOLOv2", "[22]", "DarkNet-19", "21.6 44.0 19.2 5.0 22.4 35.5"),
    _published("SSD513", "[19]", "ResNet-101-SSD", "31.2 50.4 33.3 10.2 34.5 49.8"),
    _published("AP-Loss", "[3]", _R101, "37.4 58.6 40.5 17.3 40.8 51.9"),
    _published("RetinaNet", "[17]", _R101, "39.1 59.1 42.3 21.8 42.7 50.2", Recipe("r101_2x", "focal", _BACKBONE)),
    _published("RetinaNet", "[17]", _X101, "40.8 61.1 44.1 24.1 44.2 51.2", Recipe("x101_1.5x", "focal", _BACKBONE)),
    _published("CornerNet", "[15]", "Hourglass-104", "40.5 56.5 43.1 19.4 42.7 53.9"),
    _published("FSAF", "[30]", _R101, "40.9 61.5 44.0 24.0 44.2 51.3"),
    _published("FCOS", "[26]", _R101, "41.5 60.7 45.0 24.4 44.8 51.6"),
    _published("FCOS", "[26]", _X101, "42.7 62.2 46.1 26.0 45.6 52.6"),
    _dr_retina(_R101, "r101_2x", "41.7 60.9 44.8 23.5 44.9 53.1"),
    _dr_retina(_X101, "x101_1.5x", "43.1 62.8 46.4 25.6 46.2 54.0"),
    _multi_scale(_R101, "r101_2x", "43.4 62.1 47.0 26.7 46.1 55.0"),
    _multi_scale(_X101, "x101_1.5x", "44.7 63.8 48.7 28.2 47.4 56.2"),
    *_thresholds(0.05, _FOCAL, _DEFAULT),
    *_thresholds(0.1, "36.1 54.9 38.7 19.4 39.4 49.0", _DEFAULT),
    *_thresholds(0.2, "35.4 53.4 38.2 18.3 38.7 48.6", _DEFAULT),
    *_thresholds(0.3, "33.9 50.2 37.0 16.2 37.1 47.6", _DEFAULT),
    *_thresholds(0.4, "31.6 45.8 35.0 14.1 34.4 45.2", "37.3 55.9 40.0 20.7 41.2 50.4"),
    *_thresholds(0.5, "28.4 39.7 31.7 10.5 30.5 42.1", "37.2 55.6 39.8 20.1 41.0 50.3"),
    *_scales(400, "30.5 47.8 32.7 11.2 33.8 46.1", "32.4 49.9 34.5 11.7 34.8 48.0"),
    *_scales(500, "32.5 50.9 34.8 13.9 35.8 46.7", "34.5 52.6 36.6 14.7 36.9 48.9"),
    *_scales(600, "34.3 53.2 36.9 16.2 37.4 47.4", "36.1 54.6 38.7 17.4 38.5 49.2"),
    *_scales(700, "35.1 54.2 37.7 18.0 39.3 46.4", "37.1 55.8 39.7 18.9 39.8 49.2"),
    *_scales(800, "35.7 55.0 38.5 18.9 38.9 46.3", "37.6 56.4 40.3 20.1 40.5 48.9"),
    _voc("Focal", "focal", "39.5 67.2 40.8"),
    _voc("DR", "dr", "41.2 68.6 42.6"),
    _control("focal:scope=per_image", "Focal", _FOCAL, "Table 2", Recipe(loss="focal:scope=per_image")),
    _control(
        *("authors' detector settings", "Focal", "35.4 53.4 38.2 18.3 38.7 48.6", "Table 5, threshold 0.2"),
        Recipe("r50_1x_authors", "focal", _AUTHORS),
    ),
    _control(
        *("authors' detector settings", "DR", _DEFAULT, "Table 5, threshold 0.2"),
        Recipe("r50_1x_authors", "dr", _AUTHORS),
    ),
    _control("dr:scope=pooled", "DR", _DEFAULT, "Table 2", Recipe(loss="dr:scope=pooled")),
    _control(
        *("authors' code as a whole: dr:scope=pooled, detector settings", "DR", _DEFAULT, "Table 5, threshold 0.2"),
        Recipe("r50_1x_authors", "dr:scope=pooled", _AUTHORS),
    ),
    _control(
        *("authors' detector settings, ResNet-101", "Focal", "39.1 59.1 42.3 21.8 42.7 50.2", "Table 4"),
        Recipe("r101_2x_authors", "focal", _BACKBONE),
    ),
    _control(
        *("authors' detector settings, ResNet-101", "DR", "41.7 60.9 44.8 23.5 44.9 53.1", "Table 4"),
        Recipe("r101_2x_authors", "dr", _BACKBONE),
    ),
    _control("multi-scale test", "DR", _DEFAULT, "Table 2", Recipe(test_scales=TEST_SCALES)),
    _elsewhere("ResNet-50, 1×, jitter 640-800", "DR", 37.35, "Megvii-BaseDetection/cvpods", "[cvpods]"),
    _elsewhere("ResNet-50, 1×", "RetinaNet, focal", 37.4, "model zoo of detectron2", "[detectron2]"),
    _elsewhere("ResNet-101, 3×", "RetinaNet, focal", 40.4, "model zoo of detectron2", "[detectron2]"),
)
"""All rows, in the order of the paper; then the controls."""


def rows_of(table: str) -> list[Row]:
    """The rows of a table, in order."""
    return [row for row in ROWS if row.table == table]


def find_row(table: str, name: str) -> Row:
    """The row of a table with this name.

    Raises:
        KeyError: if the table has no such row.
    """
    for row in rows_of(table):
        if row.name == name:
            return row
    raise KeyError(f"{table} has no row {name!r}; it has {', '.join(row.name for row in rows_of(table))}")
