"""Signals that ask a run to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rich.console import Console


@dataclass
class StopRequest:
    """Whether a signal has asked this process to stop."""

    received: bool = False


@contextmanager
def stop_signals(console: Console) -> Iterator[StopRequest]:
    """Note SIGTERM, SIGHUP and Ctrl-C instead of ending at once; a second Ctrl-C raises KeyboardInterrupt.

    In a thread other than the main one nothing is noted: Python calls handlers in the main thread only.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if request.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            console.quiet = True  # the terminal is closed, and printing to it would fail
        request.received = True

    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup sets it to be ignored
        signals.append(signal.SIGHUP)
    handlers = {number: signal.signal(number, receive) for number in signals}
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
