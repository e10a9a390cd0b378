"""How often the host waits for the device in a step, counted on a device of FakeTensorMode, which has no values.

An operation that needs a value on the host raises there: ``item``, ``nonzero``, a boolean index, ``unique``.
A copy from one device to another, or of Python numbers to a device, is counted by a mode around it.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from drloss.data.batches import Batch
from drloss.detector.model import RetinaNet
from drloss.detector.objective import Objective
from drloss.distributed.ranks import Ranks
from drloss.losses import inputs
from drloss.structures import Frame, PaddedObjects
from drloss.training.average import WeightAverage
from drloss.training.config import make_loss, override
from drloss.training.device import for_device
from drloss.training.schedule import build_optimizer
from drloss.training.signals import StopRequest
from drloss.training.step import take_step
from drloss.training.trainer import Trainer
from small_training import TINY


class Copies(TorchDispatchMode):
    """Notes copies that make the host wait, and counts those that do not, which need pinned memory."""

    def __init__(self):
        super().__init__()
        self.waiting, self.sources = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._fused_sgd_:  # one kernel, of which FakeTensorMode knows nothing
            return None
        out = func(*args, **(kwargs or {}))
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func is torch.ops.aten.lift_fresh.default and "cuda" in str(out.device):
            self.waiting.append("numbers")
        if func is torch.ops.aten._to_copy.default and source.device != out.device:
            if (kwargs or {}).get("non_blocking") and out.device.type == "cuda":
                self.sources.append(source)
            else:
                self.waiting.append(f"{source.device} to {out.device}")
        return out


@contextmanager
def watched():
    """A device without values; autocast is told that it is there."""
    common = torch.cuda.amp.common
    here = mock.patch.object(common, "amp_definitely_not_available", return_value=False)
    able = mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True)
    with here, able, FakeTensorMode(), Copies() as copies:
        yield copies


@dataclass(frozen=True)
class CountedRanks(Ranks):
    """Ranks whose sums, for each of which the host waits, are counted and come out as 0."""

    sums: list = field(default_factory=list)

    def sum(self, values, after=None):
        self.sums.append(len(values))
        return [0.0] * len(values)


def batch_of(sizes):
    count, (height, width) = len(sizes), (max(side) for side in zip(*sizes, strict=True))
    objects = PaddedObjects(
        boxes=torch.zeros(count, 3, 4),
        labels=torch.ones(count, 3, dtype=torch.int64),
        regions=torch.zeros(count, 1, 4),
        counts=(3,) * count,
    )
    frames = [Frame(size, size) for size in sizes]
    return Batch(torch.zeros(count, 3, height, width, dtype=torch.uint8), objects, frames, list(range(count)))


def trainer_on(device, **settings):
    config = for_device(override(TINY, {"precision": "fp32"} | settings), torch.device(device))
    config = replace(config, detector=replace(config.detector, norm="group"))
    loss = make_loss(config.loss)
    with torch.device(device):
        model, copy = (RetinaNet(config.detector, 3, 0.5) for _ in range(2))
    model.train()
    with mock.patch("drloss.training.average.deepcopy", return_value=copy):  # which reads values
        average = WeightAverage(model, config.ema) if config.ema else None
    state = {"train": None, "val": None, "out": None, "console": None, "fingerprint": "", "log": None}
    return Trainer(
        **state,
        config=config,
        ranks=CountedRanks(0, 1, torch.device(device)),
        stop=StopRequest(),
        model=model,
        parallel=model,
        objective=Objective(loss, config.detector),
        optimizer=build_optimizer(model, config),
        scaler=torch.amp.GradScaler(device, enabled=config.precision == "fp16"),
        iteration=1,
        last_ap=math.nan,
        evaluated=True,
        average=average,
    )


ONE_SIZE, MIXED = [(64, 64), (64, 64)], [(64, 64), (32, 64), (64, 32)]
CASES = [
    {},
    {"optimizer": "sgd", "precision": "bf16", "channels_last": True},
    {"ema": 0.99},
    *({"loss": name} for name in ("focal", "ce", "dr:surrogate=hinge")),
]


@pytest.mark.parametrize("settings", [*CASES, {"precision": "fp16"}], ids=str)
@pytest.mark.parametrize("sizes", [pytest.param(ONE_SIZE, marks=pytest.mark.slow), MIXED], ids=["one size", "mixed"])
def test_a_step_waits_once_for_the_device(settings, sizes):
    def backward(loss):  # autograd asks the driver for the device, which is not there
        assert loss.device.type == "cuda"
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    with watched() as copies:
        trainer = trainer_on("cuda", **settings)
        batches = [batch_of(sizes), batch_of(sizes[:1])]
        copies.waiting.clear()
        with mock.patch.object(torch.Tensor, "backward", backward):
            take_step(trainer, batches, logged=False)
    assert copies.waiting == []
    assert all(group["fused"] for group in trainer.optimizer.param_groups)
    pinned = [t for b in batches for t in (b.images, b.objects.boxes, b.objects.labels, b.objects.regions)]
    assert {id(t) for t in copies.sources} == {id(t) for t in pinned}  # the loader pins what a batch holds
    assert len(trainer.ranks.sums) == 1


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_no_gradient_needs_a_value_on_the_host(settings):
    unchecked = mock.patch.object(inputs, "values_can_be_checked", return_value=False)  # as on a GPU
    with unchecked, watched():
        trainer = trainer_on("cpu", **settings)
        take_step(trainer, [batch_of(MIXED)], logged=True)
        assert all(p.grad is not None for p in trainer.model.parameters())


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.as_tensor([1.0, 2.0], device=x.device),
        lambda x: torch.zeros(2).to(x.device),
    ],
)
def test_the_count_sees_what_waits(wait):
    with watched() as copies:
        x = torch.zeros(3, device="cuda")
        try:
            wait(x)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return
    assert copies.waiting
