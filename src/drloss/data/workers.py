"""Loading batches in processes of their own, and noticing when such a process is killed or hangs."""

import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import RawArray, active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from drloss.data.batches import Batch, EvaluationImages, TrainingImages, collate
from drloss.data.order import Key
from drloss.errors import DataError, UserError

WORKER_TIMEOUT = 25
"""After this many seconds without a batch we wait once more as long, and then give the workers up as lost."""
_TIMED_OUT = "DataLoader timed out"
_NOTHING = -1
_LOST: list[Any] = []
"""Loaders that lost a worker. As long as they are in this list, Python does not destroy them. Their destructor could
wait for ever for a lock that the lost worker held."""


@contextmanager
def load_batches(
    images: TrainingImages | EvaluationImages, batches: Iterable[list[Key]], workers: int, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Batches of images, read by ``workers`` processes; see :func:`load_items`."""
    name_of, pin = images.annotations.image_path, device.type == "cuda"
    with load_items(images, batches, workers, collate=collate, name_of=name_of, pin=pin) as loaded:
        yield loaded


@contextmanager
def load_items(
    images: Dataset[Any],
    batches: Iterable[list[Key]],
    workers: int,
    *,
    collate: Callable[[list[Any]], Any],
    name_of: Callable[[int], object],
    pin: bool = False,
) -> Iterator[Iterator[Any]]:
    """What ``collate`` makes of the images of each batch, read by ``workers`` processes, which end with the context.

    Args:
        images: what is read, by :class:`Key`.
        batches: the keys of each batch.
        workers: processes; 0 for none.
        collate: makes a batch of what was read; if it returns a ``UserError``, that is raised.
        name_of: the file of an image by its index, for messages.
        pin: whether the batches are put in page-locked memory.
    Raises:
        DataError: if an image cannot be read; or if a worker was killed, or no batch came for twice
            ``WORKER_TIMEOUT`` seconds, naming the images that were being read. There is no traceback of the worker.
        RuntimeError: with the worker's traceback and the image, if reading it raised anything but a ``UserError``.
    """
    reading = RawArray("q", [_NOTHING] * workers)
    others = active_children()
    loader: DataLoader[Any] = DataLoader(
        _Watched(images, reading, name_of),
        batch_sampler=_Batches(batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        timeout=WORKER_TIMEOUT if workers else 0,
        worker_init_fn=_ignore_signals,
    )
    with _signals_held():
        loaded = iter(loader)
    good = _without_errors(loaded)
    own = [child for child in active_children() if child not in others]
    try:
        yield good
    except (RuntimeError, OSError, EOFError) as error:  # what a lost worker may cause at any point
        if (words := _what_was_lost(own, error)) is None:
            raise
        _LOST.append(loaded)
        names = [str(name_of(i)) for i in reading if i != _NOTHING]
        where = f"while reading {', '.join(names)}" if names else "between two images"
        raise DataError(f"{words} {where}; --workers 0 reads images without processes of their own") from None
    finally:
        good.close()
        _kill(own)


class _Watched(Dataset[Any]):
    """Images by :class:`Key`; each worker writes the position of the image that it reads into ``reading``."""

    def __init__(self, images: Dataset[Any], reading: Any, name_of: Callable[[int], object]) -> None:
        self.images = images
        self.reading = reading
        self.name_of = name_of

    def __getitem__(self, key: Key) -> Any:
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id] = key.index
        try:
            sample = self.images[key]
        except Exception as error:
            raise RuntimeError(f"{self.name_of(key.index)}: reading it failed") from error
        if worker is not None:
            self.reading[worker.id] = _NOTHING
        return sample


def _without_errors(loaded: Iterator[Any]) -> Generator[Any]:
    """The batches; raises the first error among them."""
    while True:
        try:
            batch = next(loaded, None)
        except RuntimeError as error:
            if _TIMED_OUT not in str(error):
                raise
            batch = next(loaded, None)  # once more: perhaps this process was stopped and the others were not
        if isinstance(batch, UserError):
            raise batch
        if batch is None:
            return
        yield batch


_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP, here and in the processes started meanwhile until these ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals(worker: int) -> None:
    """Ignore these signals in a worker: a terminal sends them to all processes, and the trainer acts on them."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _what_was_lost(workers: list[BaseProcess], error: Exception) -> str | None:
    """How a worker was lost, in words; None if ``error`` does not mean that one was killed or hangs."""
    if not isinstance(error, RuntimeError):  # a connection breaks a moment before its process has ended
        with suppress(RuntimeError):  # which torch raises when it notices that end
            ending = wait([worker.sentinel for worker in workers], timeout=1)
            for worker in workers:
                if worker.sentinel in ending:
                    worker.join()
    for worker in workers:
        if worker.exitcode:
            how = f"signal {-worker.exitcode}" if worker.exitcode < 0 else f"exit code {worker.exitcode}"
            memory = ", perhaps for want of memory," if worker.exitcode == -signal.SIGKILL else ""
            return f"a data-loading process was killed ({how}){memory}"
    if workers and _TIMED_OUT in str(error):
        return f"no data-loading process brought a batch for {2 * WORKER_TIMEOUT} s"
    return None


def _kill(workers: list[BaseProcess]) -> None:
    """Kill the workers that still run: one that hangs would not end otherwise, and none of them writes anything."""
    left = [worker for worker in workers if worker.is_alive()]
    if not left:
        return
    # torch's handler would report a worker that is killed here as lost.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    for worker in left:
        worker.kill()
    for worker in left:
        worker.join()
    if main:
        signal.signal(signal.SIGCHLD, handler)


class _Batches:
    """Makes any iterable a DataLoader's batch sampler."""

    def __init__(self, batches: Iterable[list[Key]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)
