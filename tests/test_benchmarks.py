import json
from dataclasses import replace

import pytest

from benchmarks import formats, page, reliability, studies, trials
from benchmarks.layouts import LAYOUTS, pictures
from drloss.errors import UserError
from drloss.io.atomic import write_json
from drloss.studies.paper.records import read_records, write_records


def test_the_page_of_speeds_is_that_of_the_records():
    assert (page.DOCS / "speed.md").read_text() == page.speed_page(page.newest())


def test_the_page_of_reliability_is_that_of_its_record():
    assert (page.DOCS / "reliability.md").read_text() == reliability.page()


def test_the_page_of_trials_is_that_of_the_records():
    assert (page.DOCS / "trials.md").read_text() == trials.page()


def test_a_record_of_trials_has_the_last_evaluation_of_each_run(tmp_path, monkeypatch):
    for lr, ap in ((0.001, 40.0), (0.002, 50.0)):
        run = tmp_path / f"run{lr}"
        run.mkdir()
        config = {"loss": "dr", "lr": lr, "seed": 0, "max_iters": 10, "batch_size": 4}
        config["detector"] = {"short_side": 64, "backbone": "resnet10", "positive_iou": 500 * lr}
        write_json(run / "config.json", config)
        start = {"started": "2026-01-01T00:00:00", "platform": "P", "python": "3", "versions": {"torch": "2"}}
        write_json(run / "environment.json", [start])
        (run / "evaluations.csv").write_text(f"iteration,AP,APs\n5,1.0,\n10,{ap},\n")
    record = trials.collect("T", sorted(tmp_path.iterdir()), "data", "", {"dr": "the paper's"})
    assert [(run["loss"], run["lr"], run["metrics"]) for run in record["runs"]] == [
        ("the paper's", 0.001, {"AP": 40.0}),
        ("the paper's", 0.002, {"AP": 50.0}),
    ]
    named = trials.collect("T", sorted(tmp_path.iterdir()), "data", "", {"run0.002": "another"})
    assert [run["loss"] for run in named["runs"]] == ["dr", "another"]
    monkeypatch.setattr(trials, "RESULTS", tmp_path)
    write_json(tmp_path / "2026-01-01-trials-t.json", record)
    assert "| loss | learning rate | positive IoU | AP |" in trials.page()
    assert "| the paper's | 0.002 | 1.0 | 50.0 |" in trials.page()


def test_a_change_is_compared_with_the_same_seed_without_it(tmp_path, monkeypatch):
    def run(loss, seed, ap, positive=0.5):
        return {"loss": loss, "seed": seed, "positive_iou": positive, "negative_iou": 0.4, "metrics": {"AP": ap}}

    runs = [run("dr+", 0, 40.0), run("dr+", 1, 42.0), run("focal", 0, 30.0), run("focal", 0, 30.5, 0.6)]
    runs += [run("dr+:margin=0.3", 1, 41.0), run("dr+:margin=0.3", 0, 40.5), run("dr+, and more", 1, 43.0)]
    monkeypatch.setattr(trials, "RESULTS", tmp_path)
    for name in trials.CHANGES.values():
        write_json(tmp_path / f"2026-01-01-trials-{name}.json", {"runs": runs})
    assert trials.changes()[2:] == [
        "| focal, positive IoU 0.6 | +0.5 | +0.5 |",
        "| dr+:margin=0.3 | +0.5, −1.0 | +0.5, −1.0 |",
        "| dr+, and more | +1.0 | +1.0 |",
    ]


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ({"mean": 2.0, "margin": 1.0, "told": True, "certain": True}, "ahead: +2.0 ± 1.0"),
        ({"mean": -2.0, "margin": 3.0, "told": True, "certain": False}, "probably behind: −2.0 ± 3.0"),
        ({"mean": 0.9, "margin": 2.8, "told": False, "certain": False}, "not told apart: +0.9 ± 2.8"),
        ({"mean": -5.0, "margin": None, "told": False, "certain": False}, "not told apart: −5.0 with one seed"),
    ],
)
def test_a_difference_is_said_shortly(difference, words):
    assert page.shortly(difference) == words


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


def test_new_runs_are_added_to_those_on_record(tmp_path):
    old = studies.newest(studies.REPRODUCTION)["laptop"]
    scale, records = read_records(old)
    assert studies.write_reproduction(tmp_path, "again", [old]).read_text() == old.read_text()
    key = ("cpu-dr", "eval_val")
    again = replace(records[key][0], metrics=records[key][0].metrics | {"metrics": {"AP": 1.0}})
    without = replace(again, metrics={k: v for k, v in again.metrics.items() if k != "scores"})
    new = {key: {0: again}, ("cpu-dr", "eval_val_another"): {7: without}}
    (tmp_path / "folder").mkdir()
    write_records(tmp_path / "folder" / "records.json", scale, new, [key])
    path = studies.write_reproduction(tmp_path, "2026-01-01", [old, tmp_path / "folder"])
    joined = read_records(path)[1]
    assert joined == {**records, **new, key: records[key] | new[key]}
    other = replace(again, environment=again.environment | {"data": again.environment["data"] | {"fingerprint": "0"}})
    write_records(tmp_path / "folder" / "records.json", scale, {key: {0: other}}, [])
    with pytest.raises(UserError, match="different data of the split train"):
        studies.write_reproduction(tmp_path, "2026-01-02", [old, tmp_path / "folder"])


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


@pytest.mark.slow
def test_a_generated_coco_file_is_read_in_another_process(tmp_path):
    formats.write_coco(tmp_path, 50)
    (found,) = formats.reading(tmp_path, 1)
    assert (found["images"], found["boxes"], found["problems"]) == (50, 363, 0)
    assert found["seconds"] > 0


def test_a_layout_that_is_read_otherwise_than_written_is_told(tmp_path):
    made, other, layout = pictures(3, 2), pictures(4, 2), LAYOUTS["coco-roboflow"]
    assert formats.difference(layout, made, tmp_path / "a") == "ok"
    wrong = replace(layout, as_written=lambda _: other)
    assert "missing or too many" in formats.difference(wrong, made, tmp_path / "b")
