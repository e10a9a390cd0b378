"""The records of the paper's tables against its text, against the presets and against what training accepts."""

import os
import re
from math import e, log
from pathlib import Path

import pytest

from drloss.evaluation.coco import METRICS
from drloss.studies.paper import numbers as paper
from drloss.studies.paper.claims import CLAIMS
from drloss.studies.paper.names import CONTROLS, SCALES, TABLES
from drloss.studies.paper.numbers import ROWS, expectation, figure_settings, find_row, rows_of, settings
from drloss.training.config import make_loss, override
from drloss.training.presets import PRESETS

RUNNABLE = [row for row in ROWS if row.recipe is not None]
IDS = [f"{row.table} {row.name}" for row in ROWS]


@pytest.fixture(scope="module")
def text():
    """The paper's text, where it is at hand."""
    data = os.environ.get("DRLOSS_TEST_DATA")
    path = Path(data or ".").parent / "paper" / "dr-loss-cvpr2020.md"
    if not data or not path.is_file():
        pytest.skip("no folder paper with dr-loss-cvpr2020.md beside the folder that DRLOSS_TEST_DATA names")
    return path.read_text(encoding="utf-8")


def printed(text, number):
    """The lines of a printed table as lists of cells, without mark-up; its caption stands below it."""
    lines = text.split(f"\nTable {number}. ")[0].rstrip().splitlines()
    cells = []
    for line in reversed(lines):
        if "\t" not in line and cells:
            break
        if "\t" in line:
            cells.insert(0, [re.sub(r"<[^>]*>|\$|\\|\*", "", cell).strip() for cell in line.split("\t")])
    return [row for row in cells if re.fullmatch(r"\d+\.\d", row[-1])]


def numbers(row):
    return [f"{row.metrics[m]:.1f}" for m in METRICS if m in row.metrics]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
def test_the_records_are_the_papers_numbers(text, number):
    lines = printed(text, number)
    rows = [row for row in rows_of(f"table{number}") if row.metrics]
    if number in (5, 6):  # focal and DR stand beside each other
        halves = [(line[0], line[1:7], line[7:]) for line in lines]
        assert [(label, list(map(float, a)), list(map(float, b))) for label, a, b in halves] == [
            (
                f"{focal.threshold if number == 5 else focal.scale:g}",
                list(focal.metrics.values()),
                list(dr.metrics.values()),
            )
            for focal, dr in zip(rows[::2], rows[1::2], strict=True)
        ]
        assert [row.method for row in rows] == ["Focal", "DR"] * (len(rows) // 2)
        return
    count = 3 if number == 7 else 6
    assert [line[-count:] for line in lines] == [numbers(row) for row in rows]
    for line, row in zip(lines, rows, strict=True):
        said = row.name.translate(str.maketrans("₊₋ρ", "+- "))
        for word in re.findall(r"[\w.+-]+", " ".join(line[:-count]).replace("rho", " ").replace("_", "")):
            assert word in said or word in row.published, (line, row.name)


def test_the_paper_has_as_many_rows():
    counts = {table: len(rows_of(table)) for table in TABLES}
    assert counts == {
        **{"table1": 6, "table2": 8, "table3": 4, "table4": 17, "table5": 12, "table6": 10, "table7": 2},
        CONTROLS: 11,
    }
    assert len({(row.table, row.name) for row in ROWS}) == len(ROWS)


def test_the_default_run_has_the_same_number_wherever_it_is_tested_alike():
    default = [r for r in RUNNABLE if settings(r, "paper").name == "r50_1x-dr" and r.split == "minival"]
    default = [r for r in default if not r.is_control]
    numbers_of = [numbers(r) for r in default if r.threshold is None or r.threshold < 0.4]
    assert len(numbers_of) == 7
    assert all(n == numbers_of[0] for n in numbers_of)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_each_row_has_settings_that_training_accepts_or_says_why_not(row, scale):
    found = settings(row, scale)
    if isinstance(found, str):
        assert len(found) > 20
        assert scale == "laptop" or row.recipe is None
        return
    config = override(PRESETS[found.preset], dict(found.values))
    make_loss(config.loss)
    assert re.fullmatch(r"[\w.=-]+", found.name, re.ASCII)
    assert found.preset == ("cpu" if scale == "laptop" else row.recipe.preset)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_each_row_states_what_it_must_reach(row):
    assert re.match(
        {
            (False, True): r"AP \d+\.\d on (minival|test-dev|VOC2007 test) \(Table \d|the paper gives no number",
            (False, False): r"AP \d+\.\d on test-dev \(Table 4\)",
            (True, True): r"no number of its own, the nearest is AP \d+\.\d on (minival|test-dev) \(Table \d",
            (True, False): r"AP \d+\.\d+ on minival \((Megvii-BaseDetection/cvpods|model zoo of detectron2)\)",
        }[row.is_control, row.recipe is not None],
        f"{row.goal} ({row.cited_at})" if row.metrics else row.goal,
    )
    assert paper.number(37.35) == "37.35"
    assert paper.number(56.0) == "56.0"
    assert bool(row.metrics) == (row.name != "Worst case")
    assert all(0 < v < 100 for v in row.metrics.values())
    if row.recipe is None:
        assert row.reason


def test_a_run_must_reach_the_numbers_of_all_rows_that_it_serves():
    assert (
        expectation(settings(find_row("table1", "h₊ = 20, h₋ = 3.5, DR"), "paper")) == "AP 35.6 on minival (Table 1)"
    )
    default = expectation(settings(find_row("table2", "L = 6, DR"), "paper"))
    assert default.startswith("AP 37.4 on minival (Table 1; Table 2; Table 3; Table 5, threshold 0.05; ")
    assert "AP 37.2 on minival (Table 5, threshold 0.5), AP 37.6 on test-dev (Table 6)" in default
    assert "nearest" not in default
    laptop = expectation(settings(find_row("table3", "All"), "laptop"))
    assert laptop == "its place among the rows, not AP; the paper's: AP 12.9 on minival (Table 3)"
    assert expectation(figure_settings("ce", "paper")).startswith("no number")


@pytest.mark.parametrize("scale", SCALES)
def test_each_control_of_dr_has_one_of_focal_with_the_same_settings(scale):
    found = {"dr": set(), "focal": set()}
    for row in rows_of(CONTROLS):
        s = settings(row, scale)
        if isinstance(s, str) or s.test_scales or row.label.startswith("authors' code as a whole"):
            continue
        found[s.values["loss"].partition(":")[0]].add((s.preset, s.values.get("negative_iou")))
    assert found["dr"] == found["focal"]
    assert len(found["dr"]) == (3 if scale == "paper" else 2)
    assert settings(find_row("table2", "Focal"), scale).values["loss"] == "focal:scope=pooled"
    assert settings(find_row(CONTROLS, "focal:scope=per_image, Focal"), scale).values["loss"].endswith("per_image")


def test_rows_and_presets_agree_both_ways():
    stated = {n: re.findall(r"AP (\d+\.\d)", preset.expects) for n, preset in PRESETS.items()}
    for row in RUNNABLE:
        assert stated[row.recipe.preset], f"{row.name} runs {row.recipe.preset}, which states no number of the paper"
    for name, (number, *_) in ((n, s) for n, s in stated.items() if s):
        reached = [row for row in RUNNABLE if row.recipe.preset == name and row.recipe.loss == "dr"]
        assert any(f"{row.metrics['AP']:.1f}" == number for row in reached), f"no row reaches what {name} states"
        split = "VOC2007 test" if name == "voc07" else reached[0].split
        assert split in PRESETS[name].expects


def test_equal_names_of_run_folders_mean_equal_settings():
    for scale in SCALES:
        found = [s for row in ROWS if not isinstance(s := settings(row, scale), str)]
        by_name = {s.name: s for s in found}
        for s in found:
            assert (by_name[s.name].preset, by_name[s.name].values) == (s.preset, s.values)
        by_key = {s.key: s for s in found}
        assert all(by_key[s.key] == s for s in found)
        assert len(by_name) <= len(by_key) < len(found)


def test_the_lambdas_are_those_of_the_log_bases():
    for label, pos, neg in (("h₊ = e, h₋ = 20", e, 20), ("h₊ = 5.5, h₋ = 3.5", 5.5, 3.5)):
        loss = make_loss(find_row("table1", f"{label}, DR").recipe.loss)
        assert loss.pos_lambda == pytest.approx(1 / log(pos), rel=1e-5)
        assert loss.neg_lambda == pytest.approx(0.1 / log(neg), rel=1e-5)


def test_smaller_inputs_are_smaller_by_the_same_share():
    for row in rows_of("table6"):
        for scale, full in (("paper", 800), ("laptop", 128)):
            found = settings(row, scale)
            detector = override(PRESETS[found.preset], dict(found.values)).detector
            assert detector.short_side / full == pytest.approx(row.scale / 800)
            assert detector.max_side / detector.short_side == pytest.approx({800: 1333 / 800, 128: 2}[full], rel=2e-3)


def test_the_scales_of_the_multi_scale_test_are_in_proportion_to_the_images():
    row = find_row(CONTROLS, "multi-scale test, DR")
    assert settings(row, "paper").test_scales == (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    assert settings(row, "laptop").test_scales == (64, 80, 96, 112, 128, 144, 160, 176, 192)
    assert settings(row, "laptop").name == settings(find_row("table2", "L = 6, DR"), "laptop").name
    assert "64, 80, 96" in row.reason


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale must be one of paper, laptop, got 'phone'"):
        settings(ROWS[0], "phone")


@pytest.mark.parametrize("claim", CLAIMS, ids=[f"{c.table} {c.text}" for c in CLAIMS])
def test_the_papers_own_numbers_confirm_its_claims(claim):
    assert claim.comparisons
    for comparison in claim.comparisons:
        assert len(comparison.ahead) == len(comparison.behind)
        assert any(row.table == claim.table for row in comparison.rows)
        if all(row.metrics and not row.is_control for row in comparison.rows):
            assert comparison.confirmed_by(round(comparison.difference(lambda row: row.metrics["AP"]), 6))


def test_every_table_has_a_claim():
    assert {claim.table for claim in CLAIMS} == set(TABLES)
