"""Figures 1, 4 and 5 by their data: what the equations and the scores say of them, and not their pixels."""

import json

import numpy as np
import pytest
import torch

import oracle
from drloss.errors import UserError
from drloss.evaluation.densities import ScoreHistogram
from drloss.losses.dr import NEG_LAMBDA, POS_LAMBDA
from drloss.studies.paper.scores import (
    DECAY,
    SYNTHETIC,
    compare_densities,
    draw_reweighting,
    draw_separation,
    reweight_scores,
    save_densities,
    save_reweighting,
    save_separation,
)


def histogram_of(positive, negative):
    """Scores of one image."""
    histogram = ScoreHistogram()
    scores = torch.tensor([*positive, *negative], dtype=torch.float64)
    labels = torch.tensor([[1] * len(positive) + [0] * len(negative)])
    histogram.update([torch.logit(scores).reshape(1, -1, 1)], labels)
    return histogram


def test_figure_1_ranks_the_expectations_of_the_derived_distributions():
    data = reweight_scores()
    assert data.source == SYNTHETIC
    assert (data.pos_lambda, data.neg_lambda, data.margin) == (POS_LAMBDA, NEG_LAMBDA, 0.5)
    assert (
        data.given.negative_mean < data.derived.negative_mean < data.derived.positive_mean < data.given.positive_mean
    )
    assert data.violation == pytest.approx(data.derived.negative_mean - data.derived.positive_mean + 0.5)


def test_figure_1_shows_a_runs_scores():
    positive, negative = [0.6, 0.9], [0.1, 0.3]
    data = reweight_scores(histogram_of(positive, negative), "a run")
    expected_pos = oracle.equation_6(positive, oracle.proposition_2(positive, POS_LAMBDA))
    expected_neg = oracle.equation_6(negative, oracle.proposition_1(negative, NEG_LAMBDA))
    assert data.derived.positive_mean == pytest.approx(expected_pos, abs=0.003)
    assert data.derived.negative_mean == pytest.approx(expected_neg, abs=0.003)
    assert "(synthetic)" not in draw_reweighting(data).axes[1].get_xlabel()
    assert "(synthetic)" in draw_reweighting(reweight_scores()).axes[1].get_xlabel()


def test_a_run_without_positives_has_no_figure_1():
    with pytest.raises(UserError, match="a run: there must be positive and negative candidates"):
        reweight_scores(ScoreHistogram(), "a run")


def test_densities_of_figure_1_integrate_to_one():
    data = reweight_scores()
    for sides in (data.given, data.derived):
        for density in (sides.positive, sides.negative):
            assert np.sum(density * np.diff(data.edges)) == pytest.approx(1, abs=1e-9)


def test_figures_4_and_5_show_the_scores_of_the_runs(tmp_path):
    shown = [
        ("Focal", "focal", "one run", histogram_of([0.3, 0.5], [0.02] * 8)),
        ("DR", "dr", "another", histogram_of([0.7, 0.9], [0.1] * 6 + [0.2] * 2)),
    ]
    data = compare_densities(shown)
    assert [density.positive_mean for density in data.losses] == pytest.approx([0.4, 0.8])
    assert [density.negative_mean for density in data.losses] == pytest.approx([0.02, 0.125])
    for density in data.losses:
        for side in (density.positive, density.negative):
            assert np.sum(side * np.diff(data.edges)) == pytest.approx(1)
    focal = data.losses[0].negative
    assert focal.argmax() == 4  # 0.02 begins the fifth of 200 bins
    assert save_densities(tmp_path, shown)[2].name == "figure4.json"
    assert len(json.loads((tmp_path / "figure4.json").read_text())["losses"]) == 2
    assert save_separation(tmp_path, shown[1])[1].name == "figure5.png"
    assert json.loads((tmp_path / "figure5.json").read_text())["losses"][0]["source"] == "another"


def test_figure_5_divides_the_negatives_by_ten_in_its_second_panel():
    data = compare_densities([("DR", "dr", "a run", histogram_of([0.7, 0.9], [0.1] * 6 + [0.2] * 2))])
    heights = []
    for panel in draw_separation(data).axes:
        negatives, positives = (panel.patches[index].get_data().values for index in (1, 3))
        heights.append((negatives.max(), positives.max()))
    (given, positive), (decayed, same) = heights
    assert decayed == pytest.approx(given / DECAY)
    assert same == positive


def test_figure_1_is_written_as_pictures_and_data(tmp_path):
    assert [p.name for p in save_reweighting(tmp_path, reweight_scores())] == [
        "figure1.svg",
        "figure1.png",
        "figure1.json",
    ]
    assert json.loads((tmp_path / "figure1.json").read_text())["source"] == SYNTHETIC
