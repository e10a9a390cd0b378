import io
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from drloss.data.formats import writing
from drloss.data.formats.opening import open_data
from drloss.data.order import TrainingOrder
from drloss.data.transforms import Augmentation
from drloss.errors import DataError, UserError
from drloss.training.checkpoints import load_checkpoint, save_checkpoint
from drloss.training.config import from_json, override, to_json
from drloss.training.fit import fit, own_batches
from drloss.training.log import read_scalars
from drloss.training.preparation import new_detector, prepare
from drloss.training.resume import FREE_ON_RESUME, HOW_IT_RUNS, changed_settings
from drloss.training.run_folder import CHECKPOINTS, EVALUATIONS_FILE, METRICS_FILE, MODEL
from drloss.training.signals import StopRequest
from drloss.training.step import forward
from drloss.training.trained import load_run
from small_training import ALONE, TINY, losses, with_boxes


def test_a_run_leaves_everything_behind(run):
    folder, said = run(val=True)
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "environment.json",
        ".lock",
        METRICS_FILE,
        EVALUATIONS_FILE,
        "tensorboard",
        CHECKPOINTS,
        "model.safetensors",
        "best.safetensors",
    }
    scalars = read_scalars(folder / METRICS_FILE)
    assert scalars["loss"][0] == [1, 2, 3, 4, 5, 6]
    assert {"loss_cls", "loss_box", "expected_pos", "expected_neg", "margin", "effective_neg", "lr"} <= set(scalars)
    assert np.allclose(np.add(scalars["loss_cls"][1], scalars["loss_box"][1]), scalars["loss"][1], atol=1e-6)
    assert np.allclose(
        np.subtract(scalars["expected_pos"][1], scalars["expected_neg"][1]), scalars["margin"][1], atol=1e-6
    )
    (record,) = json.loads((folder / "environment.json").read_text())
    assert {"started", "command", "commit", "versions", "device", "data"} <= set(record)
    assert from_json(json.loads((folder / "config.json").read_text()), "config.json").max_iters == 6
    assert list(folder.glob("tensorboard/events*"))
    assert "24 images" in said
    model, about = load_run(folder)
    assert about.class_names == ("disc", "square", "triangle", "star")
    assert not model.training


def test_focal_and_dr_start_from_the_same_weights_but_for_the_bias(run):
    states = [load_run(run(name, loss=name, max_iters=1, lr=1e-12)[0])[0].state_dict() for name in ("dr", "focal")]
    different = [k for k in states[0] if not torch.allclose(states[0][k], states[1][k], atol=1e-9)]
    assert different == ["cls_head.predict.bias"]


def test_a_run_is_the_same_twice_and_on_workers(run):
    one, two, three = run("one")[0], run("two")[0], run("three", workers=2)[0]
    assert losses(one) == losses(two) == losses(three)


@pytest.mark.slow
def test_an_interrupted_run_resumes_where_it_was(run):
    whole, _ = run("whole")
    part, _ = run("part", max_iters=6)
    for path in (part / CHECKPOINTS).glob("*6.pt"):  # as if it had been killed after iteration 4's checkpoint
        path.unlink()
    part, said = run("part", resume=True)
    assert "resuming after iteration 4" in said
    assert losses(part) == losses(whole)
    for key, value in load_run(whole)[0].state_dict().items():
        assert torch.equal(load_run(part)[0].state_dict()[key], value), key


def test_the_detector_of_a_run_that_has_not_ended_is_said_to_be_that(run):
    folder, _ = run(max_iters=2, checkpoint_every=1)
    (folder / MODEL).unlink()
    (folder / CHECKPOINTS / "iteration_00000002.pt").unlink()
    with pytest.warns(UserWarning, match="the run has not ended; this is its detector after 1 of 2 iterations"):
        assert load_run(folder)[1].iteration == 1


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_resumes_to_nothing(run):
    folder, _ = run(max_iters=2)
    before = contents(folder)
    _, said = run(resume=True, max_iters=2)
    assert "the run has ended already, with its 2 iterations: nothing is left to do" in said
    assert contents(folder) == before
    (folder / MODEL).unlink()  # as if it had been killed before the last write
    run(resume=True, max_iters=2)
    assert contents(folder)[folder / MODEL] == before[folder / MODEL]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_iters": 1}, "has done 2 iterations, and --max-iters is 1: there is none left; give a larger"),
        ({"max_iters": 2, "lr": 0.1}, r"has ended after 2 iterations, and lr was 0\.002 and is now 0\.1: that would"),
    ],
)
def test_a_run_is_not_forced_to_become_another_one_without_a_step(run, settings, words):
    folder, _ = run(max_iters=2)
    before = contents(folder)
    with pytest.raises(UserError, match=words):
        run(resume=True, force=True, **settings)
    assert contents(folder) == before
    if settings["max_iters"] == 1:
        (folder / MODEL).unlink()  # one that was stopped
        with pytest.raises(UserError, match=words):
            run(resume=True, force=True, **settings)


def test_a_threshold_of_a_finished_run_may_be_set_anew(run):
    folder, _ = run(max_iters=2)
    run(resume=True, max_iters=2, score_threshold=0.3)
    assert load_run(folder)[1].detector.score_threshold == 0.3


def test_resume_refuses_other_settings_and_other_data(run, data, tmp_path):
    run()
    with pytest.raises(UserError, match=r"lr was 0\.002 and is now 0\.1"):
        run(resume=True, lr=0.1)
    changed = replace(data[0], boxes=data[0].boxes + 0.5)
    with pytest.raises(UserError, match="the data have changed"):
        fit(TINY, changed, None, tmp_path / "run", ALONE, resume=True, console=Console(quiet=True))
    with pytest.raises(UserError, match="the data have changed"):  # there was no validation split
        fit(TINY, data[0], data[1], tmp_path / "run", ALONE, resume=True, console=Console(quiet=True))


def test_resume_without_a_checkpoint_starts(run):
    folder, said = run(resume=True)
    assert "no checkpoint" in said
    # A run that was killed before its first checkpoint leaves this, and begins anew.
    shutil.rmtree(folder / CHECKPOINTS)
    (folder / MODEL).unlink()
    assert "no checkpoint" in run(resume=True)[1]
    assert read_scalars(folder / METRICS_FILE)["loss"][0] == [1, 2, 3, 4, 5, 6]


def test_a_copy_of_a_checkpoint_under_another_name_is_neither_used_nor_removed(run):
    folder, _ = run(max_iters=4)
    copies = [folder / CHECKPOINTS / f"iteration_{name}.pt" for name in ("00000004_backup", "best", "2", "000000009")]
    for copy in copies:
        copy.write_bytes(b"mine")
    (folder / MODEL).unlink()
    _, said = run(resume=True, max_iters=4)
    assert "resuming after iteration 4" in said
    assert "damaged" not in said
    save_checkpoint(folder / CHECKPOINTS, 5, {})
    save_checkpoint(folder / CHECKPOINTS, 100_000_000, {})
    assert load_checkpoint(folder / CHECKPOINTS) == ({}, [])
    kept = {f"iteration_{name}.pt" for name in ("00000005", "100000000")}
    assert {p.name for p in (folder / CHECKPOINTS).iterdir()} == kept | {copy.name for copy in copies}


def test_the_weights_a_run_began_with_need_not_be_there_any_more(run, tmp_path):
    first, _ = run("first", max_iters=1)
    weights = tmp_path / "weights.safetensors"
    shutil.copy(first / MODEL, weights)
    run(max_iters=2, weights=str(weights))
    weights.unlink()
    _, said = run(resume=True, force=True, max_iters=3, weights=str(weights))
    assert "resuming after iteration 2" in said


def test_what_changes_the_last_bits_is_said_on_resume(run, monkeypatch):
    folder, _ = run(max_iters=2, micro_batch=4)
    (folder / MODEL).unlink()  # or there is nothing left to do
    _, said = run(resume=True, max_iters=2, micro_batch=4)
    assert "warning" not in said
    (folder / MODEL).unlink()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    _, said = run(resume=True, max_iters=2, micro_batch=2)
    assert "warning: micro_batch was 4 and is now 2; sums are taken in another order" in said
    assert "warning: the number of threads was 1 and is now 3; sums are taken in another order" in said


def test_an_image_that_cannot_be_read_costs_no_step(run, data, tmp_path):
    bad = next(itertools.islice(_order(data[0]).batches(), 2, None))[1].index  # of the third step

    def draw(index):
        if index == bad:
            raise DataError(f"image {index}.png: cannot be decoded")
        return data[0].load_image(index)

    settings = {"checkpoint_every": 100, "flip": 0.0}
    config, damaged = override(TINY, settings), replace(data[0], draw=draw)
    with pytest.raises(DataError) as raised:
        fit(config, damaged, None, tmp_path / "run", ALONE, console=Console(quiet=True))
    assert any("the run is saved after iteration 2" in note for note in raised.value.__notes__)
    assert any("--resume --force --skip-bad leaves it out" in note for note in raised.value.__notes__)
    folder, said = run(resume=True, **settings)
    assert "resuming after iteration 2" in said
    assert losses(folder) == losses(run("whole", **settings)[0])


def _order(annotations):
    augmentation = Augmentation(short_sides=(64, 64), max_side=TINY.detector.max_side, flip=0.0)
    return TrainingOrder(annotations, augmentation, TINY.batch_size, TINY.seed)


def test_accumulation_and_batch_give_the_same_losses(run):
    settings = {"optimizer": "sgd", "lr": 0.01}
    whole, parts = run("whole", **settings)[0], run("parts", micro_batch=2, **settings)[0]
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize("loss", ["focal", "ce", "dr:neg_lambda=0.05", "dr+", "dr:scope=per_class"])
def test_every_loss_trains(run, loss):
    folder, _ = run(loss=loss, max_iters=2)
    assert np.isfinite(losses(folder)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        *(pytest.param(s, marks=pytest.mark.slow) for s in ({"precision": "bf16"}, {"channels_last": True})),
    ],
)
def test_other_modes_train(run, settings):
    folder, _ = run(max_iters=3, **settings)
    assert losses(folder) == pytest.approx(losses(run("plain", max_iters=3)[0]), rel=0.5)


def test_steps_without_any_object_train_and_show_no_score_of_positives(data, tmp_path):
    console = Console(width=200, file=io.StringIO())
    fit(TINY, with_boxes(data[0], 1), None, tmp_path / "run", ALONE, console=console)
    scalars, said = read_scalars(tmp_path / "run" / METRICS_FILE), console.file.getvalue()
    assert np.isfinite(scalars["loss"][1]).all()
    some = [i for i, count in zip(*scalars["positives"], strict=True) if count > 0]
    assert len(some) == 1  # 6 steps of 4 images are one epoch
    assert scalars["expected_pos"][0] == scalars["effective_pos"][0] == scalars["margin"][0] == some
    assert scalars["expected_pos"][1][0] < 0.9  # three images without positives, for which it is 1, do not count
    assert said.count("P+ - P-") == 5
    assert said.count("P+ 0.") == 1


def test_a_validation_split_without_a_box_has_no_ap_and_that_is_said(data, tmp_path):
    console = Console(width=200, file=io.StringIO())
    fit(override(TINY, {"max_iters": 1}), data[0], with_boxes(data[1], 0), tmp_path / "run", ALONE, console=console)
    said = " ".join(console.file.getvalue().split())
    assert said.count("AP is undefined") == 2  # before the first step, and at the evaluation
    assert "nan" not in said
    assert "AP –, AP50 –" in said


def test_what_the_preset_reaches_is_said_on_its_data_alone(run, data, tmp_path):
    assert "AP50 of 50 or more on shapes val" in run(max_iters=1)[1]
    console = Console(width=200, file=io.StringIO())
    writing.write_coco(data[0], tmp_path / "coco", "train")
    other, _ = open_data(str(tmp_path / "coco")).read("train")
    fit(override(TINY, {"max_iters": 1}), other, None, tmp_path / "other", ALONE, console=console)
    assert "AP50" not in console.file.getvalue()


@pytest.mark.slow
def test_what_does_not_change_the_learning_may_change_on_resume(run):
    whole = losses(run("whole")[0])
    part, _ = run("part")
    for path in (part / CHECKPOINTS).glob("*6.pt"):
        path.unlink()
    run("part", resume=True, micro_batch=2, checkpoint_every=100, score_threshold=0.3)
    assert losses(part) == pytest.approx(whole, rel=1e-2)


def test_how_many_images_a_pooled_loss_takes_at_a_time_decides_what_is_learnt():
    for loss, decides in (
        ("dr", False),
        ("dr:scope=pooled", True),
        ("dr:scope=pooled_per_class", True),
        ("focal:scope=pooled", True),
    ):
        two, four = (to_json(replace(TINY, loss=loss, micro_batch=n)) for n in (2, 4))
        for free in (HOW_IT_RUNS, FREE_ON_RESUME):
            assert changed_settings(two, four, free) == ({"micro_batch": (2, 4)} if decides else {})


COMMAND = [
    *("train", "--preset", "cpu", "--workers", "0", "--log-every", "1", "--eval-every", "0", "--device", "cpu"),
    *("--data", "shapes:train=24,val=6", "--batch-size", "8", "--micro-batch", "4", "--no-scale-lr"),
]


def drloss(*arguments, launcher=("-m", "drloss")):
    return subprocess.Popen(
        [sys.executable, *launcher, *COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_of_torchrun_equal_one_to_the_bit(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "drloss")
    settings = ("--max-iters", "8", "--checkpoint-every", "1000")
    runs = [
        drloss("--out", str(tmp_path / "one"), *settings),
        drloss("--out", str(tmp_path / "two"), *settings, launcher=torchrun),
    ]
    for process in runs:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    # One process takes the batch in the same two halves: the sums are the same, to the bit.
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert (tmp_path / "two" / MODEL).read_bytes() == (tmp_path / "one" / MODEL).read_bytes()
    # Evaluation, too: every image once, on both.
    one, two = (read_scalars(tmp_path / name / EVALUATIONS_FILE) for name in ("one", "two"))
    assert one.keys() == two.keys()


def test_an_image_is_trained_on_as_it_is_alone(tmp_path, data):
    sizes = np.array([(64, 64), (24, 64), (64, 30), (40, 64)] * 6, dtype=np.int32)

    def draw(index):
        height, width = sizes[index]
        return data[0].draw(index)[:, :height, :width].contiguous()

    boxes = np.minimum(data[0].boxes, 23)
    mixed = replace(data[0], sizes=sizes, draw=draw, boxes=boxes)
    config = override(TINY, {"max_side": 128, "train_short_sides": (24, 64), "batch_size": 8, "micro_batch": 8})
    out = tmp_path / "run"
    how = {"console": Console(quiet=True), "stop": StopRequest(), "force": False, "records": ({}, None)}
    new = new_detector(config, mixed, out, ALONE, resume=False)
    trainer = prepare(new, mixed, None, out, ALONE, resume=False, **how)
    with own_batches(trainer) as batches:
        batch = next(batches)
    assert len(set(batch.sizes)) > 2
    _, together = forward(trainer, batch)
    alone = [
        trainer.objective(trainer.model(image[None, :, :height, :width]), batch.objects[i : i + 1]).total
        for i, (image, (height, width)) in enumerate(zip(batch.images, batch.sizes, strict=True))
    ]
    torch.testing.assert_close(together.total, torch.stack(alone).mean(), rtol=1e-5, atol=0)
