"""Random structured damage: a file is accepted with a balanced report, or refused by name. Never another error."""

import copy
import json
import math
import os
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drloss.data.sources import open_data
from drloss.errors import DataError

EXAMPLES = settings(
    # More of them in a longer run: DRLOSS_MUTATIONS=20000.
    max_examples=int(os.environ.get("DRLOSS_MUTATIONS", "150")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

odd_values = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, 3, -1, 7, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, 1e-308]),
    st.sampled_from(
        [math.nan, math.inf, -math.inf, "", " ", "1", "nan", "a.png", "../a.png", "\0", "\ud800", "b.png"]
    ),
    st.sampled_from([[], {}, [[]], [1, 2, 3, 4], [None] * 4, ["1"] * 4, [1, 2, math.nan, 4], {"id": 1}]),
    st.lists(st.floats(-50, 80) | st.integers(-5, 60), min_size=3, max_size=5),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


def places(value, path=()):
    """Paths to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def damaged_json(draw, content):
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from(sorted(places(content), key=str) or [()]))
        if not place:
            return content
        owner = content
        for key in place[:-1]:
            owner = owner[key]
        kind = draw(st.sampled_from(["replace", "remove", "copy", "swap"]))
        if kind == "replace":
            owner[place[-1]] = copy.deepcopy(draw(odd_values))
        elif kind == "remove":
            del owner[place[-1]]
        elif kind == "copy" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[place[-1]]))
        elif kind == "swap" and isinstance(owner, dict):
            owner[draw(st.sampled_from(["id", "bbox", "width", "images", "x"]))] = owner.pop(place[-1])
    return content


def assert_accepted_or_refused(folder, split="train"):
    messages = []
    for strict in (True, False):
        try:
            annotations, report = open_data(folder).read(split, strict=strict)
        except DataError as error:
            messages.append(str(error))
            continue
        assert report.boxes_in == report.boxes_kept + report.boxes_left_out
        assert report.images_in == report.images_kept + report.images_left_out
        assert (report.boxes_kept, report.images_kept) == (len(annotations.boxes), len(annotations))
        assert not (strict and report.refused)
        json.dumps(report.to_json(), allow_nan=False).encode()
        assert report.text().replace("\n", "").isprintable()
        height, width = annotations.sizes[:, 0], annotations.sizes[:, 1]
        counts = annotations.first_box[1:] - annotations.first_box[:-1]
        boxes = annotations.boxes
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= width.repeat(counts)).all()
        assert (boxes[:, 3] <= height.repeat(counts)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert ((annotations.labels >= 1) & (annotations.labels <= len(annotations.class_names))).all()
        assert (annotations.areas > 0).all()
    for message in messages:
        assert str(folder) in message
        assert len(message.splitlines()) <= 2
        message.encode()


@pytest.fixture
def sets(tmp_path, made):
    made.coco(tmp_path / "coco")
    made.voc(tmp_path / "voc")
    made.yolo(tmp_path / "yolo")
    return tmp_path


@EXAMPLES
@given(data=st.data())
def test_damaged_coco_is_accepted_or_refused(data, sets, made):
    content = data.draw(damaged_json(made.coco_content()))
    path = sets / "coco" / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert_accepted_or_refused(sets / "coco")


def cut_and_splice(draw, text):
    """``text`` with some spans removed, repeated or replaced."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 30)))
        piece = draw(
            st.one_of(
                st.just(b""),
                st.just(text[start:end] * 2),
                st.binary(max_size=4),
                st.sampled_from(
                    [b"<", b"</object>", b"<object/>", b"&x;", b"nan", b"-5", b"1e999", b"\r", b"\0", b"{", b"\xff"]
                ),
                st.sampled_from(
                    [b"9" * 400, b"0.5", b"1", b" ", b"\n", b'"', b",", b"[", b": ", b"- ", b"&a ", b"*a", b"!!x "]
                ),
            )
        )
        text = text[:start] + piece + text[end:]
    return text


@EXAMPLES
@given(data=st.data())
def test_damaged_coco_text_is_accepted_or_refused(data, sets, made):
    text = json.dumps(made.coco_content(), indent=0).encode()
    (sets / "coco" / "annotations" / "instances_train.json").write_bytes(cut_and_splice(data.draw, text))
    assert_accepted_or_refused(sets / "coco")


@EXAMPLES
@given(data=st.data())
def test_damaged_voc_is_accepted_or_refused(data, sets, made):
    tree = sets / "voc"
    for stem, boxes in made.boxes.items():
        text = made.voc_xml(stem, boxes).encode()
        (tree / "Annotations" / f"{stem}.xml").write_bytes(cut_and_splice(data.draw, text))
    if data.draw(st.booleans()):
        (tree / "ImageSets/Main/train.txt").write_bytes(cut_and_splice(data.draw, b"a\nb\nc\n"))
    assert_accepted_or_refused(tree)
    (tree / "ImageSets/Main/train.txt").write_bytes(b"a\nb\nc\n")


@EXAMPLES
@given(data=st.data())
def test_damaged_yolo_labels_are_accepted_or_refused(data, sets, made):
    for stem, boxes in made.boxes.items():
        text = "".join(made.yolo_line(*box) + "\n" for box in boxes).encode()
        (sets / "yolo/labels/train" / f"{stem}.txt").write_bytes(cut_and_splice(data.draw, text))
    assert_accepted_or_refused(sets / "yolo")


@EXAMPLES
@given(data=st.data())
def test_damaged_yaml_is_accepted_or_refused(data, sets):
    text = b"path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\nnc: 2\n"
    (sets / "yolo" / "data.yaml").write_bytes(cut_and_splice(data.draw, text))
    try:
        splits = open_data(sets / "yolo").splits
    except DataError as error:
        splits = ()
        assert_names(error, sets / "yolo")
    for split in splits:
        assert_accepted_or_refused(sets / "yolo", split)


@EXAMPLES
@given(data=st.data())
def test_damaged_data_files_are_accepted_or_refused(data, sets):
    text = b'format = "coco"\n[splits.train]\nimages = "train"\nannotations = "annotations/instances_train.json"\n'
    path = sets / "coco" / "data.toml"
    path.write_bytes(cut_and_splice(data.draw, text))
    try:
        splits = open_data(sets / "coco").splits
    except DataError as error:
        splits = ()
        assert_names(error, path)
    for split in splits:
        assert_accepted_or_refused(sets / "coco", split)
    with suppress(FileNotFoundError):
        path.unlink()


def assert_names(error, path):
    assert str(path) in str(error)
    assert len(str(error).splitlines()) <= 2


def test_the_undamaged_sets_are_accepted(sets):
    for kind in ("coco", "voc", "yolo"):
        assert open_data(sets / kind).read("train")[1].problems == ()
    shutil.rmtree(sets)
