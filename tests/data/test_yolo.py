"""YOLO data sets: layouts, what is read, and what is wrong."""

import numpy as np
import pytest

from drloss.data.formats.opening import open_data
from drloss.errors import DataError
from support.verdicts import FINE, assert_verdict, box, clip, file, image, note


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


def label(data, stem="a"):
    def edit(folder):
        path = folder / "labels" / "train" / f"{stem}.txt"
        first = path.read_bytes().split(b"\n", 1)[0]
        text = data(first) if callable(data) else data
        path.write_bytes(path.read_bytes().replace(first, text, 1))

    return edit


def whole_label(data):
    return lambda folder: (folder / "labels/train/a.txt").write_bytes(data)


YOLO = {
    "untouched": (FINE, lambda f: None),
    "CRLF and blank lines": (FINE, label(lambda b: b"\r\n\r\n" + b + b"\r")),
    "byte order mark": (FINE, label(lambda b: b"\xef\xbb\xbf" + b)),
    "class written as a float": (FINE, label(b"0.0 0.5 0.5 0.2 0.2")),
    "empty label file": (FINE, whole_label(b"")),
    "sixth digit over one": (FINE, label(b"0 0.5000005 0.5 1.0000001 0.2")),
    "polygon": (note("polygon"), label(b"1 0.1 0.1 0.5 0.1 0.3 0.6")),
    "label file missing": (note("without a label file"), lambda f: (f / "labels/train/c.txt").unlink()),
    "box over the border by rounding": (note("at most 1 px"), label(b"0 0.51 0.5 1.0 0.2")),
    "box over the border": (clip("box partly outside"), label(b"0 0.9 0.5 0.9 0.2")),
    "class out of range": (box("unknown class"), label(b"2 0.5 0.5 0.2 0.2")),
    "class negative": (box("unknown class"), label(b"-1 0.5 0.5 0.2 0.2")),
    "class with a fraction": (box("unknown class"), label(b"0.5 0.5 0.5 0.2 0.2")),
    "class by name": (box("line 1: not a number"), label(b"cat 0.5 0.5 0.2 0.2")),
    "pixels, not shares": (box("coordinate outside 0..1"), label(b"0 15 10 4 4")),
    "negative share": (box("coordinate outside 0..1"), label(b"0 -0.1 0.5 0.2 0.2")),
    "NaN": (box("not a number"), label(b"0 nan 0.5 0.2 0.2")),
    "infinite": (box("not a number"), label(b"0 1e999 0.5 0.2 0.2")),
    "four columns": (box("number of columns"), label(b"0 0.5 0.5 0.2")),
    "a confidence behind": (note("a sixth number, a confidence by its looks"), label(b"0 0.5 0.5 0.2 0.2 0.9")),
    "six columns": (box("number of columns"), label(b"0 0.5 0.5 0.2 0.2 9")),
    "commas": (box("number of columns"), label(b"0,0.5,0.5,0.2,0.2")),
    "zero width": (box("without width or height"), label(b"0 0.5 0.5 0 0.2")),
    "flat polygon": (box("without width or height"), label(b"1 0.1 0.1 0.5 0.1 0.3 0.1")),
    "label of no image": (
        box("label file that no image takes"),
        lambda f: (f / "labels/train/x.txt").write_text("0 0.5 0.5 0.2 0.2"),
    ),
    "empty label of no image": (
        note("label file without a line that no image takes"),
        lambda f: (f / "labels/train/x.txt").touch(),
    ),
    "list of classes among the labels": (FINE, lambda f: (f / "labels/train/classes.txt").write_text("cat\ndog\n")),
    "file of another suffix": (note("suffix .heic"), lambda f: (f / "images/train/d.heic").touch()),
    "label not UTF-8": (image("label file not readable"), whole_label(b"\xff\xfe\x00")),
    "image damaged": (
        image("image not readable", 3),
        lambda f: (f / "images/train/a.png").write_bytes(b"not an image"),
    ),
    "no label file at all": (
        file("no label file for any"),
        lambda f: [p.unlink() for p in (f / "labels/train").iterdir()],
    ),
    "no image at all": (file("no image file"), lambda f: [p.unlink() for p in (f / "images/train").iterdir()]),
}

YOLO_BOXES = {"empty label file": 1, "label not UTF-8": 1, "label of no image": 5}


@pytest.mark.parametrize("row", YOLO)
def test_yolo_verdict(row, tmp_path, made):
    verdict, edit = YOLO[row]
    made.yolo(tmp_path)
    edit(tmp_path)
    assert_verdict(tmp_path, verdict, boxes=YOLO_BOXES.get(row, 4))


YAML = {
    "an alias": "train: &x images/train\nval: *x\nnames: [cat]",
    "an anchor alone": "train: &x images/train\nnames: [cat]",
    "a Python tag": "train: images/train\nnames: !!python/object/apply:os.system [ls]",
    "a merge": "base: {a: b}\ntrain: images/train\nnames: [cat]\n<<: *base",
    "no split": "names: [cat, dog]",
    "no names": "train: images/train",
    "names a number": "train: images/train\nnames: 5",
    "keypoints of no shape": "train: images/train\nnames: [cat, dog]\nkpt_shape: [4]",
    "keypoints of one number": "train: images/train\nnames: [cat, dog]\nkpt_shape: [4, 1]",
    "no keypoints of two numbers": "train: images/train\nnames: [cat, dog]\nkpt_shape: [0, 2]",
    "keypoints without end": f"train: images/train\nnames: [cat, dog]\nkpt_shape: [{'9' * 5000}, 3]",
    "names with a gap": "train: images/train\nnames: {0: cat, 2: dog}",
    "names twice": "train: images/train\nnames: [cat]\nnames: [dog]",
    "name null": "train: images/train\nnames: [cat, null]",
    "nc that disagrees": "train: images/train\nnames: [cat]\nnc: 2",
    "folder of 5,000 letters": f"train: {'x' * 5000}\nnames: [cat, dog]",
    "folder missing": "train: images/elsewhere\nnames: [cat, dog]",
    "train an empty name in a list": "train: [images/train, '']\nnames: [cat, dog]",
    "train a mapping": "train: {a: b}\nnames: [cat, dog]",
    "a list": "- train\n- names",
    "two documents": "train: images/train\nnames: [cat]\n---\nnames: [dog]",
    "not YAML": "train: [images\nnames: }",
    "a tab": "train:\n\t- images/train\nnames: [cat]",
    "a control character": "train: images/train\nnames: [c\x07t]",
    "deep": "names: " + "[" * 50 + "]" * 50,
    "empty": "",
}


@pytest.mark.parametrize("row", YAML)
def test_yaml_that_is_refused(row, tmp_path, made):
    path = made.yolo(tmp_path)
    path.write_text(YAML[row])
    with pytest.raises(DataError) as caught:
        open_data(path).read("train", strict=False)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_keypoints_are_passed_over(tmp_path, made):
    path = made.yolo(tmp_path)
    plain = open_data(path).read("train")[0]
    label(lambda b: b + b" 0.1 0.1 2 0.9 0.9 1")(tmp_path)
    path.write_text(path.read_text() + "kpt_shape: [2, 3]\n")
    annotations, report = open_data(path).read("train")
    assert (annotations.boxes == plain.boxes).all()
    assert [p.kind for p in report.problems] == ["keypoints, which are not read"]


def poses(folder, lines):
    (folder / "labels/train/a.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder / "labels/train/a.txt"


POSE = "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.55"

POLYGON = "0 0.9 0.9 0.5 0.7 0.6 0.95 0.8 0.92"

POSES = {
    "two numbers": [POSE],
    "one keypoint": ["0 0.5 0.5 0.2 0.2 0.45 0.45"],
    "a missing keypoint": ["0 0.5 0.5 0.2 0.2 0 0 0.55 0.55"],
    "three numbers": ["0 0.5 0.5 0.2 0.2 0.45 0.45 1 0.55 0.55 0"],
    "three numbers, visible": ["0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.55 2"],
    "a keypoint just outside": ["0 0.5 0.5 0.2 0.2 0.395 0.45 0.55 0.55"],
    "a box at the border": ["0 0.9 0.5 0.2000004 0.2 0.95 0.45 0.99 0.55"],
    "boxes among them": [POSE, "0 0.5 0.5 0.2 0.2"],
    "one in four with a keypoint far outside": [POSE, POSE, POSE, "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.85"],
}

POLYGONS = {
    "a polygon": [POLYGON],
    "one in three may be a pose": [POLYGON, POSE, POLYGON],
    "other numbers of columns": [POSE, "0 0.3 0.3 0.3 0.35 0.35 0.35", "0 0.3 0.3 0.3 0.3 0.3 0.4 0.4 0.4 0.4 0.3"],
    "first point no box": ["0 0.5 0.5 0 0.2 0.45 0.45 0.55 0.55"],
}


@pytest.mark.parametrize("row", POSES)
def test_lines_that_may_be_poses_are_not_guessed(row, tmp_path, made):
    data = made.yolo(tmp_path)
    label = poses(tmp_path, POSES[row])
    for strict in (True, False):
        with pytest.raises(DataError) as caught:
            open_data(tmp_path).read("train", strict=strict)
        assert str(caught.value).startswith(f"{label}: line 1: a pose or a polygon, got ")
        assert f"kpt_shape in {data}: " in str(caught.value)
    size = 3 if "three" in row else 2
    data.write_text(data.read_text() + f"kpt_shape: [{(len(POSES[row][0].split()) - 5) // size}, {size}]\n")
    boxes = open_data(tmp_path).read("train")[0].boxes_of(0)
    box = open_data(tmp_path).read("train")[0].boxes[boxes][0]
    if not row.startswith("a box"):
        assert box.round(6).tolist() == [12, 8, 18, 12]


@pytest.mark.parametrize("row", POLYGONS)
def test_polygons_are_not_taken_for_poses(row, tmp_path, made):
    made.yolo(tmp_path)
    poses(tmp_path, POLYGONS[row])
    assert {p.kind for p in open_data(tmp_path).read("train")[1].problems} == {
        "polygon, of which the bounding box is taken"
    }


def test_a_data_file_says_whether_lines_are_poses(tmp_path, made):
    made.yolo(tmp_path)
    poses(tmp_path, [POSE])
    path = tmp_path / "set.toml"
    text = 'format = "yolo"\nclasses = ["cat", "dog"]\n{}\n[splits.train]\nimages = "images/train"\n'
    for words, expected in (("kpt_shape = [2, 2]", [12, 8, 18, 12]), ("kpt_shape = [0, 0]", [6, 4, 16.5, 11])):
        path.write_text(text.format(words))
        assert open_data(path).read("train")[0].boxes[0].round(6).tolist() == expected
    path.write_text(text.format(""))
    with pytest.raises(DataError, match="a pose or a polygon"):
        open_data(path).read("train")
    path.write_text(text.format("kpt_shape = [2, true]"))
    with pytest.raises(DataError, match="kpt_shape, got"):
        open_data(path)


def test_a_pose_of_other_keypoints_than_stated_is_no_polygon(tmp_path, made):
    data = made.yolo(tmp_path)
    poses(tmp_path, [POSE])
    data.write_text(data.read_text() + "kpt_shape: [3, 2]\n")
    with pytest.raises(DataError, match=r"number of columns, got '9 columns'; allowed: .* 6 numbers of keypoints"):
        open_data(tmp_path).read("train")


def test_a_refused_name_is_not_also_said_to_have_no_labels(tmp_path, made):
    path = made.yolo(tmp_path)
    (tmp_path / "list.txt").write_text("images/train/a.png\n../x.png\nimages/train/a.png\n")
    path.write_text("train: list.txt\nnames: [cat, dog]\n")
    report = open_data(path).read("train", strict=False)[1]
    assert [p.consequence for p in report.problems] == ["image left out"] * 2
    assert "(see line 1)" in report.problems[1].message


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
def test_yaml_may_call_val_by_its_other_names(key, tmp_path, made):
    path = made.yolo(tmp_path)
    path.write_text(f"train: images/train\n{key}: images/train\nnames: [cat, dog]\n")
    assert open_data(path).splits == ("train", "val")
    assert len(open_data(path).read(key)[0]) == 3


def test_yaml_names_stay_the_text_they_are(tmp_path, made):
    path = made.yolo(tmp_path)
    path.write_text("train: images/train\nnames:\n  0: no\n  1: 2020-01-01\n  2: 1e3\ndownload: rm -rf /\n")
    assert open_data(path).read("train")[0].class_names == ("no", "2020-01-01", "1e3")


KEYPOINTS = {3: "0.45 0.45 2", 2: "0.45 0.45"}


@pytest.mark.parametrize(("number", "size", "shapes"), [(17, 3, "[17, 3]"), (1, 3, "[1, 3]"), (5, 2, "[5, 2]")])
def test_pose_lines_without_kpt_shape_say_which_key_is_missing(number, size, shapes, tmp_path, made):
    data = made.yolo(tmp_path)
    line = " ".join(["0 0.5 0.5 0.2 0.2", *[KEYPOINTS[size]] * number])
    (tmp_path / "labels/train/a.txt").write_text(f"{line}\n{line}\n")
    for strict in (True, False):
        with pytest.raises(DataError) as caught:
            open_data(tmp_path).read("train", strict=strict)
        assert "they look like poses" in str(caught.value)
        assert f"the key kpt_shape is missing; allowed: either, with kpt_shape in {data}: {shapes}" in str(
            caught.value
        )
    data.write_text(data.read_text() + f"kpt_shape: [{number}, {size}]\n")
    np.testing.assert_allclose(open_data(tmp_path).read("train")[0].boxes[0], [12, 8, 18, 12])
