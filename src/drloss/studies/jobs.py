"""Several training runs beside each other: each is a ``drloss train`` of its own, resumed where it was stopped."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
"""Seconds between the lines that say how far the runs are, where there is no terminal."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: what the terminal calls it.
        out: run folder; beside it, ``<out>.log`` has what the run prints.
        iterations: of the whole run.
        options: of ``drloss train``, but for ``--out``, ``--resume`` and ``--device``.
    """

    name: str
    out: Path
    iterations: int
    options: Sequence[str]

    @property
    def log(self) -> Path:
        """File of what the run prints."""
        return self.out.with_name(f"{self.out.name}.log")

    @property
    def done(self) -> bool:
        """Whether the run has come to its end; one that was asked to stop has not, and exits with 0 as well."""
        return (self.out / MODEL).is_file()

    def progress(self) -> tuple[int, str]:
        """Iterations that the run has logged, and its last loss and AP50 in words."""
        curves = read_scalars(self.out / METRICS_FILE) | read_scalars(self.out / EVALUATIONS_FILE)
        if "loss" not in curves:
            return 0, ""
        ap50 = f", AP50 {curves['AP50'][1][-1]:.1f}" if "AP50" in curves else ""
        return int(curves["loss"][0][-1]), f"loss {curves['loss'][1][-1]:.3f}{ap50}"


def job_of(name: str, out: Path, config: Config, data: Sequence[str]) -> Job:
    """A job that trains a configuration, which is written to ``<out>.config.json`` beside its run folder.

    Args:
        name: what the terminal calls it.
        out: run folder.
        config: what to compute.
        data: the options of ``drloss train`` that name the data.
    """
    file = out.with_name(f"{out.name}.config.json")
    write_json(file, to_json(config))
    return Job(name, out, config.max_iters, [*data, "--config", str(file)])


def devices_for(device: torch.device) -> list[str]:
    """Where runs may go at the same time: every CUDA device, or ``["cpu"]``.

    Args:
        device: what the user asked for; ``cuda:N`` is that one alone.
    """
    if str(device) == "cuda":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [str(device)]


def train_jobs(
    jobs: Sequence[Job], device: torch.device, at_once: int, console: Console, *, keep_going: bool = False
) -> list[str]:
    """Train runs, ``at_once`` at a time; those that are done already cost a few seconds.

    A run that another process trains, such as one that a killed driver left behind, is waited for while the others go
    on, and then resumed.

    On a CPU the runs share the cores. Small convolutions keep two cores busier than four: side by side two runs take
    two thirds of the time that they take one after the other, and what else the machine does slows both alike.

    Args:
        jobs: the runs.
        device: what the user asked for.
        at_once: runs at a time.
        console: where to print.
        keep_going: whether a run that fails leaves the others to go on.
    Returns:
        What failed and why, a line for each run; without ``keep_going`` there is none.
    Raises:
        UserError: if a run fails, without ``keep_going``; the others are stopped, with a checkpoint each.
    """
    devices = devices_for(device)
    threads = max(1, torch.get_num_threads() // at_once)
    where = f"{threads} thread(s) each" if device.type == "cpu" else ", ".join(devices)
    console.print(f"training {len(jobs)} run(s), {min(at_once, len(jobs))} at a time, on {device.type} ({where})")
    farm = _Farm(jobs, devices, at_once, threads, keep_going, console)
    # Whoever stops this process stops its runs, each with a checkpoint.
    stops = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]  # as nohup has it
    handlers = {s: signal.signal(s, signal.default_int_handler) for s in stops}
    try:
        farm.run()
    finally:
        farm.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if farm.failed and not keep_going:
        raise UserError(farm.failed[0])
    return farm.failed


@dataclass
class _Farm:
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

    def run(self) -> None:
        """Until all have ended or, unless the others keep going, one has failed."""
        words = TextColumn("{task.description}"), TextColumn("{task.fields[state]}")
        times = TimeElapsedColumn(), TimeRemainingColumn()
        columns = (words[0], BarColumn(), MofNCompleteColumn(), words[1], *times)
        waiting = list(range(len(self.jobs)))
        printed = time.monotonic() - PRINT_EVERY
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
                    for index in (*self.running, *self.elsewhere):
                        done, state = self.jobs[index].progress()
                        self.console.print(f"{self.jobs[index].name}: {done}/{self.jobs[index].iterations} {state}")

    def _note_failure(self, job: Job) -> None:
        lines = job.log.read_text(errors="replace").strip().splitlines()
        errors = [i for i, line in enumerate(lines) if line.startswith("drloss: error: ")]  # of a line or two
        last = lines[errors[-1] :] if errors else lines[-1:]
        self.failed.append(f"the {job.name} run failed ({job.log}): {' '.join(last)}")

    def _start(self, index: int) -> None:
        """Start a run, on the device that has the fewest; nothing happens while another process trains it."""
        job = self.jobs[index]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        used = [self.device_of[i] for i in self.running]
        device = min(self.devices, key=used.count)
        command = [sys.executable, "-m", "drloss", "train", *job.options, "--out", str(job.out), "--resume"]
        environ = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        with job.log.open("ab") as log:
            # The child inherits the lock: it lasts as long as the run, even where this process is killed before.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else the disk knows no locks
                    if index not in self.elsewhere:
                        self.elsewhere.add(index)
                        self.console.print(f"{job.name}: another process trains it; waiting for it", markup=False)
                    return
            self.elsewhere.discard(index)
            log.truncate(0)
            self.device_of[index] = device
            self.running[index] = subprocess.Popen(
                [*command, "--device", device], env=environ, stdout=log, stderr=subprocess.STDOUT
            )

    def stop(self) -> None:
        """End what is still running; a run writes its checkpoint before it ends."""
        for child in self.running.values():
            child.terminate()
        for child in self.running.values():
            child.wait()
