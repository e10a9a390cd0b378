"""The outputs for an image do not depend on its batch, in evaluation and in training."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect
from drloss.detector.model import HeadOutputs, RetinaNet
from drloss.detector.objective import Objective, assign_batch
from drloss.losses import LOSSES, make_loss
from drloss.structures import Frame, Objects

SMALL = DetectorConfig(
    backbone="resnet10", norm="group", fpn_channels=16, head_depth=1, head_channels=16, anchor_scale=2.0
)
SIZES = [(32, 96), (96, 64), (32, 96), (128, 32)]


def images_of(sizes):
    """Images of these sizes, alone and as one batch."""
    generator = torch.Generator().manual_seed(0)
    alone = [torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    batch = torch.cat([functional.pad(i, (0, width - i.shape[3], 0, height - i.shape[2]), value=9) for i in alone])
    return alone, batch


def model_of(**changes):
    torch.manual_seed(0)
    model = RetinaNet(replace(SMALL, **changes), 3, prior_probability=0.5)
    torch.nn.init.normal_(model.cls_head.predict.weight, std=0.2)  # scores that differ
    return model


def objects(*boxes):
    count = len(boxes)
    box = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Objects(box, 1 + torch.arange(count) % 3, torch.zeros(count, dtype=torch.bool))


ANNOTATED = [
    objects((5, 5, 40, 30), (50, 2, 90, 31)),
    objects((10, 60, 60, 95)),
    objects(),
    objects((1, 100, 31, 127)),  # at its corner, where the best anchors are a larger neighbour's
]


@pytest.mark.parametrize("changes", [{}, {"top_level": 5}, {"norm": "frozen"}])
def test_outputs_are_those_of_the_image_alone(changes):
    model = model_of(**changes).eval()
    alone, batch = images_of(SIZES)
    together = model(batch, SIZES)
    frames = [Frame((2 * h, 2 * w), (h - 5, w - 3)) for h, w in SIZES]
    detected = detect(together, frames, model.config)
    for i, image in enumerate(alone):
        single = model(image)
        own = together.inside[i]
        torch.testing.assert_close(torch.cat(together.anchors)[own], torch.cat(single.anchors))
        torch.testing.assert_close(torch.cat(together.logits, 1)[i, own], torch.cat(single.logits, 1)[0])
        torch.testing.assert_close(torch.cat(together.deltas, 1)[i, own], torch.cat(single.deltas, 1)[0])
        assert (torch.cat(together.logits, 1)[i, ~own].sigmoid() == 0).all()
        (wanted,) = detect(single, frames[i : i + 1], model.config)
        assert len(wanted["scores"]) > 10
        for name in wanted:
            torch.testing.assert_close(detected[i][name], wanted[name])


def test_images_of_one_size_are_a_plain_batch():
    model = model_of()
    _, batch = images_of([(32, 64)] * 3)
    assert model(batch, [(32, 64)] * 3).inside is None
    for a, b in zip(model(batch, [(32, 64)] * 3).maps, model(batch).maps, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_image_teaches_the_same_beside_any_neighbour(loss):
    model = model_of()
    alone, batch = images_of(SIZES)
    objective = Objective(make_loss(f"{loss}:scope=per_image"), model.config)
    gradients = []
    for outputs in ([model(batch, SIZES)], [model(image) for image in alone]):
        model.zero_grad()
        whole = len(outputs) == 1
        terms = [objective(o, ANNOTATED if whole else ANNOTATED[i : i + 1]).total for i, o in enumerate(outputs)]
        total = torch.stack(terms).mean()
        total.backward()
        gradients.append([total, *(p.grad for p in model.parameters())])
    for together, single in zip(*gradients, strict=True):
        assert (together - single).norm() <= 1e-4 * single.norm()


def test_anchors_of_a_neighbour_are_ignored_and_take_no_object():
    model = model_of()
    alone, batch = images_of(SIZES)
    outputs = model(batch, SIZES)
    labels, deltas, _ = assign_batch(outputs, ANNOTATED, model.config)
    for i, image in enumerate(alone):
        (wanted,), (distances,), _ = assign_batch(model(image), ANNOTATED[i : i + 1], model.config)
        own = outputs.inside[i]
        assert torch.equal(labels[i, own], wanted)
        assert torch.equal(deltas[i, own], distances)
        assert (labels[i, ~own] == -1).all()
        assert (wanted > 0).any() == bool(len(ANNOTATED[i].boxes))


def test_boxes_in_the_padding_take_no_candidates_place():
    logit = torch.tensor([3.0, 2.0, 1.0, 0.5]).reshape(1, 1, 1, 4)
    anchors = torch.tensor([[70.0, 0, 90, 20], [0, 65, 20, 90], [10, 10, 30, 30], [60, 60, 80, 80]])
    outputs = HeadOutputs([logit], [torch.zeros(1, 4, 4)], [anchors], 1)
    (found,) = detect(outputs, [Frame((64, 64), (64, 64))], replace(SMALL, level_candidates=2))
    assert found["boxes"].tolist() == [[10, 10, 30, 30], [60, 60, 64, 64]]
