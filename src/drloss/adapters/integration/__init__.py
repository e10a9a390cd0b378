"""``drloss.check``: runs one training step of a detector and says whether the DR loss is called right.

``check`` runs the step and leaves the model as it was, ``observed_sets`` holds what the loss was called with, and
``findings`` judges it, one function for each question. It takes models of any library, adapted or not. It imports the
losses and ``drloss.adapters``; no other room imports it.
"""

from drloss.adapters.integration.check import CheckReport, check
from drloss.adapters.integration.findings import Finding

__all__ = ["CheckReport", "Finding", "check"]
