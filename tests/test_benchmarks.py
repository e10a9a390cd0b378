import json

import pytest

from benchmarks import page, reliability, studies
from drloss.errors import UserError


def test_the_page_of_speeds_is_that_of_the_records():
    assert (page.DOCS / "speed.md").read_text() == page.page(page.newest())


def test_the_page_of_reliability_is_that_of_its_record():
    assert (page.DOCS / "reliability.md").read_text() == reliability.page()


def test_the_page_of_the_reproduction_is_that_of_its_records():
    assert (page.DOCS / "reproduction.md").read_text() == page.reproduction()


@pytest.mark.parametrize("path", page.FILLED, ids=lambda path: path.name)
def test_numbers_in_the_text_are_those_of_the_records(path):
    text = path.read_text()
    assert page.fill(text) == text
    assert "<!-- begin " in text


def test_every_comparison_on_record_is_shown():
    text = (page.DOCS / "comparisons.md").read_text()
    for name in studies.newest(studies.COMPARISON):
        assert f"<!-- begin {name} -->" in text


@pytest.mark.parametrize("kind", [studies.COMPARISON, studies.REPRODUCTION])
def test_a_record_changed_by_hand_is_refused(kind, tmp_path):
    path = next(iter(studies.newest(kind).values()))
    kept = json.loads(path.read_text())
    run = kept["runs"][0]["metrics"]
    (run if kind == studies.COMPARISON else run["metrics"])["AP50"] += 0.1
    changed = tmp_path / path.name
    changed.write_text(json.dumps(kept))
    read = {studies.COMPARISON: studies.read_comparison, studies.REPRODUCTION: studies.read_records}[kind]
    read(path)
    with pytest.raises(UserError, match="checksum differs"):
        read(changed)
