"""Several training runs at a time. Each is a process ``drloss train`` that resumes where it stopped."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from drloss.errors import UserError
from drloss.io.atomic import write_json
from drloss.training.config import Config, to_json
from drloss.training.log import read_scalars
from drloss.training.run_folder import EVALUATIONS_FILE, METRICS_FILE, MODEL

PRINT_EVERY = 20
"""Seconds between two lines of progress where the output is not a terminal."""


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: name of the run on the terminal.
        out: run folder. The file ``<out>.log`` beside it holds what the run prints.
        iterations: iterations of the whole run.
        options: options of ``drloss train``, except ``--out``, ``--resume`` and ``--device``.
    """

    name: str
    out: Path
    iterations: int
    options: Sequence[str]

    @property
    def log(self) -> Path:
        """File that holds what the run prints."""
        return self.out.with_name(f"{self.out.name}.log")

    @property
    def done(self) -> bool:
        """Whether the run is trained to its end. A run that was asked to stop is not, although it exits with 0."""
        return (self.out / MODEL).is_file()

    def progress(self) -> tuple[int, str]:
        """The last logged iteration, and the last loss and AP50 in words."""
        curves = read_scalars(self.out / METRICS_FILE) | read_scalars(self.out / EVALUATIONS_FILE)
        if "loss" not in curves:
            return 0, ""
        ap50 = f", AP50 {curves['AP50'][1][-1]:.1f}" if "AP50" in curves else ""
        return int(curves["loss"][0][-1]), f"loss {curves['loss'][1][-1]:.3f}{ap50}"


def run_folder(out: Path, name: str) -> Path:
    """Folder of a run inside the folder of a study."""
    return out / "runs" / name


def job_of(name: str, out: Path, config: Config, data: Sequence[str]) -> Job:
    """A job that trains a configuration, which this writes to ``<out>.config.json`` beside the run folder.

    Args:
        name: name of the run on the terminal.
        out: run folder.
        config: configuration of the run.
        data: options of ``drloss train`` that name the data.
    """
    file = out.with_name(f"{out.name}.config.json")
    write_json(file, to_json(config))
    return Job(name, out, config.max_iters, [*data, "--config", str(file)])


def devices_for(device: torch.device) -> list[str]:
    """Names of the devices that runs may use at the same time.

    Args:
        device: what the user asked for: ``cuda`` is every CUDA device, ``cuda:N`` and ``cpu`` are that one alone.
    """
    if str(device) == "cuda":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [str(device)]


def train_jobs(
    jobs: Sequence[Job], device: torch.device, at_once: int, console: Console, *, keep_going: bool = False
) -> list[str]:
    """Train runs, ``at_once`` at a time. A finished run takes a few seconds.

    Another process may be training a run, for example one that a killed driver left behind. The others go on
    meanwhile, and the run is resumed when that process has ended.

    On a CPU the runs share the cores. Small convolutions use two cores better than four, so two parallel runs finish
    in two thirds of the time of two sequential runs. If other programs load the machine, both runs slow down equally.

    Args:
        jobs: the runs to train; finished ones are trained no further.
        device: what the user asked for.
        at_once: number of runs at a time.
        console: where to print.
        keep_going: whether the others go on after a run has failed.
    Returns:
        A line for each run that failed, with the reason; empty without ``keep_going``.
    Raises:
        UserError: if a run fails without ``keep_going``. The others are stopped, and each writes a checkpoint.
    """
    devices = devices_for(device)
    threads = max(1, torch.get_num_threads() // at_once)
    where = f"{threads} thread(s) each" if device.type == "cpu" else ", ".join(devices)
    console.print(
        f"training {len(jobs)} run(s), {min(at_once, len(jobs))} at a time, on {device.type} ({where})",
        soft_wrap=True,
    )
    runner = _JobRunner(jobs, devices, at_once, threads, keep_going, console)
    # A signal that stops this process stops its runs, too; each writes a checkpoint. nohup ignores SIGHUP.
    stops = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    handlers = {s: signal.signal(s, signal.default_int_handler) for s in stops}
    try:
        runner.run()
    finally:
        runner.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if runner.failed and not keep_going:
        raise UserError(runner.failed[0])
    return runner.failed


@dataclass
class _JobRunner:
    """The state of :func:`train_jobs`; numbers are indices of ``jobs``."""

    jobs: Sequence[Job]
    devices: list[str]
    at_once: int
    threads: int
    keep_going: bool
    console: Console
    running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    device_of: dict[int, str] = field(default_factory=dict)
    elsewhere: set[int] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    printed: dict[int, str] = field(default_factory=dict)

    def run(self) -> None:
        """Start waiting runs as places fall free, show their progress, and note which failed.

        Returns when all runs have ended or, without ``keep_going``, when one has failed.
        """
        words = TextColumn("{task.description}"), TextColumn("{task.fields[state]}")
        times = TimeElapsedColumn(), TimeRemainingColumn()
        columns = (words[0], BarColumn(), MofNCompleteColumn(), words[1], *times)
        waiting = list(range(len(self.jobs)))
        began = time.monotonic()
        printed = began - PRINT_EVERY
        with Progress(*columns, console=self.console) as progress:
            tasks = [progress.add_task(job.name, total=job.iterations, state="") for job in self.jobs]
            while waiting or self.running:
                for index in list(waiting):
                    if len(self.running) < self.at_once:
                        self._start(index)
                        if index in self.running:
                            waiting.remove(index)
                time.sleep(0.5)
                for index in (*self.running, *self.elsewhere):
                    done, state = self.jobs[index].progress()
                    progress.update(tasks[index], completed=done, state=state)
                for index, child in list(self.running.items()):
                    if child.poll() is not None:
                        del self.running[index]
                        if child.returncode or not self.jobs[index].done:
                            self._note_failure(self.jobs[index])
                if self.failed and not self.keep_going:
                    return
                if not self.console.is_terminal and time.monotonic() >= printed + PRINT_EVERY:
                    printed = time.monotonic()
                    self._print_progress(round(printed - began))

    def _print_progress(self, seconds: int) -> None:
        """A line for each run that has come further since its last one."""
        for index in (*self.running, *self.elsewhere):
            job = self.jobs[index]
            done, state = job.progress()
            line = f"{job.name}: {done}/{job.iterations} {state}".rstrip()
            if self.printed.get(index) != line:
                self.printed[index] = line
                self.console.print(f"{timedelta(seconds=seconds)} {line}", markup=False, soft_wrap=True)

    def _note_failure(self, job: Job) -> None:
        lines = job.log.read_text(errors="replace").strip().splitlines()
        errors = [
            i for i, line in enumerate(lines) if line.startswith("drloss: error: ")
        ]  # an error has one or two lines
        last = lines[errors[-1] :] if errors else lines[-1:]
        self.failed.append(f"the {job.name} run failed ({job.log}): {' '.join(last)}")

    def _start(self, index: int) -> None:
        """Start a run on the device with the fewest runs. Does nothing while another process trains it."""
        job = self.jobs[index]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        used = [self.device_of[i] for i in self.running]
        device = min(self.devices, key=used.count)
        command = [sys.executable, "-m", "drloss", "train", *job.options, "--out", str(job.out), "--resume"]
        environ = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        with job.log.open("ab") as log:
            # The child inherits the lock, which therefore lasts as long as the run, even if this process is killed.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # other errors: the file system has no locks
                    if index not in self.elsewhere:
                        self.elsewhere.add(index)
                        self.console.print(
                            f"{job.name}: another process trains it; waiting for it", markup=False, soft_wrap=True
                        )
                    return
            self.elsewhere.discard(index)
            log.truncate(0)
            self.device_of[index] = device
            self.running[index] = subprocess.Popen(
                [*command, "--device", device], env=environ, stdout=log, stderr=subprocess.STDOUT
            )

    def stop(self) -> None:
        """Stop the runs that are still going; each writes a checkpoint before it ends."""
        for child in self.running.values():
            child.terminate()
        for child in self.running.values():
            child.wait()
