"""Time on the device and on the host, bytes, and kernels."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

SLEEP_RATE = 2e9
"""Cycles of a GPU in a second, at most."""


def synchronize(device: str) -> None:
    """Wait for a device."""
    if device == "cuda":
        torch.cuda.synchronize()


def times(
    stages: Sequence[Callable[[int], Any]], device: str, repeats: int, most_s: float = 2.0
) -> tuple[list[float], list[float]]:
    """Median seconds of each stage on the device, and on the host.

    Args:
        stages: called one after the other with the number of the round.
        device: ``"cuda"`` or ``"cpu"``, where both times are the same.
        repeats: rounds that count, after two that do not.
        most_s: seconds that the rounds may take; slow stages have fewer of them, at least three.

    The host's time is taken first, without waiting for the device. Then the device is held up until the host is
    ahead, so that events between the stages see no gap in which the device waits for the host.
    """
    for number in range(2):
        synchronize(device)
        began = time.perf_counter()
        for stage in stages:
            stage(number)
        synchronize(device)
    repeats = min(repeats, max(int(most_s / 2 / (time.perf_counter() - began)), 3))
    host = []
    for number in range(repeats):
        clock = [time.perf_counter()]
        for stage in stages:
            stage(number)
            clock.append(time.perf_counter())
        host.append([b - a for a, b in pairwise(clock)])
    synchronize(device)
    on_host = [statistics.median(column) for column in zip(*host, strict=True)]
    if device != "cuda":
        return on_host, on_host
    torch.cuda._sleep(int(SLEEP_RATE * min(1.5 * repeats * sum(on_host), 0.5)))
    marks = []
    for number in range(repeats):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
        events[0].record()
        for stage, event in zip(stages, events[1:], strict=True):
            stage(number)
            event.record()
        marks.append(events)
    torch.cuda.synchronize()
    spans = [[a.elapsed_time(b) / 1e3 for a, b in pairwise(events)] for events in marks]
    return [statistics.median(column) for column in zip(*spans, strict=True)], on_host


def copy_seconds(like: Sequence[torch.Tensor], device: str, repeats: int = 20) -> float:
    """Seconds of a copy of a tensor, one after the other of several, which together are larger than the cache."""
    sources = [x.detach() for x in like]
    into = torch.empty_like(sources[0])
    return times([lambda i: into.copy_(sources[i % len(sources)])], device, repeats)[0][0]


def kernels(run: Callable[[], Any], device: str, most: int = 10) -> list[list[Any]]:
    """Name, microseconds and number of calls of the kernels that take longest, of one run; operators on a CPU."""
    activity = torch.profiler.ProfilerActivity
    chosen = [activity.CPU, activity.CUDA] if device == "cuda" else [activity.CPU]
    synchronize(device)
    with torch.profiler.profile(activities=chosen) as profile:
        run()
        synchronize(device)
    rows = []
    for entry in profile.key_averages():
        if device == "cuda" and "CUDA" not in str(entry.device_type):
            continue
        taken = entry.self_device_time_total if device == "cuda" else entry.self_cpu_time_total
        rows.append([entry.key[:90], round(float(taken), 1), int(entry.count)])
    return sorted(rows, key=lambda row: -row[1])[:most]


@contextmanager
def peak(device: str) -> Iterator[Callable[[], int]]:
    """Gives a function for the bytes that were allocated at the peak since the beginning; 0 on a CPU."""
    if device != "cuda":
        yield lambda: 0
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield lambda: torch.cuda.max_memory_allocated() - before
