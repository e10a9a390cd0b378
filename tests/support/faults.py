"""Faults on demand, for tests of what a run survives: kills, full and slow disks, NaN, lost workers, damaged files.

A run with faults is ``drloss train ...`` in a process of its own, which is forked from a server that has imported
everything: it starts in a fraction of a second and may be killed at will.

    child = start(tiny_run(out), tmp_path / "log", fault(at_step, step=3, do="SIGKILL"))
    assert child.wait() == -signal.SIGKILL

The faults are functions of this module, and of ``prediction_faults``, that patch the child before its command begins;
``rank`` confines one to a process of several. What they ``do`` is the name of a signal that the process sends itself,
``"raise"`` or ``"hang"``. Under torchrun, ``torchrun tests/support/faults.py FAULTS train ...`` has them too; FAULTS
is ``json.dumps([fault(...)])``.
"""

import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("drloss.training.fit", "drloss.training.presets", "drloss.data.formats.opening"),
        *("drloss.inference.evaluate", "drloss.inference.predict"),
    ]
)
_STORES = []
NEVER = 3600
"""Seconds that a process hangs; longer than any test."""


def tiny_run(out, *more, data="shapes:train=24,val=6,size=32", **settings):
    """Arguments of ``drloss train`` for a run of 8 steps on the CPU, which takes about two seconds.

    Args:
        out: run folder.
        more: further arguments, such as ``"--resume"``.
        data: what ``--data`` gets.
        settings: replace the run's, by name.
    """
    chosen = {
        **{"batch_size": 4, "short_side": 32, "fpn_channels": 16, "head_channels": 16, "max_iters": 8},
        **{"workers": 0, "log_every": 1, "eval_every": 0, "checkpoint_every": 2, "device": "cpu"},
        **settings,
    }
    options = [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))]
    return ["train", "--preset", "cpu", "--no-scale-lr", "--data", data, "--out", str(out), *options, *more]


# ------------------------------------------------------------------------ processes


@dataclass(frozen=True)
class Child:
    """A process that runs ``drloss``.

    Attributes:
        process: the process; its ``pid`` takes signals.
        log: file of what it prints.
    """

    process: multiprocessing.process.BaseProcess
    log: Path

    def wait(self, seconds=120):
        """Exit code, or minus the number of the killing signal. If it is late, kill it and raise TimeoutError."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"still running after {seconds} s; it printed:\n{self.said}")
        return self.process.exitcode

    def send(self, number, group=False):
        """Send it a signal, with ``group`` to its workers, too, as a terminal does; no effect if it has ended."""
        if self.process.is_alive():
            (os.killpg if group else os.kill)(self.process.pid, number)

    @property
    def said(self):
        """What it has printed so far, to standard output and standard error."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def fault(function, **settings):
    """A fault with its settings, in the form that :func:`start` takes and JSON can store."""
    inspect.signature(function).bind(**settings)
    return [f"{function.__module__}.{function.__name__}", settings]


def start(arguments, log, *faults):
    """Run ``drloss`` with ``arguments`` and ``faults`` in a process of its own that prints to the file ``log``."""
    return _start(log, {}, _main, list(faults), list(map(str, arguments)))


class Subprocess:
    """Replaces the module ``subprocess`` for commands ``python -m drloss``: a forked process starts sooner."""

    STDOUT = subprocess.STDOUT

    class Popen:
        def __init__(self, command, *, env, stdout, stderr):
            assert command[:3] == [sys.executable, "-m", "drloss"]
            assert stderr == subprocess.STDOUT
            self.child = start(command[3:], Path(stdout.name))

        @property
        def returncode(self):
            return self.child.process.exitcode

        def poll(self):
            return self.returncode

        def terminate(self):
            self.child.send(signal.SIGTERM)

        def wait(self):
            return self.child.wait()


def start_ranks(arguments, log, size, *faults):
    """The same in ``size`` processes that form one group; the log of rank r is ``log`` with ``.r`` at the end."""
    return rank_processes(log, size, _main, list(faults), list(map(str, arguments)))


def rank_processes(log, size, function, *arguments):
    """``function(*arguments)`` in ``size`` processes that form one group, as torchrun starts them."""
    from torch.distributed import TCPStore

    # This process hosts the store of the group, as torchrun does: it lives longer than the processes.
    _STORES.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    meet = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_STORES[-1].port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    environs = [{**meet, "WORLD_SIZE": str(size), "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]
    return [_start(log.with_name(f"{log.name}.{e['RANK']}"), e, function, *arguments) for e in environs]


def _start(log, environ, function, *arguments):
    process = _SERVER.Process(target=_child, args=(str(log), environ, function, *arguments))
    process.start()
    return Child(process, log)


def _child(log, environ, function, *arguments):
    os.setpgid(0, 0)  # a group of its own, whose number is the process's
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
    multiprocessing.set_start_method("fork", force=True)  # for its workers, as in a process that was not forked
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False, buffering=1, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, encoding="utf-8")  # noqa: SIM115
    os.environ.update(environ)
    sys.exit(function(*arguments))


def _main(faults, arguments):
    import torch

    from drloss.cli import main

    torch.set_num_threads(1)
    for name, settings in faults:
        module, _, function = name.rpartition(".")
        getattr(importlib.import_module(module), function)(**settings)
    return main(arguments)


def wait_until(condition, seconds=60, child=None):
    """Return once ``condition()`` holds. AssertionError after ``seconds``, or if ``child`` ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert child is None or child.process.is_alive(), f"ended early; it printed:\n{child.said}"
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.005)


# ------------------------------------------------------------------------ faults, in the child


STRUCK = "the fault strikes"
"""What a child prints when a fault strikes."""


def act(do):
    os.write(2, f"{STRUCK}\n".encode())
    if do == "raise":
        raise RuntimeError("a planted fault")
    if do == "hang":
        time.sleep(NEVER)
    os.kill(os.getpid(), getattr(signal, do))


def _mine(rank):
    return rank is None or rank == int(os.environ.get("RANK", "0"))


def at_step(step, do, rank=None):
    """``do`` at the beginning of step ``step`` (1 is the first of a run, resumed or not)."""
    from drloss.training import fit

    original = fit.take_step

    def patched(trainer, *args, **kwargs):
        if trainer.iteration + 1 == step:
            act(do)
        return original(trainer, *args, **kwargs)

    if _mine(rank):
        fit.take_step = patched


def nan_at_step(step, rank=None):
    """The loss of step ``step`` is NaN."""
    from drloss.training import step as steps

    original = steps.forward

    def patched(trainer, batch):
        outputs, terms = original(trainer, batch)
        return outputs, replace(terms, box=terms.box * (float("nan") if trainer.iteration + 1 == step else 1))

    if _mine(rank):
        steps.forward = patched


def in_save(save, call, number, do, rank=None):
    """``do`` in the process's save number ``save``, before its ``number``-th ``call``.

    ``call`` is ``"write"`` (of the checkpoint's bytes), ``"fsync"``, ``"replace"`` or ``"unlink"``; counts from 1.
    """
    seen = 0

    def before(name):
        nonlocal seen
        if name == call:
            seen += 1
            if seen == number:
                act(do)

    if _mine(rank):
        _watch_saves(save, before)


def slow_disk(save, seconds, rank=None):
    """Every write, fsync, rename and removal of the save number ``save`` takes ``seconds`` longer."""
    if _mine(rank):
        _watch_saves(save, lambda name: time.sleep(seconds))


def full_disk(save, room, rank=None):
    """From the save number ``save`` on, no file may grow beyond ``room`` bytes."""
    if _mine(rank):
        _at_save(save, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY)))


def at_image(index, do, rank=None):
    """``do`` when image ``index`` of a split is read; in a data-loading process if there are any."""
    from drloss.data.annotations import Annotations

    original = Annotations.load_image

    def patched(self, wanted, *more):
        if wanted == index:
            act(do)
        return original(self, wanted, *more)

    if _mine(rank):
        Annotations.load_image = patched


def before(module, name, do):
    """``do`` whenever a module's function is called."""
    loaded = importlib.import_module(module)
    original = getattr(loaded, name)

    def patched(*args, **kwargs):
        act(do)
        return original(*args, **kwargs)

    setattr(loaded, name, patched)


def constant(module, name, value):
    """Another value for a module's constant, such as a timeout."""
    loaded = importlib.import_module(module)
    assert hasattr(loaded, name), f"{module} has no {name}"
    setattr(loaded, name, value)


def ignored(name):
    """A signal is ignored from the start, as nohup has SIGHUP."""
    signal.signal(getattr(signal, name), signal.SIG_IGN)


def on_terminal(device):
    """Print to an existing terminal."""
    terminal = os.open(device, os.O_RDWR | os.O_NOCTTY)
    for number in (1, 2):
        os.dup2(terminal, number)
    os.close(terminal)


def _at_save(save, begin, end=lambda: None):
    from drloss.training import state

    original, saves = state.save_checkpoint, itertools.count(1)

    def patched(*args, **kwargs):
        chosen = next(saves) == save
        if chosen:
            begin()
        try:
            return original(*args, **kwargs)
        finally:
            if chosen:
                end()

    state.save_checkpoint = patched


def _watch_saves(save, before):
    """In one save, call ``before`` with the name of each call that changes the disk."""
    import torch

    inside = False

    def set_inside(value):
        nonlocal inside
        inside = value

    class Watched:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            before("write")
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    torch_save = torch.save
    torch.save = lambda value, file: torch_save(value, Watched(file) if inside else file)

    def watched(name, original):
        def patched(*args, **kwargs):
            if inside:
                before(name)
            return original(*args, **kwargs)

        return patched

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, watched(name, getattr(os, name)))
    _at_save(save, lambda: set_inside(True), lambda: set_inside(False))


# ------------------------------------------------------------------------ damaged files


def truncated(content, count, seed=0):
    """``count`` truncations of ``content``, each with a description; the shortest and the longest are included."""
    middle = np.random.default_rng(seed).choice(np.arange(1, len(content) - 1), count - 2, replace=False).tolist()
    for length in (0, *middle, len(content) - 1):
        yield f"cut to {length} of {len(content)} bytes", content[:length]


def flipped(content, count, seed=0):
    """``count`` copies of ``content`` with one bit flipped, each with a description; first and last are included."""
    rng = np.random.default_rng(seed)
    bits = [0, 8 * len(content) - 1, *rng.integers(0, 8 * len(content), count - 2).tolist()]
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit % 8} of byte {bit // 8} of {len(content)}", bytes(damaged)


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1]), sys.argv[2:]))
