"""Pictures of a few images in TensorBoard: always the same ones, and nothing else notices them."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drloss.evaluation.drawing import draw_truth
from drloss.training.checkpoints import load_checkpoint
from drloss.training.run_folder import BEST, BOARD, CHECKPOINTS, EVALUATIONS_FILE, METRICS_FILE, MODEL
from drloss.training.samples import LONGEST, chosen_images, side_by_side
from small_training import rows

NOTHING = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}


def pictures(folder):
    """The pictures in TensorBoard's file, by tag and step."""
    events = EventAccumulator(str(folder / BOARD), size_guidance={"images": 0})
    events.Reload()
    return {
        tag: {e.step: Image.open(io.BytesIO(e.encoded_image_string)) for e in events.Images(tag)}
        for tag in events.Tags()["images"]
    }


def test_the_same_images_are_chosen_each_time_and_more_contain_fewer(data):
    val = data[1]
    four = chosen_images(val, 4)
    assert len({*four}) == 4
    assert set(four) <= set(range(len(val)))
    assert chosen_images(val, 4) == four
    assert chosen_images(val, 2) == four[:2]
    assert sorted(chosen_images(val, 100)) == list(range(len(val)))
    assert chosen_images(val, 0) == []


def test_each_evaluation_shows_the_truth_and_beside_it_what_was_found(run, data):
    folder, _ = run(val=True, eval_every=3, log_images=2)
    shown = pictures(folder)
    assert set(shown) == {f"samples/{data[1].image_name(i)}" for i in chosen_images(data[1], 2)}
    for index, by_step in zip(chosen_images(data[1], 2), shown.values(), strict=True):
        assert list(by_step) == [3, 6]
        three, six = (np.asarray(picture) for picture in by_step.values())
        truth = np.asarray(draw_truth(data[1], index, data[1].load_image(index)))
        assert np.array_equal(three[:, : truth.shape[1]], truth)
        assert np.array_equal(six[:, : truth.shape[1]], truth)
        assert not np.array_equal(three, six)


@pytest.mark.slow
def test_the_training_and_the_evaluation_do_not_notice(run):
    settings = {"val": True, "eval_every": 2, "ema": 0.9}
    with_some, without = run("with", log_images=4, **settings)[0], run("without", log_images=0, **settings)[0]
    assert pictures(with_some)
    assert not pictures(without)
    for name in (MODEL, BEST):
        assert (with_some / name).read_bytes() == (without / name).read_bytes()
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        assert rows(with_some / name) == rows(without / name)
    one, two = (load_checkpoint(folder / CHECKPOINTS)[0] for folder in (with_some, without))
    assert torch.equal(one["random"]["torch"], two["random"]["torch"])
    assert one["random"]["python"] == two["random"]["python"]
    assert torch.equal(one["random"]["numpy"]["state"]["key"], two["random"]["numpy"]["state"]["key"])


def test_a_picture_of_a_large_image_is_made_smaller(data):
    pixels = torch.zeros(3, 900, 1600, dtype=torch.uint8)
    val = replace(data[1], draw=lambda index: pixels)
    picture = side_by_side(val, 0, NOTHING, 0.5)
    assert picture.width == LONGEST
    assert picture.height == pytest.approx(LONGEST * 900 / 3210, abs=1)
    assert picture.mode == "RGB"
