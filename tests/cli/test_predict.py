"""What ``drloss predict`` reads and writes, and what it says of the rest."""

import csv
import json
import re
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
from random_detector import NAMES, detect_image, noise, random_detector


def predict(run, *sources, out, more=()):
    return main(["predict", str(run), *map(str, sources), "--out", str(out), "--device", "cpu", *map(str, more)])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A detector of random weights in a file, which finds many things."""
    path = tmp_path_factory.mktemp("detector") / "tiny.safetensors"
    random_detector(path)
    return path


def test_predict_draws_every_image_of_a_folder_with_its_subfolders(workshop, tmp_path, capsys):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    Image.new("RGB", (90, 60), "red").save(images / "a.jpg")
    Image.new("L", (60, 90)).save(images / "a.png")
    Image.new("RGB", (200, 100)).save(images / "sub" / "b.webp")
    out = tmp_path / "out"
    assert predict(workshop / "run", images, out=out) == 0
    assert files(out / "pictures") == ["a.jpg", "a.png.jpg", "sub/b.jpg"]
    with Image.open(out / "pictures" / "sub" / "b.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (960, 480))
    assert [(r["image"], r["stem"], r["width"], r["height"]) for r in lines(out / "predictions.jsonl")] == [
        ("a.jpg", "a", 90, 60),
        ("a.png", "a.png", 60, 90),
        ("sub/b.webp", "sub/b", 200, 100),
    ]
    assert re.search(
        r"3 image\(s\); \d+ detection\(s\) of score [\d.]+ or more, [\d.]+ images/s", capsys.readouterr().out
    )


def test_a_broken_image_is_named_and_listed_and_costs_no_other(tiny, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name in "abcdef":
        Image.fromarray(noise(64, 64, 3).numpy()).save(images / f"{name}.jpg")
    whole = (images / "b.jpg").read_bytes()
    (images / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "c.jpg").write_bytes(b"")
    (images / "d.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert predict(tiny, images, out=out) == 0
    said = capsys.readouterr().err
    for name, why in (("b.jpg", "cannot be decoded"), ("c.jpg", "empty file"), ("d.jpg", "not an image")):
        assert f"{images / name}: {why}" in said
    assert f"3 of 6 failed, and are listed in {out}/failed.jsonl" in said
    assert [r["image"] for r in lines(out / "predictions.jsonl")] == ["a.jpg", "e.jpg", "f.jpg"]
    failed = lines(out / "failed.jsonl")
    assert [r["image"] for r in failed] == ["b.jpg", "c.jpg", "d.jpg"]
    assert "empty file" in failed[1]["reason"]
    assert predict(tiny, images, out=out, more=["--strict"]) == 2  # tried again, named again
    assert "3 of 6 failed" in capsys.readouterr().err
    assert len(lines(out / "failed.jsonl")) == 3
    (images / "b.jpg").write_bytes(whole)
    for name in "cd":
        (images / f"{name}.jpg").unlink()
    assert predict(tiny, images, out=out, more=["--strict"]) == 0
    assert [r["image"] for r in lines(out / "predictions.jsonl")] == ["a.jpg", "e.jpg", "f.jpg", "b.jpg"]
    assert not (out / "failed.jsonl").exists()


def test_if_all_images_are_broken_that_is_an_error(tiny, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    assert predict(tiny, tmp_path / "a.png", out=tmp_path / "out") == 2
    assert "1 of 1 failed" in capsys.readouterr().err


def test_long_names_of_images_get_pictures_of_their_own(workshop, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    names = ["a" * 236 + ".png", "a" * 235 + "b.png", "a" * 251 + ".jpg", "ä" * 120 + ".png", "short.png"]
    for name in names:
        Image.new("RGB", (64, 64), "grey").save(images / name, format="PNG")
    assert predict(workshop / "run", images, out=out, more=["--format", "yolo"]) == 0
    assert len(files(out / "pictures")) == len(names)
    assert len(files(out / "labels")) == len(names) + 1
    assert (out / "pictures" / "short.jpg").is_file()
    assert {r["image"] for r in lines(out / "predictions.jsonl")} == set(names)


def test_a_picture_that_cannot_be_written_costs_no_other(tiny, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "grey").save(images / name)
    Image.new("RGB", (3000, 1)).save(images / "narrow.png")  # which enlarged is longer than a JPEG may be
    assert predict(tiny, images, out=out) == 0
    assert "narrow.png: its picture could not be written" in capsys.readouterr().err
    assert [r["image"] for r in lines(out / "predictions.jsonl")] == ["a.png", "b.png", "narrow.png"]
    assert files(out / "pictures") == ["a.jpg", "b.jpg"]
    assert predict(tiny, images, out=out) == 0  # all is done, and what failed stays listed
    assert [r["image"] for r in lines(out / "failed.jsonl")] == ["narrow.png"]


def test_the_formats_say_the_same(tiny, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in (7, 12):
        Image.fromarray(noise(64, 90 + number, 3).numpy()).save(images / f"{number:06d}.jpg")
    assert predict(tiny, images, out=out, more=["--format", "coco", "yolo", "csv", "--no-pictures"]) == 0
    records = lines(out / "predictions.jsonl")
    assert files(out) == [
        *(".lock", "labels/000007.txt", "labels/000012.txt", "labels/classes.txt"),
        *("predict.json", "predictions.csv", "predictions.jsonl", "results.json"),
    ]
    found = [(r, d) for r in records for d in r["detections"]]
    assert len(found) > 10
    coco = json.loads((out / "results.json").read_text())
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert len(coco) == len(rows) == len(found)
    for (record, wanted), entry, row in zip(found, coco, rows, strict=True):
        left, top, right, bottom = wanted["box_xyxy"]
        assert entry["image_id"] == int(record["image"].removesuffix(".jpg"))
        assert entry["category_id"] == NAMES.index(wanted["class"]) + 1
        assert entry["bbox"] == pytest.approx([left, top, right - left, bottom - top])
        assert entry["score"] == float(row["score"]) == wanted["score"]
        assert [float(row[c]) for c in ("left", "top", "right", "bottom")] == wanted["box_xyxy"]
        assert (row["image"], row["class"], row["frame"]) == (record["image"], wanted["class"], "")
    for record in records:
        text = (out / "labels" / f"{record['stem']}.txt").read_text().splitlines()
        for line, wanted in zip(text, record["detections"], strict=True):
            label, x, y, width, height, score = map(float, line.split())
            middle = [(x - width / 2) * record["width"], (y - height / 2) * record["height"]]
            assert middle == pytest.approx(wanted["box_xyxy"][:2], abs=0.01)
            assert (NAMES[int(label)], score) == (wanted["class"], pytest.approx(wanted["score"], abs=1e-5))
    assert (out / "labels" / "classes.txt").read_text().split() == list(NAMES)


def test_formats_can_be_asked_for_later(tiny, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in "ab":
        Image.fromarray(noise(64, 90, 3).numpy()).save(images / f"{name}.jpg")
    every = ["--format", "coco", "yolo", "csv"]
    assert predict(tiny, images, out=tmp_path / "later", more=["--no-pictures"]) == 0
    for out in ("later", "at once"):
        assert predict(tiny, images, out=tmp_path / out, more=["--no-pictures", *every]) == 0
    assert files(tmp_path / "later") == files(tmp_path / "at once")
    for name in files(tmp_path / "later"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


def test_crops_are_the_objects_in_a_folder_for_each_class(tiny, tmp_path):
    pixels = noise(64, 90, 3).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = tmp_path / "out"
    more = ["--crops", "--draw-threshold", "0", "--score-threshold", "0.45"]
    assert predict(tiny, tmp_path / "a.png", out=out, more=more) == 0
    (record,) = lines(out / "predictions.jsonl")
    assert record["detections"]
    assert all(d["score"] >= 0.45 for d in record["detections"])
    wanted = [f"{d['class']}/a-{number}.jpg" for number, d in enumerate(record["detections"], start=1)]
    assert files(out / "crops") == sorted(wanted)
    for name, detection in zip(wanted, record["detections"], strict=True):
        left, top, right, bottom = detection["box_xyxy"]
        with Image.open(out / "crops" / name) as crop:
            assert crop.width == pytest.approx(right - left, abs=2)
            assert crop.height == pytest.approx(bottom - top, abs=2)


def test_batches_and_processes_change_nothing(tiny, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        Image.fromarray(noise(64 + 32 * (number % 3), 64, 3).numpy()).save(images / f"{number}.png")
    found = []
    for workers, batch in ((0, 1), (2, 4)):
        out = tmp_path / f"out{workers}"
        more = ["--workers", workers, "--batch-size", batch, "--no-pictures"]
        assert predict(tiny, images, out=out, more=more) == 0
        found.append(lines(out / "predictions.jsonl"))
    for one, other in zip(*found, strict=True):
        assert one["image"] == other["image"]
        assert len(one["detections"]) == len(other["detections"]) > 0
        for a, b in zip(one["detections"], other["detections"], strict=True):
            assert a["box_xyxy"] == pytest.approx(b["box_xyxy"], abs=0.02)


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
    more = ["--threshold", threshold]
    assert predict(file, tmp_path / "grey.png", out=tmp_path / "out", more=more) == 0
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
    assert predict(workshop / "run", tmp_path, out=tmp_path / "o") == 0
    assert files(tmp_path / "o" / "pictures") == ["a.jpg", "b.jpg"]


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
    for _ in range(2):
        assert predict(workshop / "run", images, out=images / "o") == 0
        assert [r["image"] for r in lines(images / "o" / "predictions.jsonl")] == ["a.jfif", "b.MPO"]
        assert capsys.readouterr().out.splitlines()[:4] == [
            f"{images}: 1 x hidden image file, not read",
            f"{images}: 2 x file with suffix .heic, not taken for an image",
            f"{images}: 1 x file without a suffix, not taken for an image",
            f"{images}: 1 x folder that is a link, not searched",
        ]
