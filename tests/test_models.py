"""The trained detectors on offer are what their cards say."""

import os
import re
from hashlib import sha256
from pathlib import Path

import pytest
from rich.console import Console

from drloss import Detector
from drloss.data.formats.opening import open_data
from drloss.detector.exported import read_description
from drloss.distributed.ranks import Ranks, choose_device
from drloss.inference.evaluate import evaluate_run

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.safetensors"))


def said(path, row):
    """What the card of a detector has in a row of its table."""
    return re.search(rf"^\| {re.escape(row)} \| (.*) \|$", path.with_suffix(".md").read_text(), flags=re.MULTILINE)[1]


def test_there_is_a_detector_on_offer():
    assert MODELS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_card_is_of_this_file(path):
    about = read_description(path)
    assert said(path, "SHA-256") == f"`{sha256(path.read_bytes()).hexdigest()}`"
    assert said(path, "classes") == ", ".join(about.class_names)
    assert said(path, "threshold").startswith(f"{about.threshold:.3f}")
    assert path.stat().st_size < 20e6
    assert Detector.load(path, device="cpu").threshold == about.threshold


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_file_reaches_the_ap_of_its_card(path, tmp_path):
    name, split = re.match(r"(\w+), split (\w+)", said(path, "evaluated on")).groups()
    folder = Path(os.environ.get("DRLOSS_TEST_DATA", "")) / name
    if not os.environ.get("DRLOSS_TEST_DATA") or not folder.is_dir():
        pytest.skip(f"no {name} in the folder that DRLOSS_TEST_DATA names")
    data, _ = open_data(str(folder)).read(split)
    ranks = Ranks(0, 1, choose_device("cpu"))
    options = {"batch_size": 1, "workers": 0, "score_threshold": None, "console": Console(quiet=True)}
    found = evaluate_run(path, data, tmp_path, ranks, **options)
    assert found.evaluation.metrics["AP"] == pytest.approx(float(said(path, "AP").split(";")[0]), abs=0.1)
