"""Files of weights and checkpoints that were made to do harm: nothing in them runs, and each is refused by name."""

import json
import subprocess
import sys

import pytest
import torch

from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, save_detector
from drloss.detector.model import RetinaNet
from faults import tiny_run
from hostile_files import (
    archives,
    as_torch,
    as_torch_before_zip,
    descriptions,
    gadgets,
    saved,
    saved_before_zip,
    sealed,
    states,
    tensors,
    with_zip,
)

TRY = """
import contextlib, io, json, resource, sys, time
import drloss.training.fit, drloss.inference.evaluate, drloss.inference.predict
from drloss.cli import main
usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 1_000_000_000,) * 2)
for line in sys.stdin:
    said = io.StringIO()
    before, began = usage(), time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(json.loads(line))
    print(json.dumps([code, said.getvalue(), time.process_time() - began, usage() - before]), flush=True)
"""
SMALL = DetectorConfig(
    backbone="resnet10", norm="group", fpn_channels=16, top_level=5, head_depth=1, head_channels=16, anchor_scale=2.5,
    anchor_octaves=2, short_side=32, max_side=64,
)  # fmt: skip
NAMES = ("disc", "square", "triangle", "star")


def run_folder(folder, content):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "iteration_00000001.pt").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def try_all():
    """Takes commands and says exit code, words, seconds and megabytes of each, run in one process."""
    with subprocess.Popen(
        [sys.executable, "-c", TRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(commands):
            for command in commands:
                process.stdin.write(json.dumps(command) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                assert answer, f"{command} ended the process"
                yield command, *json.loads(answer)

        yield run
        process.stdin.close()


@pytest.fixture
def good(tmp_path):
    torch.manual_seed(0)
    model = RetinaNet(SMALL, len(NAMES), 0.5)
    save_detector(tmp_path / "good.safetensors", model.state_dict(), DetectorFile(SMALL, NAMES, (1, 2, 3, 4), "dr"))
    return tmp_path / "good.safetensors", model.state_dict()


def train(folder, *more, **settings):
    return tiny_run(folder, *more, max_iters=1, warmup_iters=1, **settings)


@pytest.mark.slow
def test_good_files_are_taken(tmp_path, good, try_all):
    path, weights = good
    torch.save({"model": weights}, tmp_path / "good.pt")
    (tmp_path / "old.pt").write_bytes(saved_before_zip({"model": weights}))
    files = (path, tmp_path / "good.pt", tmp_path / "old.pt")
    commands = [train(tmp_path / f"run{i}", weights=p) for i, p in enumerate(files)]
    commands += [["export", str(run), "--out", str(tmp_path / "o.safetensors")] for run in (path, tmp_path / "run0")]
    for command, code, said, *_ in try_all(commands):
        assert code == 0, (command, said)


@pytest.mark.soak
@pytest.mark.slow
def test_nothing_in_a_hostile_file_runs_and_it_is_refused_in_2_seconds_and_500_megabytes(
    tmp_path, good, try_all, figure
):
    canary, out = tmp_path / "canary", str(tmp_path / "out.safetensors")
    path, weights = good
    pickles = gadgets(canary)
    pts = {name: as_torch(content) for name, content in pickles.items()} | archives(weights)
    pts |= {f"{name} before 1.6": as_torch_before_zip(pickles[name]) for name in ("eval", "subprocess.run")}
    pts["eval before 1.6, and a good archive behind it"] = with_zip(pts["eval before 1.6"], saved({"model": weights}))
    described = descriptions(path.read_bytes())
    files = pts | tensors(path.read_bytes()) | described
    commands = []
    for number, (name, content) in enumerate(files.items()):
        (file := tmp_path / f"file{number}{'.pt' if name in pts else '.safetensors'}").write_bytes(content)
        if name in pts:
            # Behind the right checksum, through every command that reads a checkpoint.
            folder = run_folder(tmp_path / f"file{number}", sealed(content))
            readers = [
                ["export", str(folder), "--out", out],
                ["eval", str(folder), "--data", "shapes:val=2,size=32"],
                ["predict", str(folder), str(tmp_path), "--out", str(tmp_path / "x")],
            ]
            commands += [readers[number % 3], train(folder, "--resume")]
        else:
            commands.append(["export", str(file), "--out", out])
        if name not in described:  # training reads the tensors alone
            commands.append(train(tmp_path / f"run{number}", weights=file))
    slowest, largest = 0.0, 0.0
    for command, code, said, seconds, megabytes in try_all(commands):
        assert code == 2, (command, said)
        assert "file" in said
        assert "Traceback" not in said
        assert not canary.exists(), command
        assert seconds < 2, (command, seconds)
        assert megabytes < 500, (command, megabytes)
        slowest, largest = max(slowest, seconds), max(largest, megabytes)
    figure(
        "T29",
        f"{len(files)} hostile files, {len(pickles)} of them pickles, in {len(commands)} commands: all refused, "
        f"nothing run, at most {slowest:.1f} s and {largest:.0f} MB more each",
    )


@pytest.mark.soak
@pytest.mark.slow
def test_a_hostile_state_of_a_run_is_refused_by_field(tmp_path, try_all, figure):
    assert [code for _, code, *_ in try_all([train(tmp_path / "run")])] == [0]
    file = tmp_path / "run" / "checkpoints" / "iteration_00000001.pt"
    good = torch.load(file, weights_only=True)
    (tmp_path / "run" / "model.safetensors").unlink()  # so that export takes the checkpoint
    commands = [["export", str(tmp_path / "run"), "--out", str(tmp_path / "out.safetensors")]]
    commands.append(train(tmp_path / "run", "--resume", "--force"))
    everyones, trainings = states(good)
    for name, (word, changed) in {**everyones, **trainings}.items():
        file.write_bytes(sealed(saved({**good, **changed})))
        for command, code, said, seconds, megabytes in try_all(commands[name in trainings :]):
            assert code == 2, (name, command, said)
            assert word in said, name
            assert str(file.name if name in everyones else tmp_path) in said
            assert "Traceback" not in said
            assert seconds < 2, (name, command, seconds)
            assert megabytes < 500, (name, command, megabytes)
    figure("T29", f"{len(everyones | trainings)} hostile states of a run refused by field")
    file.write_bytes(sealed(saved(good)))
    assert [code for _, code, *_ in try_all(commands)] == [0, 0]


@pytest.mark.slow
def test_an_unsealed_checkpoint_is_not_even_looked_at(tmp_path, good, try_all):
    folder = run_folder(tmp_path / "run", saved({"model": good[1]}))
    ((_, code, said, *_),) = try_all([["export", str(folder), "--out", str(tmp_path / "o.safetensors")]])
    assert code == 2
    assert "its checksum is not that of its content" in said


def test_an_old_torch_is_not_given_a_pickle(tmp_path, monkeypatch):
    from drloss.detector.starting_weights import read_weights
    from drloss.errors import UserError

    torch.save({"weight": torch.ones(1)}, tmp_path / "a.pt")
    assert list(read_weights(tmp_path / "a.pt")) == ["weight"]
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(UserError, match=r"a\.pt: a \.pt file needs torch 2\.10 or later, this is 2\.9\.1"):
        read_weights(tmp_path / "a.pt")
