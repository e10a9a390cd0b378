import json
import math

import numpy as np
import pytest
import torch

from drloss.evaluation.densities import BINS, ScoreHistogram


def logit(score):
    return math.log(score / (1 - score))


def random_batch(seed, images=3, sizes=(40, 12, 5), classes=4):
    rng = torch.Generator().manual_seed(seed)
    logits = [3 * torch.randn(images, size, classes, generator=rng) for size in sizes]
    return logits, torch.randint(-1, classes + 1, (images, sum(sizes)), generator=rng)


def test_each_candidate_goes_to_its_bin():
    """Anchors: ignored, background, class 2. Of three classes."""
    scores = [[0.9, 0.9, 0.9], [0.0123, 0.251, 0.251], [0.5525, 0.8025, 0.999]]
    logits = torch.tensor([[[logit(s) for s in row] for row in scores]])
    histogram = ScoreHistogram()
    histogram.update([logits], torch.tensor([[-1, 0, 2]]))
    assert {int(b): int(histogram.positive[b]) for b in histogram.positive.nonzero()[0]} == {160: 1}
    assert {int(b): int(histogram.negative[b]) for b in histogram.negative.nonzero()[0]} == {
        2: 1,
        50: 2,
        110: 1,
        199: 1,
    }
    assert histogram.positive_mean == pytest.approx(0.8025)
    assert histogram.negative_mean == pytest.approx((0.0123 + 0.251 * 2 + 0.5525 + 0.999) / 5)


def test_counts_equal_those_of_a_literal_loop():
    logits, labels = random_batch(0)
    histogram = ScoreHistogram()
    histogram.update(logits, labels)
    positive, negative = [], []
    flat = torch.cat(logits, dim=1).sigmoid()
    for n in range(flat.shape[0]):
        for a in range(flat.shape[1]):
            for k in range(flat.shape[2]):
                if labels[n, a] >= 0:
                    (positive if labels[n, a] == k + 1 else negative).append(float(flat[n, a, k]))
    np.testing.assert_array_equal(histogram.positive, np.histogram(positive, BINS, (0, 1))[0])
    np.testing.assert_array_equal(histogram.negative, np.histogram(negative, BINS, (0, 1))[0])
    assert histogram.positive_mean == pytest.approx(np.mean(positive))
    assert histogram.negative_mean == pytest.approx(np.mean(negative))


def test_densities_integrate_to_one_and_without_candidates_to_zero():
    histogram = ScoreHistogram()
    assert histogram.positive_density().sum() == 0
    assert math.isnan(histogram.positive_mean)
    histogram.update(*random_batch(1))
    for density in (histogram.positive_density(), histogram.negative_density()):
        assert (density * np.diff(histogram.edges)).sum() == pytest.approx(1)


def test_saturated_scores_stay_in_the_outer_bins():
    histogram = ScoreHistogram()
    histogram.update([torch.tensor([[[math.inf], [-math.inf], [80.0]]])], torch.tensor([[1, 0, 0]]))
    assert histogram.positive[-1] == 1
    assert (histogram.negative[0], histogram.negative[-1]) == (1, 1)


def test_merging_parts_equals_one_histogram_of_all():
    parts = [ScoreHistogram(), ScoreHistogram()]
    whole = ScoreHistogram()
    for seed in range(4):
        for histogram in (parts[seed % 2], whole):
            histogram.update(*random_batch(seed))
    merged = parts[0].merge(parts[1])
    assert merged is parts[0]
    np.testing.assert_array_equal(merged.positive, whole.positive)
    np.testing.assert_array_equal(merged.negative, whole.negative)
    assert merged.negative_mean == pytest.approx(whole.negative_mean)


def test_json_brings_the_same_histogram_back():
    histogram = ScoreHistogram()
    histogram.update(*random_batch(2))
    text = json.dumps(histogram.to_json(), allow_nan=False)
    assert ScoreHistogram.from_json(json.loads(text)).to_json() == histogram.to_json()
    with pytest.raises(ValueError, match="200 counts"):
        ScoreHistogram.from_json(histogram.to_json() | {"positive": [1, 2]})


def test_half_precision_logits_are_counted_too():
    logits, labels = random_batch(3)
    histogram = ScoreHistogram()
    histogram.update([level.bfloat16() for level in logits], labels)
    assert histogram.positive.sum() == (labels > 0).sum()
    assert histogram.negative.sum() == 4 * (labels >= 0).sum() - (labels > 0).sum()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(1, 3, 2), torch.zeros(1, 4), "each of 3 anchors"),
        (torch.zeros(1, 3, 2), torch.full((1, 3), 3), "at most K = 2, got 3"),
        (torch.full((1, 3, 2), torch.nan), torch.zeros(1, 3), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        ScoreHistogram().update([logits], labels.long())
