"""The moving average of the weights: what it is, who uses it, and that the training does not notice it."""

import pytest
import torch

from drloss.detector.model import RetinaNet
from drloss.errors import UserError
from drloss.evaluation.coco import evaluate
from drloss.evaluation.detecting import run_detector
from drloss.training import fit as fits
from drloss.training.average import WeightAverage
from drloss.training.checkpoints import load_checkpoint
from drloss.training.config import override
from drloss.training.log import read_scalars
from drloss.training.run_folder import BEST, CHECKPOINTS, EVALUATIONS_FILE, METRICS_FILE, MODEL
from drloss.training.schedule import state_size
from drloss.training.trained import load_run
from small_training import ALONE, TINY, rows


def detector_of(value):
    """A small detector, all of whose weights are ``value``."""
    model = RetinaNet(TINY.detector, 3, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def test_the_average_of_weights_that_jump_from_0_to_1_is_what_one_computes_by_hand():
    average, later = WeightAverage(detector_of(0.0), 0.5), detector_of(1.0)
    expected = [1 - 1 / 10, 1 - 1 / 10 * 2 / 11, 1 - 1 / 10 * 2 / 11 * 3 / 12]
    for value in expected:
        average.update(later)
        for name, parameter in average.model.named_parameters():
            assert torch.allclose(parameter, torch.tensor(value)), name
    average.updates = 1000  # the ramp is over, and the decay is 0.5
    average.update(later)
    assert torch.allclose(average.model.cls_head.predict.bias, torch.tensor(1 - (1 - expected[-1]) / 2))


def test_an_average_of_equal_weights_is_those_weights_to_the_bit():
    model = RetinaNet(TINY.detector, 3, 0.5)
    average = WeightAverage(model, 0.9)
    for _ in range(3):
        average.update(model)
    for name, value in model.state_dict().items():
        assert torch.equal(average.model.state_dict()[name], value), name


def test_a_run_exports_the_average_of_the_weights_after_each_step(run, monkeypatch):
    seen, take_step = [], fits.take_step

    def watched(trainer, *arguments):
        if not seen:
            seen.append({k: v.double().clone() for k, v in trainer.model.state_dict().items()})
        report = take_step(trainer, *arguments)
        seen.append({k: v.double().clone() for k, v in trainer.model.state_dict().items()})
        return report

    monkeypatch.setattr(fits, "take_step", watched)
    folder, _ = run(ema=0.3)
    expected = seen[0]
    for t, weights in enumerate(seen[1:]):
        decay = min(0.3, (1 + t) / (10 + t))
        expected = {k: decay * v + (1 - decay) * weights[k] for k, v in expected.items()}
    found = load_run(folder)[0].state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
    (folder / MODEL).unlink()  # as of a run that has not ended
    for name, value in load_run(folder)[0].state_dict().items():
        assert torch.equal(value, found[name]), name


@pytest.mark.slow
def test_the_training_does_not_notice_the_average_and_evaluations_see_nothing_else(run, data):
    settings = {"val": True, "eval_every": 3, "lr": 0.005}
    with_one, without = run("with", ema=0.9, **settings)[0], run("without", **settings)[0]
    assert rows(with_one / METRICS_FILE) == rows(without / METRICS_FILE)
    states = [load_checkpoint(folder / CHECKPOINTS)[0] for folder in (with_one, without)]
    for name, value in states[1]["model"].items():
        assert torch.equal(states[0]["model"][name], value), name
    assert (with_one / MODEL).read_bytes() != (without / MODEL).read_bytes()
    detections = run_detector(load_run(with_one)[0], data[1], ALONE, batch_size=16)
    ap = evaluate(data[1], detections).metrics["AP50"]
    assert read_scalars(with_one / EVALUATIONS_FILE)["AP50"][1][-1] == pytest.approx(ap, rel=1e-6)


@pytest.mark.slow
def test_an_average_in_channels_last_order_is_that_of_the_other_order(run):
    one, two = (run(name, ema=0.9, channels_last=name == "last", max_iters=3)[0] for name in ("last", "first"))
    for name, value in load_run(one)[0].state_dict().items():
        torch.testing.assert_close(value, load_run(two)[0].state_dict()[name], rtol=0, atol=0.02)


def test_a_run_without_an_average_may_be_forced_to_begin_one(run):
    folder, _ = run(max_iters=2)
    with pytest.raises(UserError, match=r"ema was 0\.0 and is now 0\.9"):
        run(resume=True, max_iters=2, ema=0.9)
    run(resume=True, force=True, max_iters=3, ema=0.9)
    assert load_checkpoint(folder / CHECKPOINTS)[0]["average"]["updates"] == 1


def test_the_space_of_a_checkpoint_counts_the_average(run):
    folder, _ = run(max_iters=1, ema=0.9)
    (file,) = (folder / CHECKPOINTS).iterdir()
    model = load_run(folder)[0].train()
    sizes = [state_size(model, override(TINY, {"ema": ema})) for ema in (0.0, 0.9)]
    assert sizes[0] < sizes[1] < file.stat().st_size < 1.2 * sizes[1]


@pytest.mark.parametrize("ema", [1.0, -0.1, float("nan"), 2])
def test_a_decay_that_is_none_is_refused(ema):
    with pytest.raises(UserError, match="ema must be"):
        override(TINY, {"ema": ema})


def test_the_best_detector_has_the_averaged_weights(run):
    folder, _ = run(val=True, ema=0.9, max_iters=2)
    assert (folder / BEST).read_bytes() == (folder / MODEL).read_bytes()
