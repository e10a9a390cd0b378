"""What stops a run, or keeps it from starting, and what it leaves."""

import math
import re
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from drloss.errors import DataError, UserError
from drloss.training.checkpoints import load_checkpoint
from drloss.training.fit import Stopped, fit
from drloss.training.preparation import require_same_on_all_ranks
from drloss.training.run_folder import CHECKPOINTS, EVALUATIONS_FILE, METRICS_FILE, MODEL
from drloss.training.step import NonFiniteLoss, take_step
from small_training import ALONE, TINY, losses, with_boxes


def test_a_run_folder_is_not_overwritten(run):
    run()
    with pytest.raises(UserError, match="holds a run already"):
        run()


@pytest.mark.parametrize("name", [MODEL, METRICS_FILE, EVALUATIONS_FILE, CHECKPOINTS])
@pytest.mark.parametrize("resume", [False, True])
def test_files_that_are_no_runs_are_not_overwritten(run, tmp_path, name, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    (tmp_path / "run" / ".mine.part").write_text("mine, too")
    with pytest.raises(UserError, match=f"{name}.*name another folder"):
        run(resume=resume)
    assert (tmp_path / "run" / name).read_text() == "mine"
    assert (tmp_path / "run" / ".mine.part").read_text() == "mine, too"


def test_ranks_that_see_other_data_or_another_checkpoint_stop():
    def check(*everyone):
        require_same_on_all_ranks(SimpleNamespace(gather=lambda own: [own, *everyone]), "abc", 8)

    same = {"data": "abc", "checkpoint": "iteration 8"}
    check(same, same)
    with pytest.raises(UserError, match=r"rank 2 has another checkpoint than rank 0 \(iteration 4 and iteration 8\)"):
        check(same, {**same, "checkpoint": "iteration 4"})
    with pytest.raises(UserError, match=r"rank 1 has another data than rank 0"):
        check({**same, "data": "x"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("environment.json", r"environment\.json: cut off or altered: .*; remove it to go on without it"),
        (METRICS_FILE, r"metrics\.csv: cannot be read as UTF-8 text: .*; remove it to go on without it"),
    ],
)
def test_a_damaged_record_of_a_resumed_run_is_named(run, name, words):
    folder, _ = run(max_iters=2)
    (folder / MODEL).unlink()
    (folder / name).write_bytes(b'[{"\xff')
    with pytest.raises(UserError, match=words):
        run(resume=True, max_iters=2)
    (folder / name).unlink()
    run(resume=True, max_iters=2)


def test_a_folder_that_cannot_be_made_or_written_to_is_named(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    for name, words in (
        ("file/sub", "cannot be made a folder: Not a directory"),
        ("dangling", "cannot be made a folder: File exists"),
        ("/proc/nowhere", "cannot be made a folder"),
        ("locked", r"locked/\.lock: cannot be written: Is a directory"),
    ):
        with pytest.raises(UserError, match=words):
            run(name)
    folder, _ = run(max_iters=2)
    (folder / MODEL).unlink()
    shutil.rmtree(folder / "tensorboard")
    (folder / "tensorboard").write_text("mine")
    with pytest.raises(UserError, match="tensorboard: cannot be written: File exists"):
        run(resume=True, max_iters=2)


def test_a_split_without_a_box_trains_nothing(data, tmp_path):
    with pytest.raises(UserError, match=r"shapes.* train: no box in its 24 images: a detector needs objects"):
        fit(TINY, with_boxes(data[0], 0), None, tmp_path / "run", ALONE, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_non_finite_loss_stops_with_step_and_images_and_keeps_the_checkpoint(run, monkeypatch, tmp_path):
    from drloss.detector import objective

    calls = []

    def poisoned(*args):
        calls.append(1)
        return box_loss(*args) * (float("nan") if len(calls) == 4 else 1)

    box_loss = objective.box_loss
    monkeypatch.setattr(objective, "box_loss", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"iteration 4: .*rank 0, image ids \d+, \d+, \d+, \d+\).*00000002\.pt"):
        run()
    state, _ = load_checkpoint(tmp_path / "run" / CHECKPOINTS)
    assert state["iteration"] == 2
    assert all(v.isfinite().all() for v in state["model"].values())


@pytest.mark.slow
def test_a_non_finite_gradient_stops_before_the_step(run, monkeypatch, tmp_path):
    from drloss.detector import objective

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            calls.append(1)
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (math.inf if len(calls) == 4 else 1)

    calls = []
    box_loss = objective.box_loss
    monkeypatch.setattr(objective, "box_loss", lambda *args: Poison.apply(box_loss(*args)))
    with pytest.raises(NonFiniteLoss, match=r"iteration 4: the gradient is not finite"):
        run(checkpoint_every=1)
    state, _ = load_checkpoint(tmp_path / "run" / CHECKPOINTS)
    assert state["iteration"] == 3
    assert all(v.isfinite().all() for v in state["model"].values())


def test_a_bad_image_is_named_without_a_workers_traceback(data, tmp_path):
    def draw(index):
        raise DataError(f"image {index}.png: cannot be decoded")

    bad = replace(data[0], draw=draw)
    with pytest.raises(DataError) as raised:
        fit(replace(TINY, workers=2), bad, None, tmp_path / "run", ALONE, console=Console(quiet=True))
    assert re.fullmatch(r"image \d+\.png: cannot be decoded", str(raised.value))


def test_nothing_to_learn_from_is_refused(data, tmp_path):
    ignored = replace(data[0], ignore=np.ones(len(data[0].boxes), dtype=bool))
    with pytest.raises(UserError, match=r"no box in its 24 images but \d+ that are ignored"):
        fit(replace(TINY, keep_empty=False), ignored, None, tmp_path / "run", ALONE, console=Console(quiet=True))


@pytest.mark.slow
def test_ctrl_c_ends_with_a_checkpoint(run, monkeypatch, tmp_path):
    def interrupted(trainer, *args):
        if trainer.iteration == 2:
            signal.raise_signal(signal.SIGINT)
        return take_step(trainer, *args)

    monkeypatch.setattr("drloss.training.fit.take_step", interrupted)
    with pytest.raises(Stopped, match="iteration 3"):
        run()
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "run" / CHECKPOINTS)[0]["iteration"] == 3
    folder, _ = run(resume=True)
    assert losses(folder) == losses(run("whole")[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"micro_batch": 3}, "batch_size must be a multiple"),
        ({"precision": "fp16"}, "fp16 needs a CUDA device"),
        ({"norm": "frozen"}, "norm frozen needs weights"),
        ({"weights": "no/such/file.pth"}, r"weights no/such/file\.pth: no such file"),
    ],
)
def test_what_cannot_run_is_refused(run, settings, words):
    with pytest.raises(UserError, match=words):
        run(**settings)


def test_validation_must_have_the_same_classes(data, tmp_path):
    other = replace(data[1], class_names=("a", "b", "c", "d"))
    with pytest.raises(UserError, match="other classes"):
        fit(TINY, data[0], other, tmp_path / "run", ALONE, console=Console(quiet=True))
