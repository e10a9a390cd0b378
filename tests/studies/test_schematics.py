"""Figures 2 and 3 by their data: what the equations say of them, and not their pixels."""

import json
from math import log
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from drloss.losses.dr import NEG_LAMBDA, POS_LAMBDA
from drloss.studies.paper.schematics import (
    LAMBDAS,
    MEAN,
    RHOS,
    SMOOTHNESSES,
    STDS,
    compare_surrogates,
    derived,
    drift_gaussians,
    save_drifts,
    save_surrogates,
)
from drloss.studies.report.figures import NEUTRAL


@pytest.fixture(scope="module")
def drifts():
    return drift_gaussians(200_000)


def test_binned_weights_are_those_of_the_proposition_on_the_scores_themselves():
    scores = np.array([0.1, 0.4, 0.4, 0.4, 0.9])
    for positive, lam in ((True, POS_LAMBDA), (False, NEG_LAMBDA)):
        weights = derived(np.array([1.0, 3.0, 1.0]), np.array([0.1, 0.4, 0.9]), lam=lam, positive=positive)
        each = np.exp((-scores if positive else scores) / lam)
        each /= each.sum()
        np.testing.assert_allclose(weights, [each[0], each[1:4].sum(), each[4]], rtol=1e-12)


def test_all_densities_integrate_to_one(drifts):
    for panel in drifts.panels:
        assert panel.lambdas == [None, *LAMBDAS]
        for density in panel.densities:
            assert (density >= 0).all()
            assert np.sum(density * np.diff(drifts.edges)) == pytest.approx(1, abs=1e-9)


def test_a_smaller_lambda_moves_the_mean_further_and_a_larger_variance_too(drifts):
    narrow, wide = drifts.panels
    for panel in (narrow, wide):
        assert panel.means == sorted(panel.means)
    for small, large in zip(narrow.means[1:], wide.means[1:], strict=True):
        assert large - MEAN > small - MEAN > 0
    assert narrow.means[0] == pytest.approx(wide.means[0], abs=1e-3)


def test_a_gaussian_drifts_by_its_variance_over_lambda(drifts):
    for panel, std in zip(drifts.panels, STDS, strict=True):
        for lam, mean in zip(panel.lambdas[1:], panel.means[1:], strict=True):
            assert mean == pytest.approx(MEAN + std**2 / lam, abs=0.01 if std / lam > 1.5 else 0.001)


def test_the_points_are_reproducible_and_their_number_is_free():
    again = drift_gaussians(1000), drift_gaussians(1000)
    assert again[0].panels[0].means == again[1].panels[0].means
    assert drift_gaussians(1).panels[0].densities[0].max() > 0


def test_the_hinge_lies_below_its_smooth_variants_within_their_bounds():
    data = compare_surrogates()
    flat, *smooth = data.curves
    np.testing.assert_allclose(flat.values, np.maximum(data.z, 0))
    assert [c.parameter for c in smooth] == [*RHOS, *SMOOTHNESSES]
    for curve in smooth:
        gap = curve.values - flat.values
        bound = curve.parameter / 4 if curve.name == "quadratic" else log(2) / curve.parameter
        assert gap.min() >= -1e-15
        assert gap.max() == pytest.approx(bound)


@pytest.mark.parametrize("name", ["figure2", "figure3"])
def test_a_figure_is_written_as_pictures_and_data(name, tmp_path):
    paths = save_drifts(tmp_path, 1000) if name == "figure2" else save_surrogates(tmp_path)
    assert [p.name for p in paths] == [f"{name}.svg", f"{name}.png", f"{name}.json"]
    root = ElementTree.parse(paths[0]).getroot()
    assert root.tag.endswith("svg")
    assert root.get("color") == NEUTRAL
    with Image.open(paths[1]) as image:
        assert image.size[0] > 900
        assert image.getpixel((0, 0))[3] == 0
    data = json.loads(paths[2].read_text())
    assert {"figure2": "points", "figure3": "curves"}[name] in data
