"""The moving average of the weights."""

from copy import deepcopy
from typing import Any

import torch

from drloss.detector.exported import load_weights
from drloss.detector.model import RetinaNet


class WeightAverage:
    """A copy of a detector whose weights are the exponential moving average of the weights in training.

    After each step every weight becomes d · average + (1 − d) · weight, with d = min(decay, (1 + t) / (10 + t)) after
    t updates: the initial weights, which a long average would remember for thousands of steps, are soon forgotten.
    Buffers, such as the statistics of frozen batch norms, are what they were at the start: no step changes one. All
    ranks have the same weights after each step, so they have the same average, and send none of it.

    ``torch.optim.swa_utils.AveragedModel`` does the same with the same operation, but copies its count of updates to
    the device in every step, for which the host waits.

    Attributes:
        model: the averaged detector, in evaluation mode, without gradients, on the device of the one in training.
        decay: largest decay, in (0, 1).
        updates: number of updates so far.
    """

    def __init__(self, model: RetinaNet, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: RetinaNet) -> None:
        """Take the weights after a step into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        self.updates += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load(self, state: dict[str, Any], source: str) -> None:
        """Undo :meth:`state`.

        Raises:
            UserError: naming ``source``, if the weights do not fit.
        """
        load_weights(self.model, dict(state["model"]), source)
        self.updates = state["updates"]
