"""A run that is killed or stopped at any point, and then resumed, has the result of an uninterrupted run."""

import json
import os
import pty
import re
import signal
import time

import numpy as np
import pytest

from drloss.cli import main
from drloss.training.checkpoints import load_checkpoint, newest_first
from drloss.training.run_folder import CHECKPOINTS, EVALUATIONS_FILE, METRICS_FILE, MODEL
from faults import at_step, before, fault, ignored, in_save, on_terminal, slow_disk, start, tiny_run, wait_until
from small_training import rows

RUN = {"eval_every": 3, "max_iters": 6}
SAVES = ["write", "fsync", "replace", "unlink"]


def what_is_left(folder):
    """Results of a run without times: the bytes of the weights, and the rows of both CSV files."""
    return (folder / MODEL).read_bytes(), rows(folder / METRICS_FILE), rows(folder / EVALUATIONS_FILE)


def finish(folder, log, **settings):
    child = start(tiny_run(folder, "--resume", **{**RUN, **settings}), log)
    assert child.wait() == 0, child.said
    return what_is_left(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of an uninterrupted run, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("whole")
    first = start(tiny_run(folder / "warm", **RUN), folder / "log")  # also starts the server of processes
    assert first.wait() == 0, first.said
    began = time.monotonic()
    child = start(tiny_run(folder / "run", **RUN), folder / "log")
    assert child.wait() == 0, child.said
    return what_is_left(folder / "run"), time.monotonic() - began


def killed(kind, number, folder, seconds, workers):
    """Start a run and have it killed: in a step, in a save by itself or from outside, or at any moment."""
    rng = np.random.default_rng(number)
    arguments, log = tiny_run(folder, workers=workers, **RUN), folder.with_suffix(".log")
    if kind == "step":
        return start(arguments, log, fault(at_step, step=int(rng.integers(1, 7)), do="SIGKILL"))
    if kind == "save":
        call = SAVES[number // 3 % len(SAVES)]
        # The first fsync is the file's and the second the folder's; the first unlink is the part that was renamed.
        at = {"write": int(rng.integers(1, 1000)), "fsync": 1 + number // 12 % 2, "unlink": 1 + number // 12 % 2}
        save = 3 if call == "unlink" else int(rng.integers(1, 4))
        return start(arguments, log, fault(in_save, save=save, call=call, number=at.get(call, 1), do="SIGKILL"))
    faults = [fault(slow_disk, save=2, seconds=0.001)] if kind == "slow save" else []
    child = start(arguments, log, *faults)
    if kind == "slow save":
        wait_until(lambda: list(folder.glob(f"{CHECKPOINTS}/.*0004*.part")), child=child)
        time.sleep(rng.uniform(0, 1))
    else:
        time.sleep(rng.uniform(0, seconds))
    child.send(signal.SIGKILL)
    return child


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_killed_anywhere_ends_bit_identical(whole, tmp_path, soak, figure):
    expected, seconds = whole
    kinds = ["save", "slow save", "any", "step"]
    wanted, in_saves, identical = 50 if soak else 6, 0, 0
    for number in range(wanted):
        kind = kinds[number % len(kinds)] if soak else (*kinds, "save", "any")[number]
        folder, workers = tmp_path / f"run{number}", 2 * (number % 2)
        child = killed(kind, number, folder, seconds, workers)
        code = child.wait()
        assert code == -signal.SIGKILL or kind == "any", child.said
        in_saves += "save" in kind
        assert finish(folder, tmp_path / "log", workers=2 * (number // 2 % 2)) == expected, (number, kind)
        assert not list(folder.rglob("*.part"))
        identical += 1
    assert in_saves >= min(wanted, 10) / 2
    figure(
        "T22", f"{identical} of {wanted} runs killed with SIGKILL, {in_saves} of them in a save, end bit-identical"
    )


@pytest.mark.soak
@pytest.mark.slow
def test_a_signal_ends_a_run_with_a_checkpoint_and_exit_code_0(whole, tmp_path, soak, figure):
    expected, seconds = whole
    wanted, slowest = 20 if soak else 3, 0.0
    for number in range(wanted):
        folder, rng = tmp_path / f"run{number}", np.random.default_rng(number)
        arguments, log = tiny_run(folder, workers=2 * (number % 2), **RUN), folder.with_suffix(".log")
        kind = ("in a save", "to the group", "at a step", "at any moment")[number % 4]
        if kind == "in a save":
            write = fault(in_save, save=2, call=SAVES[number // 4 % 4], number=1, do="SIGTERM")
            child = start(arguments, log, write)
        elif kind == "at a step":
            child = start(arguments, log, fault(at_step, step=int(rng.integers(1, 6)), do="SIGTERM"))
        else:
            child = start(arguments, log)
            wait_until((folder / METRICS_FILE).exists, child=child)
            time.sleep(rng.uniform(0, seconds / 3))
            began = time.monotonic()
            child.send(rng.choice([signal.SIGTERM, signal.SIGINT]), group=kind == "to the group")
        code = child.wait()
        if kind in ("to the group", "at any moment"):
            slowest = max(slowest, time.monotonic() - began)
        assert code == 0, child.said
        stopped = re.search(r"stopped after iteration (\d+); go on with --resume", child.said)
        assert stopped or (folder / MODEL).exists()
        if stopped:
            assert load_checkpoint(folder / CHECKPOINTS)[0]["iteration"] == int(stopped[1])
        assert finish(folder, tmp_path / "log") == expected, (number, kind)
    assert slowest < 10 or not soak
    figure(
        "T26",
        f"{wanted} of {wanted} runs stopped by SIGTERM or Ctrl-C exit with 0 within {slowest:.1f} s, with a "
        "checkpoint from which they end bit-identical",
    )


@pytest.mark.slow
def test_a_closed_terminal_ends_a_run_with_a_checkpoint_unless_it_is_to_go_on(whole, tmp_path):
    terminal, ours = pty.openpty()
    child = start(
        tiny_run(tmp_path / "run", workers=2, **RUN), tmp_path / "log", fault(on_terminal, device=os.ttyname(ours))
    )
    os.close(ours)
    wait_until((tmp_path / "run" / METRICS_FILE).exists, child=child)
    os.close(terminal)  # from now on, printing raises an error
    child.send(signal.SIGHUP, group=True)
    assert child.wait() == 0, child.said
    assert newest_first(tmp_path / "run" / CHECKPOINTS)
    assert finish(tmp_path / "run", tmp_path / "log") == whole[0]
    arguments = tiny_run(tmp_path / "other", **RUN)
    child = start(arguments, tmp_path / "log", fault(ignored, name="SIGHUP"), fault(at_step, step=3, do="SIGHUP"))
    assert child.wait() == 0, child.said
    assert what_is_left(tmp_path / "other") == whole[0]


def test_ctrl_c_before_the_first_step_leaves_nothing_to_resume_and_exits_with_130(tmp_path):
    early = fault(before, module="drloss.data.formats.shapes", name="open_shapes", do="SIGINT")
    child = start(tiny_run(tmp_path / "run"), tmp_path / "log", early)
    assert child.wait() == 130, child.said
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


@pytest.fixture
def begun(tmp_path, whole):
    """A run that was stopped in its third step."""
    child = start(tiny_run(tmp_path / "run", **RUN), tmp_path / "log", fault(at_step, step=3, do="SIGTERM"))
    assert child.wait() == 0, child.said
    return tmp_path / "run"


def resumed(folder, *more, **settings):
    log = folder.with_name("resumed")
    log.unlink(missing_ok=True)
    child = start(tiny_run(folder, "--resume", *more, **{**RUN, **settings}), log)
    return child.wait(), " ".join(child.said.split())


@pytest.mark.slow
def test_other_data_or_settings_are_refused_unless_forced_and_named_then(begun):
    other = "shapes:train=23,val=6,size=32"
    code, said = resumed(begun, data=other)
    assert code == 2
    assert "the data have changed" in said
    code, said = resumed(begun, lr=0.01)
    assert code == 2
    assert "lr was 0.002 and is now 0.01" in said
    assert "--force" in said
    code, said = resumed(begun, "--force", lr=0.01, data=other)
    assert code == 0
    assert "the data have changed" in said
    assert "lr was 0.002 and is now 0.01" in said
    assert json.loads((begun / "config.json").read_text())["lr"] == 0.01
    assert rows(begun / METRICS_FILE)[3]["lr"] != rows(begun / METRICS_FILE)[2]["lr"]


@pytest.mark.slow
def test_force_does_not_bend_what_cannot_fit(begun):
    code, said = resumed(begun, "--force", fpn_channels=24)
    assert code == 2
    assert re.search(r"weight backbone\S+ does not fit the detector", said)
    code, said = resumed(begun, "--force", optimizer="sgd")
    assert code == 2
    assert "does not fit this run: the optimiser" in said


def test_force_without_resume_is_refused(tmp_path):
    child = start(tiny_run(tmp_path / "run", "--force"), tmp_path / "log")
    assert child.wait() == 2
    assert "--force goes with --resume" in child.said


@pytest.mark.slow
def test_a_finished_run_can_be_forced_to_go_on(begun):
    code, said = resumed(begun, "--force", max_iters=5, warmup_iters=1)
    assert code == 0, said
    short = (begun / MODEL).read_bytes()
    code, said = resumed(begun, "--force", max_iters=6, warmup_iters=1)
    assert code == 0, said
    assert (begun / MODEL).read_bytes() != short
    assert len(rows(begun / METRICS_FILE)) == 6


@pytest.mark.slow
def test_a_validation_split_that_is_gone_may_be_done_without(begun, tmp_path):
    died = fault(before, module="drloss.training.reporting", name="run_detector", do="SIGKILL")
    child = start(tiny_run(begun, "--resume", **RUN), tmp_path / "log", died)
    assert child.wait() == -signal.SIGKILL
    toml = tmp_path / "data.toml"
    toml.write_text(
        f'format = "coco"\nroot = "{tmp_path}"\n[splits.train]\nimages = "d/train"\nannotations = "t.json"\n'
    )
    assert main(["make-shapes", str(tmp_path / "d"), "--data", "shapes:train=24,val=6,size=32"]) == 0
    (tmp_path / "d" / "annotations" / "instances_train.json").rename(tmp_path / "t.json")
    code, said = resumed(begun, "--force", data=toml)
    assert code == 0, said
    assert "the data have changed" in said


@pytest.mark.slow
@pytest.mark.parametrize("do", ["SIGKILL", "raise"])
def test_a_run_that_is_killed_while_it_evaluates_loses_no_step(whole, tmp_path, do):
    settings = {**RUN, "checkpoint_every": 100}
    died = fault(before, module="drloss.training.reporting", name="run_detector", do=do)
    child = start(tiny_run(tmp_path / "run", **settings), tmp_path / "log", died)
    assert child.wait() != 0
    state, _ = load_checkpoint(tmp_path / "run" / CHECKPOINTS)
    assert state["iteration"] == RUN["eval_every"]
    child = start(tiny_run(tmp_path / "run", "--resume", **settings), tmp_path / "log")
    assert child.wait() == 0, child.said
    assert what_is_left(tmp_path / "run") == whole[0]


@pytest.mark.slow
def test_two_processes_do_not_train_into_one_folder(tmp_path):
    arguments = tiny_run(tmp_path / "run", **RUN)
    first = start(arguments, tmp_path / "log", fault(at_step, step=3, do="hang"))
    wait_until(lambda: "2/6 loss" in first.said, child=first)
    second = start([*arguments, "--resume"], tmp_path / "second")
    assert second.wait() == 2
    assert "another process is training into it" in " ".join(second.said.split())
    first.send(signal.SIGKILL)
    first.wait()
    assert finish(tmp_path / "run", tmp_path / "log")[1]
