"""Densities of the scores of positive and of negative candidates (Figures 4 and 5 of the paper)."""

from collections.abc import Sequence
from math import isnan, nan
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BINS = 200
"""Number of equal bins over [0, 1]."""

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class ScoreHistogram:
    """Counts of scores, gathered batch by batch.

    A candidate is an (anchor, class) pair. It is positive if the anchor's label is that class, else negative. Anchors
    with label -1 do not count.

    Attributes:
        positive: (200,) int64 counts of the scores of positive candidates in equal bins over [0, 1].
        negative: (200,) int64 counts of the scores of negative candidates.
        positive_sum: sum of the scores of the positives.
        negative_sum: sum of the scores of the negatives.
    """

    def __init__(self) -> None:
        self.positive: Counts = np.zeros(BINS, dtype=np.int64)
        self.negative: Counts = np.zeros(BINS, dtype=np.int64)
        self.positive_sum = 0.0
        self.negative_sum = 0.0

    @torch.no_grad()
    def update(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        """Count the candidates of N images.

        Args:
            logits: one (N, A_l, K) for each level, before the sigmoid; A is the sum of the A_l.
            labels: (N, A) in the order of the levels: -1 ignored, 0 background, 1..K the class.

        Raises:
            ValueError: if the anchors do not match, a label is above K or a logit is NaN.
        """
        anchors = sum(level.shape[1] for level in logits)
        if labels.shape[1] != anchors:
            raise ValueError(f"labels must have one column for each of {anchors} anchors, got {tuple(labels.shape)}")
        if labels.numel() and int(labels.max()) > logits[0].shape[2]:
            raise ValueError(f"labels must be at most K = {logits[0].shape[2]}, got {int(labels.max())}")
        first = 0
        for level in logits:
            self._update_level(level, labels[:, first : first + level.shape[1]].to(level.device))
            first += level.shape[1]

    def _update_level(self, logits: Tensor, labels: Tensor) -> None:
        scores = logits[labels >= 0].float().sigmoid()  # (V, K) for V anchors that count
        labels = labels[labels >= 0]
        objects = labels > 0
        positive = scores[objects].gather(1, labels[objects, None].long() - 1)
        total, positive_sum = (float(s.sum(dtype=torch.float64)) for s in (scores, positive))
        if isnan(total):
            raise ValueError("logits must not be NaN")
        counts = _counts(positive)
        self.positive += counts
        self.negative += _counts(scores) - counts
        self.positive_sum += positive_sum
        self.negative_sum += total - positive_sum

    def merge(self, other: "ScoreHistogram") -> "ScoreHistogram":
        """Add the counts of another histogram to this one, in place, and return it."""
        self.positive += other.positive
        self.negative += other.negative
        self.positive_sum += other.positive_sum
        self.negative_sum += other.negative_sum
        return self

    @property
    def edges(self) -> Floats:
        """(201,) edges of the bins, 0 to 1."""
        return np.linspace(0.0, 1.0, BINS + 1)

    @property
    def positive_mean(self) -> float:
        """Mean score of the positives; NaN if there is no positive."""
        return _ratio(self.positive_sum, self.positive)

    @property
    def negative_mean(self) -> float:
        """Mean score of the negatives; NaN if there is no negative."""
        return _ratio(self.negative_sum, self.negative)

    def positive_density(self) -> Floats:
        """(200,) density of the scores of the positives, with integral 1; all 0 if there is no positive."""
        return self.positive * BINS / max(1, int(self.positive.sum()))

    def negative_density(self) -> Floats:
        """(200,) density of the scores of the negatives, with integral 1; all 0 if there is no negative."""
        return self.negative * BINS / max(1, int(self.negative.sum()))

    def to_json(self) -> dict[str, Any]:
        """Counts and sums for JSON; densities and means are not written, since they follow from these."""
        return {
            "positive": self.positive.tolist(),
            "negative": self.negative.tolist(),
            "positive_sum": self.positive_sum,
            "negative_sum": self.negative_sum,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ScoreHistogram":
        """The histogram that :meth:`to_json` wrote.

        Raises:
            ValueError: if it has another number of bins.
        """
        histogram = cls()
        for name in ("positive", "negative"):
            counts = np.array(value[name], dtype=np.int64)
            if counts.shape != (BINS,):
                raise ValueError(f"{name} must have {BINS} counts, got shape {counts.shape}")
            setattr(histogram, name, counts)
        histogram.positive_sum = float(value["positive_sum"])
        histogram.negative_sum = float(value["negative_sum"])
        return histogram


def _counts(scores: Tensor) -> Counts:
    bins = (scores.flatten() * BINS).clamp_(max=BINS - 1).to(torch.uint8)
    return np.asarray(torch.bincount(bins, minlength=BINS).cpu().numpy(), dtype=np.int64)


def _ratio(total: float, counts: Counts) -> float:
    return total / int(counts.sum()) if counts.any() else nan
