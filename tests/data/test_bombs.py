"""Files made to exhaust memory or time are refused within 2 seconds and 500 MB, each by its name."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image

from drloss.data.formats.opening import open_data
from drloss.errors import DataError

READ = """
import json, re, resource, sys, time
from pathlib import Path
from drloss.data.images.decoding import read_image
from drloss.data.formats.opening import open_data
from drloss.errors import DataError
def kilobytes(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (kilobytes("VmData") * 1024 + 500_000_000,) * 2)
base = kilobytes("VmHWM")
for path in map(Path, sys.argv[1:]):
    start = time.process_time()
    try:
        open_data(path).read("train") if path.is_dir() else read_image(path)
        message = "read"
    except DataError as error:
        message = str(error)
    print(json.dumps([message, (kilobytes("VmHWM") - base) / 1024, time.process_time() - start]))
"""


def laughs(open_tag, entity):
    lines = [f'<!ENTITY l0 "{"ha" * 50}">']
    lines += [f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 12)]
    return f"<?xml version='1.0'?><!DOCTYPE {open_tag} [{''.join(lines)}]><annotation>&{entity};</annotation>"


XML = {
    "billion laughs": laughs("annotation", "l11"),
    "quadratic blow-up": f'<!DOCTYPE a [<!ENTITY x "{"x" * 100_000}">]><annotation>{"&x;" * 5000}</annotation>',
    "external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
    "external DTD": '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd"><annotation/>',
    "parameter entity": '<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]><annotation/>',
    "a million deep": "<annotation>" + "<a>" * 1_000_000,
    "eleven megabytes": "<annotation>" + " " * 11_000_000 + "</annotation>",
    "two million elements": "<annotation>" + "<a/>" * 2_000_000 + "</annotation>",
    "a long attribute list": "<annotation " + " ".join(f'a{k}="1"' for k in range(500_000)) + "></annotation",
}
YAML_ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9)
)
YAML = {
    "alias bomb": YAML_ALIASES + "train: x\nnames: *j\n",
    "a megabyte of brackets": "names: " + "[" * 900_000,
    "a megabyte of braces": "names: " + "{" * 900_000,
    "two megabytes": "names: [" + "x," * 1_000_000 + "]",
    "a code tag": "train: !!python/object/new:os.system [id]\nnames: [x]",
    "120,000 classes": "train: images/train\nnames: [" + ",".join(f"c{k}" for k in range(120_000)) + "]",
}
JSON = {
    "deep lists": b"[" * 5_000_000,
    "deep objects": b'{"a":' * 2_000_000,
    "200,000 categories": b'{"images": [], "annotations": [], "categories": ['
    + b",".join(b'{"id":%d,"name":"c%d"}' % (k, k) for k in range(200_000))
    + b"]}",
    "200,000 keys, one of them twice": b"{" + b",".join(b'"%d":1' % k for k in range(200_000)) + b',"199999":2}',
    "50,000 boxes of no class among 5,000": b'{"images": [{"id":1,"file_name":"a.png","width":30,"height":20}], '
    b'"categories": ['
    + b",".join(b'{"id":%d,"name":"c%d"}' % (k, k) for k in range(5000))
    + b'], "annotations": ['
    + b",".join(b'{"id":%d,"image_id":1,"category_id":9999999,"bbox":[1,1,5,5],"area":25}' % k for k in range(50_000))
    + b"]}",
    "five million objects and one": b'{"images": [], "categories": [], "annotations": [' + b"{}," * 5_000_001,
    "a huge integer": b'{"images": [{"id": ' + b"9" * 5_000_000 + b"}]}",
}


def under_info(record, number):
    return lambda: b'{"info": [' + record * number + b"0]}"


def keys(number):
    return lambda: b"{" + b",".join(b'"%d":1' % k for k in range(number)) + b"}"


JSON |= {
    "millions of objects": under_info(b'{"a":1},', 1_000_000),
    "millions of objects of six keys": under_info(b'{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6},', 400_000),
    "millions of empty lists": under_info(b"[],", 2_000_000),
    "millions of numbers": under_info(b"1,", 6_000_000),
    "millions of strings": under_info(b'"ab",', 6_000_000),
    "millions of keys": keys(2_000_000),
    "a string of 40 MB": lambda: b'{"info": "' + b"a" * 40_000_000 + b'"}',
}
TOML = {
    "a key of 400,000 parts": "a" + ".a" * 400_000 + " = 1",
    "a table of 400,000 parts": "[a" + ".a" * 400_000 + "]",
    "a megabyte of lists in TOML": "a = " + "[" * 1_000_000,
}
LISTS = {"ten million lines": "a\n" * 10_000_000, "ten million lines of old": "a\r" * 10_000_000}
LABELS = {
    "a million lines": b"0 0.5 0.5 0.1 0.1\n" * 1_000_000,
    "ten million boxes of one image": None,  # made of that size, without content
}


def png(chunk, data, sides=(8, 8)):
    """The start of a PNG file, with one chunk before its pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", *sides, 8, 0, 0, 0, 0)),
        (chunk, data),
        (b"IDAT", zlib.compress(b"\0" * 72)),
    ]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def resized(form, places, code):
    """An image of 8 x 8 pixels whose header says 60,000 x 60,000."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form)
    data = bytearray(file.getvalue())
    for place in places(data):
        struct.pack_into(code, data, place, 60_000)
    return bytes(data)


IMAGES = {
    "900 megapixels.png": png(b"tEXt", b"a\0b", (30_000, 30_000)),
    "3,600 megapixels.png": png(b"tEXt", b"a\0b", (60_000, 60_000)),
    "3,600 megapixels.jpg": resized("JPEG", lambda d: [d.index(b"\xff\xc0") + k for k in (5, 7)], ">H"),
    "3,600 megapixels.gif": resized("GIF", lambda d: (6, 8), "<H"),
    "3,600 megapixels.bmp": resized("BMP", lambda d: (18, 22), "<I"),
    "100 MB of text.png": png(b"zTXt", b"a\0\0" + zlib.compress(b" " * 100_000_000)),
    "100 MB of colour profile.png": png(b"iCCP", b"a\0\0" + zlib.compress(b" " * 100_000_000)),
    "text without end.svg": b"<svg>" + b" " * 10_000_000,
}


def of_many_scans(side, scans):
    """A progressive JPEG file whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


IMAGES["4,000 scans.jpg"] = of_many_scans(7000, 4000)


def coco_of_ten_million_boxes(path):
    """Written in pieces: 540 MB."""
    with path.open("wb") as file:
        file.write(b'{"images": [{"id":1,"file_name":"a.png","width":30,"height":20}], ')
        file.write(b'"categories": [{"id":1,"name":"a"}], "annotations": [')
        for _ in range(100):
            file.write(b'{"id":1,"image_id":1,"category_id":1,"bbox":[1,1,5,5]},' * 100_000)
        file.write(b"0]}")


def placed(made, folder, kind, data):
    """The data set or image with these bytes, or text, or what makes them, in one of its files; returns its path."""
    data = data() if callable(data) else data
    data = data.encode() if isinstance(data, str) else data
    if kind == "image":
        place = folder
    elif kind == "toml":
        folder.mkdir()
        place = folder / "data.toml"
    else:
        yaml = {"yaml", "label", "list"} & {kind}
        place = getattr(made, "yolo" if yaml else "voc" if kind == "xml" else kind)(folder)
        if kind == "list":
            place.write_text("train: list.txt\nnames: [cat, dog]\n")
        inner = {"xml": "Annotations/a.xml", "label": "labels/train/a.txt", "list": "list.txt"}
        inner["voc"] = "ImageSets/Main/train.txt"
        place = folder / inner[kind] if kind in inner else place
    place.write_bytes(data)
    return folder


def measured(paths):
    """(message, MB at the peak of all so far, seconds) of reading each, in one process limited to 500 MB of data."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ, *map(str, paths)],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


BOMBS = (
    ("xml", XML),
    ("yaml", YAML),
    ("label", LABELS),
    ("coco", JSON),
    ("toml", TOML),
    ("list", LISTS),
    ("image", IMAGES),
)


def made_bombs(folder, made, soak):
    """Paths of all the bombs: the folder of a data set, or an image."""
    names = [name for _, bombs in BOMBS for name in bombs]
    assert len(names) == len(set(names))
    paths = {}
    for kind, bombs in BOMBS:
        for name, data in bombs.items():
            path = folder / (name.replace(" ", "-") if kind == "image" else re.sub(r"\W", "-", name))
            paths[name] = placed(made, path, kind, data or b"")
            if data is None:
                os.truncate(path / "labels/train/a.txt", 180_000_000)
    for name, size in (("3 GB of JSON", 3 * 1024**3), ("ten million boxes in JSON", 0), ("lists in JSON", 0)):
        if size or soak:
            paths[name] = folder / name.replace(" ", "-")
            place = made.coco(paths[name])
            if size:
                os.truncate(place, size)  # sparse: takes no disk
            elif name.startswith("lists"):
                place.write_bytes(b'{"images": [' + b"[]," * 20_000_000)
            else:
                coco_of_ten_million_boxes(place)
    return paths


WORDS = dict.fromkeys(XML, "annotation file not readable") | {
    "ten million boxes of one image": "got 180,000,000 bytes; allowed: at most 10,485,760",
    "3 GB of JSON": "allowed: at most 2,147,483,648",
    "ten million boxes in JSON": "got more than 5,000,000",
    "lists in JSON": "number of [, got more than 1,000,000",
    "five million objects and one": "number of {, got more than 500,000",
    "millions of objects": "number of {, got more than 500,000",
    "millions of objects of six keys": "number of :, got more than 1,000,000",
    "millions of empty lists": "number of [, got more than 1,000,000",
    "millions of numbers": "number of ,, got more than 3,000,000",
    "millions of strings": "number of ,, got more than 3,000,000",
    "millions of keys": "number of :, got more than 1,000,000",
    "a string of 40 MB": "number of bytes, got more than 33,554,432",
    "a key of 400,000 parts": "number of ., got more than 5,000; allowed: at most 5,000",
    "a table of 400,000 parts": "number of ., got more than 5,000; allowed: at most 5,000",
    "ten million lines": "number of lines, got more than 2,000,000",
    "4,000 scans.jpg": "more than 100 scans",
    "900 megapixels.png": "pixels",
    "a long attribute list": "number of =, got more than 100,000",
    "two million elements": "number of <, got more than 500,000",
    "120,000 classes": "number of classes, got 120,000",
    "200,000 categories": "number of classes, got 200,000",
}


@pytest.mark.soak
@pytest.mark.slow
def test_bombs_are_refused_in_two_seconds_and_500_megabytes(soak, figure, tmp_path, made):
    paths = made_bombs(tmp_path, made, soak)
    lines = measured(paths.values())
    for (name, path), (message, megabytes, seconds) in zip(paths.items(), lines, strict=True):
        assert str(path) in message, name
        assert WORDS.get(name, "") in message, name
        assert "root:" not in message  # of /etc/passwd
        assert megabytes < 500, name  # the peak of all so far
        assert seconds < 2, name
    figure(
        "T31",
        f"{len(lines)} bombs refused by name, with data limited to 500 MB: the slowest took "
        f"{max(line[2] for line in lines):.2f} s, all together {lines[-1][1]:.0f} MB at their peak",
    )


BELOW = {
    "499,000 tags": ("xml", "<annotation>" + "<a/>" * 499_000 + "</annotation>"),
    "99,000 attributes": ("xml", "<annotation>" + "<a b='1'/>" * 99_000 + "</annotation>"),
    "10 MB of blanks": ("xml", "<annotation>" + " " * 10_000_000 + "</annotation>"),
    "a megabyte of names": ("yaml", "names: [" + "x," * 500_000 + "]"),
    "a key of 5,000 parts": ("toml", "a" + ".a" * 5000 + " = 1"),
    "a megabyte of keys": ("toml", lambda: "".join(f"a{k} = 1\n" for k in range(80_000))),
    "a megabyte of tables": ("toml", "[[a]]\n" * 170_000),
    "10 MB of labels": ("label", b"0 .5 .5 .1 .1\n" * 740_000),
    "190,000 bad labels": ("label", b"0 2 2 2 2\n" * 190_000),
    "2 million lines of a YOLO list": ("list", "images/train/x.png\n" * 1_999_000),
    "a million lines of a VOC list": ("voc", "x\n" * 999_000),
    "half a million objects": ("coco", under_info(b'{"a":1},', 499_000)),
    "a million lists": ("coco", under_info(b"[999],", 999_000)),
    "3 million numbers": ("coco", under_info(b"1.5,", 2_999_000)),
    "3 million strings": ("coco", under_info(b'"abcdefg",', 2_999_000)),
    "a million keys": ("coco", keys(999_000)),
    "a string of 32 MB": ("coco", lambda: b'{"info": "\xf0\x9f\x90\x88' + b"a" * 32_000_000 + b'"}'),
    "objects, lists and strings": (
        "coco",
        lambda: b'{"info":[' + b'{"a":1},' * 499_000 + b"[]," * 999_000 + b'"ab",' * 1_400_000 + b"0]}",
    ),
    "50 megapixels.png": ("image", lambda: encoded("PNG", "RGB")),
    "50 megapixels of 16 bits.png": ("image", lambda: encoded("PNG", "I;16")),
    "50 megapixels with alpha.png": ("image", lambda: encoded("PNG", "RGBA")),
    "50 megapixels.jpg": ("image", lambda: encoded("JPEG", "RGB")),
    "100 scans.jpg": ("image", lambda: of_many_scans(6000, 100)),
}
"""Just within what is allowed: read, or refused for another reason."""


def encoded(form, mode):
    file = io.BytesIO()
    Image.new(mode, (7000, 7000)).save(file, form, compress_level=1)
    return file.getvalue()


@pytest.mark.slow
def test_what_is_just_allowed_needs_no_more_than_a_bomb_may(tmp_path, made):
    paths = [
        placed(made, tmp_path / re.sub(r"[^\w.]", "-", name), kind, data) for name, (kind, data) in BELOW.items()
    ]
    images = [p for p in paths if p.is_file()]  # of which each takes nearly all
    lines = measured([p for p in paths if p not in images]) + [measured([p])[0] for p in images]
    for name, (message, megabytes, _) in zip(BELOW, lines, strict=True):
        assert not re.search("number of .*got more than|MemoryError|Unable to allocate|does not fit", message), name
        assert megabytes < 500, name


def test_a_file_that_does_not_fit_into_memory_is_refused_in_words(tmp_path, made, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError

    made.coco(tmp_path)
    monkeypatch.setattr("drloss.data.formats.coco_json.json.loads", too_large)
    with pytest.raises(DataError, match=r"instances_train\.json: does not fit into this machine's memory"):
        open_data(tmp_path).read("train")
