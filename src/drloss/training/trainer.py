"""A run in the state between two steps: everything that the training loop works with."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.detector.model import RetinaNet
from drloss.detector.objective import Objective
from drloss.distributed.ranks import Ranks
from drloss.training.average import WeightAverage
from drloss.training.best import Best
from drloss.training.device import DeviceConfig
from drloss.training.log import ScalarLog
from drloss.training.signals import StopRequest


@dataclass
class Trainer:
    """A run that is ready for its next step; :func:`drloss.training.preparation.prepare` makes it.

    Attributes:
        config: settings, with the norm chosen and what ``auto`` means on this device.
        train: training split.
        val: split to evaluate on, or None.
        out: run folder.
        ranks: this process among the others.
        console: where rank 0 prints.
        stop: whether this process was asked to stop.
        fingerprint: fingerprints of the splits.
        model: the detector.
        parallel: the detector as the step calls it: it averages gradients over ranks if there are several.
        objective: makes the classification and the box loss from the detector's outputs and the objects.
        optimizer: optimiser of the detector's weights.
        scaler: scaler of fp16 gradients; disabled in other precisions.
        log: CSV files and TensorBoard; None on all ranks but rank 0.
        iteration: number of steps done.
        last_ap: AP of the last evaluation, NaN before it.
        evaluated: whether the evaluation that is due after this iteration is done, or none is due.
        best: the best evaluation so far.
        average: moving average of the weights; None without one.
    """

    config: DeviceConfig
    train: Annotations
    val: Annotations | None
    out: Path
    ranks: Ranks
    console: Console
    stop: StopRequest
    fingerprint: str
    model: RetinaNet
    parallel: torch.nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    log: ScalarLog | None
    iteration: int
    last_ap: float
    evaluated: bool
    best: Best = field(default_factory=Best)
    average: WeightAverage | None = None

    @property
    def detector(self) -> RetinaNet:
        """The detector that is evaluated and exported: that of the averaged weights, if there are any."""
        return self.average.model if self.average is not None else self.model

    @property
    def share(self) -> int:
        """Number of images that each rank takes in a step."""
        return self.config.batch_size // self.ranks.size

    @property
    def micro_batch(self) -> int:
        """Number of images that a rank takes at a time."""
        return min(self.config.micro_batch, self.share)
