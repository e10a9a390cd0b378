"""drloss: the DR loss (Qian et al., CVPR 2020) and Dr. Retina, the RetinaNet trained with it.

``import drloss`` brings the losses and needs torch alone, which it imports when the first of them is asked for; the
detector, the data readers, training and evaluation are imported where they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drloss.adapters.integration.check import check
    from drloss.losses import (
        LOSSES,
        APLoss,
        CrossEntropyLoss,
        DRLoss,
        DRStatistics,
        FocalLoss,
        ImageLoss,
        OHEMLoss,
        QualityFocalLoss,
        ap_loss,
        check_first_loss,
        cross_entropy_loss,
        dr_gradient,
        dr_loss,
        dr_statistics,
        focal_loss,
        lambda_from_log_base,
        ohem_loss,
        quality_focal_loss,
    )

__version__ = "0.1.0"

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
    "__version__",
    "ap_loss",
    "check",
    "check_first_loss",
    "cross_entropy_loss",
    "dr_gradient",
    "dr_loss",
    "dr_statistics",
    "focal_loss",
    "lambda_from_log_base",
    "ohem_loss",
    "quality_focal_loss",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'drloss' has no attribute {name!r}")
    if name == "check":
        from drloss.adapters.integration.check import check

        return check
    from drloss import losses

    return getattr(losses, name)
