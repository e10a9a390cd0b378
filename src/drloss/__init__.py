"""drloss: the DR loss (Qian et al., CVPR 2020) and Dr. Retina, the RetinaNet trained with it.

``import drloss`` brings the losses and needs torch alone, which it imports when the first of them is asked for; the
detector, the data readers, training and evaluation are imported where they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drloss.losses import (
        CrossEntropyLoss,
        DRLoss,
        DRStatistics,
        FocalLoss,
        cross_entropy_loss,
        dr_loss,
        dr_statistics,
        focal_loss,
    )

__version__ = "0.1.0"

__all__ = [
    "CrossEntropyLoss",
    "DRLoss",
    "DRStatistics",
    "FocalLoss",
    "__version__",
    "cross_entropy_loss",
    "dr_loss",
    "dr_statistics",
    "focal_loss",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'drloss' has no attribute {name!r}")
    from drloss import losses

    return getattr(losses, name)
