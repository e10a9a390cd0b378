"""drloss: the DR loss (Qian et al., CVPR 2020) and Dr. Retina, the RetinaNet trained with it.

``import drloss`` brings the losses and needs torch alone; the detector, the data readers, training and evaluation
are imported where they are used.
"""

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
