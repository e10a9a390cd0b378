"""Files made to exhaust memory or time are refused within two seconds and 500 MB."""

import subprocess
import sys

import pytest

READ = """
import resource, sys, time
from drloss.data.sources import open_data
from drloss.data.images import image_size, read_image
from drloss.errors import DataError
from pathlib import Path
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
path = Path(sys.argv[1])
try:
    read_image(path) if path.suffix == ".png" else open_data(path).read("train")
    print("read")
except DataError as error:
    print(str(error)[:300])
print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
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
    "200,000 classes": "train: images/train\nnames: [" + ",".join(f"c{k}" for k in range(120_000)) + "]",
}
JSON = {
    "deep lists": b"[" * 5_000_000,
    "deep objects": b'{"a":' * 2_000_000,
    "200,000 classes": b'{"images": [], "annotations": [], "categories": ['
    + b",".join(b'{"id":%d,"name":"c%d"}' % (k, k) for k in range(200_000))
    + b"]}",
    "a huge integer": b'{"images": [{"id": ' + b"9" * 5_000_000 + b"}]}",
}


def run(path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    message, figures = done.stdout.rsplit("\n", 2)[:2]
    seconds, megabytes = map(float, figures.split())
    assert seconds < 2
    assert megabytes < 500
    return message


def bombs():
    return [("xml", k) for k in XML] + [("yaml", k) for k in YAML] + [("json", k) for k in JSON]


@pytest.mark.parametrize(("kind", "name"), bombs(), ids=lambda v: v)
def test_bomb_is_refused_in_time(kind, name, tmp_path, made):
    if kind == "xml":
        made.voc(tmp_path)
        (tmp_path / "Annotations" / "a.xml").write_text(XML[name])
        path = tmp_path
    elif kind == "yaml":
        path = made.yolo(tmp_path)
        path.write_text(YAML[name])
    else:
        made.coco(tmp_path, JSON[name])
        path = tmp_path
    message = run(path)
    assert str(tmp_path) in message
    assert "root:" not in message


def test_a_label_file_beyond_the_cap_is_refused(tmp_path, made):
    made.yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_bytes(b"0 0.5 0.5 0.1 0.1\n" * 1_000_000)
    assert "at most" in run(tmp_path)


def test_an_annotation_file_beyond_two_gigabytes_is_refused_unread(tmp_path, made):
    path = made.coco(tmp_path)
    with path.open("r+b") as file:
        file.truncate(3 * 1024**3)  # sparse: takes no disk
    assert "allowed: at most 2,147,483,648" in run(tmp_path)
