import numpy as np
import pytest
import torch

from drloss.data.formats.shapes import open_shapes
from drloss.errors import UserError
from drloss.training.checkpoints import load_checkpoint, save_checkpoint
from drloss.training.fingerprint import fingerprint
from drloss.training.log import ScalarLog, read_scalars
from drloss.training.run_folder import METRICS_FILE
from drloss.training.trained import load_run


def test_two_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path):
    for iteration in (5, 10, 15):
        save_checkpoint(tmp_path, iteration, {"iteration": iteration, "weight": torch.ones(3)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iteration_00000010.pt", "iteration_00000015.pt"]
    state, damaged = load_checkpoint(tmp_path)
    assert state["iteration"] == 15
    assert damaged == []


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, keep):
    for iteration in (1, 2):
        newest = save_checkpoint(tmp_path, iteration, {"iteration": iteration, "weight": torch.ones(1000)})
    content = newest.read_bytes()
    newest.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    state, damaged = load_checkpoint(tmp_path)
    assert state["iteration"] == 1
    assert len(damaged) == 1
    assert newest.name in damaged[0]


def test_a_flipped_bit_is_found(tmp_path):
    save_checkpoint(tmp_path, 1, {"iteration": 1})
    newest = save_checkpoint(tmp_path, 2, {"iteration": 2, "weight": torch.ones(10_000)})
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    state, damaged = load_checkpoint(tmp_path)
    assert state["iteration"] == 1
    assert "checksum" in damaged[0]


def test_two_are_kept_that_can_be_read(tmp_path):
    for iteration in (900, 1000):
        newest = save_checkpoint(tmp_path, iteration, {"iteration": iteration})
    newest.write_bytes(newest.read_bytes()[:-1])
    assert load_checkpoint(tmp_path)[0] == {"iteration": 900}
    save_checkpoint(tmp_path, 950, {"iteration": 950})
    assert sorted(p.name[-7:-3] for p in tmp_path.iterdir()) == ["0900", "0950", "1000"]
    save_checkpoint(tmp_path, 1050, {"iteration": 1050})  # and one that is damaged does not count later on
    assert sorted(p.name[-7:-3] for p in tmp_path.iterdir()) == ["0950", "1050"]


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / ".iteration_00000001.pt.123.part").write_bytes(b"half")
    save_checkpoint(tmp_path, 1, {"iteration": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["iteration_00000001.pt"]


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    (tmp_path / "iteration_00000001.pt").write_bytes(b"junk")
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path / "nothing") is None


def test_what_cannot_be_read_back_is_not_kept(tmp_path):
    save_checkpoint(tmp_path, 1, {"iteration": 1})
    with pytest.raises(UserError, match="more than tensors"):
        save_checkpoint(tmp_path, 2, {"iteration": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["iteration_00000001.pt"]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="neither an exported"):
        load_run(tmp_path)


def test_the_fingerprint_sees_every_array():
    data, _ = open_shapes("shapes:train=4").read("train")
    first = fingerprint(data)
    assert first == fingerprint(open_shapes("shapes:train=4").read("train")[0])
    for name in ("boxes", "labels", "sizes", "image_ids", "areas"):
        changed = np.array(getattr(data, name))
        changed.flat[0] += 1
        copy = type(data)(**{**vars(data), name: changed})
        assert fingerprint(copy) != first, name


def test_an_empty_scalar_file_is_no_obstacle(tmp_path):
    (tmp_path / METRICS_FILE).touch()
    log = ScalarLog(tmp_path, 2)
    log.write(METRICS_FILE, 3, {"loss": 1.0})
    log.close()
    assert read_scalars(tmp_path / METRICS_FILE) == {"loss": ([3.0], [1.0])}


def test_scalars_are_read_back_and_rows_after_the_resume_point_dropped(tmp_path):
    log = ScalarLog(tmp_path, 0)
    for iteration in (1, 2, 3):
        log.write(METRICS_FILE, iteration, {"loss": iteration / 2, "AP": float("nan")})
    log.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write("4,0.")  # cut off by a kill
    ScalarLog(tmp_path, 2).close()
    assert read_scalars(tmp_path / METRICS_FILE) == {"loss": ([1.0, 2.0], [0.5, 1.0])}
    ScalarLog(tmp_path, 0).close()
    assert read_scalars(tmp_path / METRICS_FILE) == {}
