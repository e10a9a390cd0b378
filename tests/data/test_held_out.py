"""Data without a validation split: what is held out, and that a run keeps it."""

import json

import pytest

from benchmarks.layouts import LAYOUTS, pictures
from drloss.cli import main
from drloss.data.formats.opening import open_data
from drloss.data.held_out import with_val
from drloss.errors import DataError, UserError
from drloss.io.atomic import write_json


def names(annotations):
    return {annotations.image_name(i) for i in range(len(annotations))}


@pytest.fixture
def folder(tmp_path):
    return LAYOUTS["voc-beside"].write(tmp_path / "set", pictures(8, 4))


def test_a_part_of_the_only_split_is_held_out(folder):
    whole, report = open_data(folder).read("all")
    source = with_val(open_data(folder), 0.25)
    assert source.splits == ("train", "val")
    (train, of_train), (val, of_val) = source.read("train"), source.read("val")
    assert len(val) == 3
    assert names(train) | names(val) == names(whole)
    assert not names(train) & names(val)
    assert of_train.images_in + of_val.images_in == report.images_in
    assert of_train.boxes_kept + of_val.boxes_kept == report.boxes_kept
    assert "3 of 12 images of all are held out" in source.note()
    assert names(with_val(open_data(folder), 0.25).read("validation")[0]) == names(val)


def test_what_is_left_out_is_in_the_report_of_train(folder):
    (folder / "a01.xml").write_text("<annotation>")
    source = with_val(open_data(folder))
    with pytest.raises(DataError, match=r"a01\.xml: annotation file not readable"):
        source.read("train")
    train, report = source.read("train", strict=False)
    val, of_val = source.read("val", strict=False)
    assert report.images_left_out == 1
    assert report.images_in == len(train) + 1
    assert len(train) + len(val) == 11
    assert not of_val.problems


def test_data_with_a_validation_split_stay_as_they_are(tmp_path):
    source = open_data(LAYOUTS["yolo-splits"].write(tmp_path / "set", pictures(3, 2)))
    assert with_val(source) is source
    with pytest.raises(UserError, match=r"--val-fraction 0\.5: .* has a validation split"):
        with_val(source, 0.5)


def test_a_test_split_stays_apart(tmp_path, made):
    made.coco(tmp_path)
    made.coco(tmp_path, split="test")
    source = with_val(open_data(tmp_path))
    assert source.splits == ("train", "val", "test")
    assert len(source.read("test")[0]) == 3
    assert len(source.read("train")[0]) + len(source.read("val")[0]) == 3


def test_none_is_held_out_with_a_fraction_of_nothing(folder):
    source = with_val(open_data(folder), 0.0)
    assert source.splits == ("train",)
    assert len(source.read("train")[0]) == 12
    with pytest.raises(UserError, match="split, got 'val'"):
        source.read("val")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction, folder):
    with pytest.raises(UserError, match="--val-fraction"):
        with_val(open_data(folder), fraction).read("train")


def test_a_runs_split_goes_before_what_the_folder_would_give(folder, tmp_path):
    source = with_val(open_data(folder), 0.25)
    before = names(source.read("val")[0])
    path = tmp_path / "splits.json"
    write_json(path, source.made.to_json())
    for picture in pictures(20, 4)["train"][8:]:  # images that were added since
        LAYOUTS["voc-beside"].write(tmp_path / picture.stem, {"train": [picture], "val": []})
        for file in (tmp_path / picture.stem).iterdir():
            file.rename(folder / file.name)
    assert names(with_val(open_data(folder), 0.25, path).read("val")[0]) == before
    assert len(with_val(open_data(folder), 0.25, path).read("train")[0]) == 9
    (folder / "a01.xml").unlink()
    with pytest.raises(DataError, match=r"1 of the 12 images .* are not there, the first is 'a01.jpg'; allowed"):
        with_val(open_data(folder), 0.25, path).read("train")


def test_a_converted_copy_is_told_from_images_that_are_not_there(tmp_path):
    folder = LAYOUTS["voc-tree-no-lists"].write(tmp_path / "set", pictures(8, 4))
    source = with_val(open_data(folder), 0.25)
    source.read("val")
    path = tmp_path / "splits.json"
    write_json(path, source.made.to_json())
    assert main(["data", str(folder), "--convert", "coco", str(tmp_path / "copy")]) == 0
    with pytest.raises(DataError, match="although files of these names are in other folders, as in a converted copy"):
        with_val(open_data(tmp_path / "copy"), 0.25, path).read("train")


def test_a_split_file_of_another_kind_is_refused(folder, tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ["a01.jpg"], "val": []}))
    with pytest.raises(DataError, match=r"splits\.json"):
        with_val(open_data(folder), None, path).read("train")
