"""Scalars in Weights & Biases and MLflow: offline, under one id for the whole run, and no run depends on them."""

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from rich.console import Console

from drloss.cli import main
from drloss.errors import UserError
from drloss.training.config import flat, override
from drloss.training.fit import fit
from drloss.training.log import read_scalars
from drloss.training.run_folder import CONFIG, EVALUATIONS_FILE, METRICS_FILE, MODEL, TRACKERS_FILE
from small_training import ALONE, QUICK, TINY

WANDB = """
calls = []
class Settings(dict): pass
class Run:
    url = None
    def define_metric(self, *a, **k): calls.append(("define_metric", a, k))
    def log(self, values):
        if values["iteration"] >= fails_at: raise ConnectionError("nobody\\nis there")
        calls.append(("log", values))
    def finish(self, exit_code): calls.append(("finish", exit_code))
fails_at = 1000
def init(**how):
    if how["name"] == "refused": raise ValueError("no such key")
    calls.append(("init", how))
    return Run()
"""
MLFLOW = """
from types import SimpleNamespace as Space
calls = []
class MlflowClient:
    def __init__(self, tracking_uri):
        if "down" in tracking_uri: raise OSError(f"API request to {tracking_uri}/api failed")
        calls.append(("uri", tracking_uri))
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name, artifacts): calls.append(("experiment", name, artifacts)); return "7"
    def create_run(self, experiment, run_name): return Space(info=Space(run_id="r1"))
    def update_run(self, run_id, status): calls.append(("update", run_id, status))
    def log_batch(self, run_id, metrics=(), params=()): calls.append(("log", run_id, list(metrics), list(params)))
    def set_terminated(self, run_id, status): calls.append(("end", run_id, status))
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Packages of the names of both trackers, which note how they are called."""
    (tmp_path / "fakes" / "mlflow").mkdir(parents=True)
    (tmp_path / "fakes" / "wandb.py").write_text(WANDB)
    (tmp_path / "fakes" / "mlflow" / "__init__.py").write_text(MLFLOW)
    (tmp_path / "fakes" / "mlflow" / "entities.py").write_text(
        "from collections import namedtuple\n"
        "Metric = namedtuple('Metric', 'key value timestamp step')\nParam = namedtuple('Param', 'key value')\n"
    )
    for name in [n for n in sys.modules if n.split(".")[0] in ("wandb", "mlflow")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")  # so that what the run sets is undone
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    import mlflow
    import wandb

    yield wandb, mlflow
    for name in ("wandb", "mlflow", "mlflow.entities"):
        sys.modules.pop(name, None)


@pytest.fixture
def tracked(data, tmp_path):
    def train(*trackers, name="run", resume=False, **settings):
        console = Console(width=200, file=io.StringIO())
        config = override(TINY, {"eval_every": 3, **settings})
        fit(config, *data, tmp_path / name, ALONE, resume=resume, force=resume, trackers=trackers, console=console)
        return tmp_path / name, console.file.getvalue()

    return train


def by_name(folder):
    """All scalars of both CSV files, by the names that trackers get: a list of iterations and values."""
    metrics, evaluations = (read_scalars(folder / name) for name in (METRICS_FILE, EVALUATIONS_FILE))
    return {f"train/{k}": v for k, v in metrics.items()} | {f"val/{k}": v for k, v in evaluations.items()}


def test_wandb_gets_the_configuration_and_every_scalar_and_stays_offline(fakes, tracked):
    wandb, _ = fakes
    folder, said = tracked("wandb")
    (_, how), *_ = wandb.calls
    assert (how["project"], how["name"], how["dir"], how["resume"]) == ("drloss", "run", str(folder), "allow")
    assert how["config"] == json.loads((folder / CONFIG).read_text())
    assert os.environ["WANDB_MODE"] == "offline"
    assert f"wandb: in {folder}/wandb, which wandb sync sends" in said
    seen = {}
    for _, values in (c for c in wandb.calls if c[0] == "log"):
        for name in values.keys() - {"iteration"}:
            steps, numbers = seen.setdefault(name, ([], []))
            steps.append(values["iteration"])
            numbers.append(values[name])
    expected = by_name(folder)
    assert seen.keys() == expected.keys()
    for name, (steps, numbers) in expected.items():
        assert seen[name][0] == steps
        assert seen[name][1] == pytest.approx(numbers, rel=1e-7)
    assert wandb.calls[-1] == ("finish", 0)


def test_mlflow_gets_the_settings_once_and_every_scalar_into_the_run_folder(fakes, tracked):
    _, mlflow = fakes
    folder, _ = tracked("mlflow")
    assert mlflow.calls[0] == ("uri", f"sqlite:///{folder}/mlflow.db")
    assert mlflow.calls[1] == ("experiment", "drloss", (folder / "mlartifacts").as_uri())
    first, *batches = [call for call in mlflow.calls if call[0] == "log"]
    assert {p.key for p in first[3]} == {*flat(TINY)}
    assert dict(first[3])["lr"] == "0.002"
    seen = {(m.key, m.step): m.value for _, _, metrics, _ in batches for m in metrics}
    expected = {(k, step): v for k, pair in by_name(folder).items() for step, v in zip(*pair, strict=True)}
    assert seen.keys() == expected.keys()
    assert all(value == pytest.approx(expected[key], rel=1e-7) for key, value in seen.items())
    assert mlflow.calls[-1] == ("end", "r1", "FINISHED")


def test_a_resumed_run_goes_on_under_its_ids(fakes, tracked):
    wandb, mlflow = fakes
    folder, _ = tracked("wandb", "mlflow", max_iters=3)
    ids = json.loads((folder / TRACKERS_FILE).read_text())
    for module in fakes:
        module.calls.clear()
    tracked("wandb", "mlflow", "wandb", resume=True, max_iters=6)
    assert [how["id"] for kind, how in (c[:2] for c in wandb.calls) if kind == "init"] == [ids["wandb"]]
    assert ("update", "r1", "RUNNING") in mlflow.calls
    assert ids["mlflow"] == "r1"
    assert json.loads((folder / TRACKERS_FILE).read_text()) == ids
    assert {m.step for c in mlflow.calls if c[0] == "log" for m in c[2]} == {4, 5, 6}


@pytest.mark.slow
def test_a_run_survives_a_tracker_that_fails_and_is_the_same_without_any(fakes, tracked):
    wandb, _ = fakes
    wandb.fails_at = 3
    folder, said = tracked("wandb")
    assert said.count("warning: wandb gets nothing from iteration 3 on: nobody; the CSV files have everything") == 1
    assert {call[1]["iteration"] for call in wandb.calls if call[0] == "log"} == {1, 2}
    assert read_scalars(folder / METRICS_FILE)["loss"][0] == [1, 2, 3, 4, 5, 6]
    plain, _ = tracked(name="plain")
    assert (plain / MODEL).read_bytes() == (folder / MODEL).read_bytes()
    assert not (plain / TRACKERS_FILE).exists()


def test_a_run_that_does_not_reach_its_end_is_not_called_finished(fakes, tracked, monkeypatch):
    def fail(*arguments):
        raise UserError("enough")

    monkeypatch.setattr("drloss.training.fit.evaluate_split", fail)
    with pytest.raises(UserError, match="enough"):
        tracked("wandb", "mlflow")
    assert fakes[0].calls[-1] == ("finish", 1)
    assert fakes[1].calls[-1] == ("end", "r1", "KILLED")


def test_a_tracker_that_cannot_start_is_named(fakes, tracked):
    with pytest.raises(UserError, match=r"--log wandb: cannot be started: no such key; .* --resume goes on"):
        tracked("mlflow", "wandb", name="refused")
    assert fakes[1].calls[-1] == ("end", "r1", "KILLED")
    folder, _ = tracked("mlflow", name="refused", resume=True)
    assert (folder / MODEL).exists()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://bob:s3:cr@t@host:5000/a", "mlflow: at https://host:5000/a"),
        ("postgresql://host/db?user=bob&password=s3:cr@t", "mlflow: at postgresql://host/db"),
        pytest.param("http://host/b@c", "mlflow: at http://host/b@c", marks=pytest.mark.slow),
        pytest.param(
            "file:///tmp/runs",
            "mlflow: mlflow ui --backend-store-uri file:///tmp/runs shows it",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_address_of_a_server_is_shown_without_a_password(fakes, tracked, monkeypatch, uri, shown):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _, said = tracked("mlflow", max_iters=1)
    assert shown in said.splitlines()
    assert "s3:cr" not in said
    assert fakes[1].calls[0] == ("uri", uri)


def test_no_error_of_a_tracker_shows_a_password(fakes, tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://bob:s3:cr@t@down")
    with pytest.raises(UserError, match="API request to https://down/api failed"):
        tracked("mlflow")


def test_a_missing_package_is_named_with_its_extra_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "wandb").mkdir()  # what wandb makes for its files; no package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not _has(p, "wandb") or p == str(tmp_path)])
    train = ["train", "--data", "shapes:train=4,val=2,size=64", "--preset", "cpu", *QUICK]
    assert main([*train, "--out", str(tmp_path / "run"), "--log", "wandb"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--log wandb: wandb is missing: run pip install '.[wandb]' in the checkout of drloss" in said
    assert not (tmp_path / "run").exists()


def _has(folder, name):
    return os.path.isfile(os.path.join(folder, name, "__init__.py"))


def test_an_unknown_tracker_is_refused(tracked):
    with pytest.raises(UserError, match="--log comet: allowed: wandb, mlflow"):
        tracked("comet")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")
def test_mlflow_itself_has_the_scalars_of_a_resumed_run_once(tmp_path):
    folder = tmp_path / "run"
    for steps in ("2", "4"):
        _train("mlflow", folder, tmp_path, steps)
    code = (
        "import json, sys, mlflow\nclient = mlflow.MlflowClient(sys.argv[1])\n"
        "runs = client.search_runs([client.get_experiment_by_name('drloss').experiment_id])\n"
        "history = client.get_metric_history(runs[0].info.run_id, 'train/loss')\n"
        "print(json.dumps([len(runs), runs[0].info.status, sorted((m.step, m.value) for m in history)]))"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{folder}/mlflow.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    count, status, history = json.loads(done.stdout.splitlines()[-1])
    assert (count, status) == (1, "FINISHED")
    iterations, values = zip(*history, strict=True)
    assert list(iterations) == [1, 2, 3, 4]
    assert values == pytest.approx(read_scalars(folder / METRICS_FILE)["loss"][1], rel=1e-7)
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the extra wandb")
def test_wandb_itself_keeps_a_resumed_run_offline_under_one_id(tmp_path):
    folder = tmp_path / "run"
    for steps in ("2", "4"):
        _train("wandb", folder, tmp_path, steps)
    own = json.loads((folder / TRACKERS_FILE).read_text())["wandb"]
    kept = sorted((folder / "wandb").glob(f"offline-run-*-{own}/run-{own}.wandb"))
    assert len(kept) == 2
    assert all(b"train/loss" in file.read_bytes() and b"val/AP50" in file.read_bytes() for file in kept)


def _train(tracker, folder, where, steps):
    """``drloss train`` in a process of its own: both packages start threads and set up logging."""
    train = ["train", "--data", "shapes:train=8,val=2,size=64", "--preset", "cpu", "--short-side", "64", *QUICK]
    command = [sys.executable, "-m", "drloss", *train, "--max-iters", steps, "--out", str(folder), "--log", tracker]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    more = ["--resume", "--force"] if folder.exists() else []
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=where, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
