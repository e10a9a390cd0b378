"""Running a detector at several scales."""

from dataclasses import replace

import pytest
import torch

from drloss.data.formats.shapes import open_shapes
from drloss.detector.config import DetectorConfig
from drloss.detector.model import RetinaNet
from drloss.distributed.ranks import join_ranks
from drloss.evaluation.running import merge_detections, run_detector, run_multi_scale
from drloss.training.presets import CPU


def detection(boxes, scores, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels),
    }


def test_scales_are_merged_by_nms_per_class_best_first():
    small = detection([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.3], [1, 2])
    large = detection([[0, 0, 10, 11], [0, 0, 10, 10], [80, 0, 90, 10]], [0.8, 0.7, 0.6], [1, 2, 1])
    merged = merge_detections([small, large], DetectorConfig(nms_threshold=0.5))
    assert merged["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6, 0.3])
    assert merged["labels"].tolist() == [1, 2, 1, 2]
    assert merged["boxes"][2].tolist() == [80, 0, 90, 10]
    few = merge_detections([small, large], DetectorConfig(max_detections=2))
    assert few["scores"].tolist() == pytest.approx([0.9, 0.7])


def test_nothing_found_at_any_scale_is_nothing():
    nothing = detection([], [], torch.zeros(0, dtype=torch.int64).tolist())
    assert len(merge_detections([nothing, nothing], DetectorConfig())["scores"]) == 0


@pytest.fixture(scope="module")
def trained():
    """A detector of random weights that finds something, and some images."""
    torch.manual_seed(0)
    config = replace(CPU.detector, short_side=64, max_side=128, norm="group", score_threshold=0.3)
    model = RetinaNet(config, 3, prior_probability=0.5)
    return model, open_shapes("shapes:train=2,val=3,test=1,size=64").read("val")[0]


def test_the_models_own_scale_alone_finds_what_a_single_scale_test_finds(trained):
    model, val = trained
    with join_ranks("cpu") as ranks:
        once = run_detector(model, val, ranks, batch_size=2)
        found = run_multi_scale(model, val, ranks, [64], batch_size=2)
        more = run_multi_scale(model, val, ranks, [48, 64, 96], batch_size=2)
    assert sum(len(d["scores"]) for d in once) > 0
    for one, same, merged in zip(once, found, more, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], same[name])
        assert (merged["boxes"] <= 64 + 1e-3).all()  # in pixels of the image as it was read
        assert (merged["scores"].diff() <= 0).all()
    assert any(
        len(a["scores"]) != len(b["scores"]) or (a["scores"] != b["scores"]).any()
        for a, b in zip(once, more, strict=True)
    )
    assert (model.config.short_side, model.config.max_side) == (64, 128)
