"""The threshold that an evaluation chooses: printed, on the page, in the exported file, and used by what runs it."""

import json
import re
import shutil

import pytest
from PIL import Image

from drloss import Detector
from drloss.cli import main
from drloss.data.formats.opening import open_data
from drloss.detector.exported import load_detector
from drloss.training.exporting import evaluated_after
from drloss.training.log import ScalarLog, read_scalars
from random_detector import random_detector


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Generated images of the classes of ``random_detector``."""
    folder = tmp_path_factory.mktemp("choice") / "data"
    assert main(["make-shapes", str(folder), "--data", "shapes:train=2,val=6,test=2,size=64"]) == 0
    return folder


@pytest.fixture
def file(tmp_path):
    """A detector of random weights; some of its many detections overlap an object."""
    path = tmp_path / "detector.safetensors"
    random_detector(path)
    return path


def evaluated(file, data, out, *options):
    """What an evaluation chose: for all classes, and for each."""
    assert main(["eval", str(file), "--data", str(data), "--workers", "0", "--out", str(out), *options]) == 0
    return json.loads((out / "metrics.json").read_text())["best_f1"]


def test_eval_writes_the_best_threshold_into_a_file_that_has_none(file, data, tmp_path, capsys):
    weights = load_detector(file)[0].state_dict()
    best = evaluated(file, data, tmp_path / "out")
    model, about = load_detector(file)
    assert about.threshold == best["all"]["threshold"]
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    assert Detector.load(file).threshold == about.threshold
    assert f"threshold {about.threshold:.3f} is written into" in " ".join(capsys.readouterr().out.split())
    assert set(best["per_class"]) == set(about.class_names)
    assert best["all"]["right"] + best["all"]["missed"] == (~open_data(str(data)).read("val")[0].ignore).sum()


def test_a_file_that_has_a_threshold_keeps_it_unless_told(tmp_path, data, capsys):
    file = tmp_path / "detector.safetensors"
    random_detector(file, threshold=0.123)
    before = file.read_bytes()
    best = evaluated(file, data, tmp_path / "out")
    assert "keeps its threshold 0.123" in " ".join(capsys.readouterr().out.split())
    assert file.read_bytes() == before
    evaluated(file, data, tmp_path / "out", "--no-keep-threshold")
    assert file.read_bytes() == before
    evaluated(file, data, tmp_path / "out", "--keep-threshold")
    assert load_detector(file)[1].threshold == best["all"]["threshold"]


def test_a_threshold_of_another_test_is_not_kept(file, data, tmp_path, capsys):
    before = file.read_bytes()
    evaluated(file, data, tmp_path / "out", "--score-threshold", "0.4")
    assert file.read_bytes() == before
    command = ["eval", str(file), "--data", str(data), "--out", str(tmp_path / "other"), "--keep-threshold"]
    assert main([*command, "--score-threshold", "0.4"]) == 2
    assert "--score-threshold" in capsys.readouterr().err
    assert main([*command, "--test-scales", "64"]) == 2
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_costs_the_threshold_and_not_the_evaluation(
    file, data, tmp_path, capsys, monkeypatch
):
    from drloss.errors import UserError
    from drloss.inference import evaluate

    def full(*args):
        raise UserError("no space left")

    monkeypatch.setattr(evaluate, "save_detector", full)
    assert evaluated(file, data, tmp_path / "out")["all"]
    assert "no space left" in " ".join(capsys.readouterr().out.split())
    command = ["eval", str(file), "--data", str(data), "--workers", "0", "--out", str(tmp_path / "b")]
    assert main([*command, "--keep-threshold"]) == 2


def test_the_page_has_the_thresholds_the_matrix_and_the_mistakes(file, data, tmp_path):
    best = evaluated(file, data, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{best['all']['threshold']:.3f}" in page
    for heading in ("the threshold", "What is taken for what", "Mistakes"):
        assert heading in page
    assert page.count("<svg") == 2
    assert page.count("data:image/webp") >= 5
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)


@pytest.mark.slow
def test_a_training_writes_the_threshold_of_its_last_evaluation(tmp_path, data):
    train = ["train", "--data", str(data), "--preset", "cpu", "--short-side", "64", "--seed", "1", "--device", "cpu"]
    small = ["--max-iters", "30", "--batch-size", "4", "--micro-batch", "4", "--lr", "0.005", "--workers", "0"]
    out = tmp_path / "run"
    assert main([*train, *small, "--out", str(out)]) == 0
    _, thresholds = read_scalars(out / "evaluations.csv")["threshold"]
    assert load_detector(out / "model.safetensors")[1].threshold == thresholds[-1]
    last = evaluated(out, data, tmp_path / "eval", "--eval-batch-size", "16")
    assert thresholds[-1] == pytest.approx(last["all"]["threshold"], abs=1e-5)
    # A run that ends again, from its last checkpoint, exports the same bytes.
    again = tmp_path / "again"
    shutil.copytree(out, again)
    (again / "model.safetensors").unlink()
    assert main([*train, *small, "--out", str(again), "--resume"]) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_evaluations_that_an_earlier_drloss_began_keep_their_columns(tmp_path):
    (tmp_path / "evaluations.csv").write_text("iteration,AP\n10,5\n")
    log = ScalarLog(tmp_path, 10)
    log.write("evaluations.csv", 20, {"AP": 6.0, "threshold": 0.5})
    log.close()
    log = ScalarLog(tmp_path, 20)
    log.close()
    assert read_scalars(tmp_path / "evaluations.csv") == {"AP": ([10, 20], [5, 6])}


def test_predict_starts_from_the_threshold_of_the_file(tmp_path, capsys):
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "a.png")
    file = tmp_path / "detector.safetensors"
    for threshold, words in ((0.31, "0.31"), (None, "0.5")):
        random_detector(file, threshold=threshold)
        out = tmp_path / f"out-{threshold}"
        assert main(["predict", str(file), str(tmp_path / "a.png"), "--out", str(out), "--device", "cpu"]) == 0
        assert f"of score {words} or more" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("10,5,0.4\n20,6,0.3\n", {"AP": 6, "threshold": 0.3}),
        ("10,5,0.4\n20,0,\n", {"AP": 0}),
        ("10,5,0.4\n", {}),
        ("20,,\n", {}),
        ("", {}),
    ],
)
def test_what_is_said_of_a_detector_is_of_the_evaluation_after_its_iteration(tmp_path, rows, wanted):
    (tmp_path / "evaluations.csv").write_text("iteration,AP,threshold\n" + rows)
    assert evaluated_after(tmp_path, 20) == wanted


def test_a_file_that_has_become_another_detector_meanwhile_is_left_alone(file, data, tmp_path, capsys, monkeypatch):
    from drloss.inference import evaluate

    def exchanged(*args):
        random_detector(file, seed=1, threshold=0.7)
        return write_results(*args)

    write_results = evaluate.write_results
    monkeypatch.setattr(evaluate, "write_results", exchanged)
    evaluated(file, data, tmp_path / "out")
    assert "is another detector by now" in " ".join(capsys.readouterr().out.split())
    assert load_detector(file)[1].threshold == 0.7


@pytest.mark.parametrize("command", [["eval"], ["export", "--out", "a.onnx"]])
def test_a_file_away_from_its_run_is_told_how_to_name_the_held_out_images(command, file, data, capsys):
    alone = str(data / "annotations" / "instances_train.json")
    assert main([command[0], str(file), *command[1:], "--data", alone]) == 2
    said = capsys.readouterr().err
    assert "split, got 'val'; allowed: train" in said
    assert "--splits RUN/splits.json" in said
