"""The driver of the reproduction: what is run, what is not run again, and the page made of the run folders."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from drloss.cli import main, studies
from drloss.errors import UserError
from drloss.inference import reading
from drloss.studies import jobs
from drloss.studies.paper.names import FIGURES
from drloss.studies.paper.numbers import ROWS, TEST_SCALES, Settings, find_row, number, settings
from drloss.studies.paper.records import read_records, write_records
from drloss.studies.paper.reproduce import (
    PAGE,
    RECORDS,
    choose_shard,
    choose_tables,
    chosen_settings,
    runs_of,
    write_reproduction,
)
from drloss.studies.paper.tables import reproduction_page
from faults import Subprocess

DATA = "shapes:train=8,val=4,test=2,size=64"
TINY = [
    *("--data", DATA, "--seeds", "0", "--max-iters", "3", "--checkpoint-every", "1", "--batch-size", "4"),
    *("--no-scale-lr", "--workers", "0", "--short-side", "64", "--device", "cpu"),
]
PAPER = ["--scale", "paper", "--data", DATA]
NAMES = ["cpu-focal_scope=pooled-seed0", "cpu-dr-seed0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The two rows of Table 7, stopped after the first was trained and called again; what was said of the first."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    out, kept = root / "reproduction", root / "reproduction.json"
    with (root / "reproduction.lock").open("w") as lock:  # the workers share it, and none changes it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(json.dumps(stop_and_go_on(out)))
    return out, json.loads(kept.read_text())


def stop_and_go_on(out):
    """Run the driver twice; the exit codes, and the runs begun and the time of the first's weights after each."""
    start, begun, said = jobs._JobRunner._start, [], []

    def start_one(self, index):
        if begun:
            raise KeyboardInterrupt
        begun.append(index)
        start(self, index)

    with pytest.MonkeyPatch.context() as warm, pytest.MonkeyPatch.context() as patch:
        warm.setattr(jobs, "subprocess", Subprocess)
        patch.setattr(jobs._JobRunner, "_start", start_one)
        for _ in range(2):
            code = main(["reproduce", "table7", *TINY, "--out", str(out), "--jobs", "1"])
            runs = [n for n in NAMES if (out / "runs" / n / "environment.json").exists()]
            said.append([code, runs, (out / "runs" / NAMES[0] / "model.safetensors").stat().st_mtime_ns])
            patch.undo()
    return said


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_after_the_driver_was_stopped(finished):
    out, ((code, runs, trained), (code_again, runs_again, trained_again)) = finished
    assert (code, runs) == (130, NAMES[:1])
    assert (code_again, runs_again) == (0, NAMES)
    assert trained == trained_again
    assert len(json.loads((out / "runs" / NAMES[0] / "environment.json").read_text())) == 1
    assert sorted(p.name for p in (out / "runs").iterdir() if p.is_dir()) == sorted(NAMES)


@pytest.mark.slow
def test_a_third_call_trains_and_evaluates_nothing_and_writes_the_same_page(finished, tmp_path, capsys):
    out, _ = finished
    (tmp_path / "runs").symlink_to(out / "runs")
    metrics = out / "runs" / NAMES[1] / "eval_val" / "metrics.json"
    written = metrics.stat().st_mtime_ns
    assert main(["reproduce", "table7", *TINY, "--out", str(tmp_path)]) == 0
    assert "2 run(s) for table7; 2 done already" in capsys.readouterr().out
    assert (tmp_path / PAGE).read_text() == (out / PAGE).read_text()
    assert metrics.stat().st_mtime_ns == written


def line_of(text, heading, run):
    """The cells of our line of a run in a table."""
    section = text.split(f"## {heading}")[1].split("\n## ")[0]
    (line,) = [line for line in section.splitlines() if f"| `{run}` |" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_the_page_has_the_runs_numbers_below_the_papers(finished):
    out, _ = finished
    text = (out / PAGE).read_text()
    assert "| – | Focal | paper, VOC2007 test | 39.5 | 67.2 | 40.8 | |" in text
    for run in ("cpu-focal_scope=pooled", "cpu-dr"):
        found = json.loads((out / "runs" / f"{run}-seed0" / "eval_val" / "metrics.json").read_text())
        numbers = [f"{found['metrics'][m]:.1f}" for m in ("AP", "AP50", "AP75")]
        assert line_of(text, "Table 7", run)[2:] == ["ours", *numbers, "0"]
        assert line_of(text, "Table 2", run)[3:6] == numbers  # the same run
    assert line_of(text, "Table 2", "cpu-dr_surrogate=hinge")[3] == "not run"
    assert "evaluated on: shapes" in text
    assert "max_iters is 3, not 600 (all runs)" in text
    for row in ROWS:
        for value in row.metrics.values():
            assert f" {number(value)} |" in text
    assert "| ResNet-50, 1×, jitter 640-800 | DR [cvpods] | others, minival | 37.35 |" in text
    assert "on another data set (§C, comparison on PASCAL): not run (its runs are evaluated on the same data" in text
    assert "takes at a time, its micro-batch: 2 on each GPU at the paper's scale, 8 in the preset" in text


@pytest.mark.slow
def test_the_page_needs_nothing_but_the_run_folders(finished, tmp_path):
    out, _ = finished
    (tmp_path / "runs").symlink_to(out / "runs")
    assert write_reproduction(tmp_path, "laptop").read_text() == (out / PAGE).read_text()
    assert (tmp_path / RECORDS).read_bytes() == (out / RECORDS).read_bytes()
    empty = reproduction_page("paper", {})
    assert "No run has been evaluated yet" in empty
    assert empty.count("not run |") == len(ROWS) + len(FIGURES["figure4"])
    assert "only COCO's server" in empty


@pytest.mark.slow
def test_the_records_give_the_same_page_and_are_refused_once_changed(finished, tmp_path):
    out, _ = finished
    scale, records = read_records(out / RECORDS)
    assert reproduction_page(scale, records) == (out / PAGE).read_text()
    kept = json.loads((out / RECORDS).read_text())
    kept["runs"][0]["metrics"]["metrics"]["AP"] += 0.1
    (tmp_path / RECORDS).write_text(json.dumps(kept))
    with pytest.raises(UserError, match="not those that were written"):
        read_records(tmp_path / RECORDS)
    write_records(tmp_path / "none.json", scale, {}, ())
    assert read_records(tmp_path / "none.json") == (scale, {})


@pytest.mark.slow
def test_the_runs_scores_are_on_the_page_and_in_figures_1_and_5(finished):
    out, _ = finished
    text = (out / PAGE).read_text()
    found = json.loads((out / "runs" / NAMES[1] / "eval_val" / "metrics.json").read_text())["scores"]
    mean = found["positive_sum"] / sum(found["positive"])
    assert f"| DR | {mean:.3f} | " in text
    assert "| Cross-entropy | not run |" in text
    assert "with focal loss or cross-entropy: not run" in text
    for figure, drawn in ((1, True), (4, False), (5, True)):
        assert (f"(figure{figure}.png)" in text) == (out / f"figure{figure}.png").exists() == drawn


@pytest.fixture
def copied(finished, tmp_path):
    """The two finished runs, to be changed, and what calls the driver on them."""
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    folders = [tmp_path / "runs" / name for name in NAMES]
    return folders, lambda data=DATA: main(["reproduce", "table7", *TINY, "--data", data, "--out", str(tmp_path)])


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_is_made_anew(copied, capsys):
    folders, call = copied
    path = folders[0] / "eval_val" / "metrics.json"
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    assert "| 0 |" not in line_of(
        write_reproduction(folders[0].parents[1], "laptop").read_text(), "Table 7", "cpu-focal_scope=pooled"
    )
    assert call() == 0
    assert f"evaluating {NAMES[0]}" in capsys.readouterr().out
    assert json.loads(path.read_text())["metrics"] == whole["metrics"]


@pytest.mark.slow
def test_a_run_that_does_not_say_what_it_was_trained_on_is_refused_in_words(copied, capsys):
    folders, call = copied
    (folders[0] / "environment.json").unlink()
    assert call() == 2
    said = capsys.readouterr().err
    assert "environment.json: cannot be read (" in said
    assert "delete its folder to train the run anew" in said
    assert len(said.strip().splitlines()) <= 2


@pytest.mark.slow
def test_the_same_data_by_another_name_are_the_same(copied, capsys, monkeypatch):
    seen = []
    read = reading.read_split
    monkeypatch.setattr(
        reading, "read_split", lambda source, split, *rest: seen.append(split) or read(source, split, *rest)
    )
    _, call = copied
    assert call("shapes:size=64,test=2,val=4,train=8") == 0
    said = capsys.readouterr().out
    assert "2 done already" in said
    assert "evaluating" not in said
    assert sorted(seen) == ["train", "val"]


@pytest.mark.slow
def test_changed_data_are_noticed(copied, capsys):
    folders, call = copied
    assert call(DATA.replace("val=4", "val=5")) == 0  # what it was trained on is as it was
    said = capsys.readouterr().out
    assert all(f"evaluating {name}" in said for name in NAMES)
    metrics = json.loads((folders[0] / "eval_val" / "metrics.json").read_text())
    assert metrics["data"].endswith("val=5,test=2,size=64 val")
    path = folders[1] / "environment.json"
    records = json.loads(path.read_text())
    records[-1]["data"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(records))
    assert call() == 2
    assert "is something else now; name another --out" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
def test_each_run_says_what_its_rows_must_reach(finished):
    out, _ = finished
    for name, ap in zip(NAMES, ("36.1", "37.4"), strict=True):
        said = json.loads((out / "runs" / name / "config.json").read_text())["expects"]
        assert said.startswith(f"its place among the rows, not AP; the paper's: AP {ap} on minival (Table ")


@pytest.mark.slow
def test_at_the_papers_scale_the_page_says_which_rows_reach_its_numbers(finished):
    out, _ = finished
    record = next(iter(next(iter(read_records(out / RECORDS)[1].values())).values()))

    def with_ap(*values):
        found = [replace(record, metrics=record.metrics | {"metrics": {"AP": ap}}) for ap in values]
        return dict(enumerate(found))

    records = {
        settings(find_row("table1", "h₊ = 20, h₋ = 3.5, DR"), "paper").key: with_ap(35.5, 35.8),
        settings(find_row("table1", "h₊ = e, h₋ = 20, DR"), "paper").key: with_ap(36.5),
        settings(find_row("table1", "h₊ = e, h₋ = e, DR"), "paper").key: with_ap(None),
    }
    text = reproduction_page("paper", records)
    assert (
        "- reached: h₊ = 20, h₋ = 3.5, DR (35.6 of 35.6)\n- not reached: h₊ = e, h₋ = 20, DR (36.5 of 36.6)\n" in text
    )


@pytest.mark.slow
def test_other_data_in_the_same_folder_are_refused(finished, capsys):
    out, _ = finished
    other = [option.replace("size=64", "size=72") for option in TINY]
    assert main(["reproduce", "table7", *other, "--out", str(out)]) == 2
    assert "name another --out" in capsys.readouterr().err


def test_rows_of_several_tables_are_trained_once():
    tables = choose_tables(["all"], "laptop", {})
    runs = runs_of(chosen_settings(tables, ["dr"], "laptop"), [0, 1], {})
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    assert names.count("cpu-dr-seed0") == names.count("cpu-dr-seed1") == 1
    wanted = {s.name for row in ROWS if isinstance(s := settings(row, "laptop"), Settings)}
    assert {run.settings.name for run in runs} == wanted
    for run in runs:
        assert (run.config.seed, run.config.detector.norm) == (run.seed, "group")


def test_the_multi_scale_test_is_another_evaluation_of_the_same_run():
    chosen = chosen_settings(["table4"], [], "paper")
    both = [s for s in chosen if s.name == "r101_2x-dr"]
    assert [(s.test_scales, s.evaluation) for s in both] == [((), "eval_val"), (TEST_SCALES, "eval_val_multi-scale")]
    assert [run.name for run in runs_of(chosen, [0], {})].count("r101_2x-dr-seed0") == 1
    assert len({s.key for s in chosen}) == len(chosen)


@pytest.mark.slow
def test_a_run_is_tested_at_one_scale_and_at_many(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "subprocess", Subprocess)
    at = TINY.index("--short-side")
    command = ["reproduce", "table7", "controls", *TINY[:at], *TINY[at + 2 :], "--out", str(tmp_path)]
    assert main([*command, "--shard", "2/7"]) == 0
    assert [p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()] == ["cpu-dr-seed0"]
    found = json.loads((tmp_path / "runs" / "cpu-dr-seed0" / "eval_val_multi-scale" / "metrics.json").read_text())
    assert found["test_scales"] == [64, 80, 96, 112, 128, 144, 160, 176, 192]
    text = (tmp_path / PAGE).read_text()
    ap = found["metrics"]["AP"]
    assert line_of(text, "Controls", "cpu-dr")[3] == f"{ap:.1f}"
    assert "the multi-scale test improves DR further (§4.4): not run" not in text


def test_shards_share_out_all_runs():
    runs = runs_of(chosen_settings(["table2", "table3"], [], "laptop"), [0, 1, 2], {})
    parts = [choose_shard(runs, f"{i}/4") for i in (1, 2, 3, 4)]
    assert sorted(r.name for part in parts for r in part) == sorted(r.name for r in runs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--shard must be i/n with i from 1 to n"):
        choose_shard([], text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["table1", "--scale", "paper"], "--data: the paper's scale needs the paper's data"),
        (["table7", "table1", "--scale", "paper", "--data", DATA], "table7 needs VOC2007 and the others COCO"),
        (["table6", "--short-side", "64"], "--short-side cannot be set with table6: it is what its rows"),
        (["controls", "--negative-iou", "0.3"], "--negative-iou cannot be set with controls"),
        (["controls", "--negative-iou", "0.3", *PAPER], "--negative-iou cannot be set with controls"),
        (["controls", "--short-side", "64"], "--short-side cannot be set with controls"),
        (["table4", "--backbone", "resnet18", *PAPER], "--backbone cannot be set with table4"),
        (["table4", "--max-iters", "9", *PAPER], "--max-iters cannot be set with table4"),
        (["table5", "--score-threshold", "0.3"], "--score-threshold cannot be set with table5"),
        (["table6", "--max-side", "9", "--scale", "paper", "--data", DATA], "--max-side cannot be set with table6"),
        (["table1", "--seeds", "0", "0"], "--seeds: 0 is given twice"),
        (["table1", "--shard", "2/1"], "--shard must be i/n"),
        (["table1", "--max-iters", "0"], "max_iters must be positive"),
        (["figure2", "--points", "0"], "--points must be at least 1, got 0"),
        (["figure2", "--scores-of", "run"], "--scores-of run: is for figure1, and needs --data"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_run(options, said, tmp_path, capsys):
    assert main(["reproduce", *options, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_table_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "table8"])
    assert stopped.value.code == 2
    assert "table8" in capsys.readouterr().err


def test_everything_at_the_papers_scale_leaves_out_what_needs_other_data():
    assert "table7" in choose_tables(["all"], "laptop", {})
    assert "table7" not in choose_tables(["all"], "paper", {})
    assert choose_tables(["table7"], "paper", {}) == ["table7"]


def test_what_everything_leaves_out_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(studies, "_reproduce_runs", lambda *_: None)
    command = ["reproduce", "all", "--points", "100", "--out", str(tmp_path)]
    assert main([*command, *PAPER]) == 0
    assert "table7 is left out: it needs PASCAL VOC2007" in capsys.readouterr().out
    assert main(command) == 0
    assert "left out" not in capsys.readouterr().out


def test_figures_are_drawn_without_data(tmp_path, capsys):
    assert main(["reproduce", "figure1", "figure3", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["figure1.png", "figure3.png"]
    assert "figure3.svg" in capsys.readouterr().out


@pytest.mark.slow
def test_figure_1_of_a_run_names_it(finished, tmp_path):
    out, _ = finished
    run = out / "runs" / NAMES[1]
    options = ["--scores-of", str(run), "--data", DATA, "--device", "cpu", "--out", str(tmp_path)]
    assert main(["reproduce", "figure1", *options]) == 0
    assert json.loads((tmp_path / "figure1.json").read_text())["source"] == f"{NAMES[1]} (dr) on {DATA} val"


@pytest.mark.slow
def test_the_driver_killed_in_the_middle_of_a_run_goes_on_from_its_checkpoint(tmp_path):
    command = [sys.executable, "-m", "drloss", "reproduce", "table7", *TINY, "--out", str(tmp_path), "--jobs", "2"]
    command += ["--max-iters", "100", "--log-every", "1", "--checkpoint-every", "1000"]
    driver = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [tmp_path / "runs" / name / "metrics.csv" for name in NAMES]
    end = time.monotonic() + 120
    while not all(p.exists() and len(p.read_text().splitlines()) > 2 for p in rows):
        assert time.monotonic() < end
        assert driver.poll() is None
        time.sleep(0.1)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 130
    for name in NAMES:
        assert list((tmp_path / "runs" / name / "checkpoints").glob("*.pt"))
        assert not (tmp_path / "runs" / name / "model.safetensors").exists()
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
    for name in NAMES:
        records = json.loads((tmp_path / "runs" / name / "environment.json").read_text())
        assert len(records) == 2
        assert records[1]["from_iteration"] > 1
