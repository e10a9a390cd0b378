"""A COCO file read piece by piece gives what it gives when it is parsed whole: arrays, reports and messages."""

import re
from random import Random

import pytest

from benchmarks.formats import write_coco
from data.test_coco import COCO, COCO_BYTES
from drloss.data.checks.problems import Report
from drloss.data.formats import coco_stream
from drloss.data.formats.coco_stream import Columns
from drloss.data.formats.opening import open_data
from drloss.errors import DataError

ARRAYS = ("image_ids", "image_names", "sizes", "first_box", "boxes", "labels", "ignore", "areas", "category_ids")


def outcome(folder, strict):
    """The arrays, each with its type, and the report; or the message of the error."""
    try:
        annotations, report = open_data(folder).read("train", strict=strict)
    except DataError as error:
        return str(error)
    arrays = [getattr(annotations, name) for name in ARRAYS]
    return [(a.dtype, a.tolist()) for a in arrays], annotations.class_names, report


def whole_and_in_pieces(folder, monkeypatch, piece):
    """Outcomes of both ways, each leniently and strictly, and what was read in pieces."""
    read = []
    in_pieces = coco_stream._in_pieces

    def seen(path):
        content = in_pieces(path)
        read.append(dict(content))
        return content

    monkeypatch.setattr(coco_stream, "_in_pieces", seen)
    outcomes = []
    for whole in (2**40, 0):
        monkeypatch.setattr(coco_stream, "WHOLE", whole)
        monkeypatch.setattr(coco_stream, "PIECE", piece)
        outcomes.append([outcome(folder, strict) for strict in (False, True)])
    monkeypatch.undo()
    return *outcomes, read


def blocks_of(read):
    """Whether each block of annotations came as columns."""
    return [isinstance(block, Columns) for block in read[0]["annotations"]]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The text of a file like COCO's, of 300 images."""
    return write_coco(tmp_path_factory.mktemp("text"), 300).read_text()


def compare(folder, data, monkeypatch, piece=50_000):
    path = folder / "annotations" / "instances_train2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    whole, pieces, read = whole_and_in_pieces(folder, monkeypatch, piece)
    assert pieces == whole
    return whole[0], read


def test_a_file_like_cocos_is_read_as_columns(tmp_path, monkeypatch):
    write_coco(tmp_path, 2000)
    whole, pieces, read = whole_and_in_pieces(tmp_path, monkeypatch, 500_000)
    assert pieces == whole
    assert isinstance(whole[0][-1], Report)
    assert whole[0][-1].boxes_kept == 14_540
    columns = blocks_of(read)
    assert columns == [True] * (len(columns) - 1) + [False]  # the last ends where the list does
    assert len(columns) > 10


@pytest.mark.parametrize("piece", [100, 700])
@pytest.mark.parametrize("row", [*COCO, *COCO_BYTES])
def test_what_is_wrong_is_said_as_of_the_whole_file(row, piece, tmp_path, made, monkeypatch):
    if row in COCO:
        content = made.coco_content()
        COCO[row][1](content)
        made.coco(tmp_path, content)
    else:
        path = made.coco(tmp_path)
        path.write_bytes(COCO_BYTES[row][1](path.read_bytes()))
    whole, pieces, _ = whole_and_in_pieces(tmp_path, monkeypatch, piece)
    assert pieces == whole


ANNOTATION, IMAGE = '{"segmentation"', '{"license"'
FIRST_PLACE = r'"segmentation": \[\['
EDITS = {
    "NaN in a box": (ANNOTATION, r'"bbox": \[[\d.]+', '"bbox": [NaN'),
    "a number beyond floats": (ANNOTATION, r'"bbox": \[[\d.]+', '"bbox": [1e999'),
    "a huge integer": (ANNOTATION, r'"bbox": \[[\d.]+', '"bbox": [1' + "0" * 400),
    "an integer of 5,000 digits": (ANNOTATION, FIRST_PLACE, '"segmentation": [[' + "1" * 5000 + ","),
    "an integer of 5,000 digits as a width": (IMAGE, r'"width": ', '"width": ' + "1" * 5000),
    "an integer beyond 64 bits": (ANNOTATION, r'"id": ', '"id": ' + "1" * 30),
    "minus zero": (ANNOTATION, r'"bbox": \[[\d.]+', '"bbox": [-0.0'),
    "whole numbers": (ANNOTATION, r'"bbox": \[.*?\]', '"bbox": [1,2,33,44]'),
    "an id as a float": (ANNOTATION, r'"image_id": (\d+)', r'"image_id": \1.0'),
    "an id as a text": (ANNOTATION, r'"image_id": (\d+)', r'"image_id": "\1"'),
    "true": (ANNOTATION, r'"category_id": \d+', '"category_id": true'),
    "unknown class": (ANNOTATION, r'"category_id": \d+', '"category_id": 9999'),
    "unknown image": (ANNOTATION, r'"image_id": \d+', '"image_id": 999999'),
    "no box": (ANNOTATION, r'"bbox": \[.*?\],', ""),
    "no area": (ANNOTATION, r'"area": [\d.]+,', ""),
    "no id": (ANNOTATION, r',"id": \d+', ""),
    "an area of 0": (ANNOTATION, r'"area": [\d.]+', '"area": 0'),
    "an area of NaN": (ANNOTATION, r'"area": [\d.]+', '"area": NaN'),
    "iscrowd 2": (ANNOTATION, r'"iscrowd": \d', '"iscrowd": 2'),
    "iscrowd a float": (ANNOTATION, r'"iscrowd": \d', '"iscrowd": 1.0'),
    "difficult": (ANNOTATION, r'"iscrowd": \d', '"difficult": 1'),
    "another key": (ANNOTATION, r'"iscrowd": \d', r'\g<0>, "more": "a: b"'),
    "a key twice": (ANNOTATION, r'"iscrowd": \d', r'\g<0>,\g<0>'),
    "a key twice, apart from its colon": (ANNOTATION, r'"iscrowd": \d', r'\g<0>,"iscrowd"  : 0'),
    "a key twice, written otherwise": (ANNOTATION, r'"iscrowd": \d', r'\g<0>,"iscro\\u0077d": 0'),
    "an unused key twice": (ANNOTATION, r'"segmentation": ', r'\g<0>[],\g<0>'),
    "a key twice in an image": (IMAGE, r'"license": \d', r'\g<0>,\g<0>'),
    "a width of 0.0": (IMAGE, r'"width": \d+', '"width": 0.0'),
    "a huge width": (IMAGE, r'"width": \d+', '"width": 123456789012345678901234567890'),
    "an image without a name": (IMAGE, r'"file_name": ".*?",', ""),
    "a name out of the folder": (IMAGE, r'"file_name": "', r'\g<0>../'),
    "a name with a colon": (IMAGE, r'"file_name": "', r'\g<0>a:b'),
    "escaped slashes": (IMAGE, "http://", r"http:\\/\\/"),
    "beyond ASCII": (IMAGE, r'"file_name": "', r'\g<0>ä日本🐈'),
    "half of a character": (IMAGE, r'"file_name": "', r'\g<0>\\ud800'),
    "over the border by dust": (ANNOTATION, r'"bbox": \[.*?\]', '"bbox": [-0.004,2,33,44.5]'),
    "over the border by half a pixel": (ANNOTATION, r'"bbox": \[.*?\]', '"bbox": [-0.5,2,33,44.5]'),
    "over the border": (ANNOTATION, r'"bbox": \[.*?\]', '"bbox": [-5,2,33,44.5]'),
    "no width": (ANNOTATION, r'"bbox": \[.*?\]', '"bbox": [5,2,0.001,44.5]'),
    "shares": (ANNOTATION, r'"bbox": \[.*?\]', '"bbox": [0.1,0.1,0.5,0.5]'),
    "three numbers": (ANNOTATION, r'"bbox": \[.*?\]', '"bbox": [1,2,3]'),
    "one record twice": (ANNOTATION, r"^.*$", r"\g<0>,\g<0>"),
    "one id twice": (ANNOTATION, r"^(.*)$", r'\1,{"segmentation": [],"area": 1,"iscrowd": 0,"bbox": [1,2,3,4],'
                     r'"image_id": 1,"category_id": 1,"id": 2}'),
    "null": (ANNOTATION, r"^.*$", "null"),
    "null first": (ANNOTATION, r"^.*$", r"null,\g<0>"),
    "two commas": (ANNOTATION, r"$", ","),
    "a blank before the comma": (ANNOTATION, r"$", " \n"),
    "two commas in a polygon": (ANNOTATION, FIRST_PLACE, r"\g<0>1,,"),
    "a leading zero in a polygon": (ANNOTATION, FIRST_PLACE, r"\g<0>01,"),
    "a number without its end": (ANNOTATION, FIRST_PLACE, r"\g<0>1.,"),
    "Infinity in a polygon": (ANNOTATION, FIRST_PLACE, r"\g<0>Infinity,"),
    "a bracket missing": (ANNOTATION, FIRST_PLACE, '"segmentation": ['),
    "deep lists": (ANNOTATION, FIRST_PLACE, '"segmentation": ' + "[" * 990 + "]" * 990 + ',"a": [['),
    "too deep lists": (ANNOTATION, FIRST_PLACE, '"segmentation": ' + "[" * 9900 + "]" * 9900 + ',"a": [['),
    "the end of the list": (ANNOTATION, r"$", '],"more": ['),
    "the lists again": (ANNOTATION, r"$", '],"images": [],"annotations": ['),
    "a record of 300,000 characters": (ANNOTATION, FIRST_PLACE, r"\g<0>" + "1," * 150_000),
    "a control character": (IMAGE, "http", "\x01"),
}  # fmt: skip


RECORD_END = re.compile(r'\}(?=,\{"(license|segmentation)"|\],")')


@pytest.mark.parametrize(
    "places", [*(pytest.param((n,), marks=pytest.mark.slow) for n in (0, 150)), (-1,), (3, 151, 152, 199)]
)
@pytest.mark.parametrize("row", EDITS)
def test_an_odd_record_is_read_as_of_the_whole_file(row, places, text, tmp_path, monkeypatch):
    start, old, new = EDITS[row]
    starts = [found.start() for found in re.finditer(start, text)]
    edited = text
    for first in sorted((starts[place] for place in places), reverse=True):
        end = RECORD_END.search(edited, first).end()
        record, count = re.subn(old, new, edited[first:end], count=1)
        assert count == 1
        edited = edited[:first] + record + edited[end:]
    compare(tmp_path, edited.encode(), monkeypatch)


@pytest.mark.soak
def test_random_damage_is_read_as_of_the_whole_file(text, tmp_path, monkeypatch, soak):
    data, rng = text.encode(), Random(0)
    for _ in range(600 if soak else 15):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.randrange(len(damaged))
            end = place + rng.choice((0, 1, 1, 50))
            damaged[place:end] = bytes(rng.choices(b'0123456789.,:"\\[]{} -eE\xff\n', k=rng.choice((0, 1, 1, 2))))
        compare(tmp_path, bytes(damaged), monkeypatch)
