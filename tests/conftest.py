import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

# Tests run beside each other: more threads than cores would make all of them slow, and so would threads that spin
# while they wait. OpenMP reads this once, as torch is imported; children inherit it.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import torch

torch.set_num_threads(1)
if torch.cuda.is_available():
    with warnings.catch_warnings(action="ignore"):  # some versions of torch would have it called otherwise
        torch.backends.cudnn.allow_tf32 = False  # too rough to compare what comes after a convolution
else:
    # Triton's kernels are then run on the CPU, by its interpreter. Triton reads this once, as it is imported.
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):
        from drloss.losses.fused import triton

        triton.BLOCK, triton.STEPS, triton.CLASSES = (
            64,
            2,
            2,
        )  # the interpreter is slow with large blocks


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--gpu", action="store_true", help="also run the tests marked gpu")
    parser.addoption("--soak", action="store_true", help="run the long form of the tests marked soak")
    parser.addoption("--figures", metavar="FILE.json", type=Path, help="write the figures of the tests to this file")


def pytest_collection_modifyitems(config, items):
    for marker in ("slow", "gpu"):
        if not (config.getoption(f"--{marker}") or (marker == "slow" and config.getoption("--soak"))):
            skip = pytest.mark.skip(reason=f"opt in with --{marker}")
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)


@pytest.fixture
def soak(request):
    """Whether a test marked ``soak`` is to run in its long form."""
    return request.config.getoption("--soak")


@pytest.fixture
def figure(request):
    """Takes the key of a promise of docs/reliability.md and how far it was seen to hold; printed at the end."""

    def note(key, seen):
        request.node.user_properties.append(("figure", [key, seen]))

    return note


def pytest_terminal_summary(terminalreporter, config):
    """The figures of the tests that passed, and those that failed by name."""
    found = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "figure" and report.when == "call":
                    found.setdefault(value[0], []).append(value[1] if outcome == "passed" else f"FAILED: {value[1]}")
    if not (found and config.getoption("--soak")):
        return
    terminalreporter.section("figures")
    for key in sorted(found, key=lambda k: (len(k), k)):
        terminalreporter.write_line(f"{key}: {'; '.join(found[key])}")
    if path := config.getoption("--figures"):
        from drloss.io.atomic import write_json
        from drloss.training.records import environment

        write_json(path, environment(torch.device("cpu"), 1) | {"figures": found})


@pytest.fixture(scope="session")
def real_data():
    """Folder of real data sets, where the environment names one."""
    folder = os.environ.get("DRLOSS_TEST_DATA")
    if not folder:
        pytest.skip(
            "DRLOSS_TEST_DATA is not set: it names a folder with the sets bccd, microcontroller_400, fod_a_s10"
        )
    return Path(folder)
