"""Files that version 0.1.0 wrote, before its modules were rearranged, can be read by this version.

``tests/before`` holds the checkpoint and the exported weights of two iterations of the preset ``cpu`` on
``shapes:size=64,train=16,val=8`` with batches of 4. Their large tensors were set to 0, so that they compress.
"""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch

from drloss.cli import main
from drloss.detector.exported import load_detector
from drloss.training.trained import load_run

BEFORE = Path(__file__).parent.parent / "before"
DATA = "shapes:size=64,train=16,val=8"


def unpack(name, into):
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_bytes(lzma.decompress((BEFORE / f"{name}.xz").read_bytes()))
    return into


def test_an_exported_detector_of_before_is_loaded(tmp_path):
    model, about = load_detector(unpack("model.safetensors", tmp_path / "model.safetensors"))
    assert (about.loss, about.class_names) == ("dr", ("disc", "square", "triangle", "star"))
    assert model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).logits[0].shape[2] == 4


@pytest.fixture
def run_of_before(tmp_path):
    unpack("iteration_00000002.pt", tmp_path / "run" / "checkpoints" / "iteration_00000002.pt")
    return tmp_path / "run"


def test_a_checkpoint_of_before_is_loaded(run_of_before):
    model, about = load_run(run_of_before)
    assert about.category_ids == (1, 2, 3, 4)
    assert not model.training


@pytest.mark.slow
def test_a_run_of_before_goes_on(run_of_before, capsys):
    settings = ["--batch-size", "4", "--no-scale-lr", "--workers", "0", "--device", "cpu"]
    command = ["train", "--data", DATA, "--preset", "cpu", *settings, "--out", str(run_of_before), "--resume"]
    assert main([*command, "--max-iters", "3"]) == 2
    said = capsys.readouterr().err
    assert "max_iters was 2 and is now 3" in said  # and nothing else: data and other settings are the same
    assert main([*command, "--max-iters", "3", "--force"]) == 0
    assert "resuming after iteration 2" in capsys.readouterr().out
    assert json.loads((run_of_before / "config.json").read_text())["max_iters"] == 3
    shutil.rmtree(run_of_before)
