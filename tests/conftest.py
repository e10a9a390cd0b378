import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Tests run beside each other: more threads than cores would make all of them slow. Children inherit the variable.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels are then run on the CPU, by its interpreter
    if find_spec("triton"):
        from drloss.losses.fused import triton

        triton.BLOCK, triton.STEPS = 64, 2  # whose time goes with the size of the blocks


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--gpu", action="store_true", help="also run the tests marked gpu")


def pytest_collection_modifyitems(config, items):
    for marker in ("slow", "gpu"):
        if not config.getoption(f"--{marker}"):
            skip = pytest.mark.skip(reason=f"opt in with --{marker}")
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data():
    """Folder of real data sets, where the environment names one."""
    folder = os.environ.get("DRLOSS_TEST_DATA")
    if not folder:
        pytest.skip(
            "DRLOSS_TEST_DATA is not set: it names a folder with the sets bccd, microcontroller_400, fod_a_s10"
        )
    return Path(folder)
