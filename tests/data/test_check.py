"""``check_data`` finds everything in one go, and its reports balance."""

import json
from dataclasses import replace

import pytest

from drloss.data.checks.problems import SHOWN_PER_KIND, Problem, report_of
from drloss.data.checks.remarks import InputSize
from drloss.data.formats.opening import open_data
from drloss.data.inspection import check_data
from drloss.errors import DataError, UserError, printable, shown


def two_splits(folder, made, edit=lambda content: None):
    made.coco(folder)
    content = made.coco_content()
    edit(content)
    made.coco(folder, content, split="val")
    for k, name in enumerate(made.names):
        made.image(folder / "val" / name, colour=100 + k)


def test_a_good_set_is_good(tmp_path, made):
    two_splits(tmp_path, made)
    result = check_data(tmp_path)
    assert result.ok
    assert list(result.reports) == ["train", "val"]
    assert result.twins == ()
    assert "cat" in result.text()
    text = check_data("shapes:train=40,val=2,test=1").text()
    assert text.endswith("\ngood: strict reading takes all of it")


def test_everything_is_found_in_one_go(tmp_path, made):
    two_splits(tmp_path, made, lambda c: c["annotations"][0].update(bbox=[0, 0, 0, 0]))
    (tmp_path / "val" / "b.png").write_bytes(b"x")
    (tmp_path / "train" / "a.png").unlink()
    seen = set()
    path = tmp_path / "out" / "report.json"
    result = check_data(tmp_path, report_path=path, progress=lambda split, done, total: seen.add((split, total)))
    assert not result.ok
    assert [p.kind for p in result.problems] == [
        "image file missing",
        "box without width or height",
        "image not readable",
    ]
    for report in result.reports.values():
        assert report.boxes_in == report.boxes_kept + report.boxes_left_out
    written = json.loads(path.read_text())
    assert written["ok"] is False
    assert written["splits"]["val"]["boxes_left_out"] == 2
    assert len(written["splits"]["val"]["problems"]) == 2
    assert seen == {("train", 3), ("val", 3)}
    assert "not good: the 3 problems above would stop a training; --skip-bad goes on without" in result.text()


def test_the_same_image_in_two_splits_is_noted(tmp_path, made):
    two_splits(tmp_path, made)
    (tmp_path / "val" / "b.png").write_bytes((tmp_path / "train" / "a.png").read_bytes())
    result = check_data(tmp_path)
    assert result.ok
    assert result.twins == (("train: a.png", "val: b.png"),)
    assert "1 images are in several splits" in result.text()


def test_trainval_may_hold_the_images_of_train(tmp_path, made):
    tree = made.voc(tmp_path / "set")
    for split, text in (("trainval", "a\nb\nc\n"), ("train", "a\nb\n"), ("val", "c\n")):
        (tree / f"ImageSets/Main/{split}.txt").write_text(text)
    assert check_data(tree).twins == ()
    (tree / "ImageSets/Main/test.txt").write_text("a\n")
    assert len(check_data(tree).twins) == 1


def test_classes_must_be_the_same_in_all_splits(tmp_path, made):
    two_splits(tmp_path, made, lambda c: c["categories"].append({"id": 9, "name": "cow"}))
    result = check_data(tmp_path)
    assert not result.ok
    assert result.differing_classes == ("classes of train and val differ; only in one of them: cow",)


def test_other_ids_are_other_classes(tmp_path, made):
    two_splits(
        tmp_path,
        made,
        lambda c: (c["categories"][0].update(id=1), [a.update(category_id=7) for a in c["annotations"]]),
    )
    assert check_data(tmp_path).differing_classes == ("classes of train and val have the same names but other ids",)


def test_a_split_that_cannot_be_read_does_not_hide_the_others(tmp_path, made):
    two_splits(tmp_path, made)
    (tmp_path / "annotations" / "instances_train.json").write_text("{")
    result = check_data(tmp_path)
    assert not result.ok
    assert list(result.reports) == ["val"]
    assert "not JSON" in result.unreadable["train"]
    assert "train: cannot be read" in result.text()


def test_shapes_can_be_checked():
    result = check_data("shapes:train=3,val=2,test=1", ["train", "val"])
    assert result.ok
    assert list(result.reports) == ["train", "val"]


def test_unknown_splits_are_refused():
    with pytest.raises(UserError, match="dev"):
        check_data("shapes", ["dev"])


def test_long_lists_are_shortened_on_the_terminal_and_whole_in_the_file(tmp_path, made):
    two_splits(tmp_path, made, lambda c: c["annotations"].extend({"id": 50 + k} for k in range(30)))
    result = check_data(tmp_path)
    text = result.text("report.json")
    assert text.count("image_id missing, ") + text.count("image_id missing;") == SHOWN_PER_KIND
    assert "... and 10 more, all in report.json" in text
    assert len(result.to_json()["splits"]["val"]["problems"]) == 30


def test_notes_of_a_kind_are_gathered_and_counted(tmp_path, made):
    two_splits(tmp_path, made, lambda c: [a.pop("id") for a in c["annotations"]])
    report = check_data(tmp_path).reports["val"]
    assert [(p.count, p.refused) for p in report.problems] == [(4, False)]
    assert "(and 3 more)" in report.text()


def test_strict_reading_names_the_first_problem_and_counts_all(tmp_path, made):
    content = made.coco_content()
    content["annotations"][1]["bbox"] = [1, 1, 0, 5]
    content["annotations"][2]["category_id"] = 99
    path = made.coco(tmp_path, content)
    with pytest.raises(DataError) as caught:
        open_data(tmp_path).read("train")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}: annotation 2: box without width or height, got [1.0, 1.0, 1.0, 6.0]; allowed: ")
    assert second.startswith("the first of 2 problems")
    assert "drloss data" in second
    assert "--skip-bad" in second


def test_a_report_is_written_whole(tmp_path, made):
    made.coco(tmp_path)
    _, report = open_data(tmp_path).read("train")
    report.write(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert list(tmp_path.glob(".*")) == []


def test_messages_never_hold_control_characters():
    problem = Problem("a\x1b[2J.json", "annotation\n1", "kind", shown("\x07" * 200), "x", "note")
    assert problem.message.isprintable()
    assert printable("a\nb") == "'a\\nb'"
    assert len(shown("x" * 10_000)) < 100
    assert len(shown([0] * 10_000)) < 100
    assert shown(10**5000) == "an integer of 16,610 bits"


# ---------------------------------------------------------------------- remarks


def photographs(folder, made, boxes):
    """Three images of 2048 x 1536 pixels, and the boxes (category, side) in the first."""
    content = made.coco_content()
    for image in content["images"]:
        image |= {"width": 2048, "height": 1536}
    content["annotations"] = [
        {"id": k, "image_id": 1, "category_id": c, "bbox": [10 * k, 20, side, side]}
        for k, (c, side) in enumerate(boxes)
    ]
    made.coco(folder, content)
    for name in made.names:
        made.image(folder / "train" / name, size=(2048, 1536))


SIZE = InputSize("--preset cpu", short_side=128, max_side=256, smallest_anchor=20, positive_iou=0.5)


def test_objects_that_the_preset_makes_too_small_are_remarked_on(tmp_path, made):
    photographs(tmp_path, made, [(3, 140)] * 10 + [(7, 160)] * 10)
    (remark,) = check_data(tmp_path, size=SIZE).remarks
    # 140 * 128 / 1536 = 11.7; the least is 20 * sqrt(0.5) = 14.1, for which 140 px need 1536 * 14.1 / 140 = 155.
    assert remark.startswith("train: with --preset cpu, 100% of the objects are smaller than 14 px")
    assert "its short side of 128 px objects have 12 px in the median, 12 px at 5 %" in remark
    assert "--short-side 160 would do" in remark
    result = check_data(tmp_path, size=replace(SIZE, short_side=160, max_side=320))
    assert result.remarks == ()
    assert result.text().endswith("good: strict reading takes all of it")


def test_one_class_of_small_objects_is_remarked_on(tmp_path, made):
    photographs(tmp_path, made, [(3, 600)] * 90 + [(7, 60)] * 10)
    (remark,) = check_data(tmp_path, size=SIZE).remarks
    assert "10% of the objects, most of dog among them," in remark
    assert "--short-side 384 would do" in remark


def test_objects_too_small_for_any_preset_are_said_to_need_tiles(tmp_path, made):
    photographs(tmp_path, made, [(3, 5)] * 10 + [(7, 5)] * 10)
    (remark,) = check_data(tmp_path, size=SIZE).remarks
    assert "cut the images into tiles" in remark


def test_objects_that_are_longer_than_the_anchors_are_remarked_on(tmp_path, made):
    photographs(tmp_path, made, [(3, 600)] * 10 + [(7, 600)] * 10)
    path = tmp_path / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for box in content["annotations"][:10]:
        box["bbox"][2:] = [1200, 240]
    path.write_text(json.dumps(content))
    (remark,) = check_data(tmp_path, size=SIZE).remarks
    # 5:1 is 2.5 times as long as the longest anchor, 2:1; 2.25 times is what an IoU of 0.5 allows.
    assert remark.startswith(
        "train: with --preset cpu, 50% of the objects are longer or higher than its anchors match"
    )
    assert remark.endswith("--anchor-ratios 0.2,0.5,1,2 would match them")
    assert check_data(tmp_path, size=replace(SIZE, ratios=(0.2, 0.5, 1.0, 2.0))).remarks == ()


@pytest.mark.parametrize(
    ("dogs", "cows", "words"),
    [
        (12, 0, "a class without a box in any split, never learnt and in no AP: cow"),
        (1, 12, "a class with less than 10 boxes in train: dog (1)"),
        (0, 0, "2 classes without a box in any split, never learnt and in no AP: dog, cow"),
    ],
)
def test_classes_with_few_boxes_or_none_are_remarked_on(dogs, cows, words, tmp_path, made):
    photographs(tmp_path, made, [(3, 600)] * 20 + [(7, 600)] * dogs + [(9, 600)] * cows)
    path = tmp_path / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "cow"})
    path.write_text(json.dumps(content))
    result = check_data(tmp_path, size=SIZE)
    assert result.ok
    assert result.remarks == (words,)
    assert words in result.text()
    assert result.text().endswith("readable: strict reading takes all of it, but mind the remark above")
    assert result.to_json()["remarks"] == (words,)


def test_roboflows_super_category_is_named_as_such(tmp_path, made):
    photographs(tmp_path, made, [(7, 600)] * 20)
    (remark,) = check_data(tmp_path, size=SIZE).remarks
    assert remark.endswith("in no AP: cat; an export of Roboflow lists its super-category so")


def test_a_class_of_the_other_splits_only_is_remarked_on(tmp_path, made):
    two_splits(tmp_path, made)
    path = tmp_path / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [{"id": k, "image_id": 1, "category_id": 3, "bbox": [k, 2, 9, 9]} for k in range(12)]
    content["annotations"].append({"id": 99, "image_id": 1, "category_id": 7, "bbox": [1, 2, 9, 9], "iscrowd": 1})
    path.write_text(json.dumps(content))
    assert check_data(tmp_path).remarks == ("a class without a box in train, never learnt: dog",)


def test_image_files_of_no_split_are_noted(tmp_path, made):
    two_splits(tmp_path, made)
    made.image(tmp_path / "val/extra.png", colour=7)
    (tmp_path / "val/b.png").write_bytes(b"x")
    result = check_data(tmp_path)
    assert result.unlisted == (f"{tmp_path}/val/extra.png",)
    assert "1 image files beside those of the splits are in none of them (note)" in result.text()


# ---------------------------------------------------------------------- messages


def test_a_message_says_a_thing_once(tmp_path, made):
    """The file names the image, not its number, and what reading it said comes in its own words."""
    made.voc(tmp_path / "tree", made.boxes | {"d": []})
    for name, size in (("a", (31, 20)), ("b", (30, 20))):
        made.image(tmp_path / f"tree/JPEGImages/{name}.png", size=size)
    (tmp_path / "tree/Annotations/c.xml").write_text("<annotation>")
    (tmp_path / "tree/JPEGImages/b.png").write_bytes(b"x")
    first, second, third = sorted(
        p.message.removeprefix(f"{tmp_path}/tree/") for p in check_data(tmp_path / "tree").problems
    )
    assert first == (
        "Annotations/c.xml: annotation file not readable: line 1, column 13: not well-formed XML (no element found); "
        "allowed: a VOC XML file"
    )
    assert second == (
        "JPEGImages/a.png: image size differs from the listed one: got 20 x 31; "
        "the data set lists 20 x 30 (height x width)"
    )
    assert (
        third
        == "JPEGImages/b.png: image not readable: not an image of a known format; allowed: an image that decodes"
    )


def test_report_of_flawless_data_balances(tmp_path, made):
    made.coco(tmp_path)
    annotations, report = open_data(tmp_path).read("train")
    assert report_of(annotations) == report
