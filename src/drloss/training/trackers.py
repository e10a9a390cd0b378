"""The scalars of a run in Weights & Biases or MLflow, by their own packages, which are imported only if asked for.

Both stay on this machine unless the user's environment says otherwise: wandb is offline unless ``WANDB_MODE`` is set,
and MLflow writes a database in the run folder unless ``MLFLOW_TRACKING_URI`` is set. Neither reports on its use.
"""

import logging
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from drloss.errors import UserError, first_line
from drloss.io.atomic import json_of, write_json
from drloss.training.config import TRACKERS, Config, flat, to_json
from drloss.training.messages import warn
from drloss.training.run_folder import TRACKERS_FILE

PROJECT = "drloss"
"""Project in Weights & Biases, and experiment in MLflow, unless the environment names another."""


class Tracker(Protocol):
    """Where scalars are sent.

    Attributes:
        where: in words, where they can be looked at.
    """

    where: str

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Send scalars by name, none of which is NaN."""

    def close(self, finished: bool) -> None:
        """End the record of this start of the run, which has reached its end or not."""


class _Wandb:
    def __init__(self, out: Path, config: Config, run_id: str | None) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self.run_id = run_id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=out.absolute().name,
            id=self.run_id,
            dir=os.environ.get("WANDB_DIR", str(out)),
            resume="allow",
            config=to_json(config),
            allow_val_change=True,
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )
        # Not by wandb's own steps, which never fall: a run that was killed repeats some.
        self._run.define_metric("*", step_metric="iteration")
        folder = Path(os.environ.get("WANDB_DIR", str(out))) / "wandb"
        self.where = str(self._run.url or f"in {folder}, which wandb sync sends (WANDB_MODE=online sends at once)")

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **values})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _Mlflow:
    def __init__(self, out: Path, config: Config, run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{out.absolute() / 'mlflow.db'}")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            artifacts = (out.absolute() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
            experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
            run_id = self._client.create_run(experiment, run_name=out.absolute().name).info.run_id
            settings = [Param(key, str(value)) for key, value in flat(config).items()]
            self._client.log_batch(run_id, params=settings)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id: str = run_id
        local = uri.startswith(("sqlite:", "file:"))
        self.where = f"mlflow ui --backend-store-uri {uri} shows it" if local else f"at {_address(uri)}"

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(key, value, now, iteration) for key, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


def _address(uri: str) -> str:
    """Where a server is, without the user, the password and the options."""
    return _without_user(uri).partition("?")[0]


def _without_user(text: str) -> str:
    return re.sub(r"://[^/?#\s]*@", "://", text)


def _why(error: Exception) -> str:
    """The first line of an error of a tracker, which may quote the address of its server."""
    return _without_user(first_line(error))


_KINDS: dict[str, Any] = {"wandb": _Wandb, "mlflow": _Mlflow}


def require_trackers(names: Sequence[str]) -> None:
    """Raise UserError unless the packages of these trackers are installed, without importing them."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--log {name}: allowed: {', '.join(TRACKERS)}")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name, such as wandb makes, is no package
            raise UserError(f"--log {name}: {name} is missing: run pip install '.[{name}]' in the checkout of drloss")


class Trackers:
    """Several trackers of one run. One that fails is left out from then on, and that is said: the run goes on.

    Args:
        names: of :data:`drloss.training.config.TRACKERS`.
        out: run folder; its ``trackers.json`` says under which id each tracker knows the run, so that a resumed run
            goes on there.
        config: settings of the run.
        console: where it is printed where the scalars are, and what fails.
    Raises:
        UserError: if a tracker cannot be started.
    """

    def __init__(self, names: Sequence[str], out: Path, config: Config, console: Console) -> None:
        self._console = console
        self._open: dict[str, Tracker] = {}
        known = json_of(out / TRACKERS_FILE)
        ids = {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}
        for name in dict.fromkeys(names):
            try:
                tracker = _KINDS[name](out, config, ids.get(name))
            except Exception as error:  # of another library, perhaps of its server
                self.close(finished=False)
                raise UserError(
                    f"--log {name}: cannot be started: {_why(error)}; the run folder is there: --resume goes on, "
                    "with or without --log"
                ) from error
            self._open[name] = tracker
            ids[name] = tracker.run_id
            console.print(f"{name}: {tracker.where}", markup=False, soft_wrap=True)
        if self._open:
            write_json(out / TRACKERS_FILE, ids)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Send the scalars of an iteration, by name; none is NaN."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.write(iteration, values)
            except Exception as error:
                del self._open[name]
                why = f"{_why(error)}; the CSV files have everything"
                warn(self._console, f"{name} gets nothing from iteration {iteration} on: {why}")

    def close(self, *, finished: bool) -> None:
        """End the records; ``finished`` says whether the run has reached its end."""
        for name, tracker in self._open.items():
            try:
                tracker.close(finished)
            except Exception as error:
                warn(self._console, f"{name} could not be closed: {_why(error)}")
        self._open = {}
