"""The losses: §3 of the paper, and its rivals with the same signature."""

from drloss.losses.ap import APLoss, ap_loss
from drloss.losses.diagnostics import DRStatistics, check_first_loss, dr_statistics, first_loss_problem
from drloss.losses.distribution import lambda_from_log_base
from drloss.losses.dr import DRLoss, dr_gradient, dr_loss
from drloss.losses.module import ImageLoss
from drloss.losses.pointwise import (
    CrossEntropyLoss,
    FocalLoss,
    OHEMLoss,
    QualityFocalLoss,
    cross_entropy_loss,
    focal_loss,
    ohem_loss,
    quality_focal_loss,
)

LOSSES: dict[str, type[ImageLoss]] = {
    "dr": DRLoss,
    "focal": FocalLoss,
    "ce": CrossEntropyLoss,
    "ohem": OHEMLoss,
    "qfl": QualityFocalLoss,
    "ap": APLoss,
}
"""Loss modules by the name that the command line knows them by."""

__all__ = [
    "LOSSES",
    "APLoss",
    "CrossEntropyLoss",
    "DRLoss",
    "DRStatistics",
    "FocalLoss",
    "ImageLoss",
    "OHEMLoss",
    "QualityFocalLoss",
    "ap_loss",
    "check_first_loss",
    "cross_entropy_loss",
    "dr_gradient",
    "dr_loss",
    "dr_statistics",
    "first_loss_problem",
    "focal_loss",
    "lambda_from_log_base",
    "ohem_loss",
    "quality_focal_loss",
]
