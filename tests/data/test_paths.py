"""File names that a data set may not use to reach outside its folder."""

import json
import os
import sys

import pytest

from drloss.data.checks.images import require_images
from drloss.data.files.paths import Inside, clean_name
from drloss.data.formats.opening import open_data
from drloss.errors import DataError

REFUSED = [
    "../canary.png",
    "../../canary.png",
    "x/../../canary.png",
    "x/../canary.png",
    "./../canary.png",
    ".//..//canary.png",
    "..",
    "../",
    "a/..",
    ".. /canary.png",
    " ../canary.png",
    "../ canary.png",
    "...",
    ". ./canary.png",
    "/canary.png",
    "//canary.png",
    "///etc/passwd",
    "//server/share/canary.png",
    "\\\\server\\share\\canary.png",
    "\\canary.png",
    "..\\canary.png",
    "x\\..\\..\\canary.png",
    "x/..\\canary.png",
    "C:canary.png",
    "C:/canary.png",
    "c:\\canary.png",
    "\\\\?\\C:\\canary.png",
    "\\\\.\\pipe\\canary",
    "file:///etc/passwd",
    "http://example.org/canary.png",
    "canary.png\0.jpg",
    "\0",
    "can\nary.png",
    "can\x1b[2Jary.png",
    "canary\x7f.png",
    "",
    " ",
    ".",
    "./",
    "/",
    "NUL",
    "con.png",
    "x/AUX.jpg",
    "com1",
    "lpt9.txt",
    "nul .png",
    "\ud800.png",
    "x" * 256,
    "é" * 128 + ".png",
    "/".join(["long"] * 300),
    None,
    5,
    True,
    ["a.png"],
    {"a": 1},
    b"a.png",
    1.5,
]

# Odd but harmless: each is a name inside the folder, and nothing is decoded or expanded.
INSIDE = [
    "%2e%2e/canary.png",
    "%2e%2e%2fcanary.png",
    "..%2fcanary.png",
    "．．/canary.png",
    "․․/canary.png",
    "..canary.png",
    "canary..png",
    "~/canary.png",
    "~root/canary.png",
    "$HOME/canary.png",
    "${HOME}/canary.png",
    "`id`.png",
    "$(id).png",
    "-rf",
    "*.png",
    "2020-01-01T10:20:30.png",
    "file:canary.png",
    "日本.png",
    "a b.png",
    "console.png",
]


@pytest.mark.parametrize("name", REFUSED, ids=lambda n: ascii(n)[:30])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match=r"."):
        clean_name(name)


@pytest.mark.parametrize("name", INSIDE)
def test_odd_names_stay_inside(name, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    assert Inside(root)(clean_name(name))
    assert os.path.realpath(root / clean_name(name)).startswith(str(root.resolve()) + os.sep)


# ---------------------------------------------------------------------- in the files of each format

LINES = [n for n in REFUSED if isinstance(n, str) and n.strip() and "\n" not in n and n.isascii()]
"""What a line of a list can hold."""


def assert_all_stay_inside(key, outer, names, read, opened, figure):
    """``read`` each name, in a data set within ``outer``; nothing else of ``outer`` is opened, and no canary."""
    assert len(names) >= 40
    for name in names:
        opened.clear()
        read(name)
        assert opened, name
        outside = [p for p in opened if p.startswith(str(outer)) and not p.startswith(f"{outer}/set/")]
        assert not outside, name
        assert not [p for p in opened if "canary" in p or p.startswith(("/etc/", "//"))], name
    figure("T30", f"{len(names)} hostile file names in {key}, 0 reads outside the folder")


@pytest.fixture
def opened():
    """Paths of the files that are opened, by whatever way."""
    _opened.append([])
    yield _opened[-1]
    _opened.clear()


_opened = []


def _hear(event, arguments):
    if event == "open" and _opened:
        _opened[-1].append(str(arguments[0]))


sys.addaudithook(_hear)


@pytest.mark.soak
def test_no_coco_file_name_reads_outside_the_root(tmp_path, made, opened, figure):
    for folder in (tmp_path, tmp_path / "set", tmp_path / "set" / "train" / "x"):
        made.image(folder / "canary.png")
    made.coco(tmp_path / "set")

    def read(name):
        content = made.coco_content()
        content["images"][0]["file_name"] = name.decode() + "\0" if isinstance(name, bytes) else name
        (tmp_path / "set/annotations/instances_train.json").write_text(json.dumps(content))
        annotations, report = open_data(tmp_path / "set").read("train", strict=False)
        annotations, report = require_images(annotations, report, strict=False)
        for i in range(len(annotations)):
            annotations.load_image(i)
        assert report.boxes_in == report.boxes_kept + report.boxes_left_out == 4
        assert report.images_left_out == 1

    assert_all_stay_inside("COCO files", tmp_path, REFUSED + INSIDE, read, opened, figure)


@pytest.mark.soak
def test_no_line_of_a_voc_list_reads_outside_the_tree(tmp_path, made, opened, figure):
    tree = made.voc(tmp_path / "set" / "tree")
    for folder in (tmp_path, tmp_path / "set", tree, tree / "Annotations" / "x"):
        made.image(folder / "canary.png")
        if folder.name != "x":  # which is a folder of the tree
            (folder / "canary.xml").write_text(made.voc_xml("canary", [("cat", 0, 0, 5, 5)]))

    def read(name):
        (tree / "ImageSets/Main/train.txt").write_text(f"a\n{name}\n")
        annotations, report = open_data(tree).read("train", strict=False)
        assert annotations.image_names.tolist() == [b"JPEGImages/a.png"]
        assert "file name refused" in report.problems[0].message

    assert_all_stay_inside("VOC lists", tmp_path, LINES, read, opened, figure)


@pytest.mark.soak
def test_no_line_of_a_yolo_list_reads_outside_the_root(tmp_path, made, opened, figure):
    yaml = made.yolo(tmp_path / "set")
    for folder in (tmp_path, tmp_path / "set"):
        made.image(folder / "canary.png")
        (folder / "canary.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    yaml.write_text("train: list.txt\nnames: [cat, dog]\n")

    def read(name):
        (tmp_path / "set/list.txt").write_text(f"images/train/a.png\n{name}\n")
        annotations, report = open_data(yaml).read("train", strict=False)
        assert annotations.image_names.tolist() == [b"images/train/a.png"]
        assert report.images_left_out == 1

    names = [*LINES, f"{tmp_path}/set/../canary.png", f"{tmp_path}/canary.png"]
    assert_all_stay_inside("YOLO lists", tmp_path, names, read, opened, figure)


def test_a_link_out_of_the_root_is_refused_and_one_within_is_not(tmp_path, made):
    made.image(tmp_path / "canary.png")
    made.coco(tmp_path / "set")
    train = tmp_path / "set" / "train"
    (train / "a.png").unlink()
    (train / "a.png").symlink_to(tmp_path / "canary.png")
    with pytest.raises(DataError, match="a link out of the image folder"):
        open_data(tmp_path / "set").read("train")
    (train / "a.png").unlink()
    (train / "a.png").symlink_to("b.png")
    assert open_data(tmp_path / "set").read("train")[1].problems == ()


def test_a_folder_that_links_out_is_refused(tmp_path, made):
    made.image(tmp_path / "elsewhere" / "a.png")
    content = made.coco_content()
    content["images"][0]["file_name"] = "inner/a.png"
    made.coco(tmp_path / "set", content)
    (tmp_path / "set" / "train" / "inner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="a link out of the image folder"):
        open_data(tmp_path / "set").read("train")


def test_a_link_made_after_reading_is_found_by_the_check(tmp_path, made):
    made.image(tmp_path / "canary.png")
    made.coco(tmp_path / "set")
    annotations, report = open_data(tmp_path / "set").read("train")
    (tmp_path / "set/train/a.png").unlink()
    (tmp_path / "set/train/a.png").symlink_to(tmp_path / "canary.png")
    with pytest.raises(DataError, match="a link out of"):
        require_images(annotations, report)


def test_the_root_itself_may_be_a_link(tmp_path, made):
    made.coco(tmp_path / "set")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    annotations, _ = open_data(tmp_path / "link").read("train")
    assert annotations.load_image(0).shape == (3, 20, 30)


PARTS = {
    "coco": ("train", "annotations/instances_train.json"),
    "voc": ("JPEGImages", "Annotations"),
    "yolo": ("images/train",),
}
TOML = {
    "coco": 'images = "set/train"\nannotations = "set/annotations/instances_train.json"',
    "voc": 'trees = "set"\nimages = "set/JPEGImages"\nimage_set = "train"',
    "yolo": 'images = "set/images/train"',
}


@pytest.mark.parametrize(("kind", "part"), [(k, p) for k, parts in PARTS.items() for p in parts])
def test_a_part_of_a_data_set_that_links_out_is_refused_and_one_within_is_not(kind, part, tmp_path, made):
    getattr(made, kind)(tmp_path / "set")
    place = tmp_path / "set" / part
    place.rename(tmp_path / "set" / f"moved{place.suffix}")
    place.symlink_to(tmp_path / "set" / f"moved{place.suffix}")
    annotations, _ = require_images(*open_data(tmp_path / "set").read("train"))
    assert annotations.load_image(0).shape == (3, 20, 30)
    (tmp_path / "set" / f"moved{place.suffix}").rename(tmp_path / "elsewhere")
    place.unlink()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "set").read("train", strict=False)
    assert str(caught.value).startswith(f"{place}: a link out of the data set, to {tmp_path}/elsewhere; allowed: ")
    assert ".toml data file" in str(caught.value)


@pytest.mark.parametrize("kind", TOML)
@pytest.mark.parametrize("named", ["the link", "the folder"])
def test_a_data_file_may_name_images_elsewhere(kind, named, tmp_path, made):
    getattr(made, kind)(tmp_path / "set")
    expected = open_data(tmp_path / "set").read("train")[0]
    place = tmp_path / "set" / PARTS[kind][0]
    (tmp_path / "other").mkdir()
    real = tmp_path / "other" / place.relative_to(tmp_path / "set")
    real.parent.mkdir(parents=True, exist_ok=True)
    place.rename(real)
    place.symlink_to(real)
    text = TOML[kind]
    if named == "the folder":
        text = text.replace(f"set/{PARTS[kind][0]}", str(real))
    if named == "the folder" and kind == "yolo":  # whose labels are found by the name of the images
        (tmp_path / "set/labels").rename(tmp_path / "other/labels")
    classes = "" if kind == "coco" else 'classes = ["cat", "dog"]\n'
    (tmp_path / "d.toml").write_text(f'format = "{kind}"\n{classes}[splits.train]\n{text}\n')
    annotations, report = require_images(*open_data(tmp_path / "d.toml").read("train"))
    assert report.problems == ()
    assert annotations.boxes.tolist() == expected.boxes.tolist()
    assert annotations.load_image(0).shape == (3, 20, 30)


def test_parts_of_one_split_may_be_links_in_a_data_file(tmp_path, made):
    for split in ("one", "two"):
        made.coco(tmp_path / "set", split=split)
        made.voc(tmp_path / "trees" / split)
    (tmp_path / "set/one").rename(tmp_path / "elsewhere")
    (tmp_path / "set/one").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "trees/one").rename(tmp_path / "tree")
    (tmp_path / "trees/one").symlink_to(tmp_path / "tree")
    (tmp_path / "coco.toml").write_text(
        'format = "coco"\n[splits.train]\nimages = ["set/one", "set/two"]\n'
        'annotations = ["set/annotations/instances_one.json", "set/annotations/instances_two.json"]\n'
    )
    (tmp_path / "voc.toml").write_text('format = "voc"\n[splits.train]\ntrees = ["trees/one", "trees/two"]\n')
    for file in ("coco.toml", "voc.toml"):
        annotations, _ = require_images(*open_data(tmp_path / file).read("train"))
        assert len(annotations) == 6
        assert annotations.load_image(0).shape == annotations.load_image(5).shape == (3, 20, 30)


def test_a_tree_of_a_year_that_links_out_is_refused(tmp_path, made):
    made.voc(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/VOC2007").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="a link out of the data set"):
        open_data(tmp_path / "set")


def test_no_class_comes_from_an_annotation_outside_the_tree(tmp_path, made):
    tree = made.voc(tmp_path / "tree")
    (tmp_path / "outside.xml").write_text(made.voc_xml("x", [("secret", 1, 2, 9, 12)]))
    (tree / "Annotations" / "x.xml").symlink_to(tmp_path / "outside.xml")
    assert open_data(tree).read("train")[0].class_names == ("cat", "dog")


def test_a_voc_annotation_that_links_out_is_refused(tmp_path, made):
    (tmp_path / "canary.xml").write_text(made.voc_xml("canary", [("cat", 0, 0, 5, 5)]))
    tree = made.voc(tmp_path / "tree")
    (tree / "Annotations/a.xml").unlink()
    (tree / "Annotations/a.xml").symlink_to(tmp_path / "canary.xml")
    _, report = open_data(tree).read("train", strict=False)
    assert "a link out of the tree" in report.problems[0].message


def test_a_yolo_list_may_name_files_of_the_root_absolutely(tmp_path, made):
    yaml = made.yolo(tmp_path)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/images/train/a.png\n./images/train/b.png\n")
    yaml.write_text("train: list.txt\nnames: [cat, dog]\n")
    annotations, _ = open_data(yaml).read("train")
    assert annotations.image_names.tolist() == [b"images/train/a.png", b"images/train/b.png"]
    assert len(annotations.boxes) == 4
