"""What a process tells the others while it waits for its device and for them, and what is sent between them."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist

from drloss.detector.config import DetectorConfig
from drloss.detector.model import RetinaNet
from drloss.distributed.ranks import Ranks

CPU = torch.device("cpu")


class Told:
    """A watchdog and a mark that write down when they are called, and values that are read."""

    def __init__(self):
        self.order = []

    def wait(self, waiting):
        self.order.append("waits" if waiting else "goes on")

    def synchronize(self):
        self.order.append("own device is done")

    def detach(self):
        return self

    def to(self, dtype):
        return self

    def tolist(self):
        self.order.append("sums are read")
        return [3.0]


@pytest.mark.parametrize("marked", [True, False])
def test_a_process_waits_for_the_others_until_it_has_the_sums_but_not_for_itself(marked):
    told = Told()
    with mock.patch.object(dist, "all_reduce", side_effect=lambda _: told.order.append("operation is queued")):
        assert Ranks(0, 2, CPU, told).sum(told, after=told if marked else None) == [3.0]
    own = ["own device is done"] if marked else []
    assert told.order == [*own, "waits", "operation is queued", "sums are read", "goes on"]


def test_a_process_alone_and_a_cpu_have_no_marks():
    assert Ranks(0, 1, CPU).mark() is None
    assert Ranks(0, 2, CPU).mark() is None
    assert Ranks(0, 1, torch.device("cuda")).mark() is None
    assert Ranks(0, 1, CPU).sum(torch.tensor([1.0, 2.0])) == [1.0, 2.0]


@pytest.mark.parametrize("norm", ["frozen", "group"])
@pytest.mark.parametrize("name", ["resnet10", "tf_efficientnet_lite0"])
def test_no_step_changes_a_buffer(name, norm):
    if not name.startswith("resnet"):
        pytest.importorskip("timm", reason="timm is not installed")
    model = RetinaNet(DetectorConfig(backbone=name, norm=norm, fpn_channels=16, head_channels=16), 3, 0.5).train()
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    outputs = model(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8))
    sum(m.sum() for m in outputs.maps).backward()
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.named_buffers())
