"""One process or many: what a process needs to know of the others under ``torchrun``."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from drloss.distributed.watchdog import PATIENCE, SLOW, Watch
from drloss.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among ``size``.

    Attributes:
        rank: 0..size - 1; rank 0 writes and prints.
        size: processes.
        device: where this process computes.
        watch: what looks after the others, where there are any.
    """

    rank: int
    size: int
    device: torch.device
    watch: Watch | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of ``values`` over processes, float64."""
        return self.sum(values) / self.size

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of ``values`` over processes, float64."""
        values = values.detach().to(torch.float64)
        if self.size > 1:
            with self._waiting():
                dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in order of rank, on each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            with self._waiting():
                dist.barrier()

    def at(self, doing: str, iteration: int | None = None, *, slow: bool = False) -> None:
        """Say where this process is, for the others to know should it stay there.

        Args:
            doing: in a word.
            iteration: the training step, 1 the first; by default the one before.
            slow: whether it may take minutes, because one process does it for all or a disk is in it.
        """
        if self.watch is not None:
            self.watch.at(doing, iteration, slow)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self.watch is not None:
            self.watch.wait(True)
        yield
        if self.watch is not None:
            self.watch.wait(False)


@contextmanager
def join_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, or be the only one.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; by default CUDA where there is one.
    Raises:
        UserError: if the device does not exist.
        RankLost: if another process is dead or stands still, in the one process that says so.
        SystemExit: in this process where another has failed and says why; all end together.
    """
    size, rank, local = (
        int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    chosen = _device(device, local if size > 1 else None)
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=2 * SLOW))  # the last resort; the watch is earlier
    watch = Watch(_connect_store(), rank, size)
    ranks = Ranks(rank, size, chosen, watch)
    ranks.wait()
    watch.start()
    before = signal.signal(signal.SIGTERM, _end) if _in_main_thread() else None
    try:
        yield ranks
        ranks.wait()
    except BaseException as error:
        if _in_main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, when another died: it is yet to be said
        watch.fail(error)
        raise
    finally:
        watch.stop()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    ranks.wait()  # rank 0 may keep the store: it leaves when nobody looks into it any more
    dist.destroy_process_group()


def _connect_store() -> Any:
    """A connection of its own to the store that the processes met at, with other keys for each start by torchrun."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=PATIENCE))
    return PrefixStore(f"drloss/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _device(name: str | None, local_rank: int | None) -> torch.device:
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
