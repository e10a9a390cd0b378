"""Images in tiles, and what was found in the tiles as detections of the image."""

import json
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from drloss import Detector
from drloss.cli import main
from drloss.data.images.decoding import read_image
from drloss.detector.config import DetectorConfig
from drloss.errors import UserError
from drloss.inference.views import Tiling, checked_tiling, find_in, in_chunks, merge, see, starts
from drloss.structures import Frame
from random_detector import noise, random_detector

CONFIG = DetectorConfig(short_side=160, max_side=280)
LEAST = 8
"""Pixels of the smallest square that :func:`find_squares` sees, in the image as it is given."""


def find_squares(pixels, frames):
    """A detector of bright rectangles on black, at least 8 pixels wide and high; all are sure, and of class 1."""
    found = []
    for image, frame in zip(pixels, frames, strict=True):
        labelled, _ = ndimage.label(image[0, : frame.resized[0], : frame.resized[1]].numpy() > 64)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labelled)]
        boxes = torch.tensor([b for b in boxes if min(b[2] - b[0], b[3] - b[1]) >= LEAST]).reshape(-1, 4).float()
        scale = torch.tensor([o / r for o, r in zip(frame.original[::-1], frame.resized[::-1], strict=True)])
        score, label = torch.full((len(boxes),), 0.9), torch.ones(len(boxes), dtype=torch.int64)
        found.append({"boxes": boxes * scale.repeat(2), "scores": score, "labels": label})
    return found


def squares(height, width, wanted):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for left, top, right, bottom in wanted:
        image[:, top:bottom, left:right] = 255
    return image


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(1500, 640, 0.2), (641, 640, 0.0), (5000, 320, 0.5), (9, 9, 0.1)]
)
def test_tiles_cover_everything_and_overlap_as_much_as_asked(length, side, overlap):
    begin = starts(length, side, overlap)
    assert begin[0] == 0
    assert begin[-1] + side == length
    for first, second in pairwise(begin):
        assert second - first <= side * (1 - overlap)


def test_tiles_find_each_small_object_once_where_the_whole_image_shows_none():
    rng = np.random.default_rng(0)
    corners = [(x, y) for x in range(20, 1960, 60) for y in range(20, 1460, 60)]
    wanted = {
        (x, y, x + int(w), y + int(h))
        for (x, y), (w, h) in zip(corners, rng.integers(LEAST, 40, (len(corners), 2)), strict=True)
    }
    image = squares(1500, 2000, wanted)
    (without,) = find_in([see(image, CONFIG)], find_squares, batch_size=4, iou=0.5)
    assert len(without["boxes"]) == 0
    seen = see(image, CONFIG, tiling=Tiling(640, 0.2))
    assert seen.parts == 1 + 3 * 4
    (found,) = find_in([seen], find_squares, batch_size=4, iou=0.5)
    boxes = [tuple(map(round, box)) for box in found["boxes"].tolist()]
    assert len(boxes) == len(wanted)
    assert set(boxes) == wanted


def test_an_object_larger_than_a_tile_is_the_one_of_the_whole_image():
    wanted = (100, 200, 1700, 1300)
    seen = see(squares(1500, 2000, [wanted]), CONFIG, tiling=Tiling(640, 0.2))
    (found,) = find_in([seen], find_squares, batch_size=8, iou=0.5)
    inner = found["boxes"].tolist()
    assert max(abs(a - b) for a, b in zip(inner[0], wanted, strict=True)) < 2000 / CONFIG.short_side
    assert len(inner) == 1


def test_an_image_no_larger_than_a_tile_is_looked_at_once():
    for size in ((640, 640), (100, 640), (30, 20)):
        assert see(noise(3, *size), CONFIG, tiling=Tiling(640)).parts == 1
    narrow = see(noise(3, 100, 1000), CONFIG, tiling=Tiling(640, 0.2))
    assert [v.pixels.shape for v in narrow.views[1:]] == [(2, 3, 128, 640)]
    assert narrow.views[1].origins == [(0, 0), (0, 360)]


@pytest.mark.parametrize("tiling", [None, Tiling(640)])
def test_a_file_gives_what_its_pixels_give_though_less_of_it_is_decoded(tmp_path, tiling):
    large = Image.fromarray(noise(30, 40, 3).numpy()).resize((1200, 900))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(tmp_path / "large.jpg", exif=exif)
    Image.fromarray(noise(30, 40, 3).numpy()).save(tmp_path / "small.png")
    for name, size in (("large.jpg", (1200, 900)), ("small.png", (30, 40))):
        path = tmp_path / name
        file, pixels = see(path, CONFIG, tiling=tiling), see(read_image(path), CONFIG, tiling=tiling, path=path)
        assert file.size == pixels.size == size
        assert file.parts == pixels.parts == (1 if tiling is None or name == "small.png" else 1 + 2 * 3)
        for one, other in zip(file.views, pixels.views, strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert (one.frame, one.origins) == (other.frame, other.origins)


def test_tiles_are_padded_to_the_only_size_that_a_detector_takes_and_refused_if_larger():
    seen = see(noise(3, 300, 500), CONFIG, fixed=(256, 320), tiling=Tiling(200, 0))
    assert [v.pixels.shape[1:] for v in seen.views] == [(3, 256, 320)] * 2
    assert seen.views[1].frame == Frame((200, 200), (200, 200))
    with pytest.raises(UserError, match="tile must be at most 256 for a detector whose input is 256 x 320"):
        checked_tiling(300, 0.2, (256, 320))


def detection(*rows):
    boxes, scores, labels = zip(*rows, strict=True)
    return {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}


def test_cut_boxes_go_where_a_whole_one_of_their_class_holds_them_and_stay_elsewhere():
    left = detection(
        ([90.0, 10.0, 100.0, 30.0], 0.9, 1),  # a part of the object below
        ([95.0, 60.0, 100.0, 70.0], 0.8, 2),  # cut as well, and held by nothing of its class
    )
    right = detection(([10.0, 10.0, 40.0, 30.0], 0.7, 1), ([10.0, 58.0, 30.0, 72.0], 0.9, 1))
    found = merge([(left, (0, 0), (100, 100)), (right, (0, 80), (100, 100))], (100, 180), 0.5)
    assert found["labels"].tolist() == [1, 2, 1]
    assert found["boxes"].tolist() == [[90, 58, 110, 72], [95, 60, 100, 70], [90, 10, 120, 30]]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_a_whole_box_that_is_far_less_sure_takes_no_cut_one_along():
    left, right = detection(([90.0, 10.0, 100.0, 30.0], 0.9, 1)), detection(([5.0, 5.0, 90.0, 90.0], 0.1, 1))
    found = merge([(left, (0, 0), (100, 100)), (right, (0, 80), (100, 100))], (100, 180), 0.5)
    assert len(found["boxes"]) == 2


def test_the_edge_of_the_image_cuts_nothing():
    at_edge = detection(([0.0, 0.0, 20.0, 20.0], 0.9, 1))
    around = detection(([0.0, 0.0, 60.0, 60.0], 0.9, 1))
    found = merge([(at_edge, (0, 0), (100, 100)), (around, (0, 0), (100, 180))], (100, 180), 0.5)
    assert len(found["boxes"]) == 2


def test_chunks_are_whole_images_in_their_order():
    images = [see(noise(3, 64, 64 * n), CONFIG, tiling=Tiling(64, 0)) for n in (1, 3, 9, 1, 1)]
    assert [image.parts for image in images] == [1, 4, 10, 1, 1]
    chunks = list(in_chunks(images, 1))
    assert [[image.parts for image in chunk] for chunk in chunks] == [[1, 4], [10], [1, 1]]
    assert list(chain(*chunks)) == images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    random_detector(path)
    return Detector.load(path, device="cpu", threshold=0.0)


def test_a_detector_finds_in_a_tile_what_it_finds_in_that_part_alone(tiny):
    image = noise(3, 64, 160)
    found = tiny(image, tile=64, overlap=0.25)
    alone = tiny(image[:, :, 48:112])
    boxes = found.boxes - torch.tensor([48.0, 0.0, 48.0, 0.0])
    for box, score in zip(alone.boxes[:5], alone.scores[:5], strict=True):
        near = (boxes - box).abs().amax(dim=1) < 0.01
        beaten = (found.scores > score).any()
        assert near.any() or beaten
    both = tiny([image, image[:, :, :64]], tile=64, overlap=0.25, batch_size=2)
    assert torch.allclose(both[0].boxes, found.boxes, atol=1e-3)
    assert torch.allclose(both[1].boxes, tiny(image[:, :, :64]).boxes, atol=1e-3)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"tile": 16}, "tile must be at least 32 pixels, got 16"),
        ({"tile": 64, "overlap": 1.0}, r"overlap must lie in 0\.\.0\.9, the 0\.9 left out, got 1"),
        ({"tile": 64, "overlap": -0.1}, "overlap must lie in"),
    ],
)
def test_tiles_that_cannot_be_are_refused(tiny, how, words):
    with pytest.raises(UserError, match=words):
        tiny(noise(3, 64, 64), **how)


@pytest.mark.slow
def test_a_trained_detector_finds_in_tiles_what_it_misses_in_the_whole(tmp_path):
    """64 images in one: the whole of it, at the size of one, shows objects an eighth as large as those it learnt."""
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["make-shapes", str(data), "--data", "shapes:train=200,val=1,test=64,size=96"]) == 0
    train = ["train", "--data", str(data), "--preset", "cpu", "--out", str(run), "--device", "cpu", "--val-split"]
    more = ["--short-side", "96", "--max-iters", "300", "--batch-size", "8", "--workers", "0", "--no-scale-lr"]
    assert main([*train, "none", *more]) == 0
    annotations = json.loads((data / "annotations" / "instances_test.json").read_text())
    mosaic, wanted = Image.new("RGB", (768, 768)), []
    for number, image in enumerate(annotations["images"]):
        y, x = divmod(number, 8)
        mosaic.paste(Image.open(data / "test" / image["file_name"]), (96 * x, 96 * y))
        own = [a for a in annotations["annotations"] if a["image_id"] == image["id"]]
        wanted += [([a["bbox"][0] + 96 * x, a["bbox"][1] + 96 * y], a["bbox"][2:], a["category_id"]) for a in own]
    detector = Detector.load(run, device="cpu", threshold=0.3)

    def hits(found):
        """How many of the objects have a detection of their class that ends within a third of their size."""
        count = 0
        for (left, top), (width, height), label in wanted:
            box, room = torch.tensor([left, top, left + width, top + height]), max(width, height) / 3
            right = found.labels == detector.description.category_ids.index(label) + 1
            count += bool((((found.boxes - box).abs().amax(dim=1) < room) & right).any())
        return count

    whole, tiles = detector(mosaic), detector(mosaic, tile=96, overlap=0.5)
    assert hits(whole) < 0.1 * len(wanted)
    assert hits(tiles) > 0.4 * len(wanted)
