"""The image files of a whole split: missing, cut off, damaged or of another size."""

import numpy as np
import pytest
from PIL import Image

from drloss.data.checks.images import check_images, require_images
from drloss.data.formats.opening import open_data
from drloss.data.images.endings import may_be_cut_off
from drloss.errors import DataError
from support.image_files import exif


def damage(folder, made):
    """One image truncated, one missing, one good."""
    made.coco(folder)
    train = folder / "train"
    (train / "a.png").write_bytes((train / "a.png").read_bytes()[:50])
    (train / "b.png").unlink()


def test_bad_images_are_left_out_with_their_boxes(tmp_path, made):
    damage(tmp_path, made)
    annotations, report = open_data(tmp_path).read("train")
    seen = []
    kept, report = check_images(annotations, report, strict=False, progress=lambda *a: seen.append(a))
    assert kept.image_ids.tolist() == [3]
    assert len(kept.boxes) == 0
    assert (report.images_in, report.images_kept, report.boxes_in, report.boxes_left_out) == (3, 1, 4, 4)
    assert [p.kind for p in report.problems] == ["image not readable", "image file missing"]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_bad_images_are_refused_by_default(tmp_path, made):
    damage(tmp_path, made)
    annotations, report = open_data(tmp_path).read("train")
    with pytest.raises(DataError, match=r"a\.png: image not readable: (?!size)(.|\n)*first of 2 problems"):
        check_images(annotations, report)
    with pytest.raises(DataError, match=r"a\.png: image not readable(.|\n)*first of 2 problems"):
        require_images(annotations, report)


def test_require_images_looks_at_both_ends_of_a_file(tmp_path, made):
    damage(tmp_path, made)
    kept, report = require_images(*open_data(tmp_path).read("train"), strict=False)
    assert kept.image_ids.tolist() == [3]
    assert [p.kind for p in report.problems] == ["image not readable", "image file missing"]


WITH_AN_END = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP"}


@pytest.mark.parametrize("suffix", WITH_AN_END)
def test_a_file_that_is_cut_off_is_found_before_it_is_decoded(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    path = tmp_path / f"a{suffix}"
    noise.save(path, format=WITH_AN_END[suffix])
    whole = path.read_bytes()
    assert not may_be_cut_off(path)
    for left in (1, 2, 12, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:-left])
        assert may_be_cut_off(path), left
    path.write_bytes(whole[:-100] + bytes(100))  # of a disk that was full, in its last block
    assert suffix in (".webp", ".bmp") or may_be_cut_off(path)


def test_formats_without_an_end_are_not_suspected_and_what_is_no_image_is(tmp_path):
    for suffix in (".tif", ".ppm"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}")
        assert not may_be_cut_off(tmp_path / f"a{suffix}")
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    assert may_be_cut_off(tmp_path / "a.jpg")


@pytest.mark.parametrize("after", [b"\0" * 40, b"\r\n", b"made by a camera" * 10, b"\0" * 5000])
def test_what_follows_a_whole_jpeg_is_no_fault(tmp_path, made, after):
    made.coco(tmp_path)
    path = tmp_path / "train" / "a.png"
    Image.new("RGB", (30, 20), "red").save(path, format="JPEG")
    path.write_bytes(path.read_bytes() + after)
    assert len(require_images(*open_data(tmp_path).read("train"))[0]) == 3


def test_a_jpeg_that_is_cut_off_is_refused_with_its_record(tmp_path, made):
    made.coco(tmp_path)
    path = tmp_path / "train" / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-200])
    seen = []
    with pytest.raises(DataError, match=r"a\.png: image not readable"):
        require_images(*open_data(tmp_path).read("train"), progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_split_without_any_good_image_is_refused_leniently_too(tmp_path, made):
    made.coco(tmp_path)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no usable image of 3"):
        require_images(*open_data(tmp_path).read("train"), strict=False)


def test_passed_over_orientation_is_noted(tmp_path, made):
    made.coco(tmp_path)
    Image.new("RGB", (30, 20)).save(tmp_path / "train" / "a.png", exif=exif(6))
    _, report = check_images(*open_data(tmp_path).read("train"))
    assert [(p.count, p.refused) for p in report.problems] == [(1, False)]
    assert "EXIF" in report.problems[0].message


def test_a_wrong_size_is_a_problem_that_names_both(tmp_path, made):
    made.coco(tmp_path)
    made.image(tmp_path / "train" / "a.png", size=(31, 20))
    _, report = check_images(*open_data(tmp_path).read("train"), strict=False, decode=False)
    assert "20 x 31" in report.problems[0].message
    assert "20 x 30" in report.problems[0].message


def test_an_image_beyond_the_limit_is_not_called_one_of_another_size(tmp_path, made, monkeypatch):
    made.coco(tmp_path)
    made.image(tmp_path / "train" / "a.png", size=(300, 200))
    monkeypatch.setenv("DRLOSS_MAX_PIXELS", "1000")
    _, report = check_images(*open_data(tmp_path).read("train"), strict=False)
    assert [p.kind for p in report.problems] == ["image not readable"]
    assert "DRLOSS_MAX_PIXELS" in report.problems[0].message


def test_generated_images_need_no_check():
    annotations, report = open_data("shapes:train=4").read("train")
    assert check_images(annotations, report)[0] is annotations
    assert require_images(annotations)[0] is annotations
