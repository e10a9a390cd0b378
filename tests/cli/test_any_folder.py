"""Folders as tools export them, through every command; and what ``drloss data`` writes of them."""

import json
import shutil

import pytest

from benchmarks.layouts import LAYOUTS, pictures
from drloss.cli import main
from drloss.data.formats.opening import open_data
from drloss.data.inspection import check_data
from small_training import QUICK

QUICKEST = ["--preset", "cpu", "--short-side", "64", *QUICK, "--max-iters", "2"]
CHEAP = ("labelme",)
"""Layouts that are tried with every run of the tests: one without splits."""


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


@pytest.mark.parametrize("key", [k if k in CHEAP else pytest.param(k, marks=pytest.mark.slow) for k in LAYOUTS])
def test_a_bare_folder_goes_through_every_command(key, tmp_path, capsys):
    folder = LAYOUTS[key].write(tmp_path / "set", pictures(6, 3))
    run("data", folder)
    assert "strict reading takes all of it" in capsys.readouterr().out
    run("train", "--data", folder, *QUICKEST, "--out", tmp_path / "run")
    run("eval", tmp_path / "run", "--data", folder, "--workers", 0, "--device", "cpu")
    assert (tmp_path / "run/eval_val/metrics.json").is_file()
    picture = next(path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".jpg")
    run("predict", tmp_path / "run", picture, "--out", tmp_path / "seen", "--device", "cpu")


@pytest.mark.slow
def test_a_run_evaluates_and_resumes_on_the_images_it_held_out(tmp_path, capsys):
    folder = LAYOUTS["createml"].write(tmp_path / "set", pictures(8, 4))
    out = tmp_path / "run"
    run("train", "--data", folder, *QUICKEST, "--val-fraction", 0.25, "--out", out)
    assert "3 of 12 images of all are held out" in capsys.readouterr().out
    held_out = json.loads((out / "splits.json").read_text())["val"]
    assert len(held_out) == 3
    run("eval", out, "--data", folder, "--workers", 0, "--device", "cpu")
    ids = {r["image_id"] for r in json.loads((out / "eval_val/results.json").read_text())}
    whole, _ = open_data(folder).read("all")
    position = {whole.image_name(i): int(whole.image_ids[i]) for i in range(len(whole))}
    assert ids <= {position[name] for name in held_out}
    run("eval", out / "best.safetensors", "--data", folder, "--workers", 0, "--device", "cpu")  # the only evaluation
    last, best = (json.loads((out / name / "metrics.json").read_text()) for name in ("eval_val", "best_eval_val"))
    assert best["metrics"] == last["metrics"]
    more = ["--data", folder, *QUICKEST, "--max-iters", 3, "--out", out, "--resume", "--force"]
    run("train", *more)
    assert json.loads((out / "splits.json").read_text())["val"] == held_out


def test_nothing_is_held_out_if_that_is_asked_for(tmp_path, capsys):
    folder = LAYOUTS["hugging-face-flat"].write(tmp_path / "set", pictures(4, 2))
    run("train", "--data", folder, *QUICKEST, "--val-split", "none", "--out", tmp_path / "run")
    assert not (tmp_path / "run/splits.json").exists()
    assert "held out" not in capsys.readouterr().out
    both = ["train", "--data", folder, *QUICKEST, "--val-split", "none", "--val-fraction", "0.2", "--out", tmp_path]
    assert main([str(a) for a in both]) == 2


def test_objects_that_are_too_small_are_said_before_training(tmp_path, capsys):
    run("train", "--data", "shapes:train=4,val=2,size=256", *QUICKEST, "--short-side", 32, "--out", tmp_path / "run")
    said = capsys.readouterr().out
    assert "remark: train: with --preset cpu" in said
    assert said.index("remark: train") < said.index("iterations of")


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_a_folder_is_converted(kind, tmp_path, capsys):
    folder = LAYOUTS["cvat-project"].write(tmp_path / "set", pictures(6, 3))
    run("data", folder, "--convert", kind, tmp_path / "new")
    shutil.move(folder, tmp_path / "away")  # the new folder needs the old one for nothing
    old, new = open_data(tmp_path / "away"), open_data(tmp_path / "new")
    for split in ("train", "val"):
        one, other = old.read(split)[0], new.read(split)[0]
        assert one.class_names == other.class_names
        assert abs(one.boxes - other.boxes).max() < 1e-9
        assert (one.labels == other.labels).all()
        other.load_image(0)
    assert main(["data", str(tmp_path / "away"), "--convert", kind, str(tmp_path / "new")]) == 2
    assert "not empty; name a new folder" in capsys.readouterr().err
    assert main(["data", str(tmp_path / "away"), "--convert", "xls", str(tmp_path / "x")]) == 2


def test_a_page_and_a_data_file_are_written(tmp_path, capsys):
    folder = LAYOUTS["yolo-labelimg"].write(tmp_path / "set", pictures(6, 3))
    run("data", folder, "--page", tmp_path / "page.html", "--write", tmp_path / "data.toml")
    page = (tmp_path / "page.html").read_text()
    assert "strict reading takes all of it" in page
    assert page.count("data:image/webp") == 1
    for rows in check_data(open_data(folder)).split_rows(), check_data(open_data(folder)).class_rows():
        assert all(f">{cell}</t" in page for row in rows for cell in row)
    assert open_data(tmp_path / "data.toml").read("all")[1].boxes_kept > 0
    assert main(["data", str(folder), "--write", str(tmp_path / "data.toml")]) == 2
    assert "a .toml file that does not exist" in capsys.readouterr().err


def test_its_older_name_goes_on(tmp_path, capsys):
    folder = LAYOUTS["voc-roboflow"].write(tmp_path / "set", pictures(3, 2))
    run("check-data", folder)
    assert "voc (XML files of VOC in train, valid)" in capsys.readouterr().out
