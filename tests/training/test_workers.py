"""A data-loading process that raises, is killed or hangs ends the run, which names the image."""

import time
from multiprocessing import active_children

import pytest
import torch

from drloss.data.batches import EvaluationImages
from drloss.data.formats.shapes import open_shapes
from drloss.data.workers import _what_was_lost, _without_errors, load_batches
from drloss.errors import DataError
from drloss.training.run_folder import METRICS_FILE
from faults import STRUCK, at_image, before, constant, fault, start, tiny_run, wait_until

IMAGE = 7
NAME = f"train_{IMAGE:06d}.png"
SOONER = 3
"""Seconds after which a silent worker is considered stuck, in the short form of the test."""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("do", "words", "code"),
    [
        pytest.param("raise", f"RuntimeError: {NAME}: reading it failed", 1, marks=pytest.mark.slow),
        ("SIGKILL", "a data-loading process was killed (signal 9), perhaps for want of memory, while reading", 2),
        pytest.param(
            "SIGSEGV", "a data-loading process was killed (signal 11) while reading", 2, marks=pytest.mark.slow
        ),
        pytest.param("hang", "no data-loading process brought a batch for", 2, marks=pytest.mark.slow),
    ],
)
def test_a_lost_worker_ends_the_run_within_a_minute_and_names_the_image(tmp_path, soak, figure, do, words, code):
    faults = [fault(at_image, index=IMAGE, do=do)]
    if not soak:
        faults.append(fault(constant, module="drloss.data.workers", name="WORKER_TIMEOUT", value=SOONER))
    child = start(tiny_run(tmp_path / "run", workers=2), tmp_path / "log", *faults)
    wait_until(lambda: STRUCK in child.said, seconds=300, child=child)
    began = time.time()
    assert child.wait() == code, child.said
    metrics = tmp_path / "run" / METRICS_FILE  # the batches that were read before are trained on first
    seconds = time.time() - max(began, metrics.stat().st_mtime if metrics.exists() else 0)
    assert seconds < 60
    said = " ".join(child.said.split())
    assert words in said
    assert NAME in said
    assert ("Traceback" in said) == (do == "raise")
    figure("T33", f"{do}: ended {seconds:.0f} s after the fault or the last step, naming the image")


@pytest.mark.slow
def test_a_signal_to_all_processes_does_not_end_a_worker_that_is_just_born(tmp_path):
    early = fault(before, module="drloss.data.workers", name="_ignore_signals", do="SIGTERM")
    child = start(tiny_run(tmp_path / "run", workers=2), tmp_path / "log", early)
    assert child.wait() == 0, child.said
    assert child.said.count(STRUCK) >= 2  # each worker of each loader


@pytest.mark.slow
def test_a_fault_in_reading_names_the_image_without_workers_too(tmp_path):
    child = start(tiny_run(tmp_path / "run"), tmp_path / "log", fault(at_image, index=IMAGE, do="raise"))
    assert child.wait() == 1
    assert f"RuntimeError: {NAME}: reading it failed" in child.said
    assert "a planted fault" in child.said


@pytest.mark.parametrize("broken", [ConnectionResetError("by peer"), EOFError(), FileNotFoundError("no socket")])
def test_a_worker_lost_while_it_hands_over_a_batch_is_named_and_other_errors_stay(broken):
    images = EvaluationImages(open_shapes("shapes:train=1,val=8,size=32").read("val")[0], 32, 64)

    def read(*, killing):
        before = active_children()
        with load_batches(images, images.batches(1), 1, torch.device("cpu")) as batches:
            next(batches)
            (worker,) = [child for child in active_children() if child not in before]
            if killing:
                worker.kill()
            raise broken

    with pytest.raises(DataError, match=r"killed \(signal 9\)"):
        read(killing=True)
    with pytest.raises(type(broken)):
        read(killing=False)


def test_workers_that_bring_nothing_are_waited_for_once_more():
    class Loaded:
        def __init__(self, *answers):
            self.answers = list(answers)

        def __next__(self):
            answer = self.answers.pop(0) if self.answers else StopIteration()
            if isinstance(answer, Exception):
                raise answer
            return answer

        def __iter__(self):
            return self

    late = RuntimeError("DataLoader timed out after 25 seconds")
    assert list(_without_errors(Loaded("a", late, "b", late, "c"))) == ["a", "b", "c"]
    with pytest.raises(RuntimeError, match="timed out"):
        list(_without_errors(Loaded("a", late, late, "b")))
    with pytest.raises(RuntimeError, match="another"):
        list(_without_errors(Loaded("a", RuntimeError("another"), "b")))
    assert _what_was_lost([], RuntimeError("Connection timed out")) is None
