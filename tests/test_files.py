import json
import math

import pytest

from drloss.errors import UserError
from drloss.io.atomic import write_atomic, write_json, write_text


def test_text_and_json_come_back(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "grün\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "grün\n"
    write_json(tmp_path / "a.json", {"a": [1, (2.5, math.nan)], "b": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, [2.5, None]], "b": None}


def test_infinity_is_refused_and_the_old_file_kept(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", math.inf)
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_write_that_fails_halfway_changes_nothing_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "good")

    def fail(beside):
        beside.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(UserError, match=r"a\.txt: cannot be written: disk full"):
        write_atomic(path, fail)
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_nobody_sees_the_file_before_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"

    def write(beside):
        beside.write_text("first half")
        assert not path.exists()
        beside.write_text("whole")

    write_atomic(path, write)
    assert path.read_text() == "whole"
