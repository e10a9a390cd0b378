import itertools
from collections import Counter
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from drloss.data.batches import EvaluationImages, TrainingImages, collate
from drloss.data.formats.shapes import open_shapes
from drloss.data.order import Key, TrainingOrder
from drloss.data.transforms import (
    Augmentation,
    Rectangle,
    pad,
    padded_size,
    place,
    place_boxes,
    resize,
    resize_placed,
    resized_size,
    transform_boxes,
)


@pytest.fixture(scope="module")
def data():
    annotations, _ = open_shapes("shapes:train=10,size=64").read("train")
    sizes = np.array([[48, 64], [64, 48]] * 5, dtype=np.int32)

    def draw(index):
        height, width = sizes[index]
        return annotations.draw(index)[:, :height, :width].contiguous()

    boxes = np.minimum(annotations.boxes, 47)
    return replace(annotations, sizes=sizes, draw=draw, boxes=boxes)


AUGMENTATION = Augmentation(short_sides=(40, 56), max_side=100)


def first(order, count, start=0):
    return list(itertools.islice(order.batches(start), count))


def test_every_image_comes_once_an_epoch_and_none_is_dropped(data):
    keys = [k for batch in first(TrainingOrder(data, AUGMENTATION, 2, seed=0), 20) for k in batch]
    assert Counter(k.index for k in keys) == Counter(list(range(10)) * 4)
    assert max(Counter((k.epoch, k.index) for k in keys).values()) == 1


def test_a_batch_is_complete_even_where_there_are_fewer_images(data):
    batches = first(TrainingOrder(data, AUGMENTATION, 16, seed=0), 3)
    assert [len(b) for b in batches] == [16] * 3


def test_images_of_a_batch_are_all_wide_or_all_high(data):
    for batch in first(TrainingOrder(data, AUGMENTATION, 3, seed=0), 12):
        assert len({k.index % 2 for k in batch}) == 1


def test_the_order_is_a_function_of_seed_and_iteration(data):
    order = TrainingOrder(data, AUGMENTATION, 3, seed=7)
    whole = first(order, 12)
    assert first(TrainingOrder(data, AUGMENTATION, 3, seed=7), 5, start=7) == whole[7:]
    assert first(TrainingOrder(data, AUGMENTATION, 3, seed=8), 12) != whole
    epochs = [[k.index for b in whole for k in b if k.epoch == e] for e in (0, 1)]
    assert epochs[0] != epochs[1][: len(epochs[0])]


def test_images_without_objects_can_be_left_out(data):
    counts = np.diff(data.first_box)
    ignored = np.ones(len(data.boxes), dtype=bool)
    ignored[data.first_box[3] : data.first_box[4]] = False
    only = replace(data, ignore=ignored)
    assert counts[3] > 0
    keys = [k for b in first(TrainingOrder(only, AUGMENTATION, 2, 0, keep_empty=False), 3) for k in b]
    assert {k.index for k in keys} == {3}


def test_a_sample_is_a_function_of_seed_epoch_and_index(data):
    key = Key(epoch=3, index=2, padded=(128, 128))
    one, again = (TrainingImages(data, AUGMENTATION, seed=5)[key] for _ in range(2))
    torch.manual_seed(99)
    np.random.seed(99)
    later = TrainingImages(data, AUGMENTATION, seed=5)[key]
    for other in (again, later):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1].boxes, other[1].boxes)
    drawn = {AUGMENTATION.draw(5, epoch, 2) for epoch in range(40)}
    assert {flip for _, flip in drawn} == {True, False}
    assert min(s for s, _ in drawn) >= 40
    assert max(s for s, _ in drawn) <= 56


def test_the_planned_padding_holds_every_image_of_the_batch(data):
    images = TrainingImages(data, AUGMENTATION, seed=0)
    for keys in first(TrainingOrder(data, AUGMENTATION, 3, seed=0), 6):
        batch = collate([images[k] for k in keys])
        assert batch.sizes == [k.padded for k in keys] == [padded_size(f.resized) for f in batch.frames]
        assert batch.images.shape == (3, 3, *(max(side) for side in zip(*batch.sizes, strict=True)))
        assert batch.indices == [k.index for k in keys]


def test_boxes_follow_their_pixels_through_resize_and_flip():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:20, 6:18] = 255
    boxes = np.array([[6.0, 10.0, 18.0, 20.0]])
    for flip in (False, True):
        new = resized_size(40, 60, 80, 1000)
        moved = resize(image, new)
        moved = moved.flip(2) if flip else moved
        rows, columns = torch.where(moved[0] > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        wanted = transform_boxes(boxes, (40, 60), new, flip)[0]
        assert [int(v) for v in found] == pytest.approx(wanted.tolist(), abs=1)


def test_a_batch_is_few_tensors_and_all_of_them_are_pinned(data):
    images = TrainingImages(data, AUGMENTATION, seed=0)
    (keys,) = first(TrainingOrder(data, AUGMENTATION, 8, seed=0), 1)
    batch = collate([images[k] for k in keys])
    sent = []
    with mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: sent.append(tensor) or tensor):
        pinned = batch.pin_memory()
    held = [v for part in (pinned, pinned.objects) for v in vars(part).values() if isinstance(v, torch.Tensor)]
    assert {id(t) for t in held} == {id(t) for t in sent}
    assert len(held) <= 4  # of any number of images: each takes a file descriptor on its way from a worker


def test_flipping_twice_is_nothing_and_the_input_stays():
    boxes = np.array([[6.0, 10.0, 18.0, 20.0]])
    twice = transform_boxes(transform_boxes(boxes, (40, 60), (40, 60), True), (40, 60), (40, 60), True)
    assert np.array_equal(twice, boxes)
    assert boxes[0, 0] == 6


def test_padding_keeps_the_image_and_is_grey_after_normalisation():
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    padded = pad(image, (32, 32))
    assert torch.equal(padded[:, :5, :7], image)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert ((padded[:, 20, 20] / 255 - mean) / std).abs().max() < 0.01


@pytest.mark.parametrize(
    ("size", "short", "most", "wanted"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((500, 2000), 800, 1333, (333, 1333)),
        ((1, 5000), 800, 1333, (1, 1333)),
        ((800, 800), 800, 1333, (800, 800)),
    ],
)
def test_sizes_by_hand(size, short, most, wanted):
    assert resized_size(*size, short, most) == wanted


def test_evaluation_sees_every_image_once_in_fixed_batches(data):
    images = EvaluationImages(data, 64, 100)
    batches = images.batches(4)
    assert sorted(k.index for b in batches for k in b) == list(range(10))
    assert [len(b) for b in batches] == [4, 4, 1, 1]
    assert all(len({k.padded for k in b}) == 1 for b in batches)
    batch = collate([images[k] for k in batches[0]])
    assert batch.images.shape[2:] == batches[0][0].padded


def test_shapes_are_a_function_of_seed_split_and_index():
    one, two = (open_shapes("shapes:train=6,seed=3").read("train")[0] for _ in range(2))
    assert np.array_equal(one.boxes, two.boxes)
    assert torch.equal(one.load_image(4), two.load_image(4))
    other = open_shapes("shapes:train=6,seed=4").read("train")[0]
    assert not torch.equal(one.load_image(4), other.load_image(4))
    val = open_shapes("shapes:val=6,seed=3").read("val")[0]
    assert not torch.equal(one.load_image(4), val.load_image(4))
    longer = open_shapes("shapes:train=9,seed=3").read("train")[0]
    assert torch.equal(one.load_image(4), longer.load_image(4))


def test_shapes_have_all_classes_small_objects_and_empty_images():
    data = open_shapes("shapes").read("train")[0]
    assert set(data.labels.tolist()) == {1, 2, 3, 4}
    assert (np.diff(data.first_box) == 0).mean() == pytest.approx(1 / 16, abs=0.03)
    assert (data.areas < 32**2).mean() > 0.5
    assert data.boxes.min() >= 0
    assert data.boxes.max() <= 128
    assert (data.boxes[:, 2:] > data.boxes[:, :2]).all()


def test_boxes_of_shapes_frame_their_pixels():
    # The object's fill is one colour: its pixels, found in the image, must reach all four sides of the box.
    from drloss.data.formats import shapes

    config = shapes.ShapesConfig()
    for index in range(10):
        image = shapes.draw(config, "train", index).float()
        for shape in shapes._layout(config, "train", index):
            if shape.kind not in shapes.CLASS_NAMES:
                continue
            near = (image - torch.tensor(shape.colour).reshape(3, 1, 1)).abs().amax(dim=0) < 40
            left, top, right, bottom = shapes._box(shape)
            inside = near[round(top) : round(bottom), round(left) : round(right)]
            assert inside.any(dim=0).float().mean() > 0.7
            assert inside.any(dim=1).float().mean() > 0.7


# ---------------------------------------------------------------------- zoom


@pytest.mark.parametrize("zoom", [(0.5, 0.5), (2.0, 2.0), (0.6, 1.7), (8.0, 8.0)])
def test_a_zoomed_image_has_its_objects_where_its_boxes_are(zoom):
    # One white square on black; the share of white pixels within each box that is learnt is 1, and outside it 0.
    square = np.array([[20.0, 12.0, 50.0, 36.0]])
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, 12:36, 20:50] = 255
    for index in range(60):
        window = Augmentation(zoom=zoom).draw_window(0, 3, index, (60, 80))
        placement = place(window, (60, 80), (90, 120))
        boxes, lost, seen = place_boxes(square, placement)
        white = resize_placed(image, placement).float().mean(dim=0) / 255 > 0.75
        if not seen[0]:
            assert not white.any()
            continue
        rows, columns = white.nonzero().unbind(1)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array([float(v) for v in found]) - boxes[0]).max() <= 1.5 * max(1.0, zoom[1])
        centre = (square[0, 1] + square[0, 3]) / 2, (square[0, 0] + square[0, 2]) / 2
        inside = all(
            first <= c <= first + length
            for c, first, length in zip(centre, (window.top, window.left), (window.height, window.width), strict=True)
        )
        assert lost[0] != inside


def test_without_a_zoom_the_window_is_the_image_and_draws_are_as_they_were():
    plain, zoomed = Augmentation(), Augmentation(zoom=(0.5, 2.0))
    assert plain.draw_window(1, 2, 3, (40, 60)) == Rectangle(0, 0, 40, 60)
    assert [plain.draw(1, 2, i) for i in range(20)] == [zoomed.draw(1, 2, i) for i in range(20)]
    windows = {zoomed.draw_window(1, 2, i, (40, 60)) for i in range(100)}
    heights = [w.height for w in windows]
    assert min(heights) < 22
    assert max(heights) > 75
    assert {zoomed.draw_window(1, 2, i, (40, 60)) for i in range(100)} == windows


def test_training_on_zoomed_images_marks_what_is_cut_and_keeps_the_size():
    data = open_shapes("shapes:train=12,val=1,size=64").read("train")[0]
    images = TrainingImages(data, Augmentation((64, 64), 64, 0.5, (0.5, 3.0)), seed=0)
    cut = 0
    for epoch in range(6):
        for index in range(len(data)):
            image, objects, frame, _ = images[Key(epoch, index, (64, 64))]
            assert image.shape == (3, 64, 64)
            assert frame.resized == (64, 64)
            assert ((objects.boxes >= 0) & (objects.boxes <= 64)).all()
            assert (objects.boxes[:, 2:] > objects.boxes[:, :2]).all()
            assert len(objects.boxes) == len(objects.labels) == len(objects.ignore)
            cut += int(objects.ignore.sum())
    assert cut > 10
