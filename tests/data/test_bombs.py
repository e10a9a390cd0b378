"""Files made to exhaust memory or time are refused, within 500 MB."""

import json
import subprocess
import sys

READ = """
import json, resource, sys
from drloss.data.sources import open_data
from drloss.errors import DataError
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_data(path).read("train")
        message = "read"
    except DataError as error:
        message = str(error)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    print(json.dumps([message, memory]))
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
    "200,000 keys, one of them twice": b"{" + b",".join(b'"%d":1' % k for k in range(200_000)) + b',"199999":2}',
    "50,000 boxes of no class among 5,000": b'{"images": [{"id":1,"file_name":"a.png","width":30,"height":20}], '
    b'"categories": ['
    + b",".join(b'{"id":%d,"name":"c%d"}' % (k, k) for k in range(5000))
    + b'], "annotations": ['
    + b",".join(b'{"id":%d,"image_id":1,"category_id":9999999,"bbox":[1,1,5,5],"area":25}' % k for k in range(50_000))
    + b"]}",
    "a huge integer": b'{"images": [{"id": ' + b"9" * 5_000_000 + b"}]}",
}


def read_all(paths):
    """Message of each, all read in one process: memory is the peak of all of them."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(paths)
    for path, (message, megabytes) in zip(paths, lines, strict=True):
        assert megabytes < 500, path
        assert str(path) in message
        assert "root:" not in message
    return [message for message, _ in lines]


def folders(tmp_path, names):
    """A folder for each name, which the test's messages then show."""
    return {name: tmp_path / name.replace(" ", "-") for name in names}


def test_xml_bombs(tmp_path, made):
    made_folders = folders(tmp_path, XML)
    for name, folder in made_folders.items():
        made.voc(folder)
        (folder / "Annotations" / "a.xml").write_text(XML[name])
    for message in read_all(list(made_folders.values())):
        assert "annotation file not readable" in message


def test_yaml_bombs(tmp_path, made):
    made_folders = folders(tmp_path, YAML)
    for name, folder in made_folders.items():
        made.yolo(folder).write_text(YAML[name])
    read_all(list(made_folders.values()))


def test_json_bombs(tmp_path, made):
    made_folders = folders(tmp_path, JSON)
    for name, folder in made_folders.items():
        made.coco(folder, JSON[name])
    read_all(list(made_folders.values()))


def test_files_beyond_their_caps_are_refused_unread(tmp_path, made):
    made.yolo(tmp_path / "yolo")
    (tmp_path / "yolo/labels/train/a.txt").write_bytes(b"0 0.5 0.5 0.1 0.1\n" * 1_000_000)
    path = made.coco(tmp_path / "coco")
    with path.open("r+b") as file:
        file.truncate(3 * 1024**3)  # sparse: takes no disk
    messages = read_all([tmp_path / "yolo", tmp_path / "coco"])
    assert "at most 10,485,760" in messages[0]
    assert "at most 2,147,483,648" in messages[1]
