"""Several processes compute what one does, agree in every step, and do not wait for a dead one."""

import itertools
import json
import re
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from drloss.detector.exported import DetectorFile, save_detector
from drloss.detector.model import RetinaNet
from drloss.training.checkpoints import load_checkpoint
from drloss.training.config import override
from drloss.training.log import read_scalars
from drloss.training.presets import PRESETS
from drloss.training.run_folder import CHECKPOINTS, EVALUATIONS_FILE, METRICS_FILE, MODEL
from faults import at_step, constant, fault, nan_at_step, start, start_ranks, tiny_run, wait_until
from ranked import evaluate_splits, in_ranks, train_patterns
from small_training import rows

LONG = 600
"""Seconds; long enough for a busy machine."""


def what_is_left(folder):
    return (folder / MODEL).read_bytes(), rows(folder / METRICS_FILE), rows(folder / EVALUATIONS_FILE)


def said_by_all(children):
    return "\n".join(child.said for child in children)


def finish(children):
    for child in children:
        assert child.wait(LONG) == 0, said_by_all(children)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of uninterrupted runs, by number of ranks."""
    left = {}

    def run(size):
        if size not in left:
            folder = tmp_path_factory.mktemp("whole")
            finish(start_ranks(tiny_run(folder / "run", batch_size=6), folder / "log", size))
            left[size] = what_is_left(folder / "run")
        return left[size]

    return run


# ---------------------------------------------------------------------- the same numbers


@pytest.mark.soak
@pytest.mark.slow
def test_two_and_four_ranks_learn_what_one_learns(tmp_path, figure):
    # SGD: AdamW divides each gradient by its own size, and the last bit of one that is nearly 0 becomes a step.
    settings = {"batch_size": 4, "micro_batch": 1, "max_iters": 20, "checkpoint_every": 1000}
    settings |= {"optimizer": "sgd", "lr": 0.005, "reference_batch": 4}
    runs = [start_ranks(tiny_run(tmp_path / str(n), **settings), tmp_path / f"log{n}", n) for n in (2, 4)]
    finish([start(tiny_run(tmp_path / "1", **settings), tmp_path / "log"), *itertools.chain(*runs)])
    weights = {n: load_file(tmp_path / str(n) / MODEL) for n in (1, 2, 4)}
    losses = {n: np.array(read_scalars(tmp_path / str(n) / METRICS_FILE)["loss"][1]) for n in weights}
    assert len(losses[1]) == 20
    differences = {}
    for size in (2, 4):
        relative = [(weights[size][n] - t).norm() / t.norm() for n, t in weights[1].items() if t.norm() > 0]
        differences[size] = max(*map(float, relative), float(np.max(np.abs(losses[size] / losses[1] - 1))))
    figure("T23", "; ".join(f"{n} ranks differ from 1 by {d:.1e} after 20 steps" for n, d in differences.items()))
    assert max(differences.values()) <= 1e-6


@pytest.fixture
def detector(tmp_path):
    """A detector that finds something everywhere."""
    torch.manual_seed(0)
    config = override(
        PRESETS["cpu"], {"short_side": 32, "fpn_channels": 16, "head_channels": 16, "norm": "group"}
    ).detector
    about = DetectorFile(config, ("disc", "square", "triangle", "star"), (1, 2, 3, 4), "dr")
    path = tmp_path / "detector.safetensors"
    save_detector(path, RetinaNet(config, 4, prior_probability=0.5).state_dict(), about)
    return path


@pytest.mark.soak
@pytest.mark.slow
def test_evaluation_on_any_number_of_ranks_is_that_of_one(detector, tmp_path, soak, figure):
    worlds, sizes = ((1, 2, 3, 4), list(range(1, 18))) if soak else ((1, 3), [1, 2, 5])
    for size in worlds:
        in_ranks(size, evaluate_splits, tmp_path, detector, sizes)
    for size, images, name in itertools.product(worlds[1:], sizes, ("results.json", "metrics.json")):
        expected = (tmp_path / "1" / str(images) / name).read_bytes()
        assert len(expected) > 1000
        assert (tmp_path / str(size) / str(images) / name).read_bytes() == expected, (size, images, name)
    figure("T21", f"bit-equal to 1 rank on up to {worlds[-1]} ranks with {len(sizes)} sizes up to {sizes[-1]} images")


@pytest.mark.soak
@pytest.mark.slow
def test_images_with_nothing_to_learn_on_some_ranks_hang_nobody(tmp_path, soak, figure):
    kinds = ("objects", "none", "ignored")
    pairs = [p for p in itertools.product(kinds, repeat=2) if p != ("objects", "objects")]
    triples = [p for p in itertools.product(kinds, repeat=3) if len(set(p)) > 1]
    chosen = {2: pairs, 3: triples[: 20 - len(pairs)]} if soak else {2: [pairs[0], pairs[2], pairs[3], pairs[5]]}
    settings = {"short_side": 32, "fpn_channels": 16, "head_channels": 16, "workers": 0, "log_every": 1}
    settings |= {"eval_every": 0, "checkpoint_every": 1000, "scale_lr": False, "max_iters": 3, "micro_batch": 2}
    seen = 0
    for size, patterns in chosen.items():
        folder = tmp_path / str(size)
        folder.mkdir()
        config = override(PRESETS["cpu"], {**settings, "batch_size": 4 * size})
        for ranks in (size, 1):
            in_ranks(ranks, train_patterns, folder, config, patterns)
        for number, pattern in enumerate(patterns):
            many, one = (json.loads((folder / f"{number}.{ranks}.json").read_text()) for ranks in (size, 1))
            assert len(set(many["digests"])) == 1, pattern  # no rank has drifted from the others
            assert many["losses"] == pytest.approx(one["losses"], rel=1e-6), pattern
            assert len(many["losses"]) == 3
            seen += 1
    figure("T24", f"{seen} of {seen} patterns of images without objects on some ranks train, without drift")


# ---------------------------------------------------------------------- the same end


@pytest.mark.slow
@pytest.mark.soak
def test_a_nan_on_one_rank_stops_all_in_the_same_step(tmp_path, soak, figure):
    cases = [(2, 1, 4), (2, 0, 1), (2, 0, 8), (3, 2, 5), (3, 0, 6)] if soak else [(2, 1, 4)]
    for size, rank, step in cases:
        name = f"{size}{rank}{step}"
        folder, poison = tmp_path / name, fault(nan_at_step, step=step, rank=rank)
        children = start_ranks(tiny_run(folder, batch_size=6), tmp_path / f"log{name}", size, poison)
        codes = [child.wait(LONG) for child in children]
        said = said_by_all(children)
        assert 0 not in codes, said
        (line,) = [line for line in said.splitlines() if "error" in line.lower()]
        assert f"iteration {step}: the loss is not finite (rank {rank}, image ids " in line
        ids = line.split("image ids ")[1].split(")")[0].split(", ")
        assert len(set(ids)) == 6 // size
        assert len(rows(folder / METRICS_FILE) if step > 1 else []) == step - 1
        if step <= 2:
            assert "there is no checkpoint yet" in line
        else:
            state, damaged = load_checkpoint(folder / CHECKPOINTS)
            assert not damaged
            assert state["iteration"] == 2 * ((step - 1) // 2)
            assert all(t.isfinite().all() for t in state["model"].values())
    figure(
        "T14", f"{len(cases)} of {len(cases)} NaN on one rank stop all ranks in that step, with rank and image ids"
    )


DEATHS = {
    "SIGKILL": r"rank {} has ended without a word in iteration 5 ",
    "raise": r"rank {}, iteration 5 ",
    "hang": r"rank {} stands still for \d+ s in iteration 5 ",
    "SIGSTOP": r"rank {} has said nothing for \d+ s in iteration 5 ",
}


@pytest.mark.soak
@pytest.mark.slow
def test_no_rank_waits_for_one_that_is_dead(whole, tmp_path, soak, figure):
    cases = list(itertools.product(DEATHS, (2, 3))) if soak else [("SIGKILL", 2), ("hang", 2)]
    seconds = dict.fromkeys(DEATHS, 0.0)
    for do, size in cases:
        name, dead = f"{do}{size}", size - 1
        shorter = [] if soak else [fault(constant, module="drloss.distributed.watchdog", name="PATIENCE", value=5)]
        arguments = tiny_run(tmp_path / name, batch_size=6)
        log = tmp_path / f"{name}.log"
        children = start_ranks(arguments, log, size, fault(at_step, step=5, do=do, rank=dead), *shorter)
        wait_until(lambda c=children: "4/8 loss" in c[0].said, seconds=LONG, child=children[0])
        began = time.monotonic()
        codes = [child.wait(LONG) for child in children[:dead]]
        seconds[do] = max(seconds[do], time.monotonic() - began)
        children[dead].send(signal.SIGKILL)  # as torchrun does, once another has ended
        children[dead].wait(LONG)
        said = said_by_all(children)
        assert 0 not in codes, said
        assert len(re.findall(DEATHS[do].format(dead), said)) == 1, said
        finish(start_ranks([*arguments, "--resume"], log, size))
        assert "resuming after iteration 4" in said_by_all(children)
        assert what_is_left(tmp_path / name) == whole(size), name
    assert max(seconds.values()) < 60
    figure("T25", "survivors end after " + ", ".join(f"{s:.0f} s ({do})" for do, s in seconds.items() if s))


@pytest.mark.soak
@pytest.mark.slow
def test_a_signal_to_one_rank_or_all_ends_all_at_one_step(whole, tmp_path, soak, figure):
    moments = [(1, 3), (None, 2), (0, 5), (2, 4), (None, 6)] if soak else [(1, 3)]
    size = 3 if soak else 2
    for rank, step in moments:
        name = f"{rank}{step}"
        arguments, log = tiny_run(tmp_path / name, batch_size=6), tmp_path / f"{name}.log"
        finish(start_ranks(arguments, log, size, fault(at_step, step=step, do="SIGTERM", rank=rank)))
        state, _ = load_checkpoint(tmp_path / name / CHECKPOINTS)
        assert state["iteration"] == step
        finish(start_ranks([*arguments, "--resume"], log, size))
        assert what_is_left(tmp_path / name) == whole(size), name
    figure("T26", f"{len(moments)} of {len(moments)} signals to one of {size} ranks or all: resumed bit-identical")


def test_an_error_of_all_ranks_is_told_once(tmp_path):
    children = start_ranks(tiny_run(tmp_path / "run", batch_size=3), tmp_path / "log", 2)
    assert all(child.wait(LONG) != 0 for child in children)
    assert said_by_all(children).count("batch_size must be a multiple of 2 processes") == 1
