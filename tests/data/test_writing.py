"""What is written is what is read back."""

from dataclasses import replace

import numpy as np
import pytest

from drloss.data.formats.opening import open_data
from drloss.data.formats.writing import write_coco, write_voc, write_yolo
from drloss.errors import DataError, UserError

ALL = ("category_ids", "image_ids", "sizes", "first_box", "boxes", "labels", "ignore", "areas")


@pytest.fixture(scope="module")
def shapes():
    return open_data("shapes:train=12,val=5,size=64")


def same(first, second, fields, tolerance=0.0):
    assert first.class_names == second.class_names
    for field in fields:
        np.testing.assert_allclose(
            getattr(first, field), getattr(second, field), rtol=0, atol=tolerance, err_msg=field
        )
    for i in range(len(first)):
        assert (first.load_image(i) == second.load_image(i)).all()


def test_coco_round_trip(shapes, tmp_path):
    for split in ("train", "val"):
        write_coco(shapes.read(split)[0], tmp_path, split)
    back = open_data(tmp_path)
    assert (back.format, back.splits) == ("coco", ("train", "val"))
    for split in back.splits:
        same(shapes.read(split)[0], back.read(split)[0], ALL, 1e-12)


def test_coco_keeps_crowds_areas_and_ids(shapes, tmp_path):
    data = shapes.read("train")[0]
    data = replace(
        data,
        image_ids=data.image_ids * 10,
        category_ids=data.category_ids * 3 + 1,
        areas=data.areas / 2,
        ignore=np.arange(len(data.boxes)) % 3 == 0,
    )
    write_coco(data, tmp_path, "train")
    same(data, open_data(tmp_path).read("train")[0], ALL, 1e-12)


def test_voc_round_trip_keeps_the_order_of_classes(shapes, tmp_path):
    folder = tmp_path / "set"
    for split in ("train", "val"):
        data = shapes.read(split)[0]
        data = replace(data, ignore=np.arange(len(data.boxes)) % 3 == 0)
        write_voc(data, folder, split)
    back = open_data(folder)
    assert (back.format, back.splits) == ("voc", ("train", "val"))
    same(data, back.read("val")[0], ALL)


def test_yolo_round_trip(shapes, tmp_path):
    for split in ("train", "val"):
        write_yolo(shapes.read(split)[0], tmp_path, split)
    back = open_data(tmp_path)
    assert (back.format, back.splits) == ("yolo", ("train", "val"))
    for split in back.splits:
        fields = ("image_ids", "sizes", "first_box", "boxes", "labels", "ignore", "areas")
        same(shapes.read(split)[0], back.read(split)[0], fields, 1e-9)


def test_files_are_copied_as_they_are(tmp_path, made):
    made.coco(tmp_path / "in")
    data = open_data(tmp_path / "in").read("train")[0]
    write_coco(data, tmp_path / "out", "train")
    assert (tmp_path / "out/train/a.png").read_bytes() == (tmp_path / "in/train/a.png").read_bytes()
    write_voc(data, tmp_path / "voc", "train")
    same(data, open_data(tmp_path / "voc").read("train")[0], ("sizes", "first_box", "boxes", "labels"))


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_nothing_is_overwritten(write, shapes, tmp_path):
    data = shapes.read("val")[0]
    write(data, tmp_path / "set", "val")
    with pytest.raises(DataError, match="is there already"):
        write(data, tmp_path / "set", "val")


def test_yolo_refuses_objects_to_ignore_and_odd_splits(shapes, tmp_path):
    data = shapes.read("val")[0]
    with pytest.raises(DataError, match="YOLO cannot mark them"):
        write_yolo(replace(data, ignore=np.ones(len(data.boxes), dtype=bool)), tmp_path, "val")
    with pytest.raises(UserError, match="allowed: train, val, test"):
        write_yolo(data, tmp_path, "minival")


@pytest.mark.parametrize("split", ["../train", "a/b", "", "a\0"])
def test_splits_that_no_file_can_be_called(split, shapes, tmp_path):
    for write in (write_coco, write_voc, write_yolo):
        with pytest.raises(UserError, match="split"):
            write(shapes.read("val")[0], tmp_path, split)


def test_a_tree_that_would_be_taken_for_pascals_is_refused(shapes, tmp_path):
    with pytest.raises(UserError, match="PASCAL"):
        write_voc(shapes.read("val")[0], tmp_path / "VOC2007", "val")


def test_two_images_of_one_stem_are_refused(tmp_path, made):
    made.coco(tmp_path / "in")
    data = open_data(tmp_path / "in").read("train")[0]
    twins = replace(data, image_names=np.array([b"a.png", b"a.jpg", b"c.png"]))
    for write in (write_voc, write_yolo):
        with pytest.raises(DataError, match="names that differ"):
            write(twins, tmp_path / write.__name__, "train")
