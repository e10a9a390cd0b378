"""This process among the processes that ``torchrun`` started, or alone."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from drloss.distributed.host import keep_freed_memory
from drloss.distributed.watchdog import PATIENCE, SLOW, Watchdog
from drloss.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run.

    Attributes:
        rank: number of this process, 0..size - 1; rank 0 writes and prints.
        size: number of processes.
        device: device of this process.
        watchdog: watches the other processes; None if there are none.
    """

    rank: int
    size: int
    device: torch.device
    watchdog: Watchdog | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def mark(self) -> torch.cuda.Event | None:
        """What the device has been given to do so far, for :meth:`sum`; None where nobody looks."""
        if self.size == 1 or self.device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def sum(self, values: torch.Tensor, after: torch.cuda.Event | None = None) -> list[float]:
        """Sums of ``values`` (n,) over processes in float64; waits for the device.

        NCCL's operations return at once. So this process waits for the others until it has the sums, but only once
        its own device has done what it had to do up to the mark ``after``: else a device that hangs would look like
        one that waits. One that hangs later is named by nobody; the timeout of the process group ends the run.
        """
        values = values.detach().to(torch.float64)
        if self.size == 1:
            return cast(list[float], values.tolist())
        if after is not None:
            after.synchronize()
        with self._waiting():
            dist.all_reduce(values)
            return cast(list[float], values.tolist())

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in order of rank; every process gets the list."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every process has called this."""
        if self.size > 1:
            with self._waiting():
                dist.barrier()

    def at(self, doing: str, iteration: int | None = None, *, slow: bool = False) -> None:
        """Report what this process does now, so that the others can name it if it stalls.

        Args:
            doing: the activity in one word.
            iteration: current training step, from 1; unchanged by default.
            slow: whether the activity may take minutes: only one process works, or a disk is involved.
        """
        if self.watchdog is not None:
            self.watchdog.at(doing, iteration, slow)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self.watchdog is not None:
            self.watchdog.wait(True)
        yield
        if self.watchdog is not None:
            self.watchdog.wait(False)


@contextmanager
def join_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, or run alone.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; by default CUDA where there is one.
    Raises:
        UserError: if the device does not exist.
        RankLost: if another process is dead or does not move; raised in one process only.
        SystemExit: if another process has failed and reports why; all processes end together.
    """
    size, rank, local = (
        int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    chosen = choose_device(device, local if size > 1 else None)
    keep_freed_memory()
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    own = chosen if chosen.type == "cuda" else None
    # The watchdog ends the run earlier than this timeout.
    dist.init_process_group(backend, timeout=timedelta(seconds=2 * SLOW), device_id=own)
    watchdog = Watchdog(_connect_store(), rank, size)
    ranks = Ranks(rank, size, chosen, watchdog)
    ranks.wait()
    watchdog.start()
    before = signal.signal(signal.SIGTERM, _end) if _in_main_thread() else None
    try:
        yield ranks
        ranks.wait()
    except BaseException as error:
        if _in_main_thread():
            signal.signal(
                signal.SIGTERM, signal.SIG_IGN
            )  # torchrun sends it when another process dies, but this one still has to report
        watchdog.fail(error)
        raise
    finally:
        watchdog.stop()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    ranks.wait()  # rank 0 may host the store: it must not end while others use it
    dist.destroy_process_group()


def _connect_store() -> Any:
    """A new connection to the store of the process group, with separate keys for each restart by torchrun."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=PATIENCE))
    return PrefixStore(f"drloss/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def choose_device(name: str | None, local_rank: int | None = None) -> torch.device:
    """The device of this name, by default CUDA where there is one; of a process among several, its own of them.

    Raises:
        UserError: if the device does not exist.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and local_rank is not None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device
