"""Running a detector over a split, at one scale and several."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drloss.data.formats.shapes import open_shapes
from drloss.detector.config import DetectorConfig
from drloss.detector.model import RetinaNet
from drloss.distributed.ranks import Ranks, join_ranks
from drloss.evaluation.detecting import merge_detections, run_detector, run_multi_scale
from drloss.training.presets import CPU
from random_detector import detect_image


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


def test_precision_is_for_a_gpu_and_a_cpu_detects_in_single(trained):
    model, val = trained
    with join_ranks("cpu") as ranks:
        wanted = run_detector(model, val, ranks, batch_size=2)
        for found in (
            run_detector(model, val, ranks, batch_size=2, precision="bf16"),
            run_multi_scale(model, val, ranks, [64], batch_size=2, precision="bf16"),
        ):
            for a, b in zip(found, wanted, strict=True):
                assert all(torch.equal(a[name], b[name]) for name in b)


SHAPES = [(64, 64), (40, 64), (64, 24), (64, 40), (8, 64), (64, 61), (40, 63), (63, 5)]


@pytest.fixture(scope="module")
def mixed():
    """Images of many shapes, some of which are padded to the same size; of noise, or scores would tie."""
    data = open_shapes(f"shapes:train=1,val={2 * len(SHAPES)},size=64").read("val")[0]
    sizes = np.array(SHAPES * 2, dtype=np.int32)

    def draw(index):
        generator = torch.Generator().manual_seed(index)
        return torch.randint(256, (3, *sizes[index].tolist()), dtype=torch.uint8, generator=generator)

    return replace(data, sizes=sizes, draw=draw)


@pytest.mark.parametrize("changes", [{"norm": "group"}, {"norm": "frozen"}, {"norm": "group", "max_side": 72}])
def test_an_image_is_told_the_same_in_every_batch_and_alone(mixed, changes):
    torch.manual_seed(1)
    config = replace(CPU.detector, **{"short_side": 48, "max_side": 160, "score_threshold": 0.3} | changes)
    model = RetinaNet(config, 3, prior_probability=0.5).eval()
    torch.nn.init.normal_(model.cls_head.predict.weight, std=0.1)
    ranks = Ranks(0, 1, torch.device("cpu"))
    alone = [detect_image(model, mixed.load_image(i)) for i in range(len(mixed))]
    assert sum(len(d["scores"]) for d in alone) > 100
    for batch_size in (1, 3, 16):
        seen = []
        found = run_detector(model, mixed, ranks, batch_size=batch_size, progress=seen.append)
        assert sum(seen) == len(mixed)
        assert max(seen) <= batch_size
        for one, wanted in zip(found, alone, strict=True):
            for name in wanted:
                torch.testing.assert_close(one[name], wanted[name], rtol=1e-4, atol=1e-3)


def test_several_scales_find_the_same_in_every_batch(mixed):
    torch.manual_seed(0)
    config = replace(CPU.detector, short_side=48, max_side=160, score_threshold=0.3, norm="group")
    model = RetinaNet(config, 3, prior_probability=0.5).eval()
    torch.nn.init.normal_(model.cls_head.predict.weight, std=0.1)
    with join_ranks("cpu") as ranks:
        one, many = (run_multi_scale(model, mixed, ranks, [32, 48], batch_size=size) for size in (1, 16))
    for a, b in zip(one, many, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-3)
