"""``drloss benchmark``: what it measures can be checked, the times cannot."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from drloss.cli import main
from drloss.detector.model import HeadOutputs
from drloss.inference import speed
from random_detector import random_detector

SHORT = ["--seconds", "0.01", "--batch-size", "3", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("speed") / "tiny.safetensors"
    return path, random_detector(path)


@pytest.mark.slow
def test_the_record_has_both_engines_at_one_image_and_at_a_batch(file, tmp_path, capsys):
    path, model = file
    Image.effect_noise((90, 60), 90).convert("RGB").save(tmp_path / "a.png")
    command = ["benchmark", str(path), *SHORT, "--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "a.json")]
    assert main(command) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    engines = ["torch", "onnxruntime"] if find_spec("onnxscript") else ["torch"]
    assert [(s["engine"], s["batch_size"]) for s in record["speeds"]] == [(e, b) for e in engines for b in (1, 3)]
    for one in record["speeds"]:
        assert 0 < one["median_ms"] <= one["p90_ms"] <= one["p99_ms"]
        assert one["images_per_second"] == pytest.approx(1000 * one["batch_size"] / one["median_ms"])
        assert one["runs"] >= speed.LEAST_RUNS
        assert 50 < one["memory_mb"] < 10_000
    assert record["image_size"] == [60, 90]
    assert record["input_size"] == [64, 96]
    assert record["environment"]["threads"] == 1
    assert record["cost"]["parameters"] == sum(p.numel() for p in model.parameters())
    said = capsys.readouterr().out
    assert "images/s" in said
    assert "64 x 96" in said


def test_operations_are_those_of_a_convolution_counted_by_hand(file, monkeypatch):
    """A 3 x 3 convolution from 3 to 8 channels on 32 x 64 pixels: two operations for each of its products."""
    path, _ = file

    class Convolution(torch.nn.Conv2d):
        def forward(self, images):
            return HeadOutputs([super().forward(images.float())], [], [], [])

    monkeypatch.setattr(speed, "load_run", lambda _: (Convolution(3, 8, 3, padding=1), None))
    cost = speed._cost(path, torch.zeros(3, 32, 64, dtype=torch.uint8))
    assert cost.gflops * 1e9 == 2 * 32 * 64 * 8 * 3 * 9
    assert cost.parameters == 8 * 3 * 9 + 8
    assert cost.weights_mb * 1e6 == 4 * cost.parameters


@pytest.mark.slow
def test_an_onnx_file_is_timed_in_onnxruntime_only(file, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path, _ = file
    onnx = tmp_path / "tiny.onnx"
    assert main(["export", str(path), "--out", str(onnx), "--size", "64", "96"]) == 0
    assert main(["benchmark", str(onnx), *SHORT, "--out", str(tmp_path / "a.json")]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert {s["engine"] for s in record["speeds"]} == {"onnxruntime"}
    assert record["input_size"] == [64, 96]
    assert record["cost"] is None


@pytest.mark.slow
def test_without_onnx_torch_is_timed_and_that_is_said(file, tmp_path, monkeypatch, capsys):
    path, model = file
    monkeypatch.setattr(speed, "find_spec", lambda name: None if name == "onnxscript" else sys)
    assert main(["benchmark", str(path), *SHORT, "--out", str(tmp_path / "a.json")]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert [(s["engine"], s["batch_size"]) for s in record["speeds"]] == [("torch", 1), ("torch", 3)]
    assert record["cost"]["parameters"] == sum(p.numel() for p in model.parameters())
    said = " ".join(capsys.readouterr().out.split())
    assert "not timed in onnxruntime: onnxscript is missing" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-size", "0"], "--batch-size, --seconds and --threads must be positive, got 0"),
        (["--seconds", "nan"], "must be positive"),
        (["--threads", "0"], "must be positive"),
        (["--image", "missing.png"], "missing.png"),
        (["--device", "tpu"], "--device must be"),
    ],
)
def test_values_out_of_range_are_refused(file, options, words, capsys):
    assert main(["benchmark", str(file[0]), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_no_detector_is_refused(tmp_path, capsys):
    assert main(["benchmark", str(tmp_path)]) == 2
    assert "neither an exported" in capsys.readouterr().err
