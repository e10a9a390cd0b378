"""COCO files: layouts, what is read, and what is wrong."""

import json
from functools import partial

import pytest

from drloss.data.checks import problems
from drloss.data.formats import builder as building
from drloss.data.formats.coco import CocoPart, read_coco
from drloss.data.formats.opening import open_data
from drloss.data.inspection import check_data
from drloss.errors import DataError
from support.reports import kinds, names_of, read
from support.verdicts import FINE, INF, NAN, assert_verdict, box, clip, file, image, note


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
    for picture in list((tmp_path / "moved").iterdir()):
        made.image(tmp_path / images / picture.name)
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


def test_two_files_for_one_split_are_refused(tmp_path, made):
    text = json.dumps(made.coco_content())
    for name in ("train.json", "cells_train.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"split train in both cells_train.json and train.json"):
        open_data(tmp_path)


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
    "as if normalised": (box("box within 0..1, as if normalised"), put("bbox", [0.1, 0.2, 0.3, 0.4])),
    "all as if normalised": (
        file("4 of 4 boxes"),
        lambda c: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in c["annotations"]],
    ),
    "a segmentation only": (
        box("there is a segmentation"),
        lambda c: c["annotations"].__setitem__(0, {"id": 1, "image_id": 1, "category_id": 3, "segmentation": []}),
    ),
    "file name in coco_url only": (
        note("the end of coco_url"),
        lambda c: c["images"][0].update(coco_url="http://x/train/" + c["images"][0].pop("file_name")),
    ),
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


def lvis(made):
    content = made.coco_content()
    for record in content["images"]:
        record["coco_url"] = f"http://images.cocodataset.org/train/{record.pop('file_name')}"
    return content


@pytest.mark.parametrize("folder", ["train", "."])
def test_lvis_files_name_their_images_by_url(folder, tmp_path, made):
    made.coco(tmp_path, lvis(made)).rename(tmp_path / "lvis.json")
    path = tmp_path / "lvis.toml"
    path.write_text(f"format = 'coco'\n[splits.train]\nimages = '{folder}'\nannotations = 'lvis.json'\n")
    annotations, report = open_data(path).read("train")
    assert annotations.load_image(2).shape == (3, 20, 30)
    assert len(annotations.boxes) == 4
    assert kinds(report) == {"file_name missing, the end of coco_url instead": 3}


def test_lvis_files_in_coco_layout(tmp_path, made):
    made.coco(tmp_path, lvis(made)).rename(tmp_path / "lvis_v1_train.json")
    assert check_data(tmp_path).ok


@pytest.mark.parametrize("url", ["http://x/../../etc/passwd", "http://x/..", "file:///etc/passwd", "x", 5, None])
def test_a_url_leads_out_of_no_folder(url, tmp_path, made):
    content = lvis(made)
    content["images"][0]["coco_url"] = url
    made.coco(tmp_path / "set", content)
    annotations, _ = read(tmp_path / "set")
    assert all(name in (*made.names, "passwd") for name in names_of(annotations))


def test_an_annotation_with_a_segmentation_only_is_left_out_and_says_so(tmp_path, made):
    content = made.coco_content()
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = [[1, 2, 9, 2, 9, 12]]
    made.coco(tmp_path, content)
    _, report = read(tmp_path)
    assert report.problems[0].kind == "bbox missing (there is a segmentation, which is not read)"
    assert report.boxes_left_out == 1
    json.dumps(report.to_json())
