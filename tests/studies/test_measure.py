"""What is measured of a run: the same whatever its own score threshold is and whatever was measured before."""

from dataclasses import replace

import pytest
import torch

from drloss.data.formats.shapes import open_shapes
from drloss.detector.model import RetinaNet
from drloss.detector.starting_weights import resolve_detector
from drloss.distributed.ranks import join_ranks
from drloss.evaluation.detecting import run_detector
from drloss.evaluation.thresholds import THRESHOLDS
from drloss.studies.compare import measure
from drloss.training.presets import PRESETS

CPU = PRESETS["cpu"]
SIZES = {"short_side": 64, "max_side": 64, "fpn_channels": 16, "head_channels": 16}
CONFIG = replace(
    CPU, workers=0, eval_batch_size=4, detector=replace(resolve_detector(CPU.detector, "none"), **SIZES, norm="group")
)


@pytest.fixture(scope="module")
def val():
    return open_shapes("shapes:size=64,train=1,val=4").read("val")[0]


@pytest.fixture(scope="module")
def ranks():
    with join_ranks("cpu") as joined:
        yield joined


def detector(val, **settings):
    torch.manual_seed(0)
    return RetinaNet(replace(CONFIG.detector, **settings), len(val.class_names), 0.3)


@pytest.mark.slow
def test_the_sweep_does_not_depend_on_the_threshold_of_the_run(val, ranks, tmp_path, monkeypatch):
    (tmp_path / measure.MODEL).touch()
    found = []
    for threshold in (0.01, 0.3):
        model = detector(val, score_threshold=threshold, max_detections=5000, level_candidates=10_000)
        model.cls_head.predict.weight.data *= 20
        monkeypatch.setattr(measure, "load_run", lambda folder, model=model: (model, None))
        measured = measure._measure(tmp_path, CONFIG, val, ranks)
        found.append(measured)
        assert min(min(d["scores"], default=1) for d in measured["detections"]) > threshold
        assert model.config.score_threshold == threshold
    low, high = (
        [{k: v for k, v in record.items() if k != "postprocess_ms"} for record in measured["sweep"]]
        for measured in found
    )
    assert [record["threshold"] for record in high] == list(THRESHOLDS)
    assert high == low
    per_image = [record["detections_per_image"] for record in high]
    assert per_image[0] > per_image[2] > per_image[3] > 0
    assert sum(len(d["scores"]) for d in found[1]["detections"]) == per_image[3] * len(val)


@pytest.mark.slow
def test_peak_memory_is_the_same_whatever_ran_before_and_the_profiler_says_nothing(val, ranks, capfd):
    timed = []
    for _ in range(2):
        model = detector(val)
        timed.clear()
        run_detector(model, val, ranks, batch_size=4, observe=lambda *both: timed.append(both))
        first, second = (measure._cost(model, CONFIG, timed, ranks.device)["peak_mb"] for _ in range(2))
        assert first == pytest.approx(second, rel=0.01)
        assert first > sum(p.numel() * 4 for p in model.parameters()) / 1e6, "gradients are part of it"
    said = capfd.readouterr()
    assert "Memory block" not in said.err + said.out


def test_a_step_is_timed_in_the_precision_and_memory_format_of_the_run(val, ranks):
    seen = []
    model = detector(val)
    timed = []
    run_detector(model, val, ranks, batch_size=4, observe=lambda *both: timed.append(both))

    def note(module, inputs, output):
        seen.append((output.dtype, module.weight.is_contiguous(memory_format=torch.channels_last), module.training))

    model.cls_head.predict.register_forward_hook(note)
    measure._cost(model, replace(CONFIG, precision="bf16", channels_last=True), timed, ranks.device)
    assert set(seen) == {(torch.bfloat16, True, True)}


@pytest.mark.parametrize("text", ["[]", "", '{"key": "', "null"])
def test_what_was_kept_and_cannot_be_read_counts_for_nothing(tmp_path, text):
    (tmp_path / measure.MEASUREMENTS).write_text(text)
    assert measure._kept(tmp_path) == {}
