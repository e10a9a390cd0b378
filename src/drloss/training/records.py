"""What a run writes down about itself: ``config.json`` and ``environment.json``."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import drloss
from drloss.data.annotations import Annotations
from drloss.detector.starting_weights import Start
from drloss.distributed.ranks import Ranks
from drloss.errors import UserError
from drloss.io.atomic import json_of, write_json
from drloss.training.config import Config, to_json
from drloss.training.fingerprint import fingerprint
from drloss.training.messages import warn
from drloss.training.resume import OTHER_BITS, describe_change
from drloss.training.run_folder import CONFIG, ENVIRONMENT


def write_records(
    out: Path,
    config: Config,
    train: Annotations,
    ranks: Ranks,
    iteration: int,
    started: Start,
    console: Console,
) -> None:
    """Write ``config.json``, and append a record of this start to ``environment.json``.

    Raises:
        UserError: if ``environment.json`` exists and is not a list of records.
    """
    path = out / ENVIRONMENT
    earlier = json_of(path) if path.exists() and iteration else []
    if not isinstance(earlier, list) or not all(isinstance(record, dict) for record in earlier):
        raise UserError(
            f"{path}: cut off or altered: it must be a JSON list of records; remove it to go on without it"
        )
    write_json(out / CONFIG, to_json(config))
    data = {"name": train.name, "images": len(train), "classes": list(train.class_names)}
    record = environment(ranks.device, ranks.size) | {"data": data | {"fingerprint": fingerprint(train)}}
    record |= {"from_iteration": iteration, "started_from": [started.words, *started.details]}
    decisive = ("threads", "processes") if ranks.device.type == "cpu" else ("processes",)
    for name in decisive if earlier else ():
        was, now = earlier[-1].get(name), record[name]
        if was != now:
            warn(console, f"{describe_change(f'the number of {name}', was, now)}; {OTHER_BITS}")
    write_json(path, [*earlier, record])


def environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """Time, command line, commit, versions and device of a run, in JSON types."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "drloss": drloss.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {p: _version(p) for p in ("torch", "torchvision", "timm", "numpy", "pillow", "faster-coco-eval")},
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "processes": ranks,
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """Commit of the checkout that drloss runs from, with ``+`` if it has changes; None outside a checkout."""
    here = Path(drloss.__file__)
    try:
        # An installed drloss may lie inside another project's checkout: only a checkout that tracks this file counts.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
