"""What ``--data`` may name, and that each layout gives the same arrays."""

import numpy as np
import pytest

from drloss.data.formats.opening import open_data
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


BAD_FILES = {
    "not TOML": ("format = ", "not TOML"),
    "an integer of 5,000 digits": (f"format = 'coco'\nroot = {'9' * 5000}", "not TOML"),
    "no format": ("[splits.train]\nimages = 'x'", "format, got None; allowed: coco, voc, yolo"),
    "other format": ("format = 'kitti'", "format, got 'kitti'; allowed: coco, voc, yolo"),
    "format a list": ("format = ['coco']", "format, got"),
    "no splits": ("format = 'coco'", "no coco data set; no data set recognised; found 0 images, 1 .toml"),
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
    (tmp_path / "x.pdf").write_text("{}")
    with pytest.raises(UserError, match=r"file type, got \.pdf; allowed: the folder of a data set, or a file of all"):
        open_data(tmp_path / "x.pdf")
    with pytest.raises(DataError, match=r"no data set recognised; found 0 images, 1 \.json, 1 \.pdf"):
        open_data(tmp_path)


def test_two_formats_in_one_folder_are_refused_unless_a_data_file_chooses(tmp_path, made):
    made.coco(tmp_path)
    made.yolo(tmp_path)
    with pytest.raises(DataError, match=r"looks like COCO \(.*\) and YOLO \(.*\); choose with a data.toml"):
        open_data(tmp_path)
    (tmp_path / "data.toml").write_text(
        'format = "coco"\n[splits.train]\nimages = "train"\nannotations = "annotations/instances_train.json"\n'
    )
    assert open_data(tmp_path).format == "coco"


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
