"""Candidates of a fixed number, and the detections that come from them, beside a sort of everything."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

from drloss.detector.anchors import anchor_shapes, level_anchors
from drloss.detector.config import DetectorConfig
from drloss.detector.detections import DROPPED, detect, find_boxes
from drloss.detector.model import HeadOutputs
from drloss.structures import Frame

CONFIG = DetectorConfig(top_level=5, anchor_scale=2.0, level_candidates=50, max_detections=30)
FRAMES = [Frame((120, 90), (60, 45)), Frame((64, 96), (64, 96)), Frame((10, 300), (33, 90))]


def outputs_of(classes, mean, *, dtype=torch.float32, channels_last=False):
    """Outputs with random logits, all of them different, for images that fill their place or leave padding."""
    generator = torch.Generator().manual_seed(classes)
    grids = [(-(-64 // stride), -(-96 // stride)) for stride in CONFIG.strides]
    anchors = level_anchors(CONFIG, anchor_shapes(CONFIG), grids)
    maps = []
    for grid in grids:
        shape = (len(FRAMES), CONFIG.anchors_per_location * classes, *grid)
        values = torch.randperm(shape[0] * shape[1] * grid[0] * grid[1], generator=generator)
        maps.append((mean + 4 * values.view(shape) / values.numel()).to(dtype))
    if channels_last:
        maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    deltas = [torch.randn(len(FRAMES), len(a), 4, generator=generator).to(dtype) for a in anchors]
    return HeadOutputs(maps, deltas, anchors, classes)


def sorted_out(outputs, index, frame, config):
    """Oracle: the candidates of an image by sorting all its scores, and what NMS leaves of them."""
    boxes, scores, labels = [], [], []
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True):
        box = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(deltas[index].float(), anchors)
        box = clip_boxes_to_image(box, frame.resized)
        solid = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        score = torch.where(solid[:, None], logits[index].float().sigmoid(), -1).flatten()
        best = score.argsort(descending=True, stable=True)[: config.level_candidates]
        best = best[score[best] > config.score_threshold]
        boxes.append(box[best // outputs.num_classes])
        scores.append(score[best])
        labels.append(best % outputs.num_classes + 1)
    box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    keep = batched_nms(box, score, label, config.nms_threshold)[: config.max_detections]
    scale = torch.tensor([frame.original[1] / frame.resized[1], frame.original[0] / frame.resized[0]]).repeat(2)
    return {"boxes": box[keep] * scale, "scores": score[keep], "labels": label[keep]}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("candidates", [1, 50, 100_000])
@pytest.mark.parametrize(("classes", "mean"), [(1, -2.0), (3, -5.0), (80, -2.0), (3, -20.0)])
def test_detections_are_those_of_a_sort_of_all_scores(classes, mean, candidates, channels_last):
    outputs = outputs_of(classes, mean, channels_last=channels_last)
    config = replace(CONFIG, level_candidates=candidates)
    some = 0
    for i, (found, frame) in enumerate(zip(detect(outputs, FRAMES, config), FRAMES, strict=True)):
        wanted = sorted_out(outputs, i, frame, config)
        some += len(wanted["scores"])
        torch.testing.assert_close(found, wanted)
    assert bool(some) == (mean > -10)


def test_half_precision_is_decoded_in_single():
    outputs = outputs_of(3, -2.0, dtype=torch.bfloat16)
    for found in detect(outputs, FRAMES, CONFIG):
        assert found["boxes"].dtype == found["scores"].dtype == torch.float32
        assert len(found["scores"]) == CONFIG.max_detections


def test_the_number_of_candidates_depends_on_shapes_alone():
    sizes = torch.tensor([f.resized for f in FRAMES], dtype=torch.float32)
    shapes = set()
    for mean in (-20.0, 0.0):
        outputs = outputs_of(3, mean)
        found = find_boxes(outputs, sizes, CONFIG)
        shapes.add(tuple(t.shape for t in found))
        dropped = found.scores == DROPPED
        assert dropped.all() if mean < -10 else not dropped.all()
        assert (found.scores[~dropped] > CONFIG.score_threshold).all()
        assert ((found.labels >= 1) & (found.labels <= 3)).all()
    expected = sum(min(CONFIG.level_candidates, 3 * len(a)) for a in outputs.anchors)
    assert shapes == {((3, expected, 4), (3, expected), (3, expected))}


def test_candidates_are_found_without_waiting_for_the_device():
    with FakeTensorMode() as mode:  # where an operation that needs a value raises
        outputs = outputs_of(3, 0.0)
        parts = (outputs.maps, outputs.deltas, outputs.anchors)
        on_device = HeadOutputs(*([mode.from_tensor(t).to("cuda") for t in part] for part in parts), num_classes=3)
        found = find_boxes(on_device, torch.zeros(3, 2, device="cuda"), CONFIG)
        assert {t.device.type for t in found} == {"cuda"}


def test_nan_takes_no_place_of_another_candidate():
    maps = [torch.full((1, 1, 4, 5), -9.0)]
    maps[0][0, 0, :2] = torch.nan
    maps[0][0, 0, 3, 2] = 3.0
    config = replace(CONFIG, level_candidates=4)
    anchors = [torch.tensor([10.0, 10.0, 30.0, 30.0]).expand(20, 4)]
    outputs = HeadOutputs(maps, [torch.zeros(1, 20, 4)], anchors, 1)
    (found,) = detect(outputs, [Frame((64, 96), (64, 96))], config)
    torch.testing.assert_close(found["scores"][:1], torch.tensor([3.0]).sigmoid())
