"""What ``drloss predict`` reads and writes, and what it says of the rest."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from drloss.cli import main
from drloss.data.formats.shapes import open_shapes
from drloss.data.images.decoding import read_image
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, save_detector
from drloss.detector.model import RetinaNet
from drloss.distributed.ranks import Ranks
from drloss.evaluation.detecting import run_detector
from drloss.training.trained import load_run
from random_detector import detect_image


def test_predict_draws_every_image_of_a_folder_with_its_subfolders(workshop, tmp_path, capsys):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    Image.new("RGB", (90, 60), "red").save(images / "a.jpg")
    Image.new("L", (60, 90)).save(images / "a.png")
    Image.new("RGB", (200, 100)).save(images / "sub" / "b.webp")
    out = tmp_path / "out"
    assert main(["predict", str(workshop / "run"), str(images), "--out", str(out), "--device", "cpu"]) == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        "a.jpg.png",
        "a.png.png",
        "sub/b.webp.png",
    ]
    records = json.loads((out / "predictions.json").read_text())
    assert [(r["image"], r["width"], r["height"]) for r in records] == [
        ("a.jpg", 90, 60),
        ("a.png", 60, 90),
        ("sub/b.webp", 200, 100),
    ]


def test_predict_names_what_it_cannot_read_and_writes_the_rest(workshop, tmp_path, capsys):
    Image.new("RGB", (90, 60)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert main(["predict", str(workshop / "run"), str(tmp_path), "--out", str(out), "--device", "cpu"]) == 2
    assert "1 of 2 images could not be read" in capsys.readouterr().err
    assert (out / "good.png.png").exists()


def test_long_names_of_images_get_pictures_of_their_own(workshop, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    names = ["a" * 236 + ".png", "a" * 235 + "b.png", "a" * 251 + ".jpg", "ä" * 120 + ".png", "short.png"]
    for name in names:
        Image.new("RGB", (64, 64), "grey").save(images / name, format="PNG")
    predict = ["predict", str(workshop / "run"), str(images), "--out", str(out), "--device", "cpu"]
    assert main(predict) == 0
    assert len(list(out.glob("*.png"))) == len(names)
    assert (out / "short.png.png").is_file()
    assert {r["image"] for r in json.loads((out / "predictions.json").read_text())} == set(names)
    before = {path.name for path in out.iterdir()}
    assert main(predict) == 0  # one's own are replaced
    assert {path.name for path in out.iterdir()} == before


def test_a_picture_that_cannot_be_written_costs_no_other(workshop, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (64, 64), "grey").save(images / name)
    (images / "broken.png").write_bytes(b"x")
    predict = ["predict", str(workshop / "run"), str(images), "--out", str(out), "--device", "cpu"]
    assert main(predict) == 2
    (out / "b.png.png").unlink()
    (out / "b.png.png").mkdir()
    (out / "c.png.png").unlink()
    capsys.readouterr()
    assert main(predict) == 2
    said = capsys.readouterr().err
    assert "1 of 4 images could not be read; the first: " in said
    assert "1 of 4 pictures could not be written (their detections are in predictions.json)" in said
    assert "b.png.png: cannot be written: Is a directory" in said
    assert len(json.loads((out / "predictions.json").read_text())) == 3
    assert (out / "c.png.png").is_file()


@pytest.mark.parametrize("threshold", [0.5, 0.05])
def test_images_full_of_detections_are_said_by_predict_and_eval(workshop, tmp_path, capsys, threshold):
    config = DetectorConfig(
        **{"backbone": "resnet10", "norm": "group", "fpn_channels": 32, "top_level": 5, "head_depth": 1},
        **{"head_channels": 32, "anchor_scale": 2.5, "short_side": 64, "max_side": 64},
    )
    names = ("disc", "square", "triangle", "star")
    prior = 0.6 if threshold == 0.5 else 0.1
    state, file = RetinaNet(config, 4, prior).state_dict(), tmp_path / "young.safetensors"
    save_detector(file, state, DetectorFile(config, names, (1, 2, 3, 4), "dr"))
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    predict = ["predict", str(file), str(tmp_path / "grey.png"), "--device", "cpu", "--threshold", str(threshold)]
    assert main([*predict, "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"warning: 1 of 1 image(s) have 100 detections of score {threshold:g} or more" in said
    assert "the training was too short" in said
    evaluate = ["eval", str(file), "--data", "shapes:train=2,val=3,size=64", "--device", "cpu"]
    assert main([*evaluate, "--out", str(tmp_path / "eval")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("warning: 3 of 3 image(s) have 100 detections" in said) == (threshold == 0.5)


def test_predict_reads_every_kind_of_image_that_training_does(workshop, tmp_path, capsys):
    for name in ("a.pgm", "b.PPM"):
        Image.new("L" if name == "a.pgm" else "RGB", (60, 90)).save(tmp_path / name, format="PPM")
    assert (
        main(["predict", str(workshop / "run"), str(tmp_path), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 0
    )
    assert {p.name for p in (tmp_path / "o").glob("*.png")} == {"a.pgm.png", "b.PPM.png"}


def test_predict_finds_in_a_large_photograph_what_eval_finds(workshop, tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    small = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    small.resize((320, 320)).save(images / "a.jpg")
    model, _ = load_run(workshop / "run")
    image = read_image(images / "a.jpg")
    found = detect_image(model, image, images / "a.jpg")
    data = open_shapes("shapes:train=1,val=1,size=64").read("val")[0]
    names, sizes = np.array([b"a.jpg"]), np.array([[320, 320]], dtype=np.int32)
    data = replace(data, image_root=images, image_names=names, sizes=sizes, draw=None)
    (wanted,) = run_detector(model, data, Ranks(0, 1, torch.device("cpu")), batch_size=1)
    assert len(found["scores"]) > 0
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value)
    whole = detect_image(model, image)
    assert not torch.equal(whole["scores"], found["scores"])


def test_predict_counts_what_it_passes_over(workshop, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jfif", "b.MPO"):
        Image.new("RGB", (60, 90)).save(images / name, format="JPEG")
    for name in ("c.heic", "d.heic", "e", ".f.jpg"):
        (images / name).write_bytes(b"x")
    (images / "g").symlink_to(tmp_path)
    arguments = ["predict", str(workshop / "run"), str(images), "--out", str(images / "o"), "--device", "cpu"]
    for _ in range(2):
        assert main(arguments) == 0
        assert [r["image"] for r in json.loads((images / "o/predictions.json").read_text())] == ["a.jfif", "b.MPO"]
        assert capsys.readouterr().out.splitlines()[:4] == [
            f"{images}: 1 x hidden image file, not read",
            f"{images}: 2 x file with suffix .heic, not taken for an image",
            f"{images}: 1 x file without a suffix, not taken for an image",
            f"{images}: 1 x folder that is a link, not searched",
        ]
