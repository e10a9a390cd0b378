"""``drloss predict`` on videos: a line a frame, and a video with the boxes."""

import json
import re
import signal
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from drloss.cli import main
from drloss.inference.predicting.videos import open_video
from faults import fault, start
from prediction_faults import at_line, small_files
from random_detector import TINY, random_detector

av = pytest.importorskip("av")


def make_video(path, frames, *, rate=30, size=(96, 64), times=None, codec="libx264"):
    """A video of a square that moves to the right, a pixel a frame, on a dark ground."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 30, dtype=np.uint8)
            left = number % (size[0] - 20)
            pixels[20:40, left : left + 20] = (250, 200, 40)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def decoded(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A detector in a file, and videos of 300 and of 60 frames."""
    folder = tmp_path_factory.mktemp("videos")
    random_detector(folder / "tiny.safetensors", replace(TINY, max_detections=5))
    make_video(folder / "clip.mp4", 300)
    make_video(folder / "short.mp4", 60)
    return folder


def command(folder, *sources, out, more=()):
    names = ["predict", folder / "tiny.safetensors", *sources, "--out", out, "--device", "cpu", "--workers", 0, *more]
    return list(map(str, names))


@pytest.mark.slow
def test_a_video_of_300_frames_gives_300_lines_and_a_video_with_boxes(ready, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(ready, ready / "clip.mp4", out=out)) == 0
    assert "0 image(s) and 300 frame(s)" in capsys.readouterr().out
    records = lines(out / "predictions.jsonl")
    assert [r["frame"] for r in records] == list(range(300))
    assert [r["time"] for r in records] == pytest.approx([n / 30 for n in range(300)], abs=1e-3)
    assert {r["image"] for r in records} == {"clip.mp4"}
    assert [r.get("last") for r in records] == [None] * 299 + [True]
    drawn, original = decoded(out / "pictures" / "clip.mp4"), decoded(ready / "clip.mp4")
    assert len(drawn) == 300
    assert [time for time, _ in drawn] == pytest.approx([time for time, _ in original], abs=2e-3)
    for (_, picture), (_, pixels) in zip(drawn[::50], original[::50], strict=True):
        assert picture.shape == (480, 720, 3)  # enlarged, as pictures of small images are
        plain = np.asarray(Image.fromarray(pixels).resize((720, 480)))
        assert np.abs(picture.astype(int) - plain).max() > 60  # boxes are drawn


def test_times_that_are_not_even_are_kept(ready, tmp_path):
    times = [0, 0.1, 0.15, 0.5, 2.0]
    make_video(tmp_path / "uneven.mkv", 5, times=times)
    out = tmp_path / "out"
    assert main(command(ready, tmp_path / "uneven.mkv", out=out)) == 0
    assert [r["time"] for r in lines(out / "predictions.jsonl")] == pytest.approx(times, abs=2e-3)
    assert [time for time, _ in decoded(out / "pictures" / "uneven.mp4")] == pytest.approx(times, abs=3e-3)


def test_images_and_videos_go_together_in_every_format(ready, tmp_path):
    make_video(tmp_path / "a.avi", 3, codec="mpeg4")
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "a.jpg")
    out, more = tmp_path / "out", ["--format", "coco", "csv", "yolo", "--crops", "--no-pictures"]
    assert main(command(ready, tmp_path / "a.jpg", tmp_path / "a.avi", out=out, more=more)) == 0
    records = lines(out / "predictions.jsonl")
    assert [(r["image"], r["stem"], r.get("frame")) for r in records] == [
        ("a.jpg", "a", None),
        *(("a.avi", "a.avi", n) for n in range(3)),
    ]
    assert not (out / "pictures").exists()
    labels = {p.relative_to(out / "labels").as_posix() for p in (out / "labels").rglob("*.txt")}
    assert labels == {"a.txt", "classes.txt", *(f"a.avi/{n:06d}.txt" for n in range(3))}
    ids = {entry["image_id"] for entry in json.loads((out / "results.json").read_text())}
    assert ids == {"a.jpg", "a.avi#0", "a.avi#1", "a.avi#2"}
    assert list((out / "crops").rglob("a.avi/000002-1.jpg"))
    rows = (out / "predictions.csv").read_text().splitlines()
    assert any(row.startswith("a.avi,2,0.0667,64,96,") for row in rows)
    assert main(command(ready, tmp_path / "a.jpg", tmp_path / "a.avi", out=out, more=[*more, "--overwrite"])) == 0
    assert lines(out / "predictions.jsonl") == records


def test_a_video_beside_a_folder_of_its_frames_loses_no_file(ready, tmp_path):
    make_video(tmp_path / "clip.mp4", 2)
    (tmp_path / "clip").mkdir()
    for name in ("a.jpg", "clip/000000.jpg"):
        Image.new("RGB", (64, 64), "grey").save(tmp_path / name)
    sources = [tmp_path / "clip", tmp_path / "clip.mp4"]
    for first in sources:  # one is done, and the other is looked at later
        out = tmp_path / f"out {first.name}"
        for words in ([tmp_path / "a.jpg", first], [tmp_path / "a.jpg", *sources]):
            more = ["--format", "yolo", "--crops", "--no-pictures", "--draw-threshold", "0"]
            assert main(command(ready, *words, out=out, more=more)) == 0
        records = lines(out / "predictions.jsonl")
        assert len(list((out / "labels").rglob("*.txt"))) == len(records) + 1 == 5
        assert len(list((out / "crops").rglob("*.jpg"))) == sum(len(r["detections"]) for r in records) > 0


@pytest.mark.parametrize(("name", "ids"), [("000005.mp4", {"000005.mp4#0", "000005.mp4#1"}), (None, set())])
def test_ids_of_images_in_coco_results_are_all_text_or_all_numbers(ready, tmp_path, name, ids):
    sources = [tmp_path / "000139.jpg"]
    Image.new("RGB", (64, 64), "grey").save(sources[0])
    if name:
        sources.append(tmp_path / name)
        make_video(sources[1], 2)
    out = tmp_path / "out"
    assert main(command(ready, *sources, out=out, more=["--format", "coco", "--no-pictures"])) == 0
    found = {entry["image_id"] for entry in json.loads((out / "results.json").read_text())}
    assert found == ({"000139.jpg", *ids} if name else {139})


def test_a_video_that_ends_early_is_named_and_what_was_read_is_kept(ready, tmp_path, capsys):
    make_video(tmp_path / "whole.mkv", 80, rate=10)
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut.mp4").write_bytes((ready / "clip.mp4").read_bytes()[:3000])  # whose index is at its end
    (tmp_path / "empty.mp4").write_bytes(b"")
    videos = [tmp_path / name for name in ("cut.mkv", "cut.mp4", "empty.mp4", "whole.mkv")]
    out = tmp_path / "out"
    assert main(command(ready, *videos, out=out)) == 0
    said = capsys.readouterr().err
    assert re.search(r"cut.mkv: ends early, after \d\.\d of 8\.0 s", said)
    for name in ("cut.mp4", "empty.mp4"):
        assert f"{name}: cannot be read as a video" in said
    records = lines(out / "predictions.jsonl")
    read = [r for r in records if r["image"] == "cut.mkv"]
    assert 8 < len(read) < 75
    assert sum(r["image"] == "whole.mkv" for r in records) == 80
    assert len(decoded(out / "pictures" / "cut.mp4")) == len(read)
    assert {f["image"] for f in lines(out / "failed.jsonl")} == {"cut.mkv", "cut.mp4", "empty.mp4"}


def test_a_video_that_says_it_has_more_frames_is_named(ready, tmp_path, capsys):
    content = bytearray((ready / "clip.mp4").read_bytes())
    data = content.index(b"mdat")
    content[data + 2000 : data + 6000] = bytes(4000)  # frames in the middle
    (tmp_path / "hole.mp4").write_bytes(content)
    out = tmp_path / "out"
    for _ in range(2):  # not looked at again, and still listed
        assert main(command(ready, tmp_path / "hole.mp4", out=out)) == 0
        (failure,) = lines(out / "failed.jsonl")
        assert "hole.mp4: ends early, after" in failure["reason"]
    assert "hole.mp4: ends early, after" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_begins_an_unfinished_video_anew(ready, tmp_path):
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "a.jpg")
    make_video(tmp_path / "first.mp4", 20)
    sources = [tmp_path / "a.jpg", tmp_path / "first.mp4", ready / "short.mp4"]
    more = ["--format", "yolo"]
    assert main(command(ready, *sources, out=tmp_path / "whole", more=more)) == 0
    out = tmp_path / "out"
    child = start(
        command(ready, *sources, out=out, more=more), tmp_path / "log", fault(at_line, number=50, do="SIGKILL")
    )
    assert child.wait() == -signal.SIGKILL
    assert 50 <= len(lines(out / "predictions.jsonl")) < 60
    child = start(command(ready, *sources, out=out, more=more), tmp_path / "log")
    assert child.wait() == 0
    assert "0 image(s) and 60 frame(s), and 2 that were done before" in child.said
    assert lines(out / "predictions.jsonl") == lines(tmp_path / "whole" / "predictions.jsonl")
    for kind in ("pictures", "labels"):
        files = [{p.relative_to(o / kind) for p in (o / kind).rglob("*")} for o in (out, tmp_path / "whole")]
        assert files[0] == files[1]


def test_a_full_disk_under_the_video_with_boxes_is_named_and_leaves_none(ready, tmp_path):
    out = tmp_path / "out"
    child = start(command(ready, ready / "short.mp4", out=out), tmp_path / "log", fault(small_files, room=6_000))
    assert child.wait() == 2
    assert "cannot be written: no space left" in child.said
    assert "Traceback" not in child.said
    assert list((out / "pictures").iterdir()) == []
    assert start(command(ready, ready / "short.mp4", out=out), tmp_path / "log").wait() == 0
    assert len(lines(out / "predictions.jsonl")) == 60


def test_a_list_of_other_places_that_calls_itself_a_video_opens_none_of_them(ready, tmp_path, capsys):
    listing = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{ready / 'clip.mp4'}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(listing.replace("file:", "http:"))
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{ready / 'clip.mp4'}'\n")
    for name in ("list.mp4", "concat.mp4"):
        assert main(command(ready, tmp_path / name, out=tmp_path / name.partition(".")[0])) == 2
        assert "1 of 1 failed" in capsys.readouterr().err


def test_too_many_pixels_are_refused(ready, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DRLOSS_MAX_PIXELS", "6000")
    assert main(command(ready, ready / "clip.mp4", out=tmp_path / "out")) == 2
    assert "size, got 64 x 96 px; allowed: at most 6,000 pixels" in capsys.readouterr().err


def test_a_missing_pyav_is_named_before_anything_is_done(ready, monkeypatch, tmp_path, capsys):
    from drloss.inference.predicting import videos

    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    assert main(command(ready, ready / "clip.mp4", out=tmp_path / "out")) == 2
    assert "clip.mp4: PyAV is missing: run pip install '.[video]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_frames_are_read_one_after_the_other(ready):
    with open_video(ready / "clip.mp4") as video:
        frames = video.frames()
        first, second = next(frames), next(frames)
        assert (first.index, second.index, video.length, video.rate) == (0, 1, 300, 30)
        assert first.pixels.shape == (3, 64, 96)
        assert second.time == pytest.approx(1 / 30, abs=1e-3)
    assert "av" in sys.modules
