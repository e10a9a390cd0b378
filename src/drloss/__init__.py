"""drloss: the DR loss (Qian et al., CVPR 2020) and Dr. Retina, the RetinaNet trained with it.

What is listed here needs torch alone, which is imported when the first of the names is used: the losses, ``adapt``,
which puts one into a detector of another library, and ``check``, which says whether a training step calls it right.
``Detector``, a trained detector at work, needs the extra ``detector``. The readers of data, training and evaluation
are imported from their own packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from drloss.adapters import adapt as adapt
    from drloss.adapters.integration import CheckReport as CheckReport
    from drloss.adapters.integration import check as check
    from drloss.inference.detector import Detector as Detector
    from drloss.losses import *  # noqa: F403

__version__ = "0.2.0"

_EXPORTS = {
    "adapt": "adapters",
    "check": "adapters.integration",
    "CheckReport": "adapters.integration",
    "Detector": "inference.detector",
    "BEST_KNOWN": "losses",
    "LOSSES": "losses",
    "APLoss": "losses",
    "CrossEntropyLoss": "losses",
    "DRLoss": "losses",
    "DRStatistics": "losses",
    "FocalLoss": "losses",
    "ImageLoss": "losses",
    "LossSpec": "losses",
    "OHEMLoss": "losses",
    "QualityFocalLoss": "losses",
    "ap_loss": "losses",
    "check_first_loss": "losses",
    "cross_entropy_loss": "losses",
    "dr_gradient": "losses",
    "dr_loss": "losses",
    "dr_statistics": "losses",
    "first_loss_problem": "losses",
    "focal_loss": "losses",
    "lambda_from_log_base": "losses",
    "make_loss": "losses",
    "ohem_loss": "losses",
    "quality_focal_loss": "losses",
}
"""Name of each export, and the package of drloss that has it."""
__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'drloss' has no attribute {name!r}")
    try:
        return getattr(import_module(f"drloss.{_EXPORTS[name]}"), name)
    except ModuleNotFoundError as error:
        package = (error.name or "drloss").split(".")[0]
        if name != "Detector" or package in ("drloss", "torch"):
            raise
        words = f"drloss.{name}: {package} is missing: run pip install '.[detector]' in the checkout of drloss"
        raise ModuleNotFoundError(words, name=error.name) from None


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
