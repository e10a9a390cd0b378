"""The page of a finished run, and the last words of ``drloss train``."""

import re
import shutil

import pytest
import torch

from drloss.cli import main
from drloss.data.formats.shapes import open_shapes
from drloss.errors import UserError
from drloss.studies.report.run_page import last_evaluation, write_run_page
from drloss.training.log import read_scalars
from drloss.training.run_folder import PAGE
from small_training import QUICK

DATA = "shapes:train=12,val=6,size=64"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of four steps, in a folder whose name a shell would split."""
    out = tmp_path_factory.mktemp("runs") / "a <run>"
    train = ["train", "--data", DATA, "--preset", "cpu", "--short-side", "64", "--eval-every", "2", *QUICK]
    assert main([*train, "--out", str(out)]) == 0
    return out, train


def test_the_page_has_the_aps_the_curves_and_pictures(trained):
    out, _ = trained
    page = (out / PAGE).read_text(encoding="utf-8")
    assert "a &lt;run&gt;: dr with resnet10" in page
    rows = re.findall(r"<tr><th>(\d+)</th>((?:<td>[^<]*</td>)+)</tr>", page)
    assert [int(step) for step, _ in rows] == [2, 4]
    assert all(cells.count("<td>") == 6 for _, cells in rows)
    assert page.count("<svg") == 5  # three losses, the expected scores, AP50
    assert "P̂₊ of the objects" in page
    threshold = read_scalars(out / "evaluations.csv")["threshold"][1][-1]
    assert f"Threshold {threshold:.3g}:" in page
    assert page.count("data:image/webp") == 1
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)
    assert rows[0][1].endswith("<td>–</td><td>–</td>")  # there are no such large objects
    assert {"AP", "AP50"} <= set(last_evaluation(out))


def test_a_run_without_a_validation_split_has_a_page_too(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    (run / "evaluations.csv").unlink()
    page = write_run_page(run, None, torch.device("cpu")).read_text(encoding="utf-8")
    assert "<h1>run</h1>" in page
    assert "webp" not in page
    val = open_shapes(DATA).read("val")[0]
    assert "webp" in write_run_page(run, val, torch.device("cpu")).read_text(encoding="utf-8")


def test_the_end_of_a_training_says_what_to_do_next(trained, tmp_path, capsys):
    _, train = trained
    out = tmp_path / "a run"
    assert main([*train, "--out", str(out)]) == 0
    *_, reached, weights, page, predict, evaluate = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"AP [\d.]+, AP50 [\d.]+ on {DATA} val", reached)
    assert weights.split(maxsplit=1) == ["weights", str(out / "model.safetensors")]
    assert page.split(maxsplit=1) == ["page", str(out / PAGE)]
    assert predict.split(maxsplit=1)[1] == f"drloss predict '{out}' IMAGE_OR_FOLDER --out predictions"
    assert evaluate.split(maxsplit=1)[1] == f"drloss eval '{out}' --data {DATA} --split val"
    before = (out / PAGE).stat().st_mtime_ns
    assert main([*train, "--out", str(out), "--resume"]) == 0
    said = capsys.readouterr().out
    assert "has ended already" in said
    assert "drloss predict" in said
    assert (out / PAGE).stat().st_mtime_ns == before


@pytest.mark.slow
def test_each_line_of_the_log_has_the_speed_and_the_time_left(trained, tmp_path, capsys):
    _, train = trained
    assert main([*train, "--out", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\d/4 loss", line)]
    assert len(lines) == 4
    assert all(re.search(r", [\d.e+]+ images/s, \d:\d\d:\d\d left$", line) for line in lines)
    assert lines[-1].endswith("0:00:00 left")


def test_a_page_of_another_is_not_overwritten_and_a_page_that_cannot_be_written_costs_no_run(
    trained, tmp_path, capsys, monkeypatch
):
    _, train = trained
    (tmp_path / "report.html").write_text("mine")
    assert main([*train, "--out", str(tmp_path)]) == 2
    assert "report.html is there, which a run would write" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "mine"

    def full(*args):
        raise UserError("report.html: cannot be written: no space left")

    monkeypatch.setattr("drloss.studies.report.run_page.write_run_page", full)
    assert main([*train, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "warning: report.html: cannot be written" in said
    assert "  page" not in said
    assert (tmp_path / "run" / "model.safetensors").is_file()
