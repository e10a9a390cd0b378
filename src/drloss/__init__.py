"""drloss: the DR loss (Qian et al., CVPR 2020) and Dr. Retina, the RetinaNet trained with it.

What is listed here needs torch alone, which is imported when the first of the names is used: the losses, ``adapt``,
which puts one into a detector of another library, and ``check``, which says whether a training step calls it right.
The detector, the readers of data, training and evaluation are imported from their own packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from drloss.adapters import adapt as adapt
    from drloss.adapters.integration import CheckReport as CheckReport
    from drloss.adapters.integration import check as check
    from drloss.losses import *  # noqa: F403

__version__ = "0.1.0"

_EXPORTS = {
    "adapt": "drloss.adapters",
    "check": "drloss.adapters.integration",
    "CheckReport": "drloss.adapters.integration",
    "BEST_KNOWN": "drloss.losses",
    "LOSSES": "drloss.losses",
    "APLoss": "drloss.losses",
    "CrossEntropyLoss": "drloss.losses",
    "DRLoss": "drloss.losses",
    "DRStatistics": "drloss.losses",
    "FocalLoss": "drloss.losses",
    "ImageLoss": "drloss.losses",
    "LossSpec": "drloss.losses",
    "OHEMLoss": "drloss.losses",
    "QualityFocalLoss": "drloss.losses",
    "ap_loss": "drloss.losses",
    "check_first_loss": "drloss.losses",
    "cross_entropy_loss": "drloss.losses",
    "dr_gradient": "drloss.losses",
    "dr_loss": "drloss.losses",
    "dr_statistics": "drloss.losses",
    "first_loss_problem": "drloss.losses",
    "focal_loss": "drloss.losses",
    "lambda_from_log_base": "drloss.losses",
    "make_loss": "drloss.losses",
    "ohem_loss": "drloss.losses",
    "quality_focal_loss": "drloss.losses",
}
"""Name of each export and the module that has it."""
__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'drloss' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
