"""The losses: §3 of the paper, and its rivals with the same signature."""

from drloss.losses.dr import DRLoss, DRStatistics, dr_loss, dr_statistics
from drloss.losses.pointwise import CrossEntropyLoss, FocalLoss, cross_entropy_loss, focal_loss

LOSSES = {"dr": DRLoss, "focal": FocalLoss, "ce": CrossEntropyLoss}
"""Loss modules by the name that the command line knows them by."""

__all__ = [
    "LOSSES",
    "CrossEntropyLoss",
    "DRLoss",
    "DRStatistics",
    "FocalLoss",
    "cross_entropy_loss",
    "dr_loss",
    "dr_statistics",
    "focal_loss",
]
