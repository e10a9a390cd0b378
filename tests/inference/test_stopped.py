"""``drloss predict`` that is killed, or whose disk is full, goes on where it was: each image once in the results."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from drloss.cli import main
from faults import fault, start, wait_until
from prediction_faults import at_line, half_a_line, killed_at, small_files
from random_detector import TINY, random_detector

FEW = replace(TINY, max_detections=5)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def photographs(folder, count, size=(64, 48)):
    """Images of blobs on noise, in two subfolders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
        left, top = rng.integers(0, (size[0] - 16, size[1] - 16))
        pixels[top : top + 16, left : left + 16] += 120
        path = folder / ("even", "odd")[number % 2] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A detector in a file, 40 images, and the results of a command that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ready")
    random_detector(folder / "tiny.safetensors", FEW)
    photographs(folder / "images", 40)
    assert main(command(folder, folder / "whole")) == 0
    return folder


def command(folder, out, *more):
    names = [folder / "tiny.safetensors", folder / "images", "--out", out, "--device", "cpu", "--batch-size", "2"]
    return list(map(str, ["predict", *names, "--format", "coco", "csv", "yolo", *more]))


def has_lines(path, count):
    return path.exists() and path.read_bytes().count(b"\n") >= count


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def assert_same(out, whole):
    found, wanted = contents(out), contents(whole)
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        assert found[name] == content, name


@pytest.mark.parametrize(
    "faulty",
    [pytest.param(fault(at_line, number=10, do="SIGKILL"), marks=pytest.mark.slow), fault(half_a_line, number=6)],
)
def test_a_kill_between_lines_or_within_one_changes_nothing_in_the_end(ready, tmp_path, faulty):
    out = tmp_path / "out"
    child = start(command(ready, out), tmp_path / "log", faulty)
    assert child.wait() == -signal.SIGKILL
    whole = (out / "predictions.jsonl").read_bytes().count(b"\n")
    assert 0 < whole < 40
    child = start(command(ready, out), tmp_path / "log")
    assert child.wait() == 0
    assert f"{40 - whole} image(s), and {whole} that were done before" in child.said
    assert_same(out, ready / "whole")


@pytest.mark.soak
def test_images_are_in_the_results_once_after_two_kills_at_any_time(ready, tmp_path, soak, figure):
    count = 2000 if soak else 40
    folder = ready
    if soak:
        folder = tmp_path / "many"
        photographs(folder / "images", count)
        shutil.copy(ready / "tiny.safetensors", folder)
    out, rng = tmp_path / "out", random.Random(0)
    kills = 0
    for share in (0.25, 0.6):
        child = start(command(folder, out), tmp_path / "log")
        wait_until(partial(has_lines, out / "predictions.jsonl", share * count), seconds=600, child=child)
        time.sleep(rng.random() * 0.02)
        child.send(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills == 2
    child = start(command(folder, out), tmp_path / "log")
    assert child.wait(600) == 0
    names = Counter(record["image"] for record in lines(out / "predictions.jsonl"))
    images = {p.relative_to(folder / "images").as_posix() for p in (folder / "images").rglob("*.jpg")}
    assert names.keys() == images
    assert set(names.values()) == {1}
    for kind, suffix in (("pictures", "jpg"), ("labels", "txt")):
        there = {p.relative_to(out / kind).with_suffix(".jpg").as_posix() for p in (out / kind).rglob(f"*.{suffix}")}
        assert there - {"classes.jpg"} == images
    if not soak:
        assert_same(out, ready / "whole")
    figure("predict", f"{len(images):,} images, killed twice: each once in the results, with picture and label")


def test_a_full_disk_is_named_and_what_was_done_is_kept(ready, tmp_path):
    out = tmp_path / "out"
    room = (ready / "whole" / "predictions.jsonl").stat().st_size // 2
    here = command(ready, out, "--no-pictures", "--workers", "0")  # the limit holds for shared memory as well
    child = start(here, tmp_path / "log", fault(small_files, room=room))
    assert child.wait() == 2
    assert "Traceback" not in child.said
    assert "predictions.jsonl: cannot be written: no space left" in child.said
    done = lines(out / "predictions.jsonl")
    assert 0 < len(done) < 40
    assert start(command(ready, out, "--no-pictures"), tmp_path / "log").wait() == 0
    assert lines(out / "predictions.jsonl")[: len(done)] == done
    assert (out / "predictions.jsonl").read_bytes() == (ready / "whole" / "predictions.jsonl").read_bytes()


def test_a_disk_with_no_room_for_a_picture_is_named_and_stops_the_command(ready, tmp_path):
    room = (ready / "whole" / "pictures" / "even" / "0000.jpg").stat().st_size // 2
    child = start(command(ready, tmp_path / "out", "--workers", "0"), tmp_path / "log", fault(small_files, room=room))
    assert child.wait() == 2
    assert ".jpg: cannot be written: no space left" in child.said
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == b""
    assert not list((tmp_path / "out").rglob("*.part"))
    assert start(command(ready, tmp_path / "out"), tmp_path / "log").wait() == 0
    assert_same(tmp_path / "out", ready / "whole")


def test_results_of_other_settings_or_of_another_detector_are_refused_until_overwritten(ready, tmp_path, capsys):
    out = tmp_path / "out"
    few = str(ready / "images" / "odd" / "000*.jpg")
    random_detector(tmp_path / "other.safetensors", FEW, seed=1)
    random_detector(tmp_path / "judged.safetensors", FEW, threshold=0.4)

    def run(*more, detector=ready / "tiny.safetensors", sources=few):
        return main(["predict", str(detector), sources, "--out", str(out), "--device", "cpu", *map(str, more)])

    assert run("--crops", "--draw-threshold", 0.5, "--format", "yolo") == 0
    before = contents(out)
    for words, more, how in (
        ("other settings: tile was None and is now 640; name another folder, or --overwrite", ["--tile", 640], {}),
        ("score-threshold was None and is now 0.5", ["--score-threshold", 0.5], {}),
        ("draw-threshold was 0.5 and is now 0.25", ["--draw-threshold", 0.25], {}),
        ("pictures was True and is now False", ["--no-pictures"], {}),
        ("another detector; name another folder, or --overwrite", [], {"detector": tmp_path / "other.safetensors"}),
        ("other settings: images in was", [], {"sources": str(ready / "images")}),
    ):
        assert run("--crops", "--draw-threshold", 0.5, *more, **how) == 2
        assert words in capsys.readouterr().err
        assert contents(out) == before
    same = ["--crops", "--draw-threshold", 0.5, "--workers", 0, "--batch-size", 3]  # change nothing
    assert run(*same, detector=tmp_path / "judged.safetensors") == 0
    assert contents(out) == before
    assert run("--no-pictures", "--overwrite") == 0
    assert sorted(contents(out)) == [".lock", "predict.json", "predictions.jsonl"]
    assert not (out / "crops").exists()


def test_new_images_in_the_folder_are_all_that_is_looked_at(ready, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    predict = ["predict", str(ready / "tiny.safetensors"), str(images), "--out", str(out), "--device", "cpu"]
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "b.png")
    assert main(predict) == 0
    first = (out / "predictions.jsonl").read_bytes()
    Image.new("RGB", (64, 64)).save(images / "b.jpg")
    Image.new("RGB", (64, 64)).save(images / "a.jpg")
    assert main(predict) == 0
    assert "2 image(s), and 1 that were done before" in capsys.readouterr().out
    assert (out / "predictions.jsonl").read_bytes().startswith(first)
    stems = {r["image"]: r["stem"] for r in lines(out / "predictions.jsonl")}
    assert stems == {"b.png": "b", "a.jpg": "a", "b.jpg": "b.jpg"}  # a stem that is taken stays so


@pytest.mark.parametrize("bad", [b"x\n", b'{"image": "even/0002.j\n', b"\0\xff\n", b"[]\n", b"\n"])
def test_a_damaged_line_before_whole_ones_is_named_and_nothing_is_changed(ready, tmp_path, capsys, bad):
    out = tmp_path / "out"
    shutil.copytree(ready / "whole", out)
    whole = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join([*whole[:2], bad, *whole[3:], whole[2][:20]]))
    before = contents(out)
    assert main(command(ready, out)) == 2
    said = capsys.readouterr().err
    assert f"{out / 'predictions.jsonl'}: line 3 is damaged, no JSON object: " in said
    assert "mend or remove the line, or --overwrite all results" in said
    assert contents(out) == before
    (out / "predictions.jsonl").write_bytes(b"".join([*whole[:2], *whole[3:], whole[2][:20]]))
    assert main(command(ready, out)) == 0
    assert "1 image(s), and 39 that were done before" in capsys.readouterr().out
    assert sorted((out / "predictions.jsonl").read_bytes().splitlines(keepends=True)) == sorted(whole)


def test_overwrite_begins_anew_where_a_line_is_damaged(ready, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(ready / "whole", out)
    whole = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(b"x\n" + whole)
    assert main(command(ready, out, "--overwrite")) == 0
    assert_same(out, ready / "whole")


def test_the_formats_of_earlier_commands_are_kept_up(ready, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()

    def run(out, *more):
        names = [ready / "tiny.safetensors", images, "--out", tmp_path / out, "--device", "cpu", "--no-pictures"]
        assert main(["predict", *map(str, names), *more]) == 0
        return capsys.readouterr().out

    shutil.copy(ready / "images" / "even" / "0000.jpg", images / "0.jpg")
    run("out", "--format", "csv")
    run("out", "--format", "yolo")
    run("out", "--format", "coco")
    shutil.copy(ready / "images" / "odd" / "0001.jpg", images / "1.jpg")
    assert "(predictions.jsonl, results.json, predictions.csv, labels/, with all" in run("out")
    run("whole", "--format", "coco", "csv", "yolo")
    assert_same(tmp_path / "out", tmp_path / "whole")
    run("out", "--overwrite")
    assert sorted(contents(tmp_path / "out")) == [".lock", "predict.json", "predictions.jsonl"]
    run("out")
    assert sorted(contents(tmp_path / "out")) == [".lock", "predict.json", "predictions.jsonl"]


def test_a_second_command_does_not_write_into_the_folder_at_the_same_time(ready, tmp_path):
    out = tmp_path / "out"
    first = start(command(ready, out), tmp_path / "log", fault(at_line, number=2, do="hang"))
    wait_until(lambda: "the fault strikes" in first.said, child=first)
    second = start(command(ready, out), tmp_path / "second")
    assert second.wait() == 2
    assert "another process is predicting into it" in second.said
    first.send(signal.SIGKILL)
    first.wait()


def test_a_reading_process_that_is_killed_names_the_image_and_what_was_done_is_kept(ready, tmp_path):
    out = tmp_path / "out"
    child = start(command(ready, out), tmp_path / "log", fault(killed_at, name="0031.jpg"))
    assert child.wait() == 2
    assert "a data-loading process was killed (signal 9)" in child.said
    assert "odd/0031.jpg" in child.said
    assert start(command(ready, out), tmp_path / "log").wait() == 0
    assert_same(out, ready / "whole")
