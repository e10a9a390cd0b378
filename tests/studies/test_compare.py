import json
import re

import numpy as np
import pytest

from drloss.cli import main
from drloss.errors import UserError
from drloss.evaluation.matching import average_precision
from drloss.studies.differences import (
    Contender,
    Difference,
    configurations,
    difference,
    disagreements,
    recommended_threshold,
    slug,
    title,
    verdict,
)

TINY = ["--max-iters", "3", "--short-side", "64", "--max-side", "64", "--batch-size", "4", "--micro-batch", "4"]
TINY += ["--workers", "0"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory, warm):
    """A comparison of two losses with two seeds, and when each run's weights were written."""
    out = tmp_path_factory.mktemp("compare")
    arguments = ["compare", "--data", "shapes:size=64,train=8,val=6", "--out", str(out), "--seeds", "0", "1", *TINY]
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
    ],
)
def test_bad_options_are_refused(losses, seeds, words):
    with pytest.raises(UserError, match=words):
        configurations(losses, seeds, "cpu", {})


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
    assert found.told
    assert found.certain
    assert found.low > 0
    assert found.low < found.mean < found.high
    assert verdict(found, 60).startswith(f"DR is ahead of Focal by {found.mean:.1f} ± ")
    back = difference(bad, good, resamples=200)
    assert back.mean == pytest.approx(-found.mean)
    assert verdict(back, 60) == verdict(found, 60)
    same = difference(good, good, resamples=50)
    assert not same.told
    assert same.mean == same.low == same.high == 0
    assert "No difference" in verdict(same, 60)


def test_one_seed_tells_nothing_for_sure():
    found = Difference("dr", "focal", np.array([5.0]), 3.0, 7.0, float("nan"))
    assert not found.told
    assert "One seed does not say" in verdict(found, 10)
    scattered = Difference("dr", "focal", np.array([2.1, 0.7, 2.2]), 0.6, 2.7, 2.0)
    assert scattered.told
    assert not scattered.certain
    assert "DR is probably ahead of Focal, by 1.7 ± 2.0 AP over 3 seeds" in verdict(scattered, 10)
    opposed = Difference("dr", "focal", np.array([5.0, -1.0]), 0.5, 4.0, 30.0)
    assert "No difference" in verdict(opposed, 10)
    lost = Difference("ap", "ce", np.array([-5.0]), -7.0, -3.0, float("nan"))
    assert verdict(lost, 10).startswith("Cross-entropy is ahead of AP-loss by 5.0 AP with one seed (95 % interval")
    assert "+3.0 to +7.0" in verdict(lost, 10)


def test_students_interval_of_a_hand_computed_case():
    runs = [Run(np.ones(4, dtype=bool))] * 3
    ahead, behind = Contender("dr", runs), Contender("focal", [Run(np.zeros(4, dtype=bool))] * 3)
    found = difference(ahead, behind, resamples=5)
    assert found.mean == 100
    assert found.margin == 0
    assert found.per_seed.tolist() == [100, 100, 100]


def test_the_recommended_threshold_is_the_highest_that_costs_little():
    assert recommended_threshold(Contender("dr", [Run(np.ones(2, dtype=bool))])) == 0.1


def test_images_are_ranked_by_how_differently_two_runs_do():
    first, second = Run(np.array([True, True, False])), Run(np.array([True, False, False]))
    assert disagreements(first.matches, second.matches, 0.0, 0.0)[0] == 1


def test_names():
    assert title("dr:neg_lambda=0.05,margin=0.3") == "DR (neg_lambda=0.05, margin=0.3)"
    assert slug("dr:neg_lambda=0.05,margin=0.3", 2) == "dr_neg_lambda=0.05_margin=0.3-seed2"
