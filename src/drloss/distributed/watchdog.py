"""How the processes of a run notice that one of them is dead, stalled or has failed, and say so once.

Every process tells the others through the store of ``torch.distributed``, once a second and whenever it goes on,
where it is and what it does. A thread of each looks at what they all say. A process that is not heard of or stands
still longer than is reasonable there, or that has failed by itself, is named by the first to find out, in one line;
all others end quietly, also those that are caught in a collective operation.

The timeout of a process group cannot do this: it names no rank, with NCCL it ends in a dump, it is the same for a
step and for the minutes in which rank 0 alone evaluates, and older versions of torch have no public way to change it.
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
"""Seconds between two looks."""
PATIENCE = 45
"""Seconds that a process may stand still within a step; three times its longest so far where that is more."""
SLOW = 15 * 60
"""Seconds for the first step, and for what takes long or one process does for all: evaluation, writing files."""
SILENCE = 3
"""Seconds without a word after which a process is held for dead once a collective operation has failed."""
FAILED = 1
"""Exit code of a process that ends because another has failed."""

_VERDICT, _NONE = "verdict", "-"


class RankLost(UserError):
    """Another process of the run is dead or stands still; the last checkpoint is whole."""


@dataclass(frozen=True)
class Place:
    """Where a process is.

    Attributes:
        iteration: the step it is in, 0 before the first.
        moves: places since that step began.
        doing: in a word.
        patience: seconds after which it stands still too long.
        waiting: for the others; then it is not to blame.
    """

    iteration: int = 0
    moves: int = 0
    doing: str = "starting"
    patience: float = SLOW
    waiting: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """The smaller, the farther behind."""
        return self.iteration, self.moves

    def __str__(self) -> str:
        return f"iteration {self.iteration} ({self.doing})" if self.iteration else self.doing

    def __format__(self, spec: str) -> str:
        """``"advice"`` adds how to go on."""
        return f"{self}; go on with --resume" if spec == "advice" and self.iteration else str(self)


@dataclass
class _Peer:
    """What is known of a process: its last word, and for how many looks its beat and its place have been the same."""

    word: str = ""
    place: Place = Place()
    silent: int = 0
    still: int = 0


class Watch:
    """One process's eye on all of them. To be made by all at the same time; :meth:`start` returns on all or none.

    Args:
        store: a connection that nobody else uses.
        rank, size: this process, and how many there are.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.verdict = ""  # what ended the run, once it is known here
        self._place = Place()
        self._beat = 0
        self._since = time.monotonic()
        self._longest: dict[str, float] = {}  # seconds, by what was done
        self._peers = [_Peer() for _ in range(size)]
        self._keeper = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
        self._answered = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        if rank == 0:
            store.set(_VERDICT, _NONE)
        store.set(f"heard/{rank}", _NONE)
        self._tell()

    def start(self) -> None:
        """Begin to look. Every process must have been made before."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    # ------------------------------------------------------------------ what this process does

    def at(self, doing: str, iteration: int | None, slow: bool) -> None:
        """Say where this process is; see :meth:`drloss.distributed.ranks.Ranks.at`."""
        now, before = time.monotonic(), self._place
        # The first time counts for nothing: kernels are chosen and connections made.
        seconds = now - self._since if before.doing in self._longest else 0.0
        self._longest[before.doing] = max(self._longest.get(before.doing, 0.0), seconds)
        self._since = now
        known = self._longest.get(doing, 0.0)
        same = iteration is None or iteration == before.iteration
        self._move(
            Place(
                iteration=before.iteration if iteration is None else iteration,
                moves=before.moves + 1 if same else 0,
                doing=doing,
                patience=max(PATIENCE, 3 * known) if known and not slow else SLOW,
            )
        )

    def wait(self, waiting: bool) -> None:
        """Say whether this process waits for the others."""
        self._move(replace(self._place, moves=self._place.moves + 1, waiting=waiting))

    def _move(self, place: Place) -> None:
        self._place = place
        with suppress(RuntimeError):  # the thread finds out, too, and knows what to do
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            self._beat += 1
            self.store.set(f"rank/{self.rank}", json.dumps([self._beat, asdict(self._place)]))

    # ------------------------------------------------------------------ what the others do

    def _run(self) -> None:
        after = 0
        while not self._stop.wait(BEAT):
            if self.verdict:
                after += 1
                if after == 2:  # the main thread, if it is free, has answered by now
                    self._answer("")
                if after == 2 + 2 * SILENCE:
                    _exit()
                continue
            try:
                self._look()
            except RuntimeError:
                self.verdict = self._store_lost()
                self._say(self.verdict)

    def _look(self) -> None:
        self._tell()
        verdict, *words = self.store.multi_get([_VERDICT, *(f"rank/{r}" for r in range(self.size))])
        if verdict.decode() != _NONE:
            self.verdict = verdict.decode()
            return
        for peer, word in zip(self._peers, words, strict=True):
            place = Place(**json.loads(word)[1])
            peer.silent = peer.silent + 1 if word.decode() == peer.word else 0
            peer.still = peer.still + 1 if place == peer.place else 0
            peer.word, peer.place = word.decode(), place
        blame = self._too_long()
        if blame and self._post(blame):
            self._say(blame)
            self._wait_for_answers()
            _exit()

    def _too_long(self) -> str:
        """Who is silent or stands still for too long, and where; empty if nobody.

        Those that wait inside a backward pass do not know that they wait. Whoever is behind all others holds them up,
        and it is only for how long it is there that counts.
        """
        everyone = dict(enumerate(self._peers))
        behind = min((p.place.order for p in self._peers if not p.place.waiting), default=None)
        late = {r: p for r, p in everyone.items() if not p.place.waiting and p.place.order == behind}
        if any(p.still * BEAT < p.place.patience for p in late.values()):
            late = {}
        # The last word of one that is dead is younger than its place: half the time is enough there.
        patience = {r: p.place.patience / (2 if r in late else 1) for r, p in everyone.items()}
        silent = {r: p for r, p in everyone.items() if p.silent * BEAT >= patience[r]}
        if silent:
            rank, peer = next(iter(silent.items()))
            return f"rank {rank} has said nothing for {peer.silent * BEAT:.0f} s in {peer.place:advice}"
        if late:
            names, peer = ", ".join(map(str, late)), next(iter(late.values()))
            return f"rank {names} stands still for {peer.still * BEAT:.0f} s in {peer.place:advice}"
        return ""

    def _dead(self) -> str:
        """Who has not been heard of for a moment, and where; empty if nobody."""
        for rank, peer in enumerate(self._peers):
            if rank != self.rank and peer.silent * BEAT >= SILENCE:
                return f"rank {rank} has ended without a word in {peer.place:advice}"
        return ""

    def _store_lost(self) -> str:
        return f"{self._keeper}, who keeps the ranks' store, does not answer in {self._place:advice}"

    # ------------------------------------------------------------------ the end

    def fail(self, error: BaseException) -> None:
        """Find out with the others who has failed; returns if it is for this process to tell of ``error``.

        Raises:
            RankLost: if another is dead, and it is for this process to say so.
            SystemExit: if another process says what has happened.
        """
        blame = ""
        # What a collective raises when another process dies, and torchrun's SIGTERM.
        if isinstance(error, (RuntimeError, SystemExit)):
            blame = self._wait_for_blame()
        own = blame or f"rank {self.rank} in {self._place}: {type(error).__name__}: {first_line(error)}"
        try:
            if self.verdict or not self._post(own):
                self._answer(first_line(error))
                if self._keeper == f"rank {self.rank}":
                    time.sleep(SILENCE + BEAT)  # the others are still to read the answers
                raise SystemExit(FAILED)
            answers = self._wait_for_answers()
        except RuntimeError:
            answers = []
            blame = blame or self._store_lost()
        if blame:
            raise RankLost(f"{blame} (here: {first_line(error)})") from error
        if first_line(error) not in answers and "rank " not in str(error):  # else it is all processes', or says so
            error.add_note(f"rank {self.rank}, {self._place}")

    def _wait_for_blame(self) -> str:
        deadline = time.monotonic() + SILENCE + 2 * BEAT
        while time.monotonic() < deadline and not self.verdict:
            if blame := self._dead():
                return blame
            time.sleep(BEAT / 10)
        return ""

    def _post(self, verdict: str) -> bool:
        """Whether this process is the first to say what ended the run."""
        own = f"{self.rank}: {verdict}"  # two may find the same
        self.verdict = self.store.compare_set(_VERDICT, _NONE, own).decode()
        return self.verdict == own

    def _answer(self, text: str) -> None:
        """Let the process that posted the verdict know that it was heard, and what this process has to say itself."""
        with self._lock:
            if not self._answered:
                self._answered = True
                with suppress(RuntimeError):
                    self.store.set(f"heard/{self.rank}", json.dumps(text))

    def _wait_for_answers(self) -> list[str]:
        """What the others that live have to say; they need the store, which may end with this process."""
        deadline = time.monotonic() + SILENCE + BEAT
        living = [r for r, p in enumerate(self._peers) if r != self.rank and p.silent * BEAT < SILENCE]
        while living:
            answers = [a.decode() for a in self.store.multi_get([f"heard/{r}" for r in living])]
            if _NONE not in answers or time.monotonic() > deadline:
                return [json.loads(a) for a in answers if a != _NONE]
            time.sleep(BEAT / 10)
        return []

    @staticmethod
    def _say(text: str) -> None:
        print(f"drloss: error: {text}", file=sys.stderr, flush=True)


def _exit() -> NoReturn:
    """End this process although its main thread is caught somewhere."""
    sys.stdout.flush()
    os._exit(FAILED)
