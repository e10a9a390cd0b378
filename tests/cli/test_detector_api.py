"""A trained detector in a program: ``drloss.Detector``."""

import builtins
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from drloss import Detector
from drloss.cli import main
from drloss.errors import UserError
from drloss.inference.images import as_pixels
from random_detector import NAMES, TINY, detect_image, noise, random_detector


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A detector that was loaded from a file, and the model in it."""
    path = tmp_path_factory.mktemp("api") / "tiny.safetensors"
    model = random_detector(path)
    return Detector.load(path, device="cpu", threshold=0.0), model


def assert_same(found, wanted):
    assert torch.equal(found.scores, wanted["scores"])
    assert torch.equal(found.labels, wanted["labels"])
    assert torch.equal(found.boxes, wanted["boxes"])


def test_every_kind_of_image_gives_what_the_model_finds(loaded, tmp_path):
    detector, model = loaded
    image = noise(3, 50, 77)
    array = image.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "a.png")
    kinds = [image, image.double() / 255, array, array / np.float32(255), Image.fromarray(array)]
    kinds += [tmp_path / "a.png", str(tmp_path / "a.png")]
    wanted = detect_image(model, image)
    assert len(wanted["scores"]) > 0
    for kind in kinds:
        assert_same(detector(kind), wanted)
    together = detector(kinds, batch_size=1)
    for found in together:
        assert_same(found, wanted)
        assert found.size == (50, 77)


def test_grey_alpha_and_exif_are_taken_as_the_files_are(loaded, tmp_path):
    detector, _ = loaded
    grey = noise(40, 64).numpy()
    assert_same(detector(grey), vars(detector(Image.fromarray(grey))))
    turned = Image.fromarray(noise(40, 64, 3).numpy())
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    found = detector(Image.open(tmp_path / "a.png"))
    assert found.size == (64, 40)
    assert_same(found, vars(detector(tmp_path / "a.png")))


def test_a_list_comes_back_in_its_order_whatever_the_sizes(loaded):
    detector, model = loaded
    images = [noise(3, height, width) for height, width in ((64, 64), (64, 96), (96, 64), (64, 64), (64, 64))]
    found = detector(images, batch_size=2)
    assert [one.size for one in found] == [tuple(image.shape[1:]) for image in images]
    for one, image in zip(found, images, strict=True):
        wanted = detect_image(model, image)
        assert torch.allclose(one.scores, wanted["scores"], atol=1e-6)
    assert detector([]) == []


def test_the_threshold_is_the_calls_the_detectors_or_the_files(loaded, tmp_path):
    detector, _ = loaded
    image = noise(3, 64, 64)
    everything = detector(image)
    middle = float(everything.scores[len(everything) // 2])
    assert len(detector(image, threshold=middle)) == len(everything.above(middle)) == len(everything) // 2 + 1
    random_detector(tmp_path / "plain.safetensors")
    assert Detector.load(tmp_path / "plain.safetensors").threshold == 0.5
    random_detector(tmp_path / "chosen.safetensors", threshold=0.25)
    chosen = Detector.load(tmp_path / "chosen.safetensors", device="cpu")
    assert chosen.threshold == 0.25
    assert len(chosen(image)) == len(everything)  # the network itself drops what scores less than 0.3
    chosen.threshold = 1.0
    assert len(chosen(image)) == 0


def test_what_was_found_reads_as_a_sequence_and_as_coco(loaded):
    detector, _ = loaded
    found = detector(noise(3, 64, 64))
    first = found[0]
    assert first.name == found.names[0] == NAMES[found.labels[0] - 1]
    assert first.score == found.scores[0] == found.scores.max()
    assert len(list(found)) == len(found)
    records = found.to_coco("a.jpg")
    left, top, right, bottom = first.box
    assert records[0] == {
        "image_id": "a.jpg",
        "category_id": int(found.labels[0]),
        "bbox": [left, top, right - left, bottom - top],
        "score": first.score,
    }
    assert repr(found).startswith(f"<{len(found)} detections: {first.name} {first.score:.2f}, ")


def test_plot_draws_the_boxes_on_the_image_that_was_given(loaded, tmp_path):
    detector, _ = loaded
    Image.new("RGB", (640, 480), "white").save(tmp_path / "a.png")
    found = detector(tmp_path / "a.png", threshold=0.0)
    picture = found.plot()
    assert picture.size == (640, 480)
    assert len(picture.getcolors(maxcolors=1 << 20)) > (1 if len(found) else 0)
    assert found.plot(Image.new("RGB", (640, 480))).size == (640, 480)


def test_nothing_that_was_not_asked_for_is_imported(loaded, monkeypatch):
    detector, _ = loaded
    found = detector(noise(3, 64, 64))
    own = builtins.__import__

    def without(name, *rest):
        if name == "supervision":
            raise ImportError(name)
        return own(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="to_supervision: supervision is missing"):
        found.to_supervision()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"must be \(H, W, 3\) RGB or \(H, W\) grey, got \(4, 4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"must be \(3, H, W\) RGB, got \(4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int64), "must be uint8, or float in 0..1, got torch.int64"),
        (np.full((4, 4, 3), 200.0), "must lie in 0..1, got 200..200"),
        (np.full((4, 4, 3), np.nan), "must lie in 0..1, got nan..nan"),
        (np.zeros((0, 4, 3), np.uint8), "must have pixels"),
        (4, "must be a path, a Pillow image, an array or a tensor, got int"),
        ("missing.png", "missing.png"),
    ],
)
def test_what_is_no_image_is_refused(loaded, image, words):
    detector, _ = loaded
    with pytest.raises(UserError, match=words):
        detector(image)


def test_wrong_files_devices_and_thresholds_are_refused(tmp_path):
    with pytest.raises(UserError, match="neither an exported"):
        Detector.load(tmp_path)
    random_detector(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="--device must be"):
        Detector.load(tmp_path / "a.safetensors", device="tpu")
    with pytest.raises(UserError, match=r"threshold must lie in 0\.\.1, got 2"):
        Detector.load(tmp_path / "a.safetensors", threshold=2)
    random_detector(tmp_path / "b.safetensors", threshold=3.0)
    with pytest.raises(UserError, match=r"threshold must be null or a number in 0\.\.1, got 3"):
        Detector.load(tmp_path / "b.safetensors")
    assert TINY.score_threshold == 0.3


QUICK = {"short_side": 64, "max_iters": 2, "batch_size": 4, "micro_batch": 4, "workers": 0, "eval_every": 0}


def test_fit_is_what_the_command_does(tmp_path, capsys):
    data = "shapes:train=8,val=4,size=64"
    detector = Detector.fit(data, tmp_path / "a", loss="dr+", seed=3, device="cpu", **QUICK)
    assert detector.description.loss == "dr+"
    assert detector.class_names == NAMES
    options = [text for name, value in QUICK.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    train = ["train", "--data", data, "--preset", "cpu", "--loss", "dr+", "--seed", "3", "--device", "cpu", *options]
    assert main([*train, "--out", str(tmp_path / "b")]) == 0
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert ours == theirs
    capsys.readouterr()
    again = Detector.fit(data, tmp_path / "a", loss="dr+", seed=3, device="cpu", resume=True, **QUICK)
    assert "2/2" not in capsys.readouterr().out
    assert again.description == detector.description


def test_fit_runs_in_a_thread_which_gets_no_signals(tmp_path):
    with ThreadPoolExecutor(1) as threads:
        fitted = threads.submit(Detector.fit, "shapes:train=4,val=2,size=64", tmp_path / "a", device="cpu", **QUICK)
    assert fitted.result().class_names == NAMES


def test_fit_raises_keyboard_interrupt_after_a_checkpoint(tmp_path, monkeypatch):
    from drloss.training import fit

    def step(trainer, *rest):
        signal.raise_signal(signal.SIGINT)
        return take_step(trainer, *rest)

    take_step = fit.take_step
    monkeypatch.setattr(fit, "take_step", step)
    data = "shapes:train=4,val=2,size=64"
    with pytest.raises(KeyboardInterrupt, match="stopped after iteration 1"):
        Detector.fit(data, tmp_path / "a", device="cpu", **QUICK)
    assert any((tmp_path / "a" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("data", "how", "words"),
    [
        ("nowhere", {}, "nowhere"),
        ("shapes", {"preset": "lapto"}, "preset must be one of .* got 'lapto'.*laptop"),
        ("shapes", {"max_iter": 3}, "unknown setting 'max_iter'.*max_iters"),
        ("shapes", {"max_iters": "3"}, "max_iters"),
        ("shapes", {"val_split": "none", "val_fraction": 0.1}, "val-split none"),
    ],
)
def test_fit_refuses_what_the_command_refuses(data, how, words, tmp_path):
    with pytest.raises(UserError, match=words):
        Detector.fit(data, tmp_path / "a", device="cpu", **how)
    assert not (tmp_path / "a").exists()


def test_a_grey_image_of_16_bits_is_what_its_file_is(tmp_path):
    """A file goes by its high byte; Pillow's own conversion would clip everything above 255 to white."""
    Image.fromarray(np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) * 12).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode.startswith("I;16")
        assert torch.equal(as_pixels(image), as_pixels(tmp_path / "a.png"))
    for mode in ("I", "F"):
        with pytest.raises(UserError, match=f"mode {mode} cannot be read: .*no range"):
            as_pixels(Image.new(mode, (4, 4)))


def test_a_damaged_file_that_pillow_has_only_opened_is_refused(tmp_path):
    Image.fromarray(noise(64, 64, 3).numpy()).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(UserError, match="cannot be read"):
        as_pixels(image)


def test_detections_have_slices(loaded):
    found = loaded[0](noise(3, 64, 96), threshold=0.3)
    assert found[:3] == [found[0], found[1], found[2]]
    assert found[-1:] == [list(found)[-1]]


@pytest.mark.parametrize("how", [{"batch_size": 0}, {"threshold": 2}, {"threshold": float("nan")}])
def test_numbers_of_a_call_out_of_range_are_refused(loaded, how):
    with pytest.raises(UserError, match=next(iter(how))):
        loaded[0]([noise(3, 64, 96)], **how)


def test_a_detector_says_what_it_is(tmp_path):
    random_detector(tmp_path / "a.safetensors", threshold=0.25)
    said = repr(Detector.load(tmp_path / "a.safetensors", device="cpu"))
    assert said == "<Detector: resnet10, 4 classes, threshold 0.25, on cpu>"
    with pytest.raises(UserError, match=r"b\.safetensors: no such file or folder"):
        Detector.load(tmp_path / "b.safetensors")
