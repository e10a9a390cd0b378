"""The watchdog of a run with several processes: it finds a process that is dead, stalled or has failed.

Once a second, and whenever it starts something new, every process writes its activity to the store of
``torch.distributed``. A thread in each process reads the activities of all. These words describe a process:

- silent: it has written nothing since the last check; it is probably dead.
- still: it writes, but its activity has not changed.
- waiting: it has said that it waits for the others.
- behind: of the processes that do not wait, it has begun the fewest steps, and the fewest activities in its step.

A process is considered lost if it is silent for longer than its activity allows (half as long if it stalls as well),
or if it stalls: it is behind and still for longer than its activity allows. The first process that finds one, or that
fails itself, prints one line. All others end without a message, even if a collective operation blocks them.

The timeout of a process group cannot do this: it names no rank, with NCCL it ends in a dump, it is the same for a
step and for an evaluation of several minutes on rank 0 alone, and older versions of torch cannot change it.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from drloss.errors import UserError, first_line

BEAT = 1.0
"""Seconds between two checks."""
PATIENCE = 45
"""Seconds that an activity within a step may take; or three times its longest so far, if that is more."""
SLOW = 15 * 60
"""Seconds that the first step may take, and every slow activity, such as evaluation and writing files."""
SILENCE = 3
"""Seconds of silence after which a process is considered dead, once a collective operation has failed."""
FAILED = 1
"""Exit code of a process that ends because another one has failed."""

_FAILURE, _NONE = "failure", "-"
"""Key of what ended the run, and the value that stands for nothing yet."""


class RankLost(UserError):
    """Another process of the run is dead or does not move; the last checkpoint is intact."""


@dataclass(frozen=True)
class Activity:
    """What a process is doing.

    Attributes:
        iteration: current step, 0 before the first.
        moves: number of changes of the activity since the current step began.
        doing: the activity in one word.
        patience: seconds that it may take.
        waiting: whether the process waits for the others, and so is not the cause of a delay.
    """

    iteration: int = 0
    moves: int = 0
    doing: str = "starting"
    patience: float = SLOW
    waiting: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """Progress of the process: the smaller, the farther behind."""
        return self.iteration, self.moves

    def __str__(self) -> str:
        return f"iteration {self.iteration} ({self.doing})" if self.iteration else self.doing

    def __format__(self, spec: str) -> str:
        """As :meth:`__str__`; the format ``"advice"`` adds how to go on."""
        return f"{self}; go on with --resume" if spec == "advice" and self.iteration else str(self)


@dataclass
class _Peer:
    """Last message of a process, and for how many checks its message and its activity have not changed."""

    message: str = ""
    activity: Activity = Activity()
    silent: int = 0
    still: int = 0


class Watchdog:
    """Reports this process's activity to the others, and checks theirs. All processes must make one together.

    Args:
        store: a connection to the store that nothing else uses.
        rank: this process.
        size: number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.failure = ""  # what ended the run, once this process knows it
        self._activity = Activity()
        self._beat = 0
        self._since = time.monotonic()
        self._longest: dict[str, float] = {}  # seconds of each activity
        self._peers = [_Peer() for _ in range(size)]
        self._host = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
        self._answered = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        if rank == 0:
            store.set(_FAILURE, _NONE)
        store.set(f"heard/{rank}", _NONE)
        self._report()

    def start(self) -> None:
        """Begin to check. The watchdogs of all processes must exist."""
        self._thread.start()

    def stop(self) -> None:
        """End the checks."""
        self._stop.set()
        self._thread.join()

    # ------------------------------------------------------------------ this process

    def at(self, doing: str, iteration: int | None, slow: bool) -> None:
        """Report what this process does now; see :meth:`drloss.distributed.ranks.Ranks.at`."""
        now, before = time.monotonic(), self._activity
        # The first time is not counted: it includes the choice of kernels and the making of connections.
        seconds = now - self._since if before.doing in self._longest else 0.0
        self._longest[before.doing] = max(self._longest.get(before.doing, 0.0), seconds)
        self._since = now
        known = self._longest.get(doing, 0.0)
        same = iteration is None or iteration == before.iteration
        self._move(
            Activity(
                iteration=before.iteration if iteration is None else iteration,
                moves=before.moves + 1 if same else 0,
                doing=doing,
                patience=max(PATIENCE, 3 * known) if known and not slow else SLOW,
            )
        )

    def wait(self, waiting: bool) -> None:
        """Report whether this process waits for the others."""
        self._move(replace(self._activity, moves=self._activity.moves + 1, waiting=waiting))

    def _move(self, activity: Activity) -> None:
        self._activity = activity
        with suppress(RuntimeError):  # the thread notices it, too, and handles it
            self._report()

    def _report(self) -> None:
        with self._lock:
            self._beat += 1
            self.store.set(f"rank/{self.rank}", json.dumps([self._beat, asdict(self._activity)]))

    # ------------------------------------------------------------------ the other processes

    def _run(self) -> None:
        """Check every :data:`BEAT` seconds. After a failure, end this process unless the main thread does so."""
        after = 0
        while not self._stop.wait(BEAT):
            if self.failure:
                after += 1
                if after == 2:  # the main thread has answered by now, unless it is blocked
                    self._answer("")
                if after == 2 + 2 * SILENCE:
                    _exit()
                continue
            try:
                self._check()
            except RuntimeError:
                self.failure = self._store_lost()
                self._print(self.failure)

    def _check(self) -> None:
        """Report this process and read the activities of all. If one is lost, print a line and end this process."""
        self._report()
        failure, *messages = self.store.multi_get([_FAILURE, *(f"rank/{r}" for r in range(self.size))])
        if failure.decode() != _NONE:
            self.failure = failure.decode()
            return
        for peer, message in zip(self._peers, messages, strict=True):
            activity = Activity(**json.loads(message)[1])
            peer.silent = peer.silent + 1 if message.decode() == peer.message else 0
            peer.still = peer.still + 1 if activity == peer.activity else 0
            peer.message, peer.activity = message.decode(), activity
        blame = self._too_long()
        if blame and self._announce(blame):
            self._print(blame)
            self._wait_for_answers()
            _exit()

    def _too_long(self) -> str:
        """Message about the processes that are silent or do not move for too long; empty if there are none.

        A process that waits inside a backward pass does not know that it waits. So only processes that are behind
        count as stalled, and only if all of them are still for too long.
        """
        everyone = dict(enumerate(self._peers))
        behind = min((p.activity.order for p in self._peers if not p.activity.waiting), default=None)
        late = {r: p for r, p in everyone.items() if not p.activity.waiting and p.activity.order == behind}
        if any(p.still * BEAT < p.activity.patience for p in late.values()):
            late = {}
        # A process that dies during an activity is still for longer than it is silent. Once it is still for too long,
        # half as much silence shows that it is dead, and it is reported as dead and not as stalled.
        patience = {r: p.activity.patience / (2 if r in late else 1) for r, p in everyone.items()}
        silent = {r: p for r, p in everyone.items() if p.silent * BEAT >= patience[r]}
        if silent:
            rank, peer = next(iter(silent.items()))
            return f"rank {rank} has said nothing for {peer.silent * BEAT:.0f} s in {peer.activity:advice}"
        if late:
            names, peer = ", ".join(map(str, late)), next(iter(late.values()))
            return f"rank {names} stands still for {peer.still * BEAT:.0f} s in {peer.activity:advice}"
        return ""

    def _dead(self) -> str:
        """Message about a process that has been silent for :data:`SILENCE` seconds; empty if there is none."""
        for rank, peer in enumerate(self._peers):
            if rank != self.rank and peer.silent * BEAT >= SILENCE:
                return f"rank {rank} has ended without a word in {peer.activity:advice}"
        return ""

    def _store_lost(self) -> str:
        return f"{self._host}, which hosts the ranks' store, does not answer in {self._activity:advice}"

    # ------------------------------------------------------------------ the end

    def fail(self, error: BaseException) -> None:
        """Find out which process failed first, after this one has raised ``error``.

        Returns if this process failed first: the caller then has to report ``error``.

        Raises:
            RankLost: if another process is dead, and this one is the first to notice.
            SystemExit: if another process reports what has happened.
        """
        blame = ""
        # A collective operation raises RuntimeError when another process dies; torchrun sends SIGTERM.
        if isinstance(error, (RuntimeError, SystemExit)):
            blame = self._wait_for_blame()
        own = blame or f"rank {self.rank} in {self._activity}: {type(error).__name__}: {first_line(error)}"
        try:
            if self.failure or not self._announce(own):
                self._answer(first_line(error))
                if self._host == f"rank {self.rank}":
                    time.sleep(SILENCE + BEAT)  # the others have yet to read the answers
                raise SystemExit(FAILED)
            answers = self._wait_for_answers()
        except RuntimeError:
            answers = []
            blame = blame or self._store_lost()
        if blame:
            raise RankLost(f"{blame} (here: {first_line(error)})") from error
        # Unless all ranks have the same error, or its message names its rank.
        if first_line(error) not in answers and "rank " not in str(error):
            error.add_note(f"rank {self.rank}, {self._activity}")

    def _wait_for_blame(self) -> str:
        deadline = time.monotonic() + SILENCE + 2 * BEAT
        while time.monotonic() < deadline and not self.failure:
            if blame := self._dead():
                return blame
            time.sleep(BEAT / 10)
        return ""

    def _announce(self, failure: str) -> bool:
        """Announce what ended the run; returns whether this process is the first."""
        own = f"{self.rank}: {failure}"  # two processes may have the same message
        self.failure = self.store.compare_set(_FAILURE, _NONE, own).decode()
        return self.failure == own

    def _answer(self, text: str) -> None:
        """Answer the process that announced the failure, with the message of this process's own error."""
        with self._lock:
            if not self._answered:
                self._answered = True
                with suppress(RuntimeError):
                    self.store.set(f"heard/{self.rank}", json.dumps(text))

    def _wait_for_answers(self) -> list[str]:
        """The answers of the processes that are alive. Wait for them: the store may end with this process."""
        deadline = time.monotonic() + SILENCE + BEAT
        living = [r for r, p in enumerate(self._peers) if r != self.rank and p.silent * BEAT < SILENCE]
        while living:
            answers = [a.decode() for a in self.store.multi_get([f"heard/{r}" for r in living])]
            if _NONE not in answers or time.monotonic() > deadline:
                return [json.loads(a) for a in answers if a != _NONE]
            time.sleep(BEAT / 10)
        return []

    @staticmethod
    def _print(text: str) -> None:
        print(f"drloss: error: {text}", file=sys.stderr, flush=True)


def _exit() -> NoReturn:
    """End this process even if its main thread is blocked."""
    sys.stdout.flush()
    os._exit(FAILED)
