import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.figures import (
    MANY,
    PANELS,
    Series,
    class_differences,
    class_precision_recall,
    classes_in_panels,
    expected_scores,
    precision_recall,
    reliability,
    running_mean,
    save_evaluation_figures,
    score_densities,
    threshold_curves,
    training_curves,
)
from drloss.evaluation.plotting import FONT, NEUTRAL, OTHER, PALETTE, WIDTH, colours, to_png, to_svg
from drloss.losses import LOSSES


def lines(figure):
    return {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}


def test_a_loss_has_one_colour_and_its_further_runs_paler_ones():
    first, other, second = colours(["dr", "focal", "dr"])
    assert (first, other) == (PALETTE["dr"].lower(), PALETTE["focal"].lower())
    assert len({first, other, second}) == 3
    assert colours(["focal", "dr"])[1] == first
    assert len({*colours(["dr", "focal", "ce", "another"])}) == 4


def test_the_parameters_of_a_loss_do_not_change_its_colour():
    assert colours(["dr:neg_lambda=0.05", "focal:gamma=1"]) == colours(["dr", "focal"])
    assert colours(["dr", "dr:neg_lambda=0.05"]) == colours(["dr", "dr"])


def test_every_loss_has_a_colour_of_its_own_that_is_seen_on_light_and_on_dark():
    assert set(PALETTE) == set(LOSSES)
    assert len({*PALETTE.values(), OTHER, NEUTRAL}) == len(LOSSES) + 2

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (*PALETTE.values(), OTHER, *colours(["dr", "dr", "dr", "ap", "ap"])):
        for ground in ("#ffffff", "#1b1f23"):
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) > 2.7, (colour, ground)


def test_variants_of_a_loss_differ_in_more_than_paleness(two_runs):
    run = two_runs[0]
    losses = ["dr", "focal", "dr:margin=0.3", "dr:margin=0.4"]
    points = np.array([0.1, 0.9])
    drawn = [
        threshold_curves([(loss, loss, run.sweep()) for loss in losses]),
        training_curves([Series(loss, loss, [1, 2], [1.0, 2.0]) for loss in losses], "loss"),
        reliability([(loss, loss, points, points) for loss in losses]),
        class_precision_recall([(loss, loss, run.evaluation) for loss in losses]),
    ]
    for figure in drawn:
        look = {name: line.get_linestyle() for name, line in lines(figure).items()}
        dashes = {name: lines(figure)[name]._unscaled_dash_pattern for name in losses}
        assert look["dr"] == look["focal"] == "-"
        assert len({str(dashes[name]) for name in losses if name.startswith("dr")}) == 3
    expected = lines(
        expected_scores(*([Series(loss, loss, [1, 2], [0.5, 0.6]) for loss in losses] for _ in range(2)))
    )
    markers = [expected[f"{loss} P̂₊"].get_marker() for loss in losses]
    assert markers[0] == markers[1] != markers[2] != markers[3]


def test_each_class_has_a_panel_with_its_name_and_of_many_those_at_either_end(contenders):
    evaluations = [c.runs[0].evaluation for c in contenders]
    shown = classes_in_panels(evaluations)
    mean = {name: np.mean([e.per_class[name]["AP50"] for e in evaluations]) for name in evaluations[0].per_class}
    ranked = sorted((v for v in mean.values() if not np.isnan(v)), reverse=True)
    assert [mean[name] for name in shown] == ranked[: PANELS // 2] + ranked[-PANELS // 2 :]
    figure = class_precision_recall([(c.title, c.spec, e) for c, e in zip(contenders, evaluations, strict=True)])
    assert len(figure.axes) == PANELS
    for name, axes in zip(shown, figure.axes, strict=True):
        assert axes.get_title(loc="left")[:6] == name[:6]
        for evaluation, line in zip(evaluations, axes.get_lines(), strict=True):
            assert 100 * line.get_ydata().mean() == pytest.approx(evaluation.per_class[name]["AP50"])


def test_few_values_stay_as_they_are_and_many_are_smoothed_without_a_shift():
    few = np.random.default_rng(0).random(MANY - 1)
    np.testing.assert_allclose(running_mean(few), few, rtol=1e-12)
    many = np.arange(200.0)
    np.testing.assert_allclose(running_mean(many)[4:-4], many[4:-4])
    assert running_mean(many)[0] == np.mean(many[:5])
    noise = np.random.default_rng(0).normal(size=1000)
    assert running_mean(noise).std() < 0.3 * noise.std()


def test_training_curves_leave_out_values_that_are_not_finite():
    figure = training_curves([Series("DR", "dr", [1, 2, 3], [1.0, float("nan"), 3.0])], "loss")
    assert lines(figure)["DR"].get_xydata().tolist() == [[1, 1], [3, 3]]


def test_expected_scores_have_a_colour_per_run_and_dashes_for_the_negatives():
    x, runs = [1, 2], (("DR", "dr"), ("Focal", "focal"))
    figure = expected_scores([Series(*r, x, [0.5, 0.6]) for r in runs], [Series(*r, x, [0.2, 0.1]) for r in runs])
    drawn = lines(figure)
    assert set(drawn) == {"DR P̂₊", "DR P̂₋", "Focal P̂₊", "Focal P̂₋"}
    assert drawn["DR P̂₊"].get_color() == drawn["DR P̂₋"].get_color() != drawn["Focal P̂₊"].get_color()
    assert (drawn["DR P̂₊"].get_linestyle(), drawn["DR P̂₋"].get_linestyle()) == ("-", "--")


def test_the_threshold_figure_shows_the_sweep(two_runs):
    run = two_runs[0]
    figure = threshold_curves([(run.title, run.spec, run.sweep())], "AP50")
    (line,) = lines(figure).values()
    assert line.get_xydata().tolist() == [[r["threshold"], r["AP50"]] for r in run.sweep()]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom == 0
    assert top > 1.05 * max(r["AP50"] for r in run.sweep()), "the markers are not cut"


def test_densities_mark_the_means(two_runs):
    histogram = two_runs[0].histogram
    figure = score_densities([("DR", "dr", histogram)])
    marked = [line.get_xdata()[0] for axes in figure.axes for line in axes.get_lines()]
    assert marked == [histogram.positive_mean, histogram.negative_mean]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]


def test_densities_of_nothing_are_drawn_empty():
    figure = score_densities([("DR", "dr", ScoreHistogram())])
    labels = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    assert labels == ["DR, none", "DR, none"]
    assert "<svg" in to_svg(figure, "empty", "nothing")


def test_the_mean_precision_over_recall_is_ap50(two_runs):
    run = two_runs[0]
    label = f"DR, mean: AP50 {run.evaluation.metrics['AP50']:.1f}"
    bold = lines(precision_recall("DR", "dr", run.evaluation))[label]
    assert 100 * bold.get_ydata().mean() == pytest.approx(run.evaluation.metrics["AP50"])


def test_long_names_leave_a_figure_its_width_and_its_height():
    sweep = [{"threshold": t, "AP": 30.0} for t in (0.1, 0.5)]
    plain, long = (
        threshold_curves([(name, "dr", sweep) for name in names])
        for names in (["a", "b"], ["DR (neg_lambda=0.05, margin=0.3, pos_lambda=2), mean 0.123"] * 3)
    )
    for figure in (plain, long):
        figure.draw_without_rendering()
    sizes = [f.axes[0].get_position().size * f.get_size_inches() for f in (plain, long)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert len(long.axes[0].get_legend().get_texts()) == 3


def test_classes_are_told_apart_by_either_end_of_their_names():
    names = [f"electrolytic capacitor number {n}" for n in range(12)] + ["short", "信" * 30]
    axes = class_differences(names, range(14), "#123456").axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[:2] == ["electrolytic…or number 0", "electrolytic…or number 1"]
    assert shown[12:] == ["short", "信信信信信信…信信信信信"]
    assert len({*shown}) == 14


def test_wide_letters_have_the_room_that_a_browser_gives_them():
    figure = class_differences(["信" * 12], [1.0], "#123456")
    assert figure.axes[0].get_position().x0 * WIDTH * 72 > 12 * FONT
    assert "信" * 12 in to_svg(figure, "wide", "x")


def test_of_many_classes_those_at_either_end_are_shown():
    axes = class_differences([f"{n}" for n in range(40)], [*range(39), float("nan")], "#123456").axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [f"{n}" for n in (*range(15), *range(24, 39))]


def test_svg_takes_the_colour_of_the_page_and_shares_no_id_with_another(two_runs):
    run = two_runs[0]
    svgs = [
        to_svg(precision_recall("a < b & c", "dr", run.evaluation), "one", 'says "so" & <more>'),
        to_svg(score_densities([("DR", "dr", run.histogram)]), "two", "densities"),
    ]
    ids = []
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.get("viewBox")
        assert root.get("width") is root.get("height") is None, "the page says how large"
        own = [element.get("id") for element in root.iter() if element.get("id")]
        used = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
        assert used
        assert set(used) <= set(own)
        ids += own
        assert NEUTRAL not in svg
        assert "currentColor" in svg
    assert len(ids) == len(set(ids))
    assert ElementTree.fromstring(svgs[0]).get("aria-label") == 'says "so" & <more>'


def test_the_same_figure_gives_the_same_svg(two_runs):
    run = two_runs[0]
    assert len({to_svg(precision_recall("DR", "dr", run.evaluation), "pr", "x") for _ in range(2)}) == 1


@pytest.mark.parametrize("name", [r"a $\frac$ b", "$5 and $6"])
def test_dollar_signs_in_names_are_no_formulas(name):
    svg = to_svg(threshold_curves([(name, "dr", [{"threshold": 0.1, "AP": 3.0}])]), "t", "x")
    assert name in "".join(ElementTree.fromstring(svg).itertext())


def test_png_has_no_ground(two_runs):
    image = Image.open(io.BytesIO(to_png(threshold_curves([("DR", "dr", two_runs[0].sweep())]))))
    assert image.mode == "RGBA"
    assert image.getpixel((2, 2))[3] == 0
    assert image.width >= 1000


def test_an_evaluated_run_leaves_its_figures_as_files(two_runs, tmp_path):
    run = two_runs[1]
    without = save_evaluation_figures(tmp_path / "a", run.evaluation, run.sweep(), loss="focal")
    assert {p.name for p in without} == {"precision_recall.png", "thresholds.png"}
    written = save_evaluation_figures(tmp_path / "b", run.evaluation, run.sweep(), run.histogram, loss="focal")
    assert {p.name for p in written} == {"precision_recall.png", "thresholds.png", "densities.png"}
    assert {p.name for p in (tmp_path / "b").iterdir()} == {p.name for p in written}
    for path in written:
        Image.open(path).verify()
