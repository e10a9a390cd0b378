"""A training run of six steps on 24 small pictures."""

import csv
from dataclasses import replace

import numpy as np
import torch

from drloss.distributed.ranks import Ranks
from drloss.training.config import override
from drloss.training.log import read_scalars
from drloss.training.presets import PRESETS
from drloss.training.run_folder import METRICS_FILE

ALONE = Ranks(0, 1, torch.device("cpu"))
SPEC = "shapes:train=24,val=6,size=64"
TINY = override(
    PRESETS["cpu"],
    {
        "max_iters": 6,
        "batch_size": 4,
        "scale_lr": False,
        "short_side": 64,
        "fpn_channels": 32,
        "head_channels": 32,
        "workers": 0,
        "log_every": 1,
        "eval_every": 0,
        "checkpoint_every": 2,
    },
)
QUICK = [
    *("--max-iters", "4", "--batch-size", "4", "--no-scale-lr"),
    *("--workers", "0", "--log-every", "1", "--device", "cpu"),
]
"""Options of a run of four steps."""


def losses(folder):
    return read_scalars(folder / METRICS_FILE)["loss"][1]


def rows(path):
    """A CSV file without the column of times."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def with_boxes(annotations, images):
    """A split in which only the first ``images`` images keep their boxes."""
    count = annotations.first_box[images]
    kept = {name: getattr(annotations, name)[:count] for name in ("boxes", "labels", "ignore", "areas")}
    return replace(annotations, first_box=np.minimum(annotations.first_box, count), **kept)
