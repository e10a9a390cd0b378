"""The best evaluation of a run: its detector is kept, and a run may end when none is better for a while."""

import io
import json
import math
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from drloss.errors import UserError
from drloss.training import reporting
from drloss.training.best import Best, has_ended
from drloss.training.checkpoints import load_checkpoint, newest_first, save_checkpoint
from drloss.training.config import override, to_json
from drloss.training.fit import fit
from drloss.training.log import read_scalars
from drloss.training.resume import FREE_ON_RESUME, HOW_IT_RUNS, changed_settings
from drloss.training.run_folder import BEST, CHECKPOINTS, EVALUATIONS_FILE, METRICS_FILE, MODEL, run_of
from drloss.training.trained import load_run, precision_of
from faults import at_step, before, fault, in_save, start, start_ranks, tiny_run
from small_training import ALONE, TINY, rows, with_boxes


def after(*aps):
    best = Best()
    for number, ap in enumerate(aps, 1):
        best = best.after(number, ap)
    return best


def test_the_best_is_the_highest_ap_and_of_equal_ones_the_first():
    assert after(10.0, 30.0, 20.0, 30.0) == Best(30.0, iteration=2, waited=2)
    assert after(0.0, 0.0) == Best(0.0, iteration=1, waited=1)
    assert after(math.nan, 5.0, math.nan) == Best(5.0, iteration=2, waited=1)
    assert after(math.nan).iteration == 0
    config = override(TINY, {"patience": 2, "eval_every": 1})
    assert has_ended(4, after(10.0, 30.0, 20.0, 30.0), config)
    assert not has_ended(3, after(10.0, 30.0, 20.0), config)
    assert not has_ended(4, after(10.0, 30.0, 20.0, 30.0), TINY)
    assert has_ended(TINY.max_iters, Best(), TINY)


@pytest.fixture
def scored(run, monkeypatch):
    """A function that trains with the given APs as those of the evaluations, one after each step."""

    def train(*aps, **settings):
        left, evaluate = list(aps), reporting.evaluate

        def pretended(*arguments):
            result = evaluate(*arguments)
            return replace(result, metrics=result.metrics | {"AP": left.pop(0)})

        with monkeypatch.context() as patched:
            patched.setattr(reporting, "evaluate", pretended)
            return run(**{"val": True, "eval_every": 1, "schedule": "step", "steps": ()} | settings)

    return train


def about(file):
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["about"])


def test_the_detector_of_the_best_evaluation_is_kept_with_its_iteration_and_ap(scored):
    folder, said = scored(10.0, 30.0, 20.0, 30.0, max_iters=4)
    assert (about(folder / BEST)["iteration"], about(folder / BEST)["ap"]) == (2, 30.0)
    assert (about(folder / MODEL)["iteration"], about(folder / MODEL)["ap"]) == (4, 30.0)
    assert f"best AP 30.0, after iteration 2: {folder / BEST}" in said.replace("\n", " ")
    two, _ = scored(10.0, 30.0, name="two", max_iters=2)  # the schedule does not depend on the number of iterations
    for name, value in load_file(two / MODEL).items():
        assert torch.equal(load_file(folder / BEST)[name], value), name
    model, description = load_run(folder / BEST)
    assert (description.iteration, description.ap, model.training) == (2, 30.0, False)
    assert load_run(folder)[1].iteration == 4


def test_a_detector_in_a_run_folder_is_known_to_be_of_that_run(run, tmp_path):
    folder, _ = run(val=True, max_iters=1, precision="bf16")
    for file in (folder, folder / BEST, folder / MODEL):
        assert run_of(file) == folder
        assert precision_of(file) == "bf16"
    shutil.copy(folder / BEST, tmp_path / BEST)
    shutil.copy(folder / BEST, folder / "other.safetensors")
    for file in (tmp_path / BEST, folder / "other.safetensors", tmp_path, tmp_path / "nowhere"):
        assert run_of(file) is None
        assert precision_of(file) == "fp32"


def test_a_run_ends_when_its_patience_does(scored):
    folder, said = scored(10.0, 30.0, 20.0, 30.0, patience=2)
    assert "ended after 4 of 6 iterations: no better AP in 2 evaluation(s)" in said
    assert read_scalars(folder / METRICS_FILE)["loss"][0] == [1, 2, 3, 4]
    assert load_run(folder)[1].iteration == 4
    (folder / MODEL).unlink()
    assert load_run(folder)[1].iteration == 4  # without a warning: the run has ended


@pytest.mark.slow
def test_a_run_that_its_patience_ended_goes_on_with_more(scored):
    folder, _ = scored(10.0, 30.0, 20.0, 30.0, patience=2)
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    _, said = scored(patience=2, resume=True)
    assert "has ended already, with its 4 iterations: nothing is left to do" in said
    assert "a larger --patience goes on" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == left
    with pytest.raises(UserError, match=r"without a better AP in 2 evaluations, and lr was 0\.002 and is now 0\.1"):
        scored(patience=2, resume=True, force=True, lr=0.1)
    (folder / MODEL).unlink()  # as if it had been killed before the last write
    scored(patience=2, resume=True)
    assert (folder / MODEL).read_bytes() == left[folder / MODEL]
    scored(40.0, 35.0, patience=3, resume=True)
    assert about(folder / BEST)["iteration"] == 5
    assert read_scalars(folder / EVALUATIONS_FILE)["AP"] == ([1, 2, 3, 4, 5, 6], [10, 30, 20, 30, 40, 35])


@pytest.mark.slow
def test_a_detector_that_was_not_evaluated_has_no_ap_and_no_threshold_of_an_earlier_one(scored):
    settings = {"eval_every": 2, "checkpoint_every": 5}
    folder, _ = scored(30.0, 20.0, 10.0, **settings)
    newest_first(folder / CHECKPOINTS)[0].unlink()
    (folder / MODEL).unlink()
    scored(**settings, patience=1, resume=True)
    assert (about(folder / MODEL)["iteration"], about(folder / MODEL)["ap"]) == (5, None)
    assert about(folder / MODEL)["threshold"] is None


def test_a_patience_that_nothing_can_end_is_refused(run, data, tmp_path):
    with pytest.raises(UserError, match="patience 2 needs evaluations on the way: set eval_every, which is 0"):
        override(TINY, {"patience": 2})
    patient = {"patience": 2, "eval_every": 1}
    with pytest.raises(UserError, match="patience 2 waits for a better AP, and there is no validation split"):
        run(**patient)
    val = with_boxes(data[1], 0)
    with pytest.raises(UserError, match=r"patience 2 waits for a better AP, and no boxes in .* AP is undefined"):
        fit(override(TINY, patient), data[0], val, tmp_path / "run", ALONE, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_with_a_patience_the_number_of_evaluations_decides():
    one, two = (to_json(override(TINY, {"patience": 3, "eval_every": n})) for n in (1, 2))
    three = to_json(override(TINY, {"patience": 0, "eval_every": 2}))
    assert changed_settings(one, two, FREE_ON_RESUME) == {"eval_every": (1, 2)}
    assert changed_settings(two, three, FREE_ON_RESUME) == {}  # more of it is what one asks for
    assert set(changed_settings(two, three, HOW_IT_RUNS)) == {"patience"}
    assert changed_settings(to_json(TINY), three, HOW_IT_RUNS) == {}


@pytest.mark.slow
def test_the_best_of_other_images_is_not_kept(scored, data):
    folder, _ = scored(50.0, 50.0, max_iters=2)
    other = replace(data[1], boxes=data[1].boxes + 0.5)
    console = Console(width=200, file=io.StringIO())
    config = override(TINY, {"max_iters": 3, "eval_every": 1, "schedule": "step", "steps": ()})
    fit(config, data[0], other, folder, ALONE, resume=True, force=True, console=console)
    assert "the AP 50.0 of iteration 1 is of another split: the best begins anew" in console.file.getvalue()
    assert about(folder / BEST)["iteration"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("ap", "kept"), [(15.0, False), (25.0, True)])
def test_the_best_file_is_not_called_the_best_after_a_fall_back_to_an_older_checkpoint(scored, ap, kept):
    folder, _ = scored(10.0, 20.0, 30.0, max_iters=3, checkpoint_every=1)
    newest_first(folder / CHECKPOINTS)[0].unlink()
    (folder / MODEL).unlink()
    _, said = scored(ap, max_iters=3, checkpoint_every=1, resume=True)
    assert f"{BEST} is not the detector of iteration 2, the best so far; a better evaluation replaces it" in said
    assert about(folder / BEST)["ap"] == (ap if kept else 30.0)
    assert ("best AP 20.0, after iteration 2, whose detector is not kept" in said) == (not kept)
    assert (f"best AP 25.0, after iteration 3: {folder / BEST}" in said) == kept


@pytest.mark.slow
def test_a_checkpoint_of_before_knows_no_best(run):
    folder, _ = run(val=True, max_iters=2, eval_every=1)
    state, _ = load_checkpoint(folder / CHECKPOINTS)
    for path in newest_first(folder / CHECKPOINTS):
        path.unlink()
    save_checkpoint(folder / CHECKPOINTS, 2, {k: v for k, v in state.items() if k not in ("best", "average")})
    run(val=True, max_iters=3, eval_every=1, resume=True, force=True)
    assert load_checkpoint(folder / CHECKPOINTS)[0]["best"]["iteration"] == 3


@pytest.mark.slow
def test_a_best_detector_that_cannot_be_written_costs_no_step(run, monkeypatch):
    settings = {"val": True, "max_iters": 3, "eval_every": 1, "checkpoint_every": 100}
    with monkeypatch.context() as patched:
        patched.setattr("drloss.training.exporting.save_detector", _full)
        with pytest.raises(UserError, match=r"best\.safetensors: cannot be written: no space left"):
            run(**settings)
    folder, said = run(resume=True, **settings)
    assert "resuming after iteration 1" in said
    for name in (MODEL, BEST):
        assert (folder / name).read_bytes() == (run("whole", resume=name == BEST, **settings)[0] / name).read_bytes()


def _full(path, *arguments):
    raise UserError(f"{path}: cannot be written: no space left")


NONSENSE = [
    ("best", {"ap": 1.0}),
    ("best", {"ap": math.inf, "iteration": 1, "waited": 0}),
    ("best", {"ap": 1.0, "iteration": -1, "waited": 0}),
    ("best", []),
    ("average", {"updates": 1}),
    ("average", {"updates": -1, "model": {"a": torch.ones(1)}}),
    ("average", {"updates": 1, "model": {"a": 1}}),
    ("average", {"updates": 1, "model": [1]}),
]


def test_a_checkpoint_with_nonsense_is_refused_by_field(run):
    folder, _ = run(max_iters=1)
    state, _ = load_checkpoint(folder / CHECKPOINTS)
    (folder / MODEL).unlink()
    for field, value in NONSENSE:
        save_checkpoint(folder / CHECKPOINTS, 1, {**state, field: value})
        with pytest.raises(UserError, match=f"holds no state of a run: {field}"):
            load_run(folder)


# ---------------------------------------------------------------------- killed and resumed

WATCHED = {"ema": 0.9, "eval_every": 2, "max_iters": 30, "patience": 3, "lr": 0.005, "checkpoint_every": 3}
"""The best is neither the first nor the last evaluation of this run, and its patience ends it."""


def what_is_left(folder):
    """Results of a run without times: the bytes of both detectors, and the rows of both CSV files."""
    files = [(folder / name).read_bytes() for name in (MODEL, BEST)]
    return *files, rows(folder / METRICS_FILE), rows(folder / EVALUATIONS_FILE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    child = start(tiny_run(folder, **WATCHED), folder.with_name("log"))
    assert child.wait() == 0, child.said
    evaluations = [float(row["AP"]) for row in rows(folder / EVALUATIONS_FILE)]
    assert 0 < np.argmax(evaluations) == len(evaluations) - 4
    assert about(folder / BEST)["ap"] == pytest.approx(max(evaluations), rel=1e-6)
    return what_is_left(folder)


def finished(folder, **settings):
    child = start(tiny_run(folder, "--resume", **WATCHED | settings), folder.with_name("log"))
    assert child.wait() == 0, child.said
    return what_is_left(folder)


@pytest.mark.slow
def test_a_killed_run_with_all_of_it_ends_bit_identical(whole, tmp_path):
    child = start(tiny_run(tmp_path / "run", **WATCHED), tmp_path / "log", fault(at_step, step=13, do="SIGKILL"))
    assert child.wait() == -signal.SIGKILL, child.said
    assert finished(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_a_run_killed_anywhere_ends_bit_identical_with_all_of_it(whole, tmp_path, number):
    rng, folder = np.random.default_rng(number), tmp_path / "run"
    for kind in rng.permutation(["step", "evaluation", "best", "save"])[:2]:  # killed twice
        step, save = int(rng.integers(3, 17)), int(rng.integers(1, 12))
        call = str(rng.choice(["write", "fsync", "replace"]))
        strike = {
            "step": fault(at_step, step=step, do="SIGKILL"),
            "evaluation": fault(before, module="drloss.training.reporting", name="run_detector", do="SIGKILL"),
            "best": fault(before, module="drloss.training.exporting", name="save_detector", do="SIGKILL"),
            "save": fault(in_save, save=save, call=call, number=1, do="SIGKILL"),
        }[str(kind)]
        resume = ["--resume"] if folder.exists() else []
        child = start(tiny_run(folder, *resume, **WATCHED, workers=2 * (number % 2)), tmp_path / "log", strike)
        assert child.wait() in (0, -signal.SIGKILL), child.said
    assert finished(folder) == whole
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_two_ranks_keep_the_same_average_and_end_together(tmp_path):
    settings = WATCHED | {"micro_batch": 2}
    for name, faults in (("whole", []), ("part", [fault(at_step, step=11, do="SIGKILL", rank=1)])):
        children = start_ranks(tiny_run(tmp_path / name, **settings), tmp_path / f"{name}.log", 2, *faults)
        codes = [child.wait(300) for child in children]
        assert (codes == [0, 0]) == (not faults), [child.said for child in children]
    children = start_ranks(tiny_run(tmp_path / "part", "--resume", **settings), tmp_path / "resumed.log", 2)
    assert [child.wait(300) for child in children] == [0, 0], [child.said for child in children]
    assert what_is_left(tmp_path / "part") == what_is_left(tmp_path / "whole")
    last, best, *_ = finished(tmp_path / "one", micro_batch=2)  # one process takes the batch in the same two halves
    assert [last, best] == list(what_is_left(tmp_path / "whole")[:2])
