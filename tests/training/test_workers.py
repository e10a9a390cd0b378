"""A data-loading process that raises, is killed or hangs ends the run, which names the image."""

import time

import pytest

from faults import at_image, constant, fault, start, tiny_run

IMAGE = 7
NAME = f"train_{IMAGE:06d}.png"
SOONER = 3
"""Seconds after which a worker that says nothing is given up in the short form."""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("do", "words", "code"),
    [
        ("raise", f"RuntimeError: {NAME}: reading it failed", 1),
        ("SIGKILL", "a data-loading process was killed (signal 9), perhaps for want of memory, while reading", 2),
        ("SIGSEGV", "a data-loading process was killed (signal 11) while reading", 2),
        ("hang", "no data-loading process brought a batch for", 2),
    ],
)
def test_a_lost_worker_ends_the_run_within_a_minute_and_names_the_image(tmp_path, soak, figure, do, words, code):
    faults = [fault(at_image, index=IMAGE, do=do)]
    if not soak:
        faults.append(fault(constant, module="drloss.data.loading", name="WORKER_TIMEOUT", value=SOONER))
    began = time.monotonic()
    child = start(tiny_run(tmp_path / "run", workers=2), tmp_path / "log", *faults)
    assert child.wait(60) == code, child.said
    seconds = time.monotonic() - began
    said = " ".join(child.said.split())
    assert words in said
    assert NAME in said
    assert ("Traceback" in said) == (do == "raise")
    figure("T33", f"{do}: ended within {seconds:.0f} s, naming the image")


def test_a_fault_in_reading_names_the_image_without_workers_too(tmp_path):
    child = start(tiny_run(tmp_path / "run"), tmp_path / "log", fault(at_image, index=IMAGE, do="raise"))
    assert child.wait() == 1
    assert f"RuntimeError: {NAME}: reading it failed" in child.said
    assert "a planted fault" in child.said
