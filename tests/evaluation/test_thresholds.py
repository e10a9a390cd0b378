import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from drloss.data.formats.shapes import open_shapes
from drloss.evaluation.matching import match_detections
from drloss.evaluation.thresholds import THRESHOLDS, above, threshold_curve, threshold_sweep
from evaluation.test_coco import found, random_case, store


def shapes():
    read = open_shapes("shapes:train=1,val=8,test=1").read("val")
    return read[0] if isinstance(read, tuple) else read


@pytest.mark.parametrize("seed", range(20))
def test_filtering_after_class_wise_nms_equals_filtering_before(seed):
    """With the cuts to the best 60 before and the best 20 after NMS, as the detector makes them."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(150, 2, generator=rng) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(150, 2, generator=rng) * 30], dim=1)
    scores, labels = torch.rand(150, generator=rng), torch.randint(1, 4, (150,), generator=rng)

    def detect(threshold):
        kept = (scores > threshold).nonzero().squeeze(1)
        kept = kept[scores[kept].topk(min(60, len(kept))).indices]
        kept = kept[batched_nms(boxes[kept], scores[kept], labels[kept], 0.5)[:20]]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}

    once = detect(0.05)
    assert len(once["scores"]) < 60
    for threshold in (0.05, 0.3, 0.5, 0.7, 0.9):
        (after,), before = above([once], threshold), detect(threshold)
        for key, value in before.items():
            torch.testing.assert_close(after[key], value, rtol=0, atol=0)


def test_ap_falls_when_the_threshold_passes_the_scores_of_objects():
    """Every object is found, at the score .25 in the first images and .45 in the rest."""
    annotations = shapes()
    detections = []
    for index in range(len(annotations)):
        own = annotations.boxes_of(index)
        count = own.stop - own.start
        detections.append(
            {
                "boxes": torch.from_numpy(annotations.boxes[own]).float(),
                "scores": torch.full((count,), 0.25 if index < 4 else 0.45),
                "labels": torch.from_numpy(annotations.labels[own]),
            }
        )
    sweep = threshold_sweep(annotations, detections)
    assert tuple(record["threshold"] for record in sweep) == THRESHOLDS
    late = sum(len(d["scores"]) for d in detections[4:]) / 8
    every = len(annotations.boxes) / 8
    assert [record["detections_per_image"] for record in sweep] == [every, every, every, late, late, 0]
    aps = [record["AP"] for record in sweep]
    np.testing.assert_allclose(aps[:3], 100)
    assert 0 < aps[3] == aps[4] < 90
    assert aps[5] == 0


def test_a_score_at_the_threshold_is_dropped():
    detection = {"boxes": torch.zeros(2, 4), "scores": torch.tensor([0.75, 0.5]), "labels": torch.ones(2).long()}
    assert above([detection], 0.5)[0]["scores"].tolist() == [0.75]


def test_scores_that_are_no_numbers_are_not_filtered_away_but_reported():
    annotations = shapes()
    broken = {"boxes": torch.zeros(1, 4), "scores": torch.tensor([torch.nan]), "labels": torch.ones(1).long()}
    with pytest.raises(ValueError, match="not finite"):
        threshold_sweep(annotations, [broken] * 8)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_outside_the_scores_are_refused(threshold):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        threshold_sweep(shapes(), [], thresholds=(threshold,))


def test_the_best_f1_of_a_hand_computed_case():
    """Three objects; right at .9 and .6, wrong at .8 and .3: F1 is 2/4, 2/5, 4/6 and 4/7 from the best score down."""
    annotations = store([[(1, 0, 0, 10, 10), (1, 50, 50, 60, 60), (2, 90, 90, 99, 99)]])
    detections = [
        found((1, 0.9, 0, 0, 10, 10), (1, 0.8, 120, 120, 130, 130), (1, 0.6, 50, 50, 60, 60), (2, 0.3, 0, 90, 9, 99))
    ]
    matches = match_detections(annotations, detections)
    curve = threshold_curve(matches)
    assert [point.f1 for point in curve.points()] == pytest.approx([2 / 4, 2 / 5, 4 / 6, 4 / 7])
    best = curve.best()
    assert (best.right, best.wrong, best.missed) == (2, 1, 1)
    assert (best.precision, best.recall) == (2 / 3, 2 / 3)
    assert best.threshold == pytest.approx((0.6 + 0.3) / 2)
    assert threshold_curve(matches, 1).best().f1 == pytest.approx(4 / 5)
    assert threshold_curve(matches, 2).best() is None


@pytest.mark.parametrize("seed", range(20))
def test_counts_at_each_threshold_are_those_of_the_detections_above_it(seed):
    annotations, detections = random_case(seed)
    every = threshold_curve(match_detections(annotations, detections)).points()
    for point in every[:: max(1, len(every) // 8)]:
        kept = [{k: v[d["scores"] >= point.threshold] for k, v in d.items()} for d in detections]
        alone = match_detections(annotations, kept)
        right = int((alone.found[0] & alone.counted[0]).sum())
        assert (point.right, point.wrong) == (right, int(alone.counted[0].sum()) - right)
        assert point.right + point.missed == int((~annotations.ignore).sum())


def test_without_objects_or_detections_there_is_no_best_threshold():
    one = store([[(1, 0, 0, 10, 10)]])
    assert threshold_curve(match_detections(one, [found()])).best() is None
    assert threshold_curve(match_detections(store([[]]), [found((1, 0.9, 0, 0, 10, 10))])).best() is None
