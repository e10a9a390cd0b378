import numpy as np
import pytest
import torch

from drloss.evaluation.coco import evaluate
from drloss.evaluation.matching import average_precision, calibration, match_detections
from evaluation.test_coco import found, random_case, store


@pytest.mark.parametrize("seed", range(40))
def test_with_equal_weights_the_ap_is_the_evaluators(seed):
    annotations, detections = random_case(seed)
    matches = match_detections(annotations, detections)
    wanted = evaluate(annotations, detections).metrics["AP"]
    assert average_precision(matches) == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_weights_are_copies_of_images():
    annotations, detections = random_case(3)
    matches = match_detections(annotations, detections)
    n = matches.images
    weights = np.random.default_rng(0).integers(0, 3, n)
    copies = np.repeat(np.arange(n), weights)
    several = match_detections(annotations.select(copies), [detections[i] for i in copies])
    # Where scores tie between images, copies come in another order: the scores of the case do not.
    assert average_precision(matches, weights) == pytest.approx(average_precision(several), abs=1e-9)


def test_calibration_of_a_hand_computed_case():
    first, second, wrong = (0, 0, 10, 10), (50, 50, 60, 60), (100, 100, 110, 110)
    annotations = store([[(1, *first), (1, *second)]])
    detections = [found((1, 0.95, *first), (1, 0.85, *wrong), (1, 0.35, *second))]
    curve = calibration(match_detections(annotations, detections))
    assert curve.count.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 1, 1]
    assert curve.precision[[3, 8, 9]].tolist() == [1, 0, 1]
    assert curve.error == pytest.approx((0.65 + 0.85 + 0.05) / 3, abs=1e-6)
    nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}]
    matches = match_detections(annotations, nothing)
    assert np.isnan(calibration(matches).error)
    assert average_precision(matches) == 0
