"""A comparison of runs with an average of their weights and a patience: the same for every loss, and said."""

import json
import re
from dataclasses import replace

import pytest

from drloss.cli import main
from drloss.detector.exported import read_description
from drloss.studies.compare.differences import Contender
from drloss.training.log import read_scalars
from drloss.training.run_folder import METRICS_FILE, MODEL


def test_runs_of_other_lengths_are_averaged_where_all_have_logged(two_runs):
    run = two_runs[0].runs[0]
    curves = {"loss": ([1, 2, 3], [5.0, 3.0, 1.0]), "AP": ([2], [10.0])}
    short = replace(run, curves={"loss": ([1, 2], [4.0, 2.0]), "AP": ([3], [10.0])}, iterations=2, seconds=20.0)
    both = Contender("dr", [replace(run, curves=curves, iterations=3, seconds=60.0), short])
    assert both.curves == {"loss": ([1, 2], [4.5, 2.5])}
    assert both.lengths == [2, 3]
    assert both.iterations == 2.5
    assert both.seconds_per_iteration == pytest.approx((20 + 10) / 2)


@pytest.mark.slow
def test_every_loss_has_the_same_average_and_patience_and_its_own_length(tmp_path, warm):
    arguments = ["compare", "--data", "shapes:size=64,train=8,val=6", "--out", str(tmp_path), "--seeds", "0", "1"]
    arguments += ["--losses", "focal", "dr", "--max-iters", "8", "--short-side", "64", "--max-side", "64"]
    arguments += ["--batch-size", "4", "--workers", "0", "--device", "cpu", "--log-every", "1"]
    arguments += ["--ema", "0.9", "--patience", "1", "--eval-every", "1"]
    assert main(arguments) == 0
    lengths = {}
    for folder in (path for path in (tmp_path / "runs").iterdir() if path.is_dir()):
        config = json.loads((folder / "config.json").read_text())
        assert (config["ema"], config["patience"]) == (0.9, 1)
        lengths[folder.name] = read_description(folder / MODEL).iteration
        assert read_scalars(folder / METRICS_FILE)["loss"][0][-1] == lengths[folder.name]
    page = (tmp_path / "report.html").read_text()
    for loss in ("focal", "dr"):
        own = sorted({n for name, n in lengths.items() if name.startswith(f"{loss}-")})
        assert (f"{own[-1]} iterations each" if len(own) == 1 else f"{own[0]} to {own[-1]} iterations") in page
    assert min(lengths.values()) < 8
    assert re.search(r"average of the weights</t[hd]>\s*<td>decay 0\.9", page)
    assert "1 evaluation, one every 1 iteration" in page
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.safetensors")}
    assert main(arguments) == 0  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in before} == before
