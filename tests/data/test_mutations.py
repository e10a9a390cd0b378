"""Structured damage: a file is accepted with a balanced report, or refused by name. Never another error.

The boxes of each damaged file are counted here, without the readers: what they kept and what they reported must be
as many.
"""

import json
import re
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random
from xml.parsers import expat

import pytest
import yaml

from drloss.data.formats.opening import open_data
from drloss.errors import UserError
from support import mutators

RECORDS = {
    "coco": r"(annotation|image) -?\d+|(annotations|images)\[\d+\]",
    "voc": r"object \d+|line \d+|",  # nothing where the file is one image's
    "yolo": r"line \d+|",
}
BOXES = {"a": 3, "b": 1, "c": 0}
"""Of the undamaged images."""


def examine(folder, count):
    """Read every split of a data set leniently and strictly.

    Args:
        folder: of the data set.
        count: split to the number of boxes that its files list, called only where it was read.

    Returns:
        ``"taken"``, ``"lenient"`` if only lenient reading takes every split, or ``"refused"``.
    """
    try:
        source = open_data(folder)
    except UserError as error:
        assert_names(error, folder)
        return "refused"
    outcome = "taken"
    for split in source.splits:
        try:
            annotations, report = source.read(split, strict=False)
        except UserError as error:
            assert_names(error, folder)
            outcome = "refused"
            continue
        assert report.boxes_in == count(split) == len(annotations.boxes) + sum(p.boxes for p in report.problems)
        assert report.images_in == len(annotations) + report.images_left_out
        assert_usable(annotations)
        for problem in report.refused:
            assert str(folder) in problem.file
            assert re.fullmatch(RECORDS[source.format], problem.record), problem.record
        json.dumps(report.to_json(), allow_nan=False).encode()
        assert report.text().replace("\n", "").isprintable()
        if report.refused:
            outcome = "lenient" if outcome == "taken" else outcome
            with pytest.raises(UserError) as caught:
                source.read(split, strict=True)
            assert_names(caught.value, folder)
            assert str(caught.value).startswith(report.refused[0].message)
    return outcome


def assert_names(error, folder):
    assert str(folder) in str(error)
    assert len(str(error).splitlines()) <= 2
    str(error).encode()


def assert_usable(annotations):
    boxes, counts = annotations.boxes, annotations.first_box[1:] - annotations.first_box[:-1]
    width, height = annotations.sizes[:, 1].repeat(counts), annotations.sizes[:, 0].repeat(counts)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((annotations.labels >= 1) & (annotations.labels <= len(annotations.class_names))).all()
    assert (annotations.areas > 0).all()


# ---------------------------------------------------------------------- counts made without the readers


def objects_of(data):
    """Number of ``<object>`` below the root of a VOC file; 0 if the rules refuse the file."""
    found, depth = 0, 0

    def start(name, _):
        nonlocal found, depth
        depth += 1
        name = name.rpartition("}")[2]  # without its namespace
        found += depth == 2 and name == "object"
        if depth > 32 or (depth == 1 and name != "annotation"):
            raise ValueError

    def end(_):
        nonlocal depth
        depth -= 1

    def doctype(*_):
        raise ValueError

    parser = expat.ParserCreate(None, "}")
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError):
        return 0
    return found


def rows_of(data):
    """Number of lines of a YOLO file that are not blank; 0 if it is not UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return 0
    return sum(not line.isspace() for line in re.findall("[^\n\r]+", text))


def write(path, data):
    """A new file each time: writing over one that is there makes some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def as_list(value):
    return value if isinstance(value, list) else [value]


# ---------------------------------------------------------------------- one damaged file of each kind


class Coco:
    label = "COCO"
    files = 45_000

    def __init__(self, folder, made):
        self.folder = folder
        self.content = made.coco_content()
        self.path = made.coco(folder)

    def damage(self, rng):
        data = mutators.json_file(rng, self.content)
        write(self.path, data)
        return lambda split: len(json.loads(data.decode("utf-8-sig"))["annotations"])


LINES = {"a": "a", "b": "b", "c": "c", "a.png": "a", "b  -1": "b", "./c": "c", "d": "", "../a": "", "a\x07": ""}
"""Of a VOC list, and the image that each names."""


class Voc:
    label = "VOC"
    files = 20_000

    def __init__(self, folder, made):
        self.folder = made.voc(folder)
        self.contents = {stem: made.voc_xml(stem, boxes).encode() for stem, boxes in made.boxes.items()}

    def damage(self, rng):
        stem, listing = rng.choice("aaabc"), b"a\nb\nc\n"
        data = mutators.xml_file(rng, self.contents[stem])
        if rng.random() < 0.2:
            listing = mutators.list_file(rng, list(LINES))
        for other in self.contents:
            path = self.folder / "Annotations" / f"{other}.xml"
            write(path, data if other == stem else self.contents[other])
        write(self.folder / "ImageSets/Main/train.txt", listing)
        counts = BOXES | {stem: objects_of(data), "": 0}

        def count(split):
            lines = re.split("[\r\n]+", listing.decode("utf-8-sig"))
            return sum(counts[LINES.get(line.strip(), "")] for line in lines)

        return count


class YoloLabels:
    label = "YOLO label"
    files = 15_000

    def __init__(self, folder, made):
        self.folder = made.yolo(folder).parent
        self.rows = {s: [made.yolo_line(*box).split() for box in boxes] for s, boxes in made.boxes.items()}
        self.last = None

    def damage(self, rng):
        stem = rng.choice("aaabc")
        data = mutators.label_file(rng, self.rows[stem])
        self.write(self.last)
        self.last = stem
        self.write(stem, data)
        return lambda split: sum(rows_of(data) if s == stem else n for s, n in BOXES.items())

    def write(self, stem, data=None):
        if stem:
            text = "".join(" ".join(row) + "\n" for row in self.rows[stem])
            write(self.folder / f"labels/train/{stem}.txt", text.encode() if data is None else data)


YAML_PLACES = {"images/train": 4, "./images/train": 4, "../images/train": 4, "list.txt": 3, "images": 4, ".": 4}
"""What a split may name, and the boxes of its images."""
YAML_CONTENT = {
    "path": ".",
    "train": "images/train",
    "val": ["list.txt"],
    "names": ["cat", "dog"],
    "nc": 2,
    "kpt_shape": [17, 3],
    "download": "https://example.org/x.zip",
    "author": {"name": "x", "year": 2020},
}


class Yaml:
    label = "data.yaml"
    files = 10_000

    def __init__(self, folder, made):
        self.path = made.yolo(folder)
        self.folder = folder
        (folder / "list.txt").write_text("images/train/a.png\n")

    def damage(self, rng):
        content = dict(YAML_CONTENT)
        if rng.random() < 0.3:
            content["names"] = {"0": "cat", "1": "dog"}
        if rng.random() < 0.3:
            content["train"] = rng.choice(list(YAML_PLACES))
        data = mutators.yaml_file(rng, content)
        write(self.path, data)

        def count(split):
            read = yaml.load(data.decode("utf-8-sig"), getattr(yaml, "CBaseLoader", yaml.BaseLoader))
            names = ("val", "valid", "validation") if split == "val" else (split,)
            value = next(read[name] for name in names if read.get(name))
            return sum(YAML_PLACES[v] for v in as_list(value))

        return count


DATA_PLACES = {"coco.json": 4, "./coco.json": 4, "voc": 4, "yolo/images/train": 4, "yolo": 4, "yolo/images": 4}
DATA_FILES = (
    {
        "format": "coco",
        "root": ".",
        "splits": {
            "train": {"images": "coco/train", "annotations": "coco.json"},
            "val": {"images": ["coco/train"], "annotations": ["./coco.json"]},
        },
    },
    {
        "format": "voc",
        "classes": ["cat", "dog"],
        "one_based": True,
        "splits": {"train": {"trees": ["voc"], "image_set": "train"}, "val": {"trees": "voc"}},
    },
    {
        "format": "yolo",
        "classes": ["cat", "dog"],
        "kpt_shape": [2, 3],
        "splits": {"train": {"images": ["yolo/images/train"]}, "val": {"images": "yolo"}},
    },
)


class DataFile:
    label = "data.toml"
    files = 10_000

    def __init__(self, folder, made):
        self.folder = folder
        made.coco(folder / "coco").rename(folder / "coco.json")
        made.voc(folder / "voc")
        made.yolo(folder / "yolo")

    def damage(self, rng):
        data = mutators.toml_file(rng, rng.choice(DATA_FILES))
        write(self.folder / "data.toml", data)

        def count(split):
            read = tomllib.loads(data.decode("utf-8-sig"))
            if "splits" not in read:  # the folder is recognised in the format: one set of each is in it
                return sum(BOXES.values())
            key = {"coco": "annotations", "voc": "trees", "yolo": "images"}[read["format"]]
            table = next(t for s, t in read["splits"].items() if split in (s, ascii(s)))
            return sum(DATA_PLACES[v] for v in as_list(table[key]))

        return count


@pytest.mark.soak
@pytest.mark.parametrize("kind", [Coco, Voc, YoloLabels, Yaml, DataFile])
def test_a_damaged_file_is_accepted_with_all_its_boxes_or_refused_by_name(
    kind, soak, figure, tmp_path, made, monkeypatch
):
    # Headers of three images are read sooner by one thread than by eight.
    monkeypatch.setattr("drloss.data.formats.yolo.ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    subject = kind(tmp_path / "set", made)
    files = kind.files if soak else kind.files // 80
    outcomes, slowest = Counter(), 0.0
    for number in range(files):
        count = subject.damage(Random(f"{kind.__name__} {number}"))
        start = time.process_time()
        try:
            outcomes[examine(subject.folder, count)] += 1
        except Exception as error:
            raise AssertionError(f"{kind.__name__}, damaged file {number}") from error
        slowest = max(slowest, time.process_time() - start)
    assert files / 50 < outcomes["taken"] < files - files / 50
    assert slowest < 2
    figure(
        "T15",
        f"{files:,} damaged {kind.label} files, 0 tracebacks, every box accounted for: {outcomes['taken']:,} "
        f"taken, {outcomes['lenient']:,} readable with --skip-bad, {outcomes['refused']:,} refused as a whole; "
        f"slowest {slowest:.2f} s",
    )


def test_the_undamaged_sets_are_accepted(tmp_path, made):
    for kind, make in (("coco", made.coco), ("voc", made.voc), ("yolo", made.yolo)):
        make(tmp_path / kind)
        report = open_data(tmp_path / kind).read("train")[1]
        assert (report.problems, report.boxes_kept) == ((), 4)
