"""Annotated objects, written in few words."""

import torch

from drloss.structures import Objects


def objects(*boxes, labels=None, ignore=None):
    count = len(boxes)
    return Objects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels if labels is not None else [1] * count, dtype=torch.int64),
        ignore=torch.tensor(ignore if ignore is not None else [False] * count, dtype=torch.bool),
    )
