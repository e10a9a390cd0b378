"""What ``--data`` may name, and that each layout gives the same arrays."""

import json

import numpy as np
import pytest

from drloss.data.formats.opening import open_data
from drloss.data.formats.voc import PASCAL_CLASSES
from drloss.data.inspection import check_data
from drloss.errors import DataError, UserError

ARRAYS = ("image_ids", "sizes", "first_box", "boxes", "labels", "ignore", "areas")


def assert_same(first, second, arrays=ARRAYS, tolerance=0.0):
    for field in arrays:
        np.testing.assert_allclose(
            getattr(first, field), getattr(second, field), rtol=0, atol=tolerance, err_msg=field
        )
    assert first.class_names == second.class_names


def expected_boxes(made):
    return [box[1:] for boxes in made.boxes.values() for box in boxes]


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_every_format_gives_the_same_arrays(kind, tmp_path, made):
    getattr(made, kind)(tmp_path)
    source = open_data(tmp_path)
    assert (source.format, source.splits, source.name) == (kind, ("train",), str(tmp_path))
    annotations, report = source.read("train")
    np.testing.assert_allclose(annotations.boxes, expected_boxes(made), atol=1e-12)
    assert annotations.labels.tolist() == [1, 2, 1, 2]
    assert annotations.first_box.tolist() == [0, 3, 4, 4]
    assert annotations.image_ids.tolist() == [1, 2, 3]
    assert [annotations.load_image(i).shape for i in range(3)] == [(3, 20, 30)] * 3
    assert report.problems == ()
    assert report.classes == {"cat": 2, "dog": 2}
    assert report.empty_images == 1


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_arrays_are_contiguous_and_of_the_stated_types(kind, tmp_path, made):
    getattr(made, kind)(tmp_path)
    annotations, _ = open_data(tmp_path).read("train")
    types = {"image_ids": "i8", "sizes": "i4", "first_box": "i8", "boxes": "f8", "labels": "i8", "ignore": "?"}
    for field, dtype in (types | {"areas": "f8", "category_ids": "i8"}).items():
        array = getattr(annotations, field)
        assert array.dtype == np.dtype(dtype), field
        assert array.flags["C_CONTIGUOUS"], field
    part = annotations.select(np.array([2, 0]))
    assert part.first_box.tolist() == [0, 0, 3]
    np.testing.assert_array_equal(part.boxes, annotations.boxes[:3])
    assert part.image_name(1) == annotations.image_name(0)


def test_coco_2017_layout(tmp_path, made):
    for split in ("train2017", "val2017"):
        made.coco(tmp_path, split=split)
    assert open_data(tmp_path).splits == ("train", "val")
    assert open_data(tmp_path).read("val")[0].load_image(0).shape == (3, 20, 30)


def test_two_years_keep_their_years(tmp_path, made):
    for split in ("train2014", "train2017", "val2017"):
        made.coco(tmp_path, split=split)
    assert set(open_data(tmp_path).splits) == {"train2014", "train2017", "val"}


def test_roboflow_layout_and_the_names_of_val(tmp_path, made):
    for split in ("train", "valid"):
        made.coco(tmp_path, split=split).rename(tmp_path / split / "_annotations.coco.json")
    source = open_data(tmp_path)
    assert source.splits == ("train", "val")
    for name in ("val", "valid", "validation"):
        assert len(source.read(name)[0]) == 3


@pytest.mark.parametrize("name", ["train.json", "coco_train.json", "cells_train.json", "annotations/train.json"])
@pytest.mark.parametrize("images", ["", "images", "train", "images/train"])
def test_json_beside_the_images(name, images, tmp_path, made):
    path = made.coco(tmp_path)
    path.rename(tmp_path / name)
    (tmp_path / "train").rename(tmp_path / "moved")
    for file in list((tmp_path / "moved").iterdir()):
        made.image(tmp_path / images / file.name)
    annotations, _ = open_data(tmp_path).read("train")
    assert annotations.load_image(0).shape == (3, 20, 30)


def test_crowd_and_difficult_are_ignored_and_areas_kept(tmp_path, made):
    content = made.coco_content()
    content["annotations"][0] |= {"iscrowd": 1, "area": 12.5}
    content["annotations"][1] |= {"difficult": 1}
    made.coco(tmp_path, content)
    annotations, report = open_data(tmp_path).read("train")
    assert annotations.ignore.tolist() == [True, True, False, False]
    assert annotations.areas.tolist() == [12.5, 300.0, 16.0, 150.0]
    assert report.ignored == 2


def test_category_ids_with_gaps_in_any_order(tmp_path, made):
    content = made.coco_content()
    content["categories"].reverse()
    made.coco(tmp_path, content)
    annotations, _ = open_data(tmp_path).read("train")
    assert annotations.category_ids.tolist() == [3, 7]
    assert annotations.class_names == ("cat", "dog")


def test_boxes_in_any_order_come_to_their_images(tmp_path, made):
    content = made.coco_content()
    content["annotations"].reverse()
    made.coco(tmp_path, content)
    annotations, _ = open_data(tmp_path).read("train")
    assert annotations.first_box.tolist() == [0, 3, 4, 4]
    assert annotations.boxes[0].tolist() == [0, 0, 4, 4]


# ---------------------------------------------------------------------- VOC

PASCAL = {"a": [("dog", 1, 1, 30, 20)], "b": [("cat", 4, 5, 6, 7)]}


def test_pascal_trees_count_from_one_and_have_twenty_classes(tmp_path, made):
    made.voc(tmp_path / "VOCdevkit" / "VOC2007", PASCAL)
    for folder in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        annotations, report = open_data(folder).read("train")
        assert annotations.boxes.tolist() == [[0, 0, 30, 20], [3, 4, 6, 7]]
        assert annotations.class_names == PASCAL_CLASSES
        assert annotations.labels.tolist() == [12, 8]
        assert report.problems == ()


def test_several_years_carry_them_in_their_splits(tmp_path, made):
    for year in ("VOC2007", "VOC2012"):
        made.voc(tmp_path / year, PASCAL, split="trainval")
    source = open_data(tmp_path)
    assert source.splits == ("trainval2007", "trainval2012")
    with pytest.raises(UserError, match="'train'; allowed: trainval2007, trainval2012"):
        source.read("train")


def test_a_data_file_joins_years(tmp_path, made):
    for year in ("VOC2007", "VOC2012"):
        made.voc(tmp_path / year, PASCAL, split="trainval")
    made.voc(tmp_path / "VOC2007b", PASCAL, split="test")
    path = tmp_path / "voc.toml"
    path.write_text('format = "voc"\n[splits.train]\ntrees = ["VOC2007", "VOC2012"]\nimage_set = "trainval"\n')
    annotations, _ = open_data(path).read("train")
    assert annotations.image_ids.tolist() == [1, 2, 3, 4]
    assert annotations.image_name(0) == "VOC2007/JPEGImages/a.png"
    assert annotations.image_name(2) == "VOC2012/JPEGImages/a.png"
    assert annotations.load_image(3).shape == (3, 20, 30)


def test_other_trees_are_taken_as_they_stand_unless_told(tmp_path, made):
    made.voc(tmp_path / "set", PASCAL)
    assert open_data(tmp_path / "set").read("train")[0].boxes[1].tolist() == [4, 5, 6, 7]
    path = tmp_path / "set.toml"
    path.write_text('format = "voc"\none_based = true\n[splits.train]\ntrees = "set"\nimage_set = "train"\n')
    assert open_data(path).read("train")[0].boxes[1].tolist() == [3, 4, 6, 7]


def test_classes_of_a_tree_are_those_of_all_its_splits(tmp_path, made):
    tree = made.voc(tmp_path / "set")
    (tree / "ImageSets/Main/val.txt").write_text("b\n")
    assert open_data(tree).read("val")[0].class_names == ("cat", "dog")


def test_difficult_objects_are_ignored(tmp_path, made):
    tree = made.voc(tmp_path / "set")
    path = tree / "Annotations/b.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    assert open_data(tree).read("train")[0].ignore.tolist() == [False, False, False, True]


def test_a_tree_without_lists_has_one_split(tmp_path, made):
    tree = made.voc(tmp_path / "set")
    (tree / "ImageSets/Main/train.txt").unlink()
    assert open_data(tree).splits == ("all",)
    assert len(open_data(tree).read("all")[0]) == 3


# ---------------------------------------------------------------------- YOLO


def test_yolo_names_as_a_dict_and_paths_as_exports_write_them(tmp_path, made):
    path = made.yolo(tmp_path)
    (tmp_path / "images" / "val").mkdir()
    path.write_text("train: ../images/train\nval:\nnames:\n  1: dog\n  0: cat\nroboflow: {url: https://x}\n")
    source = open_data(path)
    assert source.splits == ("train",)
    assert source.read("train")[0].class_names == ("cat", "dog")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_are_split_at_line_ends_only(end, tmp_path, made):
    names = [f"a{c}b.png" for c in "\u2028\u2029\x85"]
    for name in names:
        made.image(tmp_path / "images" / name)
        (tmp_path / "images" / name).with_suffix(".txt").write_text(made.yolo_line("cat", 1, 2, 9, 12))
    (tmp_path / "list.txt").write_bytes("".join(f"images/{name}{end}" for name in names).encode())
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    annotations, _ = open_data(tmp_path).read("train")
    assert [annotations.image_name(i) for i in range(3)] == [f"images/{name}" for name in names]
    tree = made.voc(tmp_path / "tree", {name[:-4]: made.boxes["b"] for name in names})
    (tree / "ImageSets/Main/train.txt").write_bytes("".join(f"{n[:-4]}{end}" for n in names).encode())
    assert len(open_data(tree).read("train")[0]) == 3


def test_yolo_labels_beside_the_images(tmp_path, made):
    path = made.yolo(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pictures")
    for label in (tmp_path / "labels/train").iterdir():
        label.rename(tmp_path / "pictures/train" / label.name)
    path.write_text("train: pictures/train\nnames: [cat, dog]\n")
    assert len(open_data(path).read("train")[0].boxes) == 4


def test_a_polygon_becomes_its_bounding_box(tmp_path, made):
    made.yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.8 0.3 0.9\n")
    annotations, _ = open_data(tmp_path).read("train")
    np.testing.assert_allclose(annotations.boxes[0], [3, 4, 15, 18])


# ---------------------------------------------------------------------- data files and choices


def test_a_coco_data_file_with_two_parts_numbers_images_anew(tmp_path, made):
    made.coco(tmp_path, split="one")
    made.coco(tmp_path, split="two")
    path = tmp_path / "both.toml"
    path.write_text(
        'format = "coco"\n[splits.train]\nimages = ["one", "two"]\n'
        'annotations = ["annotations/instances_one.json", "annotations/instances_two.json"]\n'
    )
    annotations, _ = open_data(path).read("train")
    assert annotations.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert annotations.image_name(3) == "two/a.png"
    assert annotations.first_box.tolist() == [0, 3, 4, 4, 7, 8, 8]


BAD_FILES = {
    "not TOML": ("format = ", "not TOML"),
    "an integer of 5,000 digits": (f"format = 'coco'\nroot = {'9' * 5000}", "not TOML"),
    "no format": ("[splits.train]\nimages = 'x'", "format, got None; allowed: coco, voc, yolo"),
    "other format": ("format = 'kitti'", "format, got 'kitti'; allowed: coco, voc, yolo"),
    "format a list": ("format = ['coco']", "format, got"),
    "no splits": ("format = 'coco'", "splits, got None"),
    "empty splits": ("format = 'coco'\n[splits]", "splits, got"),
    "split a string": ("format = 'coco'\nsplits = {train = 'x'}", "splits, got"),
    "unknown key": (
        "format = 'coco'\nclases = []\n[splits.train]",
        "unknown key, got 'clases'; allowed: format, root",
    ),
    "unknown key of a split": (
        "format = 'coco'\n[splits.train]\nimage = 'x'",
        "'splits.train.image'; allowed: images",
    ),
    "key of another format": ("format = 'coco'\none_based = true\n[splits.train]", "unknown key, got 'one_based'"),
    "images missing": ("format = 'coco'\n[splits.train]\nannotations = 'd.toml'", "splits.train.images, got None"),
    "path that is not there": (
        "format = 'coco'\n[splits.train]\nannotations = 'no.json'",
        "allowed: a path that exists",
    ),
    "path that is too long": (f"format = 'coco'\n[splits.train]\nannotations = '{'x' * 5000}'", "a path that exists"),
    "empty list": ("format = 'coco'\n[splits.train]\nannotations = []", "empty list"),
    "number for a path": ("format = 'coco'\n[splits.train]\nannotations = 5", "annotations, got 5"),
    "fewer images than annotations": (
        "format = 'coco'\n[splits.train]\nannotations = ['d.toml', 'd.toml']\nimages = '.'",
        "got 1 for 2 annotations",
    ),
    "a file for the folder of the images": (
        "format = 'coco'\n[splits.train]\nannotations = 'd.toml'\nimages = 'd.toml'",
        "splits.train.images, got",
    ),
    "images for one tree of two": (
        "format = 'voc'\n[splits.train]\ntrees = ['tree', 'tree']\nimages = 'tree'",
        "splits.train.images, got 1 for 2 trees; allowed: one for each",
    ),
    "no VOC tree": ("format = 'voc'\n[splits.train]\ntrees = '.'", "a folder with Annotations"),
    "image set out of the tree": (
        "format = 'voc'\n[splits.train]\ntrees = 'tree'\nimage_set = '/etc/passwd'",
        "splits.train.image_set, got '/etc/passwd'; allowed: the name of a list in ImageSets/Main (absolute path)",
    ),
    "one_based a word": ("format = 'voc'\none_based = 'yes'\n[splits.train]\ntrees = '.'", "one_based, got 'yes'"),
    "YOLO without classes": ("format = 'yolo'\n[splits.train]\nimages = '.'", "classes, got None"),
    "classes a string": ("format = 'yolo'\nclasses = 'cat'\n[splits.train]\nimages = '.'", "classes, got 'cat'"),
    "classes of numbers": ("format = 'voc'\nclasses = [1]\n[splits.train]\ntrees = '.'", "classes, got [1]"),
    "root a number": ("format = 'coco'\nroot = 1\n[splits.train]", "root, got 1"),
}


@pytest.mark.parametrize("row", BAD_FILES)
def test_data_file_that_is_refused(row, tmp_path):
    text, words = BAD_FILES[row]
    path = tmp_path / "d.toml"
    path.write_text(text)
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        open_data(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("spec", ["", "no/such/folder", "shape", "a\0b", "x" * 5000])
def test_nothing_by_that_name(spec):
    with pytest.raises(UserError, match="no such file or folder; allowed: shapes"):
        open_data(spec)


def test_an_unknown_kind_of_file_or_folder(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"file type, got \.json; allowed: \.toml"):
        open_data(tmp_path / "x.json")
    with pytest.raises(DataError, match="no data set found in this folder"):
        open_data(tmp_path)


def test_two_formats_in_one_folder_are_refused_unless_a_data_file_chooses(tmp_path, made):
    made.coco(tmp_path)
    made.yolo(tmp_path)
    with pytest.raises(DataError, match="looks like COCO and YOLO; choose with a"):
        open_data(tmp_path)
    (tmp_path / "data.toml").write_text(
        'format = "coco"\n[splits.train]\nimages = "train"\nannotations = "annotations/instances_train.json"\n'
    )
    assert open_data(tmp_path).format == "coco"


def test_two_files_for_one_split_are_refused(tmp_path, made):
    text = json.dumps(made.coco_content())
    for name in ("train.json", "cells_train.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"split train in both cells_train.json and train.json"):
        open_data(tmp_path)


@pytest.mark.parametrize("odd", ["\x1b[2J", "\udcff", "\u202e"])
def test_splits_with_odd_names_are_shown_escaped(odd, tmp_path, made):
    path = made.coco(tmp_path)
    path.rename(path.with_name(f"instances_{odd}.json"))
    (split,) = open_data(tmp_path).splits
    assert split == ascii(odd)
    assert len(open_data(tmp_path).read(split)[0]) == 3
    with pytest.raises(UserError) as caught:
        open_data(tmp_path).read("train")
    assert str(caught.value).isprintable()
    path.with_name(f"instances_{odd}.json").write_text("{")
    result = check_data(tmp_path)
    assert not result.ok
    assert result.text().replace("\n", "").isprintable()


def test_an_unknown_split_is_answered_with_those_there_are(tmp_path, made):
    made.coco(tmp_path)
    with pytest.raises(UserError, match="split, got 'test'; allowed: train"):
        open_data(tmp_path).read("test")


def test_shapes_are_a_source_too():
    source = open_data("shapes:train=3")
    annotations, report = source.read("train")
    assert source.format == "shapes"
    assert report.images_kept == len(annotations) == 3
    assert report.boxes_in == len(annotations.boxes)
