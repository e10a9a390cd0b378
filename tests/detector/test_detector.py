import math

import pytest
import torch

from annotated import objects
from drloss.detector.anchors import anchor_shapes, level_anchors
from drloss.detector.backbone import BACKBONES, BackboneFPN
from drloss.detector.boxes import encode
from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect
from drloss.detector.model import HeadOutputs, RetinaNet
from drloss.detector.objective import Objective, assign_batch, box_loss, box_quality
from drloss.errors import UserError
from drloss.losses import LOSSES, DRLoss, FocalLoss, QualityFocalLoss
from drloss.structures import Frame

SMALL = DetectorConfig(
    backbone="resnet10", norm="group", fpn_channels=32, top_level=5, head_depth=1, head_channels=32, anchor_scale=2.0
)


# ---------------------------------------------------------------------- anchors


def test_the_papers_grid_has_its_201600_anchors():
    config = DetectorConfig()
    grids = [(math.ceil(800 / s), math.ceil(1344 / s)) for s in config.strides]
    levels = level_anchors(config, anchor_shapes(config), grids)
    assert sum(len(a) for a in levels) == 201_600
    assert config.anchors_per_location == 9


def test_anchors_sit_on_cell_centres_with_the_stated_sizes_and_ratios():
    config = DetectorConfig(anchor_octaves=2, anchor_ratios=(0.5, 1.0))
    (first, *_) = level_anchors(config, anchor_shapes(config), [(2, 3), (1, 2), (1, 1), (1, 1), (1, 1)])
    centres = (first[:, :2] + first[:, 2:]) / 2
    cells = [[x, y] for y in (4.0, 12.0) for x in (4.0, 12.0, 20.0) for _ in range(4)]
    torch.testing.assert_close(centres, torch.tensor(cells))
    width, height = first[0, 2] - first[0, 0], first[0, 3] - first[0, 1]
    assert (height / width).item() == pytest.approx(0.5)
    assert (width * height).sqrt().item() == pytest.approx(32)
    sides = first[2:4, 2] - first[2:4, 0]
    assert sides.tolist() == pytest.approx([32, 32 * 2**0.5])


# ---------------------------------------------------------------------- network


@pytest.mark.parametrize("name", ["resnet10", "resnet18", "resnet50"])
@pytest.mark.parametrize("top_level", [5, 7])
def test_feature_maps_have_the_strides(name, top_level):
    config = DetectorConfig(backbone=name, norm="frozen", fpn_channels=64, top_level=top_level)
    with torch.no_grad():
        maps = BackboneFPN(config)(torch.zeros(1, 3, 128, 192))
    assert [(m.shape[2], m.shape[3]) for m in maps] == [(128 // s, math.ceil(192 / s)) for s in config.strides]
    assert {m.shape[1] for m in maps} == {64}


def test_p6_comes_from_c5_even_where_channels_agree():
    config = DetectorConfig(backbone="resnet18", norm="frozen", fpn_channels=512)
    pyramid = BackboneFPN(config)
    seen = []
    pyramid.fpn.extra_blocks.p6.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pyramid.body.layer4.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        pyramid(torch.zeros(1, 3, 64, 64))
    assert seen[0] is seen[1]


@pytest.mark.parametrize(("loss", "score"), [(DRLoss, 0.5), (FocalLoss, 0.01)])
def test_every_score_starts_near_the_losss_prior(loss, score):
    torch.manual_seed(0)
    model = RetinaNet(SMALL, num_classes=3, prior_probability=loss.prior_probability)
    outputs = model(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    scores = torch.cat(outputs.logits, dim=1).sigmoid()
    assert scores.shape == (2, (64 + 16 + 4) * 9, 3)
    assert scores.mean().item() == pytest.approx(score, rel=0.1)


def test_first_loss_of_the_detector_is_the_theorys():
    torch.manual_seed(0)
    model = RetinaNet(SMALL, 3, DRLoss.prior_probability)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    terms = Objective(DRLoss(), SMALL)(model(images), [objects((10, 10, 30, 30)), objects((5, 8, 50, 40))])
    assert terms.cls.item() == pytest.approx(2.0324, abs=0.05)


def test_frozen_norm_freezes_stem_and_first_stage_only():
    model = RetinaNet(DetectorConfig(backbone="resnet18", norm="frozen", fpn_channels=32, head_channels=32), 2, 0.5)
    frozen = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not any("bn" in n for n, _ in model.named_parameters())


def test_heads_start_as_retinanets():
    torch.manual_seed(0)
    head = RetinaNet(SMALL, 80, 0.01).cls_head
    assert head.predict.weight.std().item() == pytest.approx(0.01, rel=0.05)
    torch.testing.assert_close(head.predict.bias, torch.full((720,), -math.log(99.0)))


def test_heads_keep_location_major_order():
    outputs = RetinaNet(SMALL, 2, 0.5)(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    for maps, logits in zip(outputs.maps, outputs.logits, strict=True):
        height, width = maps.shape[2:]
        assert logits.shape == (1, height * width * 9, 2)
        row, column = height // 2, width - 1
        assert torch.equal(logits[0, (row * width + column) * 9 + 4, 1], maps[0, 4 * 2 + 1, row, column])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_the_maps_as_they_are(loss):
    outputs = RetinaNet(SMALL, 2, 0.5)(torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8))
    anchors = sum(len(a) for a in outputs.anchors)
    labels = torch.randint(3, (2, anchors)) * (torch.rand(2, anchors) < 0.1)
    module = LOSSES[loss]()
    torch.testing.assert_close(module(outputs.maps, labels), module(outputs.logits, labels))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"norm": "auto"}, "norm"), ({"top_level": 6}, "top_level")],
)
def test_unknown_parts_are_named(change, word):
    with pytest.raises(UserError, match=f"{word} must be one of"):
        BackboneFPN(DetectorConfig(**({"norm": "group"} | change)))


def test_every_backbone_of_the_issue_is_there():
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d"} <= set(BACKBONES)


# ---------------------------------------------------------------------- objective


def test_box_loss_is_the_hand_computed_smooth_l1():
    predicted = torch.zeros(1, 3, 4)
    targets = torch.tensor([[[0.05, 0, 0, 0], [1.11, 0, 0, 0], [9, 9, 9, 9]]])
    labels = torch.tensor([[1, 2, 0]])
    wanted = (0.5 * 0.05**2 / 0.11 + (1.11 - 0.055)) / (4 * 2)
    assert box_loss(predicted, targets, labels).item() == pytest.approx(wanted, rel=1e-6)


def test_box_loss_of_an_image_without_positives_is_zero_with_the_graph_alive():
    predicted = torch.randn(2, 3, 4, requires_grad=True)
    losses = box_loss(predicted, torch.zeros(2, 3, 4), torch.tensor([[0, -1, 0], [1, 0, 0]]))
    losses.sum().backward()
    assert losses[0] == 0
    assert (predicted.grad[0] == 0).all()
    assert (predicted.grad[1, 0] != 0).any()


@pytest.mark.parametrize("loss", [DRLoss(), FocalLoss()])
def test_objective_of_a_batch_is_the_mean_over_its_images(loss):
    torch.manual_seed(0)
    model = RetinaNet(SMALL, 3, 0.3)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    annotated = [objects((10, 10, 30, 30)), objects(), objects((5, 8, 50, 40), (30, 30, 60, 60), labels=[2, 3])]
    objective = Objective(loss, SMALL)
    whole = objective(model(images), annotated)
    single = [objective(model(images[i : i + 1]), annotated[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole.total, torch.stack([t.total for t in single]).mean(), rtol=1e-5, atol=1e-6)


def test_every_trainable_weight_gets_a_gradient_without_any_object():
    model = RetinaNet(SMALL, 3, 0.5)
    terms = Objective(DRLoss(), SMALL)(model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), [objects()])
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------------- detections


def heads_saying(boxes, scores, labels, num_classes=3):
    """Outputs of one level in which anchor i decodes to box i with one class's score."""
    maps = torch.full((1, num_classes, 1, len(boxes)), -20.0)
    for i, (score, label) in enumerate(zip(scores, labels, strict=True)):
        maps[0, label - 1, 0, i] = math.log(score / (1 - score))
    anchors = torch.tensor(boxes, dtype=torch.float32)
    return HeadOutputs([maps], [torch.zeros(1, len(boxes), 4)], [anchors], num_classes)


def test_detections_are_thresholded_suppressed_per_class_and_ranked():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 50]]
    outputs = heads_saying(boxes, [0.8, 0.9, 0.7, 0.3, 0.04], [1, 1, 2, 3, 1])
    (found,) = detect(outputs, [Frame((64, 64), (64, 64))], DetectorConfig())
    assert found["labels"].tolist() == [1, 2, 3]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7, 0.3])
    torch.testing.assert_close(found["boxes"], torch.tensor([boxes[1], boxes[2], boxes[3]]).float())


def test_detections_return_to_the_original_frame_and_stay_inside():
    outputs = heads_saying([[-5, 10, 20, 200]], [0.9], [2])
    (found,) = detect(outputs, [Frame(original=(50, 200), resized=(100, 100))], DetectorConfig())
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 5.0, 40.0, 50.0]]))


def test_boxes_in_the_padding_are_no_detections():
    outputs = heads_saying([[70, 70, 90, 90]], [0.9], [1])
    (found,) = detect(outputs, [Frame((64, 64), (64, 64))], DetectorConfig())
    assert len(found["boxes"]) == 0


def test_numbers_of_candidates_and_detections_are_capped():
    boxes = [[i * 10, 0, i * 10 + 8, 8] for i in range(30)]
    outputs = heads_saying(boxes, [0.3 + i / 100 for i in range(30)], [1] * 30)
    frame = [Frame((400, 400), (400, 400))]
    assert len(detect(outputs, frame, DetectorConfig(level_candidates=7))[0]["scores"]) == 7
    (five,) = detect(outputs, frame, DetectorConfig(max_detections=5))
    assert five["scores"].tolist() == pytest.approx([0.59, 0.58, 0.57, 0.56, 0.55])


def test_no_detection_has_empty_tensors_of_the_right_shape():
    (found,) = detect(heads_saying([[0, 0, 5, 5]], [0.01], [1]), [Frame((64, 64), (64, 64))], DetectorConfig())
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].dtype == torch.int64


def test_lateral_convolutions_start_kaiming_uniform():
    torch.manual_seed(0)
    lateral = BackboneFPN(SMALL).fpn.inner_blocks[0][0].weight
    bound = math.sqrt(3 / lateral[0].numel())
    assert lateral.abs().max().item() <= bound
    assert lateral.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_quality_is_the_iou_of_the_predicted_box():
    anchors = torch.tensor([[0.0, 0, 20, 20], [10, 10, 30, 30], [40, 40, 60, 60]])
    objects_ = torch.tensor([[2.0, 0, 22, 20], [10, 10, 30, 30], [40, 40, 60, 60]])
    targets = encode(objects_, anchors)[None]
    labels = torch.tensor([[1, 2, 0]])
    zero = torch.zeros(1, 3, 4, dtype=torch.bfloat16)  # predicts the anchors themselves
    quality = box_quality(zero, targets, labels, anchors)
    torch.testing.assert_close(quality, torch.tensor([[18 / 22, 1.0, 0.0]]))
    torch.testing.assert_close(box_quality(targets, targets, labels, anchors), torch.tensor([[1.0, 1.0, 0.0]]))


def test_a_loss_that_uses_quality_is_given_it():
    torch.manual_seed(0)
    model = RetinaNet(SMALL, 3, prior_probability=0.01)
    outputs, found = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), [objects((10, 10, 30, 30))]
    plain = QualityFocalLoss()
    terms = Objective(plain, SMALL)(outputs, found)
    labels, targets, _ = assign_batch(outputs, found, SMALL)
    quality = box_quality(torch.cat(outputs.deltas, 1), targets, labels, torch.cat(outputs.anchors))
    assert 0 < quality[labels > 0].min() < quality[labels > 0].max() <= 1
    torch.testing.assert_close(terms.cls, plain(outputs.logits, labels, quality=quality))
    assert terms.cls != plain(outputs.logits, labels)
