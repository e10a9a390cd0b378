"""The best evaluation of a run so far, and when a run has ended."""

from dataclasses import dataclass
from math import isnan, nan

from drloss.training.config import Config


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run so far.

    Attributes:
        ap: its AP in percent; NaN before the first evaluation that has one.
        iteration: number of steps that were done then; 0 before.
        waited: number of evaluations since then.
    """

    ap: float = nan
    iteration: int = 0
    waited: int = 0

    def after(self, iteration: int, ap: float) -> "Best":
        """The best after one more evaluation; of two with the same AP, the earlier one."""
        if ap > self.ap or (isnan(self.ap) and not isnan(ap)):
            return Best(ap, iteration)
        return Best(self.ap, self.iteration, self.waited + 1)


def has_ended(iteration: int, best: Best, config: Config) -> bool:
    """Whether a run has done its last step, or waited for a better AP for as long as its patience."""
    return iteration >= config.max_iters or 0 < config.patience <= best.waited
