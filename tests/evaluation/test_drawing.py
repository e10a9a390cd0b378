import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from drloss.evaluation.drawing import COLOURS, DARK, draw_detections, mosaic

GREY = 100


def one(label=1, score=0.9, box=(40.0, 40.0, 80.0, 80.0)):
    return {"boxes": torch.tensor([box]), "scores": torch.tensor([score]), "labels": torch.tensor([label])}


def nothing():
    return {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}


def plain(height=120, width=120):
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def share(picture, colour):
    """Number of pixels of a colour."""
    return int((np.asarray(picture.convert("RGB")) == ImageColor.getrgb(colour)).all(axis=2).sum())


@pytest.mark.parametrize(
    ("size", "expected"), [((120, 160), (640, 480)), ((96, 96), (480, 480)), ((600, 500), (500, 600))]
)
def test_small_images_are_enlarged_and_large_ones_left(size, expected):
    assert draw_detections(plain(*size), nothing(), ["a"], threshold=0.5).size == expected


def test_nothing_detected_leaves_the_image_as_it_was():
    picture = draw_detections(plain(500, 500), nothing(), ["a"], threshold=0.5)
    assert np.asarray(picture).min() == np.asarray(picture).max() == GREY


def test_the_frame_follows_the_enlarged_box_in_the_colour_of_its_class():
    picture = draw_detections(plain(), one(label=2), ["a", "b"], threshold=0.5)
    colour = ImageColor.getrgb(COLOURS[1])
    assert picture.getpixel((160, 240)) == picture.getpixel((240, 320)) == colour
    assert picture.getpixel((240, 240)) == (GREY, GREY, GREY)
    assert share(picture, COLOURS[0]) == 0


def test_scores_below_the_threshold_are_not_drawn_and_one_at_it_is():
    for score, drawn in ((0.25, False), (0.5, True)):
        picture = draw_detections(plain(), one(score=score), ["a"], threshold=0.5)
        assert (share(picture, COLOURS[0]) > 0) == drawn


@pytest.mark.parametrize("box", [(0, 0, 119, 119), (100, 0, 120, 12), (0, 108, 20, 120), (50, 50, 50, 50)])
def test_the_label_lies_inside_the_image_wherever_the_box_is(box):
    """Its fill adds to what a frame 3 pixels wide covers, and its letters are dark."""
    picture = draw_detections(plain(), one(box=tuple(map(float, box))), ["a long class name"], threshold=0.5)
    frame = 3 * 2 * 4 * ((box[2] - box[0]) + (box[3] - box[1]))
    assert share(picture, COLOURS[0]) > frame + 1000
    assert share(picture, DARK) > 200


def test_labels_without_scores_are_shorter():
    pictures = [draw_detections(plain(), one(), ["a"], threshold=0.5, show_scores=s) for s in (True, False)]
    assert share(pictures[0], COLOURS[0]) > share(pictures[1], COLOURS[0]) + 300


def test_the_better_of_two_detections_lies_on_top():
    two = {
        "boxes": torch.tensor([[40.0, 40.0, 80.0, 80.0]] * 2),
        "scores": torch.tensor([0.9, 0.6]),
        "labels": torch.tensor([1, 2]),
    }
    picture = draw_detections(plain(), two, ["a", "b"], threshold=0.5)
    assert picture.getpixel((160, 240)) == ImageColor.getrgb(COLOURS[0])


def test_more_classes_than_colours_are_drawn():
    names = [f"class {k}" for k in range(80)]
    picture = draw_detections(plain(), one(label=80), names, threshold=0.5)
    assert share(picture, COLOURS[79 % len(COLOURS)]) > 0


def test_a_mosaic_has_its_images_in_rows_with_gaps_between():
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 10), "blue")
    sheet = mosaic([red, blue, red], 2, gap=4)
    assert sheet.size == (44, 24)
    assert sheet.getpixel((10, 5)) == sheet.getpixel((10, 19)) == (255, 0, 0, 255)
    assert sheet.getpixel((34, 5)) == (0, 0, 255, 255), "centred in its cell"
    assert sheet.getpixel((22, 5))[3] == sheet.getpixel((34, 19))[3] == 0


@pytest.mark.parametrize(("count", "columns"), [(0, 2), (2, 0)])
def test_a_mosaic_of_nothing_is_refused(count, columns):
    with pytest.raises(ValueError, match="need images"):
        mosaic([Image.new("RGB", (4, 4))] * count, columns)
