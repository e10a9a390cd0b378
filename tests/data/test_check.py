"""``check_data`` finds everything in one go, and its reports balance."""

import json

import pytest

from drloss.data.checks.inspection import check_data
from drloss.data.checks.problems import SHOWN_PER_KIND, Problem, printable, report_of, shown
from drloss.data.formats.opening import open_data
from drloss.errors import DataError, UserError


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
    assert "good: strict reading takes all of it" in result.text()
    assert "cat" in result.text()


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
    assert "not good" in result.text()


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
    assert "drloss check-data" in second
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


def test_report_of_flawless_data_balances(tmp_path, made):
    made.coco(tmp_path)
    annotations, report = open_data(tmp_path).read("train")
    assert report_of(annotations) == report
