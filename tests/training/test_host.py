"""Settings of the process: they are made where they have an effect, and leave the user's own alone."""

import os
import platform
import subprocess
import sys

import pytest

from drloss.distributed.host import wait_passively

FAULTS = """
import resource, sys
from drloss.distributed.host import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import numpy
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(50_000_000, dtype=numpy.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_a_step_frees_is_there_for_the_next():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    made, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, check=True
            ).stdout
        )
        for how in ("made", "kept")
    )
    assert made > 20
    assert kept <= 2


def test_threads_wait_passively_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_command_line_says_so_before_torch_is_there():
    code = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "from drloss.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
