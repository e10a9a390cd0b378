"""Matching: hand-computed cases, and the same targets as torchvision's Matcher gives image by image."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_area, box_iou

from annotated import objects
from drloss.detector import targets
from drloss.detector.anchors import anchor_shapes, level_anchors
from drloss.detector.boxes import decode, encode
from drloss.detector.config import DetectorConfig
from drloss.detector.targets import Targets, assign_targets
from drloss.structures import Objects, PaddedObjects

ANCHORS = torch.tensor(
    [[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4.5], [0, 0, 10, 2], [50, 50, 60, 60], [100, 100, 110, 110]],
    dtype=torch.float32,
)
CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
SMALL = DetectorConfig(top_level=5, anchor_scale=2.0)


def of_image(anchors, annotated, config):
    """Targets of one image, without the first dimension."""
    return Targets(*(t[0] for t in assign_targets(anchors, PaddedObjects.of([annotated]), config)))


# ---------------------------------------------------------------------- by hand


def test_thresholds_sort_anchors_by_hand_computed_iou():
    labels, deltas, own = of_image(ANCHORS, objects((0, 0, 10, 10), labels=[3]), DetectorConfig())
    assert labels.tolist() == [3, 3, -1, 0, 0, 0]  # IoU 1, 0.6, 0.45, 0.2, 0, 0
    assert own.tolist() == [0, 0, -1, -1, -1, -1]
    assert (deltas[2:] == 0).all()
    torch.testing.assert_close(decode(deltas[:2], ANCHORS[:2]), ANCHORS[[0, 0]])


def test_authors_thresholds_have_no_ignored_band():
    labels = of_image(ANCHORS, objects((0, 0, 10, 10)), DetectorConfig(negative_iou=0.5)).labels
    assert labels.tolist() == [1, 1, 0, 0, 0, 0]


def test_an_object_that_fits_no_anchor_takes_its_best_ones_with_ties():
    twice = torch.cat([ANCHORS, ANCHORS[4:5]])
    labels = of_image(twice, objects((50, 50, 53, 53), labels=[2]), DetectorConfig()).labels
    assert labels.tolist() == [0, 0, 0, 0, 2, 0, 2]


@pytest.mark.parametrize("empty", [(300, 300, 310, 310), (5, 5, 5, 5)])
def test_an_object_that_overlaps_no_anchor_takes_none(empty):
    assert (of_image(ANCHORS, objects(empty), DetectorConfig()).labels == 0).all()
    labels = of_image(ANCHORS, objects((0, 0, 10, 10), empty), DetectorConfig()).labels
    assert labels.tolist() == [1, 1, -1, 0, 0, 0]  # as without it


def test_no_object_makes_everything_background():
    labels, deltas, own = of_image(ANCHORS, objects(), DetectorConfig())
    assert (labels == 0).all()
    assert (own == -1).all()
    assert (deltas == 0).all()


def test_crowds_are_neither_target_nor_background():
    crowd = objects((0, 0, 10, 10), (45, 45, 70, 70), labels=[1, 2], ignore=[False, True])
    labels = of_image(ANCHORS, crowd, DetectorConfig()).labels
    assert labels.tolist() == [1, 1, -1, 0, -1, 0]
    only_crowd = of_image(ANCHORS, objects((45, 45, 70, 70), ignore=[True]), DetectorConfig()).labels
    assert only_crowd.tolist() == [0, 0, 0, 0, -1, 0]


@pytest.mark.parametrize(("images", "anchors"), [(0, 6), (2, 0)])
def test_no_image_or_no_anchor_has_no_target(images, anchors):
    none = PaddedObjects(
        torch.zeros(images, 1, 4), torch.ones(images, 1).long(), torch.zeros(images, 0, 4), (1,) * images
    )
    labels, deltas, own = assign_targets(ANCHORS[:anchors], none, DetectorConfig())
    assert labels.shape == own.shape == (images, anchors)
    assert deltas.shape == (images, anchors, 4)


# ---------------------------------------------------------------------- image by image


def matched(anchors, annotated, config):
    """Oracle: targets of one image by torchvision's Matcher and BoxCoder."""
    boxes, classes = annotated.boxes[~annotated.ignore], annotated.labels[~annotated.ignore]
    labels, own, deltas = torch.zeros(len(anchors)).long(), torch.full((len(anchors),), -1), torch.zeros_like(anchors)
    if len(boxes):
        iou = box_iou(boxes, anchors)
        found = Matcher(config.positive_iou, config.negative_iou, allow_low_quality_matches=True)(iou)
        found[iou.amax(dim=0) == 0] = Matcher.BELOW_LOW_THRESHOLD
        some = found >= 0
        labels[some], own[some] = classes[found[some]], found[some]
        deltas[some] = CODER.encode_single(boxes[found[some]], anchors[some])
        labels[found == Matcher.BETWEEN_THRESHOLDS] = -1
    regions = annotated.boxes[annotated.ignore]
    if len(regions):
        corner = torch.maximum(anchors[:, None, :2], regions[None, :, :2])
        opposite = torch.minimum(anchors[:, None, 2:], regions[None, :, 2:])
        share = (opposite - corner).clamp(min=0).prod(dim=2) / box_area(anchors)[:, None]
        labels[(labels == 0) & (share.amax(dim=1) > 0.5)] = -1
    return Targets(labels, deltas, own)


def random_images(generator, counts, ignored, grid):
    """Objects on whole pixels, so that many fit several anchors equally well; some of them twice."""
    found = []
    for count in counts:
        corner = torch.randint(0, grid - 4, (count, 2), generator=generator)
        size = torch.randint(1, grid // 2, (count, 2), generator=generator)
        boxes = torch.cat([corner, (corner + size).clamp(max=grid)], dim=1).float()
        boxes[1::5] = boxes[: len(boxes[1::5])]
        labels = torch.randint(1, 4, (count,), generator=generator)
        found.append(Objects(boxes, labels, torch.rand(count, generator=generator) < ignored))
    return found


def grid_of(config, height, width):
    grids = [(-(-height // stride), -(-width // stride)) for stride in config.strides]
    return torch.cat(level_anchors(config, anchor_shapes(config), grids))


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    negative_iou=st.sampled_from([0.4, 0.5, 0.2]),
    masked=st.booleans(),
    most=st.sampled_from([None, 1, 4000]),
    seed=st.integers(0, 2**31),
)
def test_a_batch_is_matched_as_torchvision_matches_its_images(counts, ignored, negative_iou, masked, most, seed):
    generator = torch.Generator().manual_seed(seed)
    config = replace(SMALL, negative_iou=negative_iou)
    anchors = grid_of(config, 64, 96)
    images = random_images(generator, counts, ignored, 64)
    inside = torch.ones(len(images), len(anchors), dtype=torch.bool)
    if masked:
        limit = torch.randint(40, 97, (len(images), 1), generator=generator)
        inside = (anchors[:, 0] + anchors[:, 2]) / 2 < limit
    padded = PaddedObjects.of(images)
    if most is None:
        found = assign_targets(anchors, padded, config, inside if masked else None)
    else:  # as on a GPU, several images at a time
        with mock.patch.object(targets, "MOST_PAIRS", most * 1000), mock.patch.object(targets, "_IN_CACHES", ()):
            found = assign_targets(anchors, padded, config, inside if masked else None)
    for i, annotated in enumerate(images):
        own = inside[i]
        wanted = matched(anchors[own], annotated, config)
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a[i, own], b)
        assert (found.labels[i, ~own] == -1).all()
        assert (found.objects[i, ~own] == -1).all()
        assert (found.deltas[i, ~own] == 0).all()


def test_deltas_are_torchvisions_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    corner, size = (
        400 * torch.rand(2, 500, 2, generator=generator),
        1 + 300 * torch.rand(2, 500, 2, generator=generator),
    )
    boxes, anchors = torch.cat([corner, corner + size], dim=2)
    assert torch.equal(encode(boxes, anchors), CODER.encode_single(boxes, anchors))
    deltas = 20 * torch.randn(3, 500, 4, generator=generator)  # some sizes are clipped
    for found, own in zip(decode(deltas, anchors), deltas, strict=True):
        assert torch.equal(found, CODER.decode_single(own, anchors))


# ---------------------------------------------------------------------- padded objects


def test_padded_objects_are_those_to_learn_and_the_ignored_ones_apart():
    first = objects((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), labels=[3, 1, 2], ignore=[False, True, False])
    padded = PaddedObjects.of([first, objects(), objects((6, 6, 7, 7), labels=[2])])
    assert padded.counts == (2, 0, 1)
    assert padded.labels.tolist() == [[3, 2], [0, 0], [2, 0]]
    assert padded.boxes[0].tolist() == [[0, 0, 1, 1], [4, 4, 5, 5]]
    assert padded.boxes[2].tolist() == [[6, 6, 7, 7], [0, 0, 0, 0]]
    assert padded.regions[:, 0].tolist() == [[2, 2, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]]
    last = padded[1:]
    assert len(last) == 2
    assert last.counts == (0, 1)
    assert torch.equal(last.boxes, padded.boxes[1:])
