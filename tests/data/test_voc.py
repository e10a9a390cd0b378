"""VOC trees: layouts, what is read, and what is wrong."""

import os
from functools import partial

import pytest

from drloss.data.formats.opening import open_data
from drloss.data.formats.voc import PASCAL_CLASSES
from drloss.errors import UserError
from support.verdicts import FINE, assert_verdict, box, clip, file, image, note

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


def xml(old, new, stem="a"):
    def edit(tree):
        path = tree / "Annotations" / f"{stem}.xml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def xml_bytes(change, stem="a"):
    def edit(tree):
        path = tree / "Annotations" / f"{stem}.xml"
        path.write_bytes(change(path.read_bytes()))

    return edit


def listing(data):
    return lambda tree: (tree / "ImageSets/Main/train.txt").write_bytes(data)


def in_tree(path, change):
    return lambda tree: change(tree / path)


unread = partial(image, "annotation file not readable")

VOC = {
    "untouched": (FINE, lambda t: None),
    "list with CRLF, byte order mark and blanks": (FINE, listing(b"\xef\xbb\xbfa\r\n b \r\n\r\nc")),
    "list with the third column of class lists": (FINE, listing(b"a  1\nb -1\nc  0\n")),
    "list with suffixes": (FINE, listing(b"a.png\nb.png\nc.png\n")),
    "size missing": (FINE, xml_bytes(lambda b: b.replace(b"size>", b"other>"))),
    "size zero": (note("size 0 in the XML"), xml("<width>30<", "<width>0<")),
    "part boxes": (FINE, xml("<difficult>", "<part><name>head</name></part><difficult>")),
    "upper-case suffix": (FINE, lambda t: (t / "JPEGImages/a.png").rename(t / "JPEGImages/a.PNG")),
    "comment and processing instruction": (FINE, xml_bytes(lambda b: b"<?xml version='1.0'?><!-- x -->" + b)),
    "latin-1, declared": (
        FINE,
        xml_bytes(lambda b: b"<?xml version='1.0' encoding='latin-1'?>" + b.replace(b"<size>", b"<n>\xe9</n><size>")),
    ),
    "other filename": (note("<filename> differs"), xml("a.png", "zzz.jpg")),
    "hostile filename": (note("<filename> differs"), xml("a.png", "../../etc/passwd")),
    "two image files of a stem": (
        note("several image files"),
        lambda t: (t / "JPEGImages/a.jpg").write_bytes((t / "JPEGImages/a.png").read_bytes()),
    ),
    "XML file without an image and a list": (
        image("image file missing", 3),
        lambda t: ((t / "JPEGImages/a.png").unlink(), listing(b"a\nb\nc\n")(t)),
    ),
    "XML file of no list": (note("no list in ImageSets/Main names"), listing(b"a\nb\n")),
    "image without an XML file": (
        note("image without an XML file"),
        in_tree("JPEGImages/d.png", lambda p: p.write_bytes(b"x")),
    ),
    "file of another suffix": (note("suffix .heic"), in_tree("JPEGImages/d.heic", lambda p: p.write_bytes(b"x"))),
    "as if normalised": (
        box("box within 0..1, as if normalised"),
        xml(
            "<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>12<",
            "<xmin>0</xmin><ymin>.2</ymin><xmax>1</xmax><ymax>1<",
        ),
    ),
    "one pixel over": (note("at most 1 px"), xml("<xmax>30<", "<xmax>31<")),
    "difficult Unspecified": (note("difficult neither 0 nor 1"), xml("<difficult>0<", "<difficult>Unspecified<")),
    "difficult true": (note("difficult neither 0 nor 1"), xml("<difficult>0<", "<difficult>true<")),
    "many pixels over": (clip("box partly outside"), xml("<xmax>30<", "<xmax>90<")),
    "outside": (
        box("box outside"),
        xml("<xmin>1</xmin><ymin>2</ymin><xmax>9<", "<xmin>100</xmin><ymin>2</ymin><xmax>109<"),
    ),
    "degenerate": (box("without width or height"), xml("<xmax>9<", "<xmax>1<")),
    "reversed": (box("without width or height"), xml("<xmax>9<", "<xmax>0<")),
    "NaN": (box("not finite"), xml("<xmax>9<", "<xmax>nan<")),
    "coordinate a word": (box("xmax not a number"), xml("<xmax>9<", "<xmax>nine<")),
    "coordinate with an underscore": (box("xmax not a number"), xml("<xmax>9<", "<xmax>1_0<")),
    "coordinate missing": (box("xmax missing"), xml("<xmax>9</xmax>", "")),
    "bndbox missing": (
        box("xmin missing"),
        xml_bytes(lambda b: b.replace(b"<bndbox>", b"<x>", 1).replace(b"</bndbox>", b"</x>", 1)),
    ),
    "name missing": (box("name missing"), xml("<name>cat</name>", "")),
    "name blank": (box("name missing"), xml("<name>cat</name>", "<name> </name>")),
    "width a word": (image("image width not usable", 3), xml("<width>30<", "<width>wide<")),
    "width negative": (image("image width not usable", 3), xml("<width>30<", "<width>-30<")),
    "stem twice": (image("image file listed twice", 3), listing(b"a\nb\na\nc\n")),
    "stem without files": (image("annotation file not readable"), listing(b"a\nb\nc\nd\n")),
    "image missing": (image("image file missing", 3), in_tree("JPEGImages/a.png", os.remove)),
    "stem out of the tree": (image("leads out of"), listing(b"a\nb\nc\n../../x\n")),
    "XML empty": (unread(), in_tree("Annotations/a.xml", lambda p: p.write_text(""))),
    "XML truncated": (unread(), xml_bytes(lambda b: b[:100])),
    "XML of another root": (unread(), xml_bytes(lambda b: b.replace(b"annotation>", b"html>"))),
    "XML with a DOCTYPE": (unread(), xml_bytes(lambda b: b"<!DOCTYPE annotation>" + b)),
    "XML with an undefined entity": (unread(), xml("<name>cat", "<name>&bomb;")),
    "XML UTF-16 with a DOCTYPE": (
        unread(),
        xml_bytes(lambda b: ("<?xml version='1.0' encoding='utf-16'?><!DOCTYPE a>" + b.decode()).encode("utf-16")),
    ),
    "XML with an unknown encoding": (unread(), xml_bytes(lambda b: b"<?xml version='1.0' encoding='utf-77'?>" + b)),
    "XML 40 deep": (unread(), xml_bytes(lambda b: b.replace(b"<size>", b"<x>" * 40 + b"</x>" * 40 + b"<size>"))),
    "XML a folder": (unread(), in_tree("Annotations/a.xml", lambda p: (p.unlink(), p.mkdir()))),
    "XML not UTF-8": (unread(), xml_bytes(lambda b: b.replace(b"cat", b"c\xe9t", 1))),
    "list missing entries": (file("no usable image"), listing(b"\n\n")),
    "list not UTF-8": (file("not UTF-8"), listing(b"\xe9\n")),
    "list UTF-16": (file("UTF-16"), listing("a\n".encode("utf-16"))),
}

VOC_BOXES = {
    "stem twice": 7,
    "XML file without an image and a list": 4,
    "image missing": 4,
    "width a word": 4,
    "width negative": 4,
}


@pytest.mark.parametrize("row", VOC)
def test_voc_verdict(row, tmp_path, made):
    verdict, edit = VOC[row]
    tree = made.voc(tmp_path / "tree")
    edit(tree)
    boxes = VOC_BOXES.get(row, 1 if verdict.words == "annotation file not readable" and "stem" not in row else 4)
    assert_verdict(tree, verdict, boxes=boxes)


@pytest.mark.parametrize(
    ("word", "ignored"),
    [("0", 0), ("1", 1), ("", 0), ("true", 1), ("2", 1), ("False", 0), ("Unspecified", 0), ("no", 0)],
)
def test_difficult_is_what_its_word_says(word, ignored, tmp_path, made):
    tree = made.voc(tmp_path / "tree")
    xml("<difficult>0<", f"<difficult>{word}<")(tree)
    assert open_data(tree).read("train")[0].ignore.sum() == ignored


def test_stems_may_end_like_the_marks_of_class_lists(tmp_path, made):
    boxes = {"dog": made.boxes["c"], "dog 1": made.boxes["a"], "dog 0": made.boxes["b"], "cat": made.boxes["b"]}
    tree = made.voc(tmp_path / "tree", boxes)
    listing(b"dog 1\ndog 0\ndog\ncat  1\n")(tree)
    annotations, report = open_data(tree).read("train")
    names = [annotations.image_name(i).removeprefix("JPEGImages/") for i in range(4)]
    assert names == ["dog 1.png", "dog 0.png", "dog.png", "cat.png"]
    assert report.boxes_kept == 5
