"""In a long run, neither the memory nor the number of open files grows."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import theilslopes

from drloss.training.log import read_scalars
from drloss.training.run_folder import METRICS_FILE
from faults import start, tiny_run


def held(pid):
    """Resident megabytes and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.slow
def test_a_long_run_grows_neither_in_memory_nor_in_open_files(tmp_path, soak, figure):
    steps, checkpoints = (2000, 50) if soak else (60, 10)
    child = start(
        tiny_run(tmp_path / "run", max_iters=steps, checkpoint_every=checkpoints, eval_every=10 * checkpoints),
        tmp_path / "log",
    )
    metrics, seen = tmp_path / "run" / METRICS_FILE, []
    while child.process.is_alive():
        time.sleep(0.1)
        done = metrics.read_bytes().count(b"\n") - 1 if metrics.exists() else 0
        if done > 0:
            try:
                seen.append((done, *held(child.process.pid)))
            except OSError:  # it has just ended
                break
    assert child.wait() == 0, child.said
    loss = read_scalars(metrics)["loss"][1]
    assert len(loss) == steps
    assert np.isfinite(loss).all()
    # The first fifth fills caches: of images, of memory that is kept for the next step.
    step, memory, files = np.array([s for s in seen if s[0] > steps / 5]).T
    # Between its moments a run has a file more or less open, such as a checkpoint; one left open at each of them, or
    # at each step, would keep the number from ever being as low again as it was.
    third = len(files) // 3 or 1
    assert files[-third:].min() <= files[:third].max(), files
    if soak:
        # The median of all slopes between two moments: within a step, memory goes up and down by 30 MB.
        slope = 1000 * theilslopes(memory, step).slope
        assert slope < 1, f"{slope:.2f} MB per 1,000 steps"
        files_open = f"{files.min():.0f} to {files.max():.0f} files open"
        figure("T34", f"{steps} steps: {slope:+.2f} MB per 1,000 steps, {files_open}, no NaN")
