import json
import re
import shutil
from dataclasses import replace
from math import isnan, nan, sqrt

import numpy as np
import pytest

from drloss.cli import main
from drloss.data.formats.opening import open_data
from drloss.errors import UserError
from drloss.evaluation import drawing
from drloss.evaluation.coco import signed
from drloss.evaluation.matching import average_precision
from drloss.evaluation.thresholds import counted
from drloss.studies.compare import differences, measure
from drloss.studies.compare import page as compare_page
from drloss.studies.compare.differences import (
    Contender,
    Difference,
    conclusion,
    configurations,
    difference,
    disagreements,
    recommended_threshold,
    slug,
    students_t,
    title,
)
from drloss.studies.report.gallery import gallery
from drloss.training.config import override
from drloss.training.presets import PRESETS

TINY = ["--max-iters", "3", "--short-side", "64", "--max-side", "64", "--batch-size", "4", "--micro-batch", "4"]
TINY += ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory, warm):
    """A comparison of two losses with two seeds, and when each run's weights were written."""
    out = tmp_path_factory.mktemp("compare")
    arguments = ["compare", "--data", "shapes:size=64,train=8,val=6", "--out", str(out), "--seeds", "0", "1"]
    arguments += ["--losses", "focal", "dr", *TINY]
    assert main(arguments) == 0
    return out, arguments


def test_every_loss_is_trained_with_every_seed_and_the_page_answers(compared):
    out, _ = compared
    assert sorted(p.name for p in (out / "runs").iterdir() if p.is_dir()) == [
        "dr-seed0",
        "dr-seed1",
        "focal-seed0",
        "focal-seed1",
    ]
    page = (out / "report.html").read_text()
    told = json.loads((out / "report.json").read_text())
    assert told["verdicts"][0] in page.replace("&nbsp;", " ")
    assert told["verdicts"][0] in (out / "report.md").read_text()
    assert len(told["runs"]) == 4
    for name in ("seeds", "ap", "classes", "thresholds", "deployment", "calibration", "densities", "cost"):
        assert f'<section id="{name}">' in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_the_same_command_again_repeats_nothing(compared):
    out, arguments = compared
    watched = [*out.glob("runs/*/model.safetensors"), *out.glob("runs/*/measured.json")]
    (out / "runs" / "focal-seed1" / "model.safetensors").unlink()
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/measured.json")}
    curves = {p: p.read_text() for p in out.glob("runs/*/metrics.csv")}
    report = (out / "report.json").read_text()
    assert main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/measured.json")} == before
    assert {p: p.read_text() for p in out.glob("runs/*/metrics.csv")} == curves
    assert all(p.exists() for p in watched)
    again = json.loads((out / "report.json").read_text())
    assert again["runs"] == json.loads(report)["runs"]


@pytest.mark.slow
def test_what_was_deleted_or_cut_off_is_made_anew_or_left_out_and_nothing_trained(compared, tmp_path):
    out, arguments = compared
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    runs = copy / "runs"
    (runs / "dr-seed0" / "measured.json").write_text("[]")
    (runs / "dr-seed1" / "measured.json").write_text('{"key": "2 ')
    shutil.rmtree(runs / "focal-seed0" / "checkpoints")
    for name in ("metrics.csv", "evaluations.csv"):
        (runs / "focal-seed1" / name).unlink()
    for log in runs.glob("*.log"):
        log.unlink()
    assert main([str(copy) if a == str(out) else a for a in arguments]) == 0
    assert not list(runs.glob("*.log"))
    kept, before = (json.loads((folder / "report.json").read_text())["runs"] for folder in (copy, out))
    assert [run["evaluation"] for run in kept] == [run["evaluation"] for run in before]
    assert [run["progress"] for run in kept if run["folder"] == "focal-seed1"] == [{}]
    page = (copy / "report.html").read_text()
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower()


def test_a_run_of_other_data_or_settings_is_not_taken_for_finished(compared):
    out, _ = compared
    source = open_data("shapes:size=64,train=8,val=6")
    train, val = (source.read(split)[0] for split in ("train", "val"))
    given = {"max_iters": 3, "short_side": 64, "max_side": 64, "batch_size": 4, "micro_batch": 4, "workers": 0}
    config = configurations(["dr"], [0], override(PRESETS["cpu"], given))["dr", 0]
    folder = out / "runs" / "dr-seed0"
    assert measure.is_finished(folder, config, train, val)
    assert not measure.is_finished(folder, replace(config, lr=1.0), train, val)
    assert not measure.is_finished(folder, config, val, val)
    assert not measure.is_finished(folder, config, train, train)
    assert not measure.is_finished(out / "runs" / "nowhere", config, train, val)


def test_a_split_without_objects_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    empty = open_data("shapes:size=64,train=2,val=2")
    real = type(empty).read

    def read(self, split, *, strict=True):
        found, report = real(self, split, strict=strict)
        return replace(found, ignore=np.ones_like(found.ignore)), report

    monkeypatch.setattr(type(empty), "read", read)
    arguments = ["compare", "--data", "shapes:size=64,train=2,val=2", "--out", str(tmp_path / "out"), *TINY]
    assert main(arguments) == 2
    assert "split val has no objects to compare on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["compare", "demo"])
@pytest.mark.parametrize(("split", "words"), [("train", "train: no box in its 2 images"), ("val", "val")])
def test_one_split_without_objects_is_enough_to_refuse(tmp_path, monkeypatch, capsys, command, split, words):
    kind = type(open_data("shapes:size=64,train=2,val=2"))
    real = kind.read

    def read(self, name, *, strict=True):
        found, report = real(self, name, strict=strict)
        return (replace(found, ignore=np.ones_like(found.ignore)) if name == split else found), report

    monkeypatch.setattr(kind, "read", read)
    assert main([command, "--data", "shapes:size=64,train=2,val=2", "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_of_one_seed_start_alike(compared):
    out, _ = compared
    told = json.loads((out / "report.json").read_text())
    assert {run["seed"] for run in told["runs"]} == {0, 1}
    configs = [json.loads((out / "runs" / slug(loss, 0) / "config.json").read_text()) for loss in ("focal", "dr")]
    assert configs[0].pop("loss") != configs[1].pop("loss")
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("losses", "seeds", "words"),
    [
        (["dr", "dr"], [0], "--losses: dr is given twice"),
        (["dr"], [1, 1], "--seeds: 1 is given twice"),
        (["dr", "best"], [0], "loss must be one of"),
        (["dr:neg_lambda=-1"], [0], "neg_lambda"),
        ([], [0], "at least one"),
        (["dr", "dr:"], [0], "--losses: dr and dr: are the same loss"),
        (["dr:neg_lambda=0.05,margin=0.3", "dr:margin=0.3,neg_lambda=0.05"], [0], "are the same loss"),
        (["dr:margin=0.3,margin=0.4"], [0], "margin is given twice"),
        (["dr:inplace=True"], [0], "inplace cannot be set"),
    ],
)
def test_bad_options_are_refused(losses, seeds, words):
    with pytest.raises(UserError, match=words):
        configurations(losses, seeds, PRESETS["cpu"])


def test_a_loss_may_have_a_learning_rate_of_its_own():
    losses = ["focal", "focal:lr=0.0005", "dr:neg_lambda=0.1,lr=0.004", "dr:neg_lambda=0.1"]
    found = configurations(losses, [3], PRESETS["cpu"])
    rates = [found[spec, 3].lr for spec in losses]
    assert rates == [PRESETS["cpu"].lr, 0.0005, 0.004, PRESETS["cpu"].lr]
    assert [found[spec, 3].loss for spec in losses] == ["focal", "focal", *["dr:neg_lambda=0.1"] * 2]
    assert len({slug(spec, 3) for spec in losses}) == 4
    said = compare_page.fairness(losses)
    assert "schedule and number of iterations" in said
    assert "a learning rate of its own where one is named. Focal is summed" in said
    assert "schedule, learning rate and number" in compare_page.fairness(["focal", "dr:scope=per_class"])
    with pytest.raises(UserError, match="lr must be of type float, got 'fast'"):
        configurations(["dr:lr=fast"], [0], PRESETS["cpu"])
    with pytest.raises(UserError, match="lr must be positive"):
        configurations(["dr:lr=0"], [0], PRESETS["cpu"])
    with pytest.raises(UserError, match="are the same loss"):
        configurations(["dr", f"dr:lr={PRESETS['cpu'].lr}"], [0], PRESETS["cpu"])


class Run:
    """As much of a run as a difference looks at: one detection for each of N objects, right or wrong."""

    def __init__(self, right):
        n = len(right)
        self.matches = type("M", (), {})()
        self.matches.images = n
        self.matches.image = np.arange(n)
        self.matches.label = np.ones(n, dtype=np.int64)
        self.matches.score = np.linspace(0.9, 0.5, n)
        self.matches.found = np.tile(np.array(right), (10, 1))
        self.matches.counted = np.ones((10, n), dtype=bool)
        self.matches.objects = np.ones((n, 1), dtype=np.int64)
        self.evaluation = type("E", (), {"metrics": {"AP": average_precision(self.matches)}})()
        self.sweep = [{"threshold": t, "AP": ap} for t, ap in ((0.05, 30.0), (0.1, 29.9), (0.2, 29.0))]


def test_a_clear_difference_is_told_and_none_is_not():
    rng = np.random.default_rng(0)
    good = Contender("dr", [Run(rng.random(60) < 0.9) for _ in range(3)])
    bad = Contender("focal", [Run(rng.random(60) < 0.4) for _ in range(3)])
    found = difference(good, bad, resamples=200)
    assert found.conclusive
    assert found.certain
    assert found.low > 0
    assert found.low < found.mean < found.high
    assert conclusion(found, 60).startswith(f"DR is ahead of Focal by {found.mean:.1f} ± ")
    back = difference(bad, good, resamples=200)
    assert back.mean == pytest.approx(-found.mean)
    assert conclusion(back, 60) == conclusion(found, 60)
    same = difference(good, good, resamples=50)
    assert not same.conclusive
    assert same.mean == same.low == same.high == 0
    assert "No difference" in conclusion(same, 60)


def test_one_seed_tells_nothing_for_sure():
    found = Difference("dr", "focal", np.array([5.0]), 3.0, 7.0, float("nan"))
    assert not found.conclusive
    assert "One seed does not say" in conclusion(found, 10)
    scattered = Difference("dr", "focal", np.array([2.1, 0.7, 2.2]), 0.6, 2.7, 2.0)
    assert scattered.conclusive
    assert not scattered.certain
    assert "DR is probably ahead of Focal by 1.7 ± 2.0 AP over 3 seeds" in conclusion(scattered, 10)
    opposed = Difference("dr", "focal", np.array([5.0, -1.0]), 0.5, 4.0, 30.0)
    assert "No difference" in conclusion(opposed, 10)
    lost = Difference("ap", "ce", np.array([-5.0]), -7.0, -3.0, float("nan"))
    assert conclusion(lost, 10).startswith("Cross-entropy is ahead of AP-loss by 5.0 AP with one seed (95 % interval")
    assert "+3.0 to +7.0" in conclusion(lost, 10)


def contender(spec, *values):
    """Runs of these AP on two images that say nothing."""
    runs = [Run(np.ones(2, dtype=bool)) for _ in values]
    for run, value in zip(runs, values, strict=True):
        run.evaluation.metrics["AP"] = value
    return Contender(spec, runs)


def test_students_interval_of_hand_computed_cases():
    found = difference(contender("dr", 31.0, 33.0, 32.0), contender("focal", 30.0, 30.0, 30.0), resamples=2)
    assert found.per_seed.tolist() == [1, 3, 2]  # mean 2, standard deviation 1
    assert found.margin == pytest.approx(4.303 / sqrt(3))
    two = difference(contender("dr", 1.0, 3.0), contender("focal", 0.0, 0.0), resamples=2)
    assert two.margin == pytest.approx(12.706)  # standard deviation √2, over √2
    twelve = difference(contender("dr", *[1.0, 3.0] * 6), contender("focal", *[0.0] * 12), resamples=2)
    assert twelve.margin == pytest.approx(2.201 * sqrt(12 / 11) / sqrt(12))


def test_quantiles_of_students_t():
    for freedom, quantile in ((1, 12.706), (9, 2.262), (10, 2.228), (30, 2.042), (40, 2.021), (120, 1.980)):
        assert students_t(freedom) == pytest.approx(quantile, abs=0.003)


def test_the_interval_over_images_is_that_of_a_known_distribution(monkeypatch):
    """Where an image adds its own value, a resampled mean is normal: mean ± 1.96 standard deviations / √images."""
    values = np.random.default_rng(1).normal(5, 10, 400)
    monkeypatch.setattr(differences, "_mean_ap", lambda runs, weights: float(runs[0].value @ weights) / weights.sum())
    ahead, behind = contender("dr", 5.0), contender("focal", 0.0)
    for side, value in ((ahead, values), (behind, np.zeros(400))):
        side.runs[0].value = value
        side.runs[0].matches.images = 400
    found = difference(ahead, behind, resamples=4000)
    half = 1.96 * values.std() / sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08 * half)


def made(per_seed, low, high):
    per_seed = np.array(per_seed, dtype=float)
    n = len(per_seed)
    margin = students_t(n - 1) * per_seed.std(ddof=1) / sqrt(n) if n > 1 else nan
    return Difference("dr", "focal", per_seed, low, high, float(margin))


def test_of_many_seeds_one_may_disagree_and_of_few_none():
    most = made([2.0] * 9 + [-0.1, 2.1], 0.5, 3.0)
    assert most.conclusive
    assert most.certain
    assert conclusion(most, 50).endswith("; 10 of 11 seeds agree.")
    scattered = made([0.1, 9.0, 0.1, 0.1, 0.1], 0.5, 3.0)  # more than four: their agreement is not enough
    assert scattered.margin > scattered.mean
    assert not scattered.conclusive
    assert not scattered.certain
    assert conclusion(scattered, 50).startswith("No difference")
    assert made([0.1, 9.0, 0.1, 0.1], 0.5, 3.0).conclusive
    assert not made([2.0, 2.1, 1.9], -0.1, 4.0).conclusive
    assert not made([2.0, 2.1, 1.9], -4.0, -1.0).conclusive, "the images say the opposite"


def test_one_seed_whose_interval_holds_0_tells_nothing():
    said = conclusion(made([0.02], -1.0, 1.1), 10)
    assert said == (
        "No difference between DR and Focal can be told at this size: 0.0 AP with one seed "
        "(95 % interval over the 10 images: −1.0 to +1.1)."
    )
    assert "ahead of Focal by less than 0.05 AP" in conclusion(made([0.02], 0.01, 0.04), 10)


def test_one_image_has_no_interval():
    found = difference(contender("dr", 3.0, 3.1), contender("focal", 1.0, 1.0))
    assert not isnan(found.low)
    for side in (one := [contender("dr", 3.0, 3.1), contender("focal", 1.0, 1.0)]):
        for run in side.runs:
            run.matches.images = 1
    found = difference(*one)
    assert isnan(found.low)
    assert not found.conclusive
    assert "No difference" in conclusion(found, 1)
    assert "one image has no interval" in conclusion(found, 1)
    assert compare_page.interval(found) == "–"


def test_a_difference_of_nothing_has_no_sign():
    assert [signed(v) for v in (-0.04, 0.0, 0.04, -0.06, 0.06, nan)] == ["0.0", "0.0", "0.0", "−0.1", "+0.1", "–"]


@pytest.mark.parametrize(
    ("swept", "threshold"),
    [
        ([30.0, 29.9, 29.0], 0.1),
        ([30.0, 29.81, 29.79], 0.1),
        ([1.0, 0.985, 0.975], 0.1),
        ([0.1, 0.1, 0.0], 0.1),
        ([0.0, 0.0, 0.0], None),
        ([nan, nan, nan], None),
    ],
)
def test_the_recommended_threshold_is_the_highest_that_costs_little(swept, threshold):
    run = Run(np.ones(2, dtype=bool))
    run.sweep = [{"threshold": t, "AP": ap} for t, ap in zip((0.05, 0.1, 0.2), swept, strict=True)]
    assert recommended_threshold(Contender("dr", [run])) == threshold


def test_what_a_loss_is_divided_by_is_said_of_those_that_are_compared():
    said = compare_page.fairness(["dr", "ap"])
    assert "Focal" not in said
    assert "DR ranks the candidates of each image and is divided by nothing." in said
    assert "AP-loss is itself a mean over the positives of all images that a device takes at a time." in said
    said = compare_page.fairness(["focal", "ce:normalizer=none,scope=per_image", "qfl:scope=per_image"])
    assert (
        "Focal is summed over the candidates of all images that a device takes at a time and divided by their" in said
    )
    assert "scope=per_image) is summed over the candidates of each image and divided by nothing." in said
    assert "(scope=per_image) is summed over the candidates of each image and divided by their positives." in said


def test_ignored_boxes_are_no_objects_and_are_drawn_as_such(hard_data, contenders, monkeypatch):
    ignore = np.zeros(len(hard_data.boxes), dtype=bool)
    ignore[0] = True
    data = replace(hard_data, ignore=ignore)
    assert counted(data) == len(data.boxes) - 1
    drawn = []
    real = drawing.draw_detections

    def note(image, detection, names, **options):
        drawn.append([names[label - 1] for label in detection["labels"].tolist()])
        return real(image, detection, names, **options)

    monkeypatch.setattr(drawing, "draw_detections", note)
    gallery(data, [contenders[0].runs[0].detections], [0])
    assert drawn[0][0] == f"{data.class_names[data.labels[0] - 1]}, ignored"
    assert not any(name.endswith(", ignored") for name in drawn[0][1:])


def test_images_are_ranked_by_how_differently_two_runs_do():
    first, second = Run(np.array([True, True, False])), Run(np.array([True, False, False]))
    assert disagreements(first.matches, second.matches, 0.0, 0.0)[0] == 1


def test_names():
    assert title("dr:neg_lambda=0.05,margin=0.3") == "DR (neg_lambda=0.05, margin=0.3)"
    assert slug("dr:neg_lambda=0.05,margin=0.3", 2) == "dr_neg_lambda=0.05_margin=0.3-seed2"
    assert slug("dr+:neg_lambda=1e+1", 0) == "dr+_neg_lambda=1e_1-seed0"


def test_a_parameter_is_kept_as_it_was_written():
    # Or the runs of an earlier comparison would be those of another loss.
    assert (
        configurations(["dr:neg_lambda=5e-2"], [0], PRESETS["cpu"])["dr:neg_lambda=5e-2", 0].loss
        == "dr:neg_lambda=5e-2"
    )
