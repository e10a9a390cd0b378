"""Runs beside each other, with a script in place of ``python -m drloss train``."""

import fcntl
import io
import re
import threading
import time

import pytest
import torch
from rich.console import Console

from drloss.errors import UserError
from drloss.studies import jobs
from drloss.studies.jobs import Job, train_jobs


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes a job; each begun says its name and device in ``begun``, and ends when the file NAME-may-end is there."""
    script = tmp_path / "stub"
    script.write_text(
        f'#!/bin/sh\necho "$4 $9" >>{tmp_path}/begun\n'
        f"until [ -e {tmp_path}/$4-may-end ]; do sleep 0.05; done\n"
        f'mkdir -p "$6"; touch "$6/model.safetensors"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(script))
    return lambda name: Job(name, tmp_path / "runs" / name, 1, [name])


def begun(tmp_path):
    path = tmp_path / "begun"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_background(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_a_run_that_another_process_trains_is_waited_for_while_the_others_go_on(job, tmp_path):
    several = [job("busy"), job("free")]
    for name in ("busy", "free"):
        (tmp_path / f"{name}-may-end").touch()
    several[0].log.parent.mkdir()
    with several[0].log.open("w") as log:
        log.write("what it has printed")
        log.flush()
        fcntl.flock(log, fcntl.LOCK_EX)
        seen = []

        def release():
            try:
                wait_until(lambda: several[1].done)
                seen.append((begun(tmp_path), several[0].log.read_text()))
            finally:
                fcntl.flock(log, fcntl.LOCK_UN)

        thread = in_background(release)
        said = io.StringIO()
        assert train_jobs(several, torch.device("cpu"), 1, Console(file=said, width=200)) == []
        thread.join()
    assert seen == [(["free cpu"], "what it has printed")]
    assert begun(tmp_path) == ["free cpu", "busy cpu"]
    assert said.getvalue().count("busy: another process trains it; waiting for it") == 1


def test_a_run_goes_to_the_device_that_has_the_fewest(job, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "devices_for", lambda device: ["cuda:0", "cuda:1"])
    several = [job(name) for name in "abc"]

    def end_the_second_first():
        wait_until(lambda: len(begun(tmp_path)) == 2)
        (tmp_path / "b-may-end").touch()
        wait_until(lambda: len(begun(tmp_path)) == 3)
        for name in "ac":
            (tmp_path / f"{name}-may-end").touch()

    thread = in_background(end_the_second_first)
    assert train_jobs(several, torch.device("cpu"), 2, Console(quiet=True)) == []
    thread.join()
    assert sorted(begun(tmp_path)[:2]) == ["a cuda:0", "b cuda:1"]
    assert begun(tmp_path)[2] == "c cuda:1"


def test_progress_is_printed_with_the_time_and_only_where_there_is_some(job, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "PRINT_EVERY", 0)
    console = Console(file=io.StringIO())

    def learn():
        wait_until(lambda: "a: 0/1" in console.file.getvalue())
        time.sleep(1.1)  # two more looks, at which nothing has changed
        metrics = tmp_path / "runs" / "a" / "metrics.csv"
        metrics.parent.mkdir()
        metrics.write_text("iteration,loss\n1,2.5\n")
        wait_until(lambda: "loss 2.500" in console.file.getvalue())
        (tmp_path / "a-may-end").touch()

    thread = in_background(learn)
    assert train_jobs([job("a")], torch.device("cpu"), 1, console) == []
    thread.join()
    first, second = [line for line in console.file.getvalue().splitlines() if " a: " in line]
    assert re.fullmatch(r"0:00:\d\d a: 0/1", first)
    assert re.fullmatch(r"0:00:\d\d a: 1/1 loss 2\.500", second)


def test_why_a_run_failed_is_told_in_all_its_lines(job, tmp_path, monkeypatch):
    script = tmp_path / "failing"
    script.write_text('#!/bin/sh\necho "epoch 1"; echo "drloss: error: no weights"; echo "put them there"; exit 2\n')
    script.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(script))
    console = Console(file=io.StringIO())
    (told,) = train_jobs([job("a")], torch.device("cpu"), 1, console, keep_going=True)
    assert told.endswith("drloss: error: no weights put them there")


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """In place of ``python -m drloss train --out runs/NAME`` a script that fails or stops where an option says so."""
    script = tmp_path / "stub"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *--bad*) echo "it cannot be"; exit 3;; *--stopped*) echo "stopped"; exit 0;; esac\n'
        f'for last; do case "$last" in {tmp_path}*) mkdir -p "$last"; touch "$last/model.safetensors";; esac; done\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(script))
    return lambda name, option="--good": Job(name, tmp_path / "runs" / name, 1, [option])


def test_a_run_that_fails_leaves_the_others_to_go_on_where_that_is_wanted(stub):
    both = [stub("bad", "--bad"), stub("good")]
    said = train_jobs(both, torch.device("cpu"), 1, Console(quiet=True), keep_going=True)
    assert said == [f"the bad run failed ({both[0].log}): it cannot be"]
    assert both[1].log.exists()
    with pytest.raises(UserError, match="the bad run failed"):
        train_jobs(both, torch.device("cpu"), 1, Console(quiet=True))


def test_a_run_that_was_asked_to_stop_is_not_taken_for_done(stub):
    said = train_jobs([stub("stopped", "--stopped")], torch.device("cpu"), 1, Console(quiet=True), keep_going=True)
    assert len(said) == 1
    assert said[0].endswith("stopped")
