"""Damage to annotation files that knows their structure: each function makes one damaged file from a random source.

Flipped bytes seldom get past a parser. So most of the damage is done to the tree before it is written, the rest to
its text and encoding.
"""

import copy
import json
import math
import re
from random import Random
from typing import Any
from xml.etree import ElementTree

DEEP, HUGE, LONG = "@deep@", "@huge@", "@long@"
"""Stand for text that a writer of JSON would not write: 3,000 lists deep, 5,000 digits, 1e999."""
ODD = (
    *(
        None,
        True,
        False,
        0,
        1,
        2,
        3,
        -1,
        7,
        29,
        2**31,
        2**63,
        2**64,
        10**400,
        1.5,
        -0.0,
        1e308,
        -1e308,
        1e-308,
        5e-324,
    ),
    *(
        math.nan,
        math.inf,
        -math.inf,
        "",
        " ",
        "1",
        "nan",
        "a.png",
        "b.png",
        "../a.png",
        "/no/such/file",
        "\0",
        "\ud800",
    ),
    *("\x1b[2J", "é" * 200, "x" * 5000, "cat", "train", [], {}, [[]], [1, 2, 3, 4], [None] * 4, ["1"] * 4),
    *([1, 2, math.nan, 4], [1e400] * 4, [5, 5, 1e-9, 4], [0] * 5, {"id": 1}, {"x": 1, "y": 2}, DEEP, HUGE, LONG),
)
KEYS = ("id", "bbox", "width", "images", "annotations", "train", "names", "x", "", "ID", "image_id\0")
PIECES = (
    *(b"", b"<", b">", b"</object>", b"<object/>", b"&x;", b"&#0;", b"<![CDATA[", b"<!--", b"nan", b"-5", b"1e999"),
    *(b"\r", b"\0", b"{", b"}", b"\xff", b"\xed\xa0\x80", b"9" * 400, b"0.5", b"1", b" ", b"\n", b'"', b",", b"["),
    *(b"]", b": ", b"- ", b"&a ", b"*a", b"!!x ", b"\t", b"\x0c", b"\xe2\x80\xa8", b"\xc2\xa0", b"#", b"= ", b"'''"),
)


class Twin(str):
    """A key that a dict takes beside its equal, so that a file gives it twice."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def tree(rng: Random, value: Any, most: int = 4) -> Any:
    """A copy of a value of dicts and lists, with up to ``most`` things changed, moved, repeated or removed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        owners = [owner for owner in _containers(value) if owner]
        if not owners:
            break
        owner = rng.choice(owners)
        place = rng.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        kind = rng.choice(
            ("odd", "odd", "odd", "number", "text", "wrap", "steal", "remove", "again", "rename", "order")
        )
        if kind == "odd":
            owner[place] = copy.deepcopy(rng.choice(ODD))
        elif kind == "number":
            owner[place] = _number(rng, owner[place])
        elif kind == "text":
            owner[place] = str(owner[place])
        elif kind == "wrap":
            owner[place] = rng.choice(([owner[place]], {"id": owner[place]}, [[owner[place]]] * 2))
        elif kind == "steal":
            other = rng.choice(owners)
            stolen = copy.deepcopy(rng.choice(list(other.values() if isinstance(other, dict) else other)))
            owner[place] = stolen
        elif kind == "remove":
            del owner[place]
        elif kind == "again":
            again = copy.deepcopy(owner[place])
            if isinstance(owner, dict):
                owner[Twin(place)] = again
            else:
                owner.insert(rng.randint(0, len(owner)), again)
        elif kind == "rename" and isinstance(owner, dict):
            owner[rng.choice(KEYS)] = owner.pop(place)
        elif kind == "order":
            _shuffle(rng, owner)
    return value


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [] if inner is None else [value, *(c for v in inner for c in _containers(v))]


def _number(rng: Random, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return rng.uniform(-50, 80)
    return rng.choice(
        (-value, value + 0.5, value * 10 ** rng.randint(1, 30), value + rng.randint(-40, 40), float(value))
    )


def _shuffle(rng: Random, owner: Any) -> None:
    if isinstance(owner, list):
        rng.shuffle(owner)
        return
    pairs = list(owner.items())
    rng.shuffle(pairs)
    owner.clear()
    owner.update(pairs)


def text(rng: Random, data: bytes) -> bytes:
    """``data`` with a few spans removed, repeated or replaced."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(data))
        end = min(len(data), start + rng.choice((0, 0, 1, 2, 8, 30)))
        piece = data[start:end] * 2 if rng.random() < 0.2 else rng.choice(PIECES)
        data = data[:start] + piece + data[end:]
    return data


def encoding(rng: Random, data: bytes) -> bytes:
    """``data`` with other line ends, another encoding, or cut short."""
    string = data.decode("utf-8", "surrogateescape")
    kind = rng.randrange(9)
    if kind < 5:
        codec = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")[kind]
        return string.encode(codec, "replace")
    changes = (
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.replace(b"\n", b"\r"),
        lambda: data[: rng.randint(0, len(data))],
        lambda: b"\n \n" + data + rng.choice((b"\n\n", b"\0", b"}", data)),
    )
    return changes[kind - 5]()


def _finished(rng: Random, data: bytes) -> bytes:
    for stand_in, real in ((DEEP, b"[" * 3000 + b"]" * 3000), (HUGE, b"9" * 5000), (LONG, b"1e999")):
        data = data.replace(b'"%s"' % stand_in.encode(), real)
    chance = rng.random()
    return text(rng, data) if chance < 0.15 else encoding(rng, data) if chance < 0.25 else data


def json_file(rng: Random, content: Any) -> bytes:
    """``content``, damaged, as JSON."""
    style = rng.choice(({}, {}, {"indent": 0}, {"separators": (",", ":")}, {"ensure_ascii": False}))
    return _finished(rng, json.dumps(tree(rng, content), **style).encode("utf-8", "surrogatepass"))


def yaml_file(rng: Random, content: Any) -> bytes:
    """``content``, damaged, as YAML in block or flow style."""
    content = tree(rng, content, most=2)
    data = json.dumps(content).encode()
    if rng.random() < 0.5:  # block style at the top
        pairs = content.items() if isinstance(content, dict) else ()
        data = b"".join(f"{k or '?'}: {_yaml_value(rng, v)}\n".encode("utf-8", "replace") for k, v in pairs)
    return _finished(rng, data)


def _yaml_value(rng: Random, value: Any) -> str:
    prefix = rng.choice((*[""] * 12, "&a ", "*a ", "!!str ", "!!python/name:os.system ", "! ", "| ", "> ", "? "))
    if isinstance(value, list) and value and rng.random() < 0.5:
        return "".join(f"\n- {json.dumps(v)}" for v in value)
    return prefix + (value if isinstance(value, str) and re.fullmatch(r"[\w./@-]+", value) else json.dumps(value))


def toml_file(rng: Random, content: Any) -> bytes:
    """``content``, damaged, as TOML; its tables as tables or inline."""
    content = tree(rng, content, most=2)
    lines, tables = [], []
    for key, value in content.items():
        if key == "splits" and isinstance(value, dict) and rng.random() < 0.7:
            tables += [(f"splits.{_toml(str(k))}", v) for k, v in value.items() if isinstance(v, dict)]
        else:
            lines.append(f"{_key(key)} = {_toml(value)}")
    for name, table in tables:
        lines += [f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
    return _finished(rng, ("\n".join(lines) + "\n").encode("utf-8", "replace"))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z_]+", key) else json.dumps(str(key))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return "null" if value is None else repr(value) if isinstance(value, float) else json.dumps(value)


WORDS = (
    *(
        "",
        " ",
        "0",
        "1",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "1e-320",
        "1_0",
        "0x1",
        "٣",
        "½",
        "9" * 400,
        "5.5",
        "31",
    ),
    *(
        "-0.5",
        "cat",
        "dog",
        "cow",
        "é",
        "\x85",
        "../a",
        "1,5",
        "1 2",
        "+3",
        "True",
        "Unspecified",
        "yes",
        " 7 ",
        "1." * 9,
    ),
)


def xml_file(rng: Random, content: bytes) -> bytes:
    """An XML file, damaged."""
    root = ElementTree.fromstring(content)
    for _ in range(rng.randint(1, 4)):
        elements = list(root.iter())
        element = rng.choice(elements)
        kind = rng.choice(("text", "text", "text", "rename", "remove", "again", "order", "nest", "move", "attribute"))
        if kind == "text":
            element.text = rng.choice(WORDS)
        elif kind == "rename":
            element.tag = rng.choice(("object", "bndbox", "name", "xmin", "size", "width", "annotation", "part", "x"))
        elif kind == "remove" and len(element):
            element.remove(rng.choice(list(element)))
        elif kind == "again" and len(element):
            element.insert(rng.randint(0, len(element)), copy.deepcopy(rng.choice(list(element))))
        elif kind == "order":
            children = list(element)
            rng.shuffle(children)
            element[:] = children
        elif kind == "nest":
            for _ in range(rng.choice((1, 1, 40))):
                inner = ElementTree.Element(rng.choice(("part", "object", "x")))
                inner[:] = list(element)
                element[:] = [inner]
        elif kind == "move":
            element.append(copy.deepcopy(rng.choice(elements)))
        elif kind == "attribute":
            element.set(rng.choice(("id", "name", "xmlns", "x")), rng.choice(WORDS))
    data = ElementTree.tostring(root, encoding="utf-8")
    head = b"<?xml version='1.0' encoding='utf-8'?>"
    start = data.startswith(head) * len(head)
    chance = rng.random()
    if chance < 0.05:
        data = b"<!DOCTYPE annotation [<!ENTITY x 'y'>]>" + data[start:].replace(b"cat", b"&x;")
    elif chance < 0.15:
        declared = rng.choice((b"latin-1", b"utf-16", b"ascii", b"cp1252", b"utf-77", b""))
        data = b"<?xml version='1.0' encoding='" + declared + b"'?><!-- \xe9 -->" + data[start:]
    return _finished(rng, data)


def label_file(rng: Random, rows: list[list[str]]) -> bytes:
    """YOLO's lines of words, damaged."""
    rows = [list(row) for row in rows] or [["0", "0.5", "0.5", "0.1", "0.1"]]
    for _ in range(rng.randint(1, 4)):
        row = rng.choice(rows)
        place = rng.randrange(len(row)) if row else 0
        kind = rng.choice(
            ("word", "word", "number", "remove", "again", "order", "row again", "row away", "polygon", "rows")
        )
        if kind == "word" and row:
            row[place] = rng.choice(WORDS)
        elif kind == "number" and row:
            row[place] = repr(
                rng.choice((rng.uniform(-0.1, 1.1), rng.uniform(0, 1), 1.0000005, 10.0 ** rng.randint(-30, 30)))
            )
        elif kind == "remove" and row:
            del row[place]
        elif kind == "again":
            row[place:place] = row[place : place + 1] * rng.choice((1, 2, 50))
        elif kind == "order":
            rng.shuffle(row)
        elif kind == "row again":
            rows.insert(rng.randint(0, len(rows)), list(row))
        elif kind == "row away" and len(rows) > 1:
            rows.remove(row)
        elif kind == "polygon":
            row[:] = ["1", *(f"{rng.random():.4f}" for _ in range(rng.randint(4, 9)))]
        elif kind == "rows":
            rng.shuffle(rows)
    between, end = rng.choice((" ", " ", "\t", "  ", ",", "\xa0")), rng.choice(("\n", "\n", "\r\n", "\n\n", "\r"))
    return _finished(rng, "".join(between.join(row) + end for row in rows).encode())


def list_file(rng: Random, lines: list[str]) -> bytes:
    """A file of some of these lines, in any order, some of them twice."""
    chosen = rng.choices(lines, k=rng.randint(0, 6))
    end = rng.choice(("\n", "\r\n", "\n\n", "\n \n"))
    data = "".join(line + end for line in chosen).encode()
    return encoding(rng, data) if rng.random() < 0.1 else data
