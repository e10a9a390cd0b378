"""Checkpoints on a full or read-only disk, and damaged checkpoints."""

import os
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
import torch
from safetensors import SafetensorError

from drloss.detector import exported
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, save_detector
from drloss.errors import UserError
from drloss.training import run_folder
from drloss.training.checkpoints import load_checkpoint, save_checkpoint
from drloss.training.log import ScalarLog, read_scalars
from drloss.training.run_folder import BEST, CHECKPOINTS, METRICS_FILE, require_space
from faults import fault, flipped, full_disk, start, tiny_run, truncated

STATE = {"model": {f"w{i}": torch.full((1000,), float(i)) for i in range(100)}, "words": "state", "numbers": [1, 2.5]}
OFFSETS = 20


@contextmanager
def limited(room):
    """No file may grow beyond ``room`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_where_it_cannot(folder):
    """Save beside an existing checkpoint: an error is raised, and the existing one is unchanged."""
    with pytest.raises(UserError) as raised:
        save_checkpoint(folder, 2, STATE)
    assert "no space" in str(raised.value).lower()
    assert str(folder / "iteration_00000002.pt") in str(raised.value)
    assert [p.name for p in folder.iterdir()] == ["iteration_00000001.pt"]
    state, damaged = load_checkpoint(folder)
    assert not damaged
    assert torch.equal(state["model"]["w7"], STATE["model"]["w7"])


@pytest.mark.soak
def test_a_file_that_may_not_grow_at_any_of_20_offsets_leaves_the_last_checkpoint(tmp_path, figure):
    size = save_checkpoint(tmp_path, 1, STATE).stat().st_size
    for number in range(OFFSETS):
        with limited(number * (size - 1) // (OFFSETS - 1)):
            save_where_it_cannot(tmp_path)
    figure("T27", f"{OFFSETS} of {OFFSETS} offsets of a limit on the size of a file leave the last checkpoint intact")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, and a function that makes it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, "tmpfs", str(folder)], check=False, capture_output=True).returncode

    if not shutil.which("mount") or mount("-t", "tmpfs", "-o", "size=1m"):
        pytest.skip("a file system can be mounted by root alone")
    yield folder, lambda: mount("-o", "remount,ro")
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.soak
def test_a_disk_that_is_full_after_any_of_20_amounts_leaves_the_last_checkpoint(small_disk, figure):
    disk, _ = small_disk
    folder = disk / "checkpoints"
    size = save_checkpoint(folder, 1, STATE).stat().st_size
    free = shutil.disk_usage(disk).free
    for number in range(OFFSETS):
        room = number * (size - 8192) // (OFFSETS - 1)
        (disk / "ballast").write_bytes(b"x" * (free - room - 4096))
        save_where_it_cannot(folder)
        (disk / "ballast").unlink()
    save_checkpoint(folder, 2, STATE)
    figure("T27", f"{OFFSETS} of {OFFSETS} amounts of free space on a file system of 1 MB do too")


def test_a_file_system_that_became_read_only_is_named(small_disk):
    disk, make_read_only = small_disk
    save_checkpoint(disk, 1, STATE)
    assert make_read_only() == 0
    with pytest.raises(UserError, match=r"iteration_00000002\.pt: cannot be written: Read-only file system"):
        save_checkpoint(disk, 2, STATE)
    assert load_checkpoint(disk)[1] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    save_checkpoint(tmp_path, 1, STATE)
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"iteration_00000002\.pt: cannot be written: Permission denied"):
        save_checkpoint(tmp_path, 2, STATE)
    tmp_path.chmod(0o700)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_its_last_checkpoint_and_a_message(tmp_path):
    child = start(tiny_run(tmp_path / "run"), tmp_path / "log", fault(full_disk, save=2, room=10_000_000))
    assert child.wait() == 2
    assert "Traceback" not in child.said
    assert "iteration_00000004.pt: cannot be written: no space left" in " ".join(child.said.split())
    folder = tmp_path / "run" / CHECKPOINTS
    assert [p.name for p in folder.iterdir()] == ["iteration_00000002.pt"]
    assert load_checkpoint(folder)[0]["iteration"] == 2
    assert read_scalars(tmp_path / "run" / METRICS_FILE)["loss"][0] == [1, 2, 3, 4]


def test_a_run_that_has_no_room_for_three_checkpoints_does_not_begin(tmp_path, monkeypatch):
    free = shutil._ntuple_diskusage(10**9, 0, 9 * 10**7)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda folder: free)
    require_space(tmp_path / "not" / "yet", 3 * 10**7)
    with pytest.raises(UserError, match=r"yet: no space: 90 MB are free .* needs 93 MB, for three .* of 31 MB"):
        require_space(tmp_path / "not" / "yet", 31 * 10**6)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "iteration_00000002.pt").write_bytes(bytes(3 * 10**6))
    require_space(tmp_path, 31 * 10**6)  # the space of existing checkpoints counts
    with pytest.raises(UserError, match=r"for three checkpoints of 31 MB and its detectors of 20 MB"):
        require_space(tmp_path, 31 * 10**6, 20 * 10**6)
    (tmp_path / BEST).write_bytes(b"x" * 20 * 10**6)  # and of existing detectors
    require_space(tmp_path, 31 * 10**6, 20 * 10**6)


def test_a_log_that_cannot_be_written_is_an_error_with_its_path(tmp_path):
    log = ScalarLog(tmp_path, 0)
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(UserError, match=r"metrics\.csv: cannot be written: Is a directory"):
        log.write(METRICS_FILE, 1, {"loss": 1.0})
    log.close()


def test_weights_that_do_not_fit_on_the_disk_are_an_error_with_their_path(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exported, "save_file", full)
    about = DetectorFile(DetectorConfig(), ("a",), (1,), "dr")
    with pytest.raises(UserError, match=r"w\.safetensors: cannot be written: .*No space left"):
        save_detector(tmp_path / "w.safetensors", {"w": torch.zeros(2)}, about)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    save_detector(tmp_path / "w.safetensors", {"w": torch.zeros(2)}, about)
    other = tmp_path / "other"
    other.touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == other.stat().st_mode


@pytest.mark.soak
def test_every_truncation_and_every_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path, figure):
    state = {"model": {"w": torch.arange(500.0)}, "iteration": 0}
    save_checkpoint(tmp_path, 1, {**state, "iteration": 1})
    newest = save_checkpoint(tmp_path, 2, {**state, "iteration": 2})
    content = newest.read_bytes()
    for kind, damages, count in (("truncations", truncated, 100), ("flipped bits", flipped, 200)):
        found = 0
        for what, damaged in damages(content, count):
            newest.write_bytes(damaged)
            loaded, messages = load_checkpoint(tmp_path)
            assert loaded["iteration"] == 1, what
            assert len(messages) == 1
            assert str(newest) in messages[0]
            found += 1
        figure("T28", f"{found} of {count} {kind} found, and the checkpoint before used")
    newest.write_bytes(content)
    assert load_checkpoint(tmp_path)[0]["iteration"] == 2


def test_a_checkpoint_that_something_was_added_to_is_found(tmp_path):
    newest = save_checkpoint(tmp_path, 1, STATE)
    newest.write_bytes(newest.read_bytes() + b"\0")
    with pytest.raises(UserError, match="its checksum is not that of its content"):
        load_checkpoint(tmp_path)


@pytest.mark.slow
def test_the_run_says_which_checkpoint_it_does_without(tmp_path):
    child = start(tiny_run(tmp_path / "run", max_iters=4), tmp_path / "log")
    assert child.wait() == 0
    newest = tmp_path / "run" / CHECKPOINTS / "iteration_00000004.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    child = start(tiny_run(tmp_path / "run", "--resume", max_iters=4), tmp_path / "log")
    assert child.wait() == 0
    said = " ".join(child.said.split())
    assert "iteration_00000004.pt: cut off or altered: its checksum is not that of its content; using the one" in said
    assert "resuming after iteration 2" in said
