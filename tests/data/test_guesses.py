"""Folders that look like another thing than they are: what is taken, refused, or noted, and never silently wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.layouts import LAYOUTS, pictures
from drloss.data.checks.images import require_images
from drloss.data.files.survey import ImageIndex
from drloss.data.formats.opening import open_data
from drloss.data.formats.toml_writing import write_data_toml
from drloss.data.held_out import with_val
from drloss.errors import DataError, UserError
from drloss.io.atomic import write_json


def written(key, folder, train=6, val=3):
    return LAYOUTS[key].write(folder, pictures(train, val))


def folders_of(annotations):
    return {Path(annotations.image_path(i)).parent.name for i in range(len(annotations))}


@pytest.mark.parametrize("key", ["yolo-label-studio", "voc-apart", "coco-label-studio"])
@pytest.mark.parametrize("other", ["masks", "a_copy"])
def test_pictures_of_the_same_names_in_another_folder_are_not_taken(key, other, tmp_path):
    folder = written(key, tmp_path / "set")
    shutil.copytree(folder / "images", folder / other)
    assert folders_of(open_data(folder).read("all")[0]) == {"images"}


def test_images_that_may_be_in_either_of_two_folders_are_refused(tmp_path):
    folder = written("voc-apart", tmp_path / "set")
    shutil.copytree(folder / "images", folder / "first")
    (folder / "images").rename(folder / "second")
    with pytest.raises(DataError, match="annotations: folder of its images, got first and second with the"):
        open_data(folder)


def test_labels_in_another_folder_than_the_usual_are_not_taken_beside_it(tmp_path):
    folder = written("yolo-label-studio", tmp_path / "set")
    true = open_data(folder).read("all")[0]
    shutil.copytree(folder / "labels", folder / "auto_labels")
    for path in (folder / "auto_labels").glob("*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    assert np.array_equal(open_data(folder).read("all")[0].boxes, true.boxes)
    (folder / "labels").rename(folder / "other_labels")
    with pytest.raises(DataError, match="label files of the same images in auto_labels and other_labels"):
        open_data(folder)


@pytest.mark.parametrize(
    ("text", "split", "found"),
    [
        ("cam1/1.jpg", "", ("cam1/1.jpg", False)),
        ("C:\\data\\cam1\\1.jpg", "", ("cam1/1.jpg", False)),
        ("elsewhere/2.jpg", "", ("cam2/2.jpg", True)),
        ("2.png", "", ("cam2/2.jpg", False)),
        ("frame_1.25", "", None),
        ("5.jpg", "train", None),
        ("5.jpg", "val", ("val/5.jpg", False)),
    ],
)
def test_an_image_is_found_by_the_end_of_its_path_or_by_its_name(text, split, found):
    index = ImageIndex(["cam1/1.jpg", "cam2/1.jpg", "cam2/2.jpg", "frame_1.jpg", "val/5.jpg"])
    assert index.find(text, ("",), split) == found


def test_an_image_that_several_could_be_is_refused():
    with pytest.raises(ValueError, match=r"2 images of that name, cam1/1\.jpg and cam2/1\.jpg among them"):
        ImageIndex(["cam1/1.jpg", "cam2/1.jpg"]).find("1.jpg")


def test_an_image_of_another_split_is_missing(tmp_path):
    folder = written("csv-roboflow", tmp_path / "set")
    (folder / "valid/a01.jpg").write_bytes((folder / "train/a01.jpg").read_bytes())
    (folder / "train/a01.jpg").unlink()
    with pytest.raises(DataError, match=r"line 2: image file missing, got 'a01\.jpg'"):
        open_data(folder).read("train")


def test_names_of_labelme_files_are_no_splits(tmp_path):
    folder = written("labelme", tmp_path / "set")
    for name in ("a01", "a02"):
        content = json.loads((folder / f"{name}.json").read_text())
        content["imagePath"] = f"train_{name}.jpg"
        (folder / f"train_{name}.json").write_text(json.dumps(content))
        (folder / f"{name}.json").unlink()
        (folder / f"{name}.jpg").rename(folder / f"train_{name}.jpg")
    assert open_data(folder).splits == ("all",)


@pytest.mark.parametrize("content", [b'{"shapes": [', b"", '{"a": 1}'.encode("utf-16")])
def test_a_damaged_file_among_those_of_labelme_is_refused(content, tmp_path):
    folder = written("labelme", tmp_path / "set")
    (folder / "a02.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a02\.json: (annotation file not readable|shapes missing)"):
        open_data(folder).read("all")


def test_a_damaged_file_of_a_split_does_not_make_it_vanish(tmp_path):
    folder = written("csv-tensorflow", tmp_path / "csv")
    (folder / "val_labels.csv").write_bytes((folder / "val_labels.csv").read_text().encode("utf-16"))
    with pytest.raises(DataError, match=r"val_labels\.csv: encoding, got UTF-16"):
        open_data(folder).read("val")
    folder = written("coco-inside", tmp_path / "coco")
    for split in ("train", "val"):
        text = (folder / split / "annotations.json").read_text()
        (folder / split / "annotations.json").unlink()
        (folder / f"{split}_boxes.json").write_text(text[: None if split == "train" else -100])
    with pytest.raises(DataError, match=r"val_boxes\.json: line .*: not JSON"):
        open_data(folder).read("val")


def test_a_list_that_is_no_split_switches_nothing_off(tmp_path):
    folder = written("yolo-label-studio", tmp_path / "set")
    (folder / "selected.txt").write_text("images/a01.jpg\n")
    annotations, report = open_data(folder).read("all")
    assert len(annotations) == 9
    assert any("names no split, not read" in p.kind and "selected.txt" in p.value for p in report.problems)


def test_images_of_no_list_are_noted(tmp_path):
    folder = written("yolo-darknet", tmp_path / "set")
    train = next(folder.rglob("train.txt"))
    train.write_text("".join(train.read_text().splitlines(keepends=True)[1:]))
    annotations, report = open_data(folder).read("train")
    assert len(annotations) == 5
    assert any("image in no list, not read" in p.kind for p in report.problems)


def test_images_of_cvat_without_a_subset_are_a_split_of_their_own(tmp_path):
    folder = written("cvat-project", tmp_path / "set")
    path = folder / "annotations.xml"
    path.write_text(path.read_text().replace(' subset="val"', ""))
    source = open_data(folder)
    assert source.splits == ("train", "all")
    assert [len(source.read(split)[0]) for split in source.splits] == [6, 3]


def test_subsets_of_cvat_that_are_one_split_are_read_once(tmp_path):
    folder = written("cvat-project", tmp_path / "set")
    path = folder / "annotations.xml"
    path.write_text(path.read_text().replace('subset="val"', 'subset="Validation"', 1))
    assert [len(open_data(folder).read(split)[0]) for split in ("train", "val")] == [6, 3]


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ('<box label="red" xtl="abc" ytl="1" xbr="9" ybr="9"/>', "xtl not a number, got 'abc'"),
        ('<box label="red" xtl="1" ytl="1" xbr="9" ybr="9" rotation="inf"/>', "rotation not a number, got 'inf'"),
        ('<ellipse label="red" cx="20" cy="20" rx="5"/>', "ry not a number"),
        ('<polygon label="red" points="1,2,3"/>', "points not usable, got '1,2,3'"),
        ('<box label="pink" xtl="1" ytl="1" xbr="9" ybr="9"/>', "unknown class, got 'pink'"),
    ],
)
def test_shapes_of_cvat_that_are_no_boxes_are_refused(tag, words, tmp_path):
    folder = written("cvat-task", tmp_path / "set")
    path = folder / "annotations.xml"
    path.write_text(path.read_text().replace("</image>", f"{tag}</image>", 1))
    with pytest.raises(DataError, match=words):
        open_data(folder).read("all")


def test_a_rotated_box_becomes_the_box_around_it(tmp_path):
    folder = written("cvat-task", tmp_path / "set")
    path = folder / "annotations.xml"
    tag = '<box label="red" xtl="20" ytl="30" xbr="40" ybr="40" rotation="90"/>'
    path.write_text(path.read_text().replace("</image>", f"{tag}</image>", 1))
    annotations, report = open_data(folder).read("all")
    assert [25.0, 25.0, 35.0, 45.0] in annotations.boxes.round(6).tolist()
    assert any("rotated box" in p.kind for p in report.problems)


@pytest.mark.parametrize("kind", ["[]", "{}", "5", "null"])
def test_a_labelme_shape_of_an_odd_type_is_a_polygon_or_refused(kind, tmp_path):
    folder = written("labelme", tmp_path / "set")
    path = folder / "a01.json"
    path.write_text(path.read_text().replace('"rectangle"', kind))
    _, report = open_data(folder).read("all", strict=False)
    assert report.boxes_in == report.boxes_kept + report.boxes_left_out


def test_classes_of_thousands_of_digits_are_sorted(tmp_path):
    folder = written("csv-labels", tmp_path / "set")
    path = next(folder.rglob("*.csv"))
    text = path.read_text()
    for name, number in (("blue", "9" * 5000), ("green", "10"), ("red", "9")):
        text = text.replace(name, number)
    path.write_text(text)
    source = open_data(folder)
    assert source.read("all")[0].class_names == ("9", "10", "9" * 5000)


def test_two_folders_of_one_split_are_read_both(tmp_path):
    folder = written("voc-beside", tmp_path / "set")
    (folder / "more").mkdir()
    for path in folder.glob("a0[12].*"):
        path.rename(folder / "more" / path.name)
    assert len(open_data(folder).read("all")[0]) == 9


def test_a_file_that_is_mended_is_read_anew(tmp_path):
    folder = written("cvat-task", tmp_path / "set")
    path = folder / "annotations.xml"
    good = path.read_text()
    path.write_text(good.replace("</annotations>", ""))
    with pytest.raises(DataError):
        open_data(folder)
    path.write_text(good)
    assert len(open_data(folder).read("all")[0]) == 9


def test_an_error_of_one_format_does_not_hide_another(tmp_path):
    folder = written("voc-beside", tmp_path / "set")
    (folder / "old.xml").write_text("<annotations><track label='red'/></annotations>")
    assert open_data(folder).format == "voc"


def test_captions_are_no_boxes(tmp_path):
    folder = written("voc-beside", tmp_path / "set")
    (folder / "metadata.jsonl").write_text('{"file_name": "a01.jpg", "text": "three boxes"}\n')
    assert open_data(folder).format == "voc"


def test_links_to_names_of_classes_elsewhere_are_refused(tmp_path):
    folder = written("yolo-label-studio", tmp_path / "set")
    (folder / "classes.txt").rename(tmp_path / "classes.txt")
    (folder / "classes.txt").symlink_to(tmp_path / "classes.txt")
    with pytest.raises(DataError, match="a link out of the data set"):
        open_data(folder)


def test_images_that_were_added_since_are_noted(tmp_path):
    folder = written("voc-beside", tmp_path / "set")
    source = with_val(open_data(folder))
    source.read("train")
    write_json(tmp_path / "splits.json", source.made.to_json())
    shutil.copy(folder / "a01.jpg", folder / "c01.jpg")
    shutil.copy(folder / "a01.xml", folder / "c01.xml")
    again = with_val(open_data(folder), splits=tmp_path / "splits.json")
    train, report = again.read("train")
    assert report.images_in == len(train)
    assert "added since the splits were made" in report.problems[-1].kind
    with pytest.raises(UserError, match=r"split, got 'all'; allowed: train and val, its two parts"):
        again.read("all")


def test_the_keypoints_of_a_pose_are_written_to_a_data_file(tmp_path, made):
    path = made.yolo(tmp_path / "set")
    path.write_text(f"{path.read_text()}kpt_shape: [2, 3]\n")
    label = tmp_path / "set/labels/train/b.txt"
    label.write_text(f"{label.read_text().strip()} 0.2 0.3 2 0.4 0.5 2\n")
    source = open_data(path)
    write_data_toml(tmp_path / "d.toml", source)
    again = open_data(tmp_path / "d.toml").read("train")[0]
    assert np.array_equal(again.boxes, source.read("train")[0].boxes)
    require_images(again)
