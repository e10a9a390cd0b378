"""The page of a finished run: what it reached, how it got there, and what its detector sees."""

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from drloss.data.annotations import Annotations
from drloss.distributed.ranks import Ranks
from drloss.evaluation import figures
from drloss.evaluation.coco import METRICS, percent
from drloss.evaluation.detecting import run_detector
from drloss.evaluation.plotting import to_svg
from drloss.io.atomic import write_text
from drloss.losses import DRLoss
from drloss.studies.report.gallery import gallery
from drloss.studies.report.rendering import picture, render
from drloss.training.config import make_loss
from drloss.training.log import read_scalars
from drloss.training.run_folder import EVALUATIONS_FILE, METRICS_FILE, PAGE
from drloss.training.trained import load_run

SHOWN = 6
"""Number of images on the page."""
CURVES = {"loss": "total loss", "loss_cls": "classification loss", "loss_box": "box loss"}
EXPECTED = ("expected_pos", "expected_neg")
SCORES = (
    "Expected scores of Eq. (6), with the loss's own parameters: P̂₊ of the objects, P̂₋ of the hardest background."
)
DR_SCORES = (
    " P̂₋ rises a little above 0.5 at first and has to fall later; while it is near 0.5, the training is too short."
)
_FILTERS: dict[str, Callable[..., Any]] = {"percent": percent}


def last_evaluation(out: Path) -> dict[str, float]:
    """The last value of each metric of a run's evaluations; empty if there were none."""
    return {name: values[-1] for name, (_, values) in read_scalars(out / EVALUATIONS_FILE).items() if values}


def write_run_page(out: Path, val: Annotations | None, device: torch.device) -> Path:
    """Write the page of a run into its folder, atomically.

    Args:
        out: folder of a finished run.
        val: the split it was evaluated on, from which the pictures are; None for none.
        device: where the detector runs.
    Returns:
        Path of the page.
    """
    model, about = load_run(out)
    evaluations = read_scalars(out / EVALUATIONS_FILE)
    by_metric = {metric: dict(zip(*evaluations.get(metric, ([], [])), strict=True)) for metric in METRICS}
    scalars = read_scalars(out / METRICS_FILE)
    drawn = []
    for key, label in (*CURVES.items(), ("AP50", "AP50 (%)")):
        x, y = (scalars | evaluations).get(key, ([], []))
        if len(x) > 1:
            series = figures.Series(about.loss, about.loss, x, y)
            svg = to_svg(figures.training_curves([series], label), key.replace("_", "-"), f"{label} over training")
            drawn.append((Markup(svg), f"{label[0].upper()}{label[1:]}."))
    both = [figures.Series(about.loss, about.loss, *scalars.get(key, ([], []))) for key in EXPECTED]
    if all(len(series.x) > 1 for series in both):
        svg = to_svg(figures.expected_scores([both[0]], [both[1]]), "expected-scores", "P+ and P- over training")
        drawn.insert(1, (Markup(svg), SCORES + DR_SCORES * isinstance(make_loss(about.loss), DRLoss)))
    pictures = None
    if val is not None and len(val):
        few = val.select(np.unique(np.linspace(0, len(val) - 1, SHOWN).round().astype(np.int64)))
        detections = run_detector(model.to(device), few, Ranks(0, 1, device), batch_size=1)
        pictures = picture(gallery(few, [detections], range(len(few))))
    last = last_evaluation(out)
    page = render(
        "run.html",
        _FILTERS,
        title=f"{out.name}: {about.loss} with {about.detector.backbone}",
        headline=f"AP {percent(last['AP'])}, AP50 {percent(last['AP50'])} on {val.name}"
        if last and val
        else out.name,
        threshold=about.threshold,
        metrics=METRICS,
        evaluations=[
            (int(step), [by_metric[metric].get(step, nan) for metric in METRICS])
            for step in sorted(set().union(*by_metric.values()))
        ],
        drawn=drawn,
        pictures=pictures,
    )
    write_text(out / PAGE, page)
    return out / PAGE
