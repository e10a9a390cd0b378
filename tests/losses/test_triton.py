"""What of the Triton kernels the interpreter cannot show: that they compile for a GPU, and what they give on one."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from losses.cases import device_of, error_of
from losses.test_fused import ERROR, LOSSES, close


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.slow
def test_triton_compiles_its_kernels_for_a_device_that_is_not_here():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "losses.compile_triton"], env=environment, cwd="tests", check=False)
    assert done.returncode == 0


def test_tensors_of_triton_are_on_the_device_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device_of(backend) for backend in ("triton", "cpu", "chunked", "torch")] == ["cuda", "cpu", "cpu", "cpu"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # that it does not see every wait
@pytest.mark.parametrize(("loss", "options"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_on_a_gpu(loss, options, memory):
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, 9 * 80, s, s + 3, generator=generator).to("cuda", memory_format=memory)
        for s in (40, 20, 10, 5, 3)
    ]
    rows = [x.permute(0, 2, 3, 1).reshape(2, -1, 80) for x in maps]
    joined = torch.cat(rows, dim=1)
    labels = torch.randint(-1, 81, joined.shape[:2], generator=generator)
    labels *= torch.rand(labels.shape, generator=generator) < 0.05
    labels = labels.cuda()
    if "weights" in options.values():
        options = {"neg_prior": torch.rand(80).cuda()}
    leaves = [x.requires_grad_() for x in maps]
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        value = loss(leaves, labels, backend="triton", **options)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    exact = joined.double().requires_grad_()
    wanted = loss(exact, labels, backend="torch", **options)
    wanted.backward()
    close(value.detach(), wanted.detach(), error_of("triton", ERROR))
    found = torch.cat([x.grad.permute(0, 2, 3, 1).reshape(2, -1, 80) for x in leaves], dim=1)
    close(found, exact.grad, error_of("triton", ERROR))
