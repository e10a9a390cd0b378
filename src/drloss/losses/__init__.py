"""The losses: §3 of the paper, and the losses it is compared with, all called alike.

``dr`` has the DR loss, ``pointwise`` and ``ap`` the others, and ``registry`` finds each by its name. The DR loss is
built from ``candidates`` (positives and negatives), ``distribution`` (Propositions 1 and 2, Eq. 6), ``surrogates``
(Eqs. 7 and 8), ``pairs`` (Eqs. 3 and 4) and ``ranking`` (Eqs. 5 and 9). ``fused`` computes the same numbers faster,
and ``diagnostics`` reports what a loss does. ``inputs`` and ``parameters`` check arguments, ``summation`` and
``derivatives`` are the arithmetic, ``module`` makes a function a module, and ``call_log`` records calls.

The rooms listed after it in CONTRIBUTING.md may import it. It imports nothing of drloss but ``errors``.
"""

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
from drloss.losses.registry import BEST_KNOWN, LOSSES, LossSpec, make_loss

__all__ = [
    "BEST_KNOWN",
    "LOSSES",
    "APLoss",
    "CrossEntropyLoss",
    "DRLoss",
    "DRStatistics",
    "FocalLoss",
    "ImageLoss",
    "LossSpec",
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
    "make_loss",
    "ohem_loss",
    "quality_focal_loss",
]
