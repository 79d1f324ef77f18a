"""Going on without ranks that died: who lives, and what the living say to each other without a collective.

A rank is dead when its process has gone, as far as that can be seen from the same host, or when its heartbeat has
stood still for so long as the settings say. The second may be a false alarm, of a rank that was stopped and
goes on later. Contributions make it harmless: it is read on as before, and lives again when its heartbeat moves.
Only when the run is settled a death is final: the ranks agree on who is dead, and whom the others took for dead
leaves with `LeftBehindError`.
"""

import math
import os
import platform
import sys
import threading
import time
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpc_dasgd.errors import LeftBehindError, TrainingError
from hpc_dasgd.exchange.interface import IDLE_S
from hpc_dasgd.runtime import mpi
from hpc_dasgd.window.board import Board
from hpc_dasgd.window.publication import N_WORDS, PublicationWindow, Word

BEAT_S = 0.5  # between two heartbeats
LOOK_S = 0.1  # between two looks at other ranks, in turn; less where there are many
LOOKS_TO_DIE = 4  # a rank is looked at so often, at least, in the time that makes it dead
BOARD_BYTES = 1 << 15  # of a value on the board, and for each rank:
BOARD_BYTES_PER_RANK = 64
AGREEMENT_ROUNDS = 100


class Process(NamedTuple):
    """A process as others can look for it.

    `home` is the host, with what else has to be the same for `pid` to mean the same process; `started` tells it from a
    later one of the same number.
    """

    host: str
    home: str
    pid: int
    started: int | None

    @classmethod
    def own(cls) -> "Process":
        try:
            home = os.readlink("/proc/self/ns/pid")  # ranks in containers may each count their own processes
        except OSError:
            home = ""
        return cls(platform.node(), home, os.getpid(), started_ticks(os.getpid()))

    def gone(self) -> bool:
        """Whether it has ended, to be asked in its home alone."""
        return self.started is not None and started_ticks(self.pid) != self.started


def started_ticks(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where there is none, or only its remains."""
    try:
        # Behind the name, which may hold anything, in brackets: the state, and 19 fields further the beginning.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


class Survivors:
    """The ranks of `comm` that live, as far as this one knows. Collective over `comm`, as is `free`.

    A thread of each rank lets its heartbeat grow, also during a long gradient. It makes no call to MPI.

    Parameters
    ----------
    comm : MPI.Intracomm
    window : PublicationWindow
        In its headers stand the heartbeats.
    timeout_s : float
        A rank whose heartbeat stood still for so long is dead.

    Attributes
    ----------
    died : set of int
    """

    def __init__(self, comm, window: PublicationWindow, timeout_s: float):
        self.died = set()
        self._rank, self._n_ranks, self._window, self._timeout_s = comm.rank, comm.size, window, timeout_s
        self._board = Board(comm, BOARD_BYTES + BOARD_BYTES_PER_RANK * comm.size)
        self._processes = comm.allgather(Process.own())
        self._others = [other for other in range(comm.size) if other != comm.rank]
        self._turn = cycle(self._others)
        self._look_s = min(LOOK_S, timeout_s / LOOKS_TO_DIE / comm.size)
        self._next_s = 0.0
        self._looks = {}  # under way, by rank: when it began, the transfer, the header
        self._beats = [-1] * comm.size
        self._silent_s, self._looked_s = [0.0] * comm.size, [0.0] * comm.size
        self._unsaid = {}
        self._settles = self._over = False
        self._lost = []  # reads of the dead that never end, whose buffers belong to MPI
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def living(self) -> list[int]:
        """The ranks that are not dead, ascending, this one among them."""
        return [rank for rank in range(self._n_ranks) if rank not in self.died]

    def look(self) -> None:
        """Look at others in turn, as many as it is time for. Never waits."""
        for _ in self._others:
            now_s = time.monotonic()
            if now_s < self._next_s:
                break
            self._next_s = max(self._next_s + self._look_s, now_s - self._look_s * self._n_ranks)
            other = next(self._turn)
            if self._gone(other):
                self._bury(other, "its process is gone")
                continue
            if other not in self._looks:
                header = np.zeros(N_WORDS, np.int64)
                self._looks[other] = now_s, self._window.read_header(other, 0, header), header
            begun_s, transfer, header = self._looks[other]
            if transfer.done():
                del self._looks[other]
                self._listen(other, begun_s, int(header[Word.HEARTBEAT]))
            elif now_s - begun_s > self._timeout_s:
                self._bury(other, f"no answer for {self._timeout_s:g} s")

    def allgather(self, value) -> list:
        """What every rank passes as `value`, by rank; None for one that died before it did.

        Collective over those that live; waits for them.

        Raises
        ------
        LeftBehindError
            If the others have gone on without this rank.
        """
        self._board.show(value)
        shown = [value if rank == self._rank else self._shown_by(rank) for rank in range(self._n_ranks)]
        if self.died and self._settles:
            mpi.skip_mpi_finalize()
        return shown

    def settle(self, version: int, sum_up) -> float:
        """Have all that live end with the same. Collective over them.

        Parameters
        ----------
        version : int
            Updates that this rank has made; it has published them all.
        sum_up : callable
            Brings in what every rank has published, dead or not, and returns the versions and a drift, nan where
            unknown. It is called when nobody publishes any more, and again should a rank not be dead that seemed so.

        Returns
        -------
        drift : float
            The largest of those that live.
        """
        self._next_s = 0.0
        self.look()  # at all: who seemed dead may have come back
        self.allgather(version)
        self._settles = True
        for _ in range(AGREEMENT_ROUNDS):
            versions, drift = sum_up()
            held = versions, sorted(self.died)
            told = [each for each in self.allgather((held, drift)) if each is not None]
            died = self.died.union(*(dead for (_, dead), _ in told))
            if self._rank in died:
                self._leave("the other ranks took this one for dead, and end without it")
            if all(each == held for each, _ in told):
                drifts = [drift for _, drift in told if not math.isnan(drift)]
                return max(drifts, default=math.nan)
            for other in died - self.died:
                self._bury(other, "as another rank found")
        raise TrainingError(f"the ranks found no agreement on who died and on what they published (here: {held})")

    def free(self) -> bool:
        """Give the board back; whether nobody has died, so that all can. Collective over those that live."""
        self._over = True
        self.allgather(None)
        self._ends.set()
        self._thread.join()
        if self.died:
            # Others may still be reading what this rank showed last.
            time.sleep(BEAT_S)
            return False
        self._board.free()
        return True

    def _beat(self) -> None:
        while not self._ends.wait(min(BEAT_S, self._timeout_s / LOOKS_TO_DIE)):
            self._window.channels[0].beat()

    def _gone(self, other: int) -> bool:
        here, there = self._processes[self._rank], self._processes[other]
        return (here.host, here.home) == (there.host, there.home) and there.gone()

    def _listen(self, other: int, now_s: float, beats: int) -> None:
        """Take the heartbeat of `other`, as it was at `now_s` or later."""
        if beats != self._beats[other]:
            self._beats[other], self._silent_s[other] = beats, 0.0
            if other in self.died and not self._settles:
                self.died.remove(other)
                self._say(f"{self._name(other)} lives after all", other)
        else:
            # A rank that was stopped itself does not take that time for the silence of others.
            longest_s = self._timeout_s / LOOKS_TO_DIE
            self._silent_s[other] += min(now_s - self._looked_s[other], longest_s)
        self._looked_s[other] = now_s
        if self._silent_s[other] >= self._timeout_s:
            self._bury(other, f"no heartbeat for {self._timeout_s:g} s")

    def _bury(self, other: int, reason: str) -> None:
        if other in self.died:
            return
        self.died.add(other)
        self._say(f"{self._name(other)} died ({reason}): the others go on without it", other)

    def _say(self, text: str, about: int) -> None:
        """Print on the lowest rank that lives; the others keep it for the case that they come to be that."""
        if self._over:
            return  # whoever has gone now has ended as it should
        self._unsaid[about] = text
        if self.living[0] == self._rank:
            for each in self._unsaid.values():
                print(each, file=sys.stderr, flush=True)
            self._unsaid.clear()

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self._processes[rank].host}"

    def _shown_by(self, other: int):
        """What `other` shows in this round; None where it died before."""
        while True:
            dead, begun_s = other in self.died, time.monotonic()
            found, read = None, self._board.read(other)
            while found is None:
                self.look()
                try:
                    found = next(read)
                except LeftBehindError as error:
                    self._leave(str(error))
                if other in self.died and time.monotonic() - begun_s > self._timeout_s:
                    self._lost.append(read)
                    return None
            if found:
                return found[0]
            if dead:
                return None
            time.sleep(IDLE_S)

    def _leave(self, reason: str) -> None:
        mpi.skip_mpi_finalize()
        raise LeftBehindError(reason)
