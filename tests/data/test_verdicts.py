"""Every kind of broken input has one verdict, the same in every release.

A verdict is ``fine``, ``note``, ``clip``, ``box``, ``image`` (with how many, and words of the message) or ``file``:
the whole file is refused, by lenient reading too.
"""

import json
import os
from dataclasses import dataclass
from functools import partial

import pytest

from drloss.data.checks import problems
from drloss.data.formats import builder as building
from drloss.data.formats.coco import CocoPart, read_coco
from drloss.data.formats.opening import open_data
from drloss.errors import DataError

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Verdict:
    what: str
    words: str = ""
    boxes: int = 0
    images: int = 0


FINE = Verdict("fine")
note, clip, file = partial(Verdict, "note"), partial(Verdict, "clip"), partial(Verdict, "file")
box = partial(Verdict, "box", boxes=1)


def image(words, boxes=0, images=1):
    return Verdict("image", words, boxes, images)


def assert_verdict(spec, verdict, images=3, boxes=4):
    """Read strictly and leniently."""
    source = open_data(spec)
    root = str(spec if spec.is_dir() else spec.parent)
    if verdict.what == "file":
        for strict in (True, False):
            with pytest.raises(DataError) as caught:
                source.read("train", strict=strict)
            assert verdict.words in str(caught.value)
            assert root in str(caught.value)
        return
    annotations, report = source.read("train", strict=False)
    assert report.boxes_in == report.boxes_kept + report.boxes_left_out
    assert report.images_in == report.images_kept + report.images_left_out
    assert (report.images_kept, report.boxes_kept) == (len(annotations), len(annotations.boxes))
    assert report.boxes_in == boxes
    assert (report.images_left_out, report.boxes_left_out) == (verdict.images, verdict.boxes)
    assert all(p.message.startswith(root) for p in report.problems)
    if verdict.what in ("fine", "note"):
        assert not report.refused
        assert [p.kind for p in report.problems if verdict.words not in p.message] == []
        assert bool(report.problems) == (verdict.what == "note")
        source.read("train")
    else:
        assert verdict.words in report.refused[0].message
        with pytest.raises(DataError) as caught:
            source.read("train")
        text = str(caught.value)
        assert verdict.words in text
        assert len(text.splitlines()) <= 2
        assert root in text
        assert "--skip-bad" in text


# ---------------------------------------------------------------------- COCO


def put(key, value, record=0, kind="annotations"):
    def edit(content):
        content[kind][record][key] = value

    return edit


def cut(key, record=0, kind="annotations"):
    return lambda content: content[kind][record].pop(key)


def add(kind, value):
    return lambda content: content[kind].append(value)


put_image, cut_image = partial(put, kind="images"), partial(cut, kind="images")


def again(kind, record, **changes):
    return lambda content: content[kind].append(content[kind][record] | changes)


COCO = {
    "untouched": (FINE, lambda c: None),
    "annotation id 0": (FINE, put("id", 0)),
    "image id 0": (FINE, put_image("id", 0, 2)),
    "category id 0": (FINE, add("categories", {"id": 0, "name": "zero"})),
    "negative image id": (FINE, put_image("id", -5, 2)),
    "float image id without fraction": (FINE, put("image_id", 1.0)),
    "unused keys": (FINE, lambda c: c.update(info={"year": 1}, licenses=None)),
    "segmentation of any form": (FINE, put("segmentation", {"counts": [1, 2], "size": [1, 2]})),
    "unicode file name, missing on disk": (FINE, put_image("file_name", "bild_ä_日本.png")),
    "subfolder": (FINE, put_image("file_name", "inner/./a.png")),
    "area missing": (FINE, cut("area")),
    "iscrowd missing": (FINE, cut("iscrowd")),
    "float dust over the border": (FINE, put("bbox", [1, 2, 29.0000000001, 12])),
    "no annotation at all": (FINE, lambda c: c["annotations"].clear()),
    "annotation id missing": (note("annotation id missing"), cut("id")),
    "annotation id a string": (note("annotation id not an integer"), put("id", "x1")),
    "annotation id true": (note("annotation id not an integer"), put("id", True)),
    "annotation id of two boxes": (note("annotation id given to several"), put("id", 2)),
    "area negative": (note("area not a positive"), put("area", -4)),
    "area NaN": (note("area not a positive"), put("area", NAN)),
    "area a string": (note("area not a positive"), put("area", "12")),
    "iscrowd a string": (note("iscrowd neither 0 nor 1"), put("iscrowd", "yes")),
    "half a pixel outside": (note("at most 1 px"), put("bbox", [-0.5, 2, 8, 10])),
    "names that differ in case": (note("in case only"), put_image("file_name", "A.PNG", 1)),
    "five pixels outside": (clip("box partly outside"), put("bbox", [25, 2, 10, 10])),
    "wholly outside": (box("box outside its image"), put("bbox", [500, 2, 10, 10])),
    "left of the image": (box("box outside its image"), put("bbox", [-50, 2, 10, 10])),
    "zero width": (box("without width or height"), put("bbox", [3, 3, 0, 4])),
    "negative height": (box("without width or height"), put("bbox", [3, 3, 4, -4])),
    "a thousandth of a pixel wide": (box("without width or height"), put("bbox", [3, 3, 1e-3, 4])),
    "NaN coordinate": (box("not finite"), put("bbox", [NAN, 3, 4, 4])),
    "infinite coordinate": (box("not finite"), put("bbox", [3, 3, INF, 4])),
    "huge integer coordinate": (box("not finite"), put("bbox", [3, 3, 10**400, 4])),
    "bbox missing": (box("bbox missing"), cut("bbox")),
    "bbox null": (box("bbox not usable"), put("bbox", None)),
    "bbox of three": (box("bbox not usable"), put("bbox", [1, 2, 3])),
    "bbox of strings": (box("bbox not usable"), put("bbox", ["1", "2", "3", "4"])),
    "bbox of booleans": (box("bbox not usable"), put("bbox", [True, 2, 3, 4])),
    "bbox an object": (box("bbox not usable"), put("bbox", {"x": 1})),
    "unknown category": (box("unknown class"), put("category_id", 4)),
    "category null": (box("category_id not an integer"), put("category_id", None)),
    "category missing": (box("category_id missing"), cut("category_id")),
    "category true": (box("category_id not an integer"), put("category_id", True)),
    "category by name": (box("category_id not an integer"), put("category_id", "cat")),
    "image not listed": (box("image not listed"), put("image_id", 99)),
    "image id of a box a string": (box("image_id not an integer"), put("image_id", "1")),
    "image id of a box missing": (box("image_id missing"), cut("image_id")),
    "annotation is a number": (box("annotation not an object"), lambda c: c["annotations"].__setitem__(0, 5)),
    "same annotation twice": (box("annotation given twice"), again("annotations", 0)),
    "image id twice, same image": (image("image id listed twice"), again("images", 0)),
    "image id twice, other image": (image("image id listed twice", 3, 2), again("images", 0, file_name="z.png")),
    "image file twice": (image("image file listed twice"), again("images", 0, id=50)),
    "image file twice, other spelling": (
        image("image file listed twice"),
        again("images", 0, id=50, file_name="./a.png"),
    ),
    "image id missing": (image("image id missing"), cut_image("id", 2)),
    "image id a string": (image("image id not an integer"), put_image("id", "3", 2)),
    "image id true": (image("image id not an integer"), put_image("id", True, 2)),
    "image id beyond 64 bits": (image("image id not an integer"), put_image("id", 2**64, 2)),
    "image record null": (image("image record not an object"), lambda c: c["images"].__setitem__(2, None)),
    "width missing": (image("width missing", 3), cut_image("width")),
    "height zero": (image("image height not usable", 3), put_image("height", 0)),
    "width negative": (image("image width not usable", 3), put_image("width", -30)),
    "width absurd": (image("image width not usable", 3), put_image("width", 10**7)),
    "width with a fraction": (image("image width not usable", 3), put_image("width", 30.5)),
    "width a string": (image("image width not usable", 3), put_image("width", "30")),
    "width NaN": (image("image width not usable", 3), put_image("width", NAN)),
    "file name missing": (image("file name refused", 3), cut_image("file_name")),
    "file name a number": (image("file name refused", 3), put_image("file_name", 5)),
    "file name of 300 bytes": (image("longer than 255 bytes", 3), put_image("file_name", "x" * 300)),
    "file name with half a character": (image("half of a character", 3), put_image("file_name", "\ud800.png")),
    "file name out of the folder": (image("leads out of", 3), put_image("file_name", "../b.png")),
    "no images": (file("no usable image"), lambda c: (c["images"].clear(), c["annotations"].clear())),
    "images an object": (file("images, got"), lambda c: c.update(images={})),
    "annotations missing": (file("annotations, got no such key"), lambda c: c.pop("annotations")),
    "categories null": (file("categories, got None"), lambda c: c.update(categories=None)),
    "no categories": (file("number of classes"), lambda c: c["categories"].clear()),
    "category id twice": (file("class id given twice"), add("categories", {"id": 3, "name": "cow"})),
    "category name twice": (file("class name given twice"), add("categories", {"id": 8, "name": "cat"})),
    "category name blank": (file("class name"), add("categories", {"id": 8, "name": " "})),
    "category name missing": (file("name, got None"), add("categories", {"id": 8})),
    "category id a string": (file("id, got '8'"), add("categories", {"id": "8", "name": "cow"})),
    "category a string": (file("category 3"), add("categories", "cow")),
    "category name with an escape sequence": (file("class name"), add("categories", {"id": 8, "name": "\x1b[2J"})),
}


@pytest.mark.parametrize("row", COCO)
def test_coco_verdict(row, tmp_path, made):
    verdict, edit = COCO[row]
    content = made.coco_content()
    edit(content)
    made.coco(tmp_path, content)
    listed = content.get("annotations")
    boxes = len(listed) if isinstance(listed, list) else 0
    assert_verdict(tmp_path, verdict, boxes=boxes)


def _text(content):
    return json.dumps(content).encode()


COCO_BYTES = {
    "byte order mark": (FINE, lambda t: b"\xef\xbb\xbf" + t),
    "CRLF": (FINE, lambda t: t.replace(b", ", b",\r\n")),
    "CR": (FINE, lambda t: t.replace(b", ", b",\r")),
    "blank around": (FINE, lambda t: b"\n\n " + t + b"\n\n"),
    "UTF-16": (file("UTF-16"), lambda t: t.decode().encode("utf-16")),
    "UTF-16 without mark": (file("UTF-16"), lambda t: t.decode().encode("utf-16-le")),
    "UTF-32": (file("UTF-32"), lambda t: t.decode().encode("utf-32")),
    "latin-1": (file("is not UTF-8"), lambda t: t.replace(b"a.png", b"\xe9.png")),
    "empty": (file("not JSON"), lambda t: b""),
    "truncated": (file("line 1, column"), lambda t: t[: len(t) // 2]),
    "two values": (file("not JSON"), lambda t: t + t),
    "a list": (file("top level"), lambda t: b"[" + t + b"]"),
    "a number": (file("top level"), lambda t: b"5"),
    "key twice at the top": (file("key given twice"), lambda t: t[:-1] + b', "images": []}'),
    "key twice in an annotation": (box("key given twice"), lambda t: t.replace(b'"bbox"', b'"id": 1, "bbox"', 1)),
    "key twice in an image": (image("key given twice", 3), lambda t: t.replace(b'"width"', b'"id": 1, "width"', 1)),
    "100,000 lists deep": (file("nested too deeply"), lambda t: b"[" * 100_000),
    "integer of 5,000 digits": (file("not JSON"), lambda t: t.replace(b'"id": 1', b'"id": 1' + b"0" * 5000, 1)),
    "single quotes": (file("not JSON"), lambda t: t.replace(b'"', b"'")),
    "a PNG": (file(""), lambda t: b"\x89PNG\r\n\x1a\n\0\0\0"),
}


@pytest.mark.parametrize("row", COCO_BYTES)
def test_coco_bytes_verdict(row, tmp_path, made):
    verdict, edit = COCO_BYTES[row]
    made.coco(tmp_path, edit(_text(made.coco_content())))
    assert_verdict(tmp_path, verdict)


# ---------------------------------------------------------------------- VOC


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
    "size zero": (FINE, xml("<width>30<", "<width>0<")),
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
VOC_BOXES = {"stem twice": 7, "image missing": 4, "width a word": 4, "width negative": 4}


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


# ---------------------------------------------------------------------- YOLO


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
    "six columns": (box("number of columns"), label(b"0 0.5 0.5 0.2 0.2 0.9")),
    "commas": (box("number of columns"), label(b"0,0.5,0.5,0.2,0.2")),
    "zero width": (box("without width or height"), label(b"0 0.5 0.5 0 0.2")),
    "flat polygon": (box("without width or height"), label(b"1 0.1 0.1 0.5 0.1 0.3 0.1")),
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
YOLO_BOXES = {"empty label file": 1, "label not UTF-8": 1}


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
    for words, box in (("kpt_shape = [2, 2]", [12, 8, 18, 12]), ("kpt_shape = [0, 0]", [6, 4, 16.5, 11])):
        path.write_text(text.format(words))
        assert open_data(path).read("train")[0].boxes[0].round(6).tolist() == box
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


TABLES = (
    (COCO, test_coco_verdict),
    (COCO_BYTES, test_coco_bytes_verdict),
    (VOC, test_voc_verdict),
    (YOLO, test_yolo_verdict),
    (YAML, test_yaml_that_is_refused),
)


@pytest.mark.soak
def test_each_of_sixty_kinds_of_broken_input_has_its_verdict(soak, figure, tmp_path, made):
    """All rows once more, so that their number is that of those which hold."""
    rows = sum(len(table) for table, _ in TABLES)
    assert rows >= 60
    for table, check in TABLES if soak else ():
        for number, row in enumerate(table):
            check(row, tmp_path / check.__name__ / str(number), made)
    figure("T19", f"{rows} kinds of broken input, each with its one verdict")


def coco_of(tmp_path, images, annotations):
    path = tmp_path / "many.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]})
    )
    return [CocoPart(path, (tmp_path,))]


def test_a_file_of_nothing_but_problems_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "MAX_PROBLEMS", 10)
    image = {"id": 1, "file_name": "a.png", "width": 4, "height": 4}
    with pytest.raises(DataError, match="more than 10 problems: is it a file of another kind"):
        read_coco("many", coco_of(tmp_path, [image], [{}] * 100), strict=False)


def test_boxes_that_are_clipped_are_no_reason_to_give_up(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "MAX_PROBLEMS", 10)
    image = {"id": 1, "file_name": "a.png", "width": 4, "height": 4}
    boxes = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [2, 2, 5, 5 + i]} for i in range(100)]
    annotations, report = read_coco("many", coco_of(tmp_path, [image], [*boxes, {}]), strict=False)
    assert len(annotations.boxes) == 100
    assert [p.count for p in report.problems] == [1] * 9 + [91, 1]
    with pytest.raises(DataError, match="the first of 101 problems"):
        read_coco("many", coco_of(tmp_path, [image], [*boxes, {}]))


def test_one_long_name_among_many_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "MAX_NAMES", 1000)
    images = [{"id": i, "file_name": f"{i}.png", "width": 4, "height": 4} for i in range(20)]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}]
    read_coco("many", coco_of(tmp_path, images, boxes))
    images[0]["file_name"] = "a" * 60 + ".png"
    with pytest.raises(DataError, match="file names, got 20 of up to 64 bytes; allowed: 1,000 in all"):
        read_coco("many", coco_of(tmp_path, images, boxes))
