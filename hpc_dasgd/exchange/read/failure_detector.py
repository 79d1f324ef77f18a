"""Detecting the deaths of other ranks, by their processes and by heartbeats in the headers of their windows.

A rank is dead if its process has exited, as far as that is visible from the same host, or if its heartbeat has not
changed for the timeout of the settings. The second may be a false alarm, of a process that was suspended and continues
later; the rank is then counted as alive again as soon as its heartbeat changes.
"""

from __future__ import annotations

import sys
import threading
import time
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hpc_dasgd.arrays.types import Int64s
from hpc_dasgd.exchange.read.process import Process
from hpc_dasgd.window.memory import Transfer
from hpc_dasgd.window.publication import HEADER_LENGTH, HeaderField, PublicationWindow

if TYPE_CHECKING:
    from mpi4py import MPI

HEARTBEAT_INTERVAL_S = 0.5
"""Time between two heartbeats of a rank, in seconds; less if the timeout is short."""

POLL_INTERVAL_S = 0.1
"""Time between two polls of other ranks, in seconds; less if there are many ranks."""

POLLS_UNTIL_DEAD = 4
"""Least number of times that a rank is polled within the timeout."""


class _HeaderRead(NamedTuple):
    """The read of a header that is under way."""

    started_s: float
    transfer: Transfer
    header: Int64s


class FailureDetector:
    """Determines which ranks of `comm` are alive, as far as this rank knows.

    Making one is collective over `comm`; nothing else is. A thread of each rank increments its heartbeat, also during a
    long gradient. The thread makes no calls to MPI.

    Parameters
    ----------
    comm : MPI.Intracomm
    window : PublicationWindow
        Its headers contain the heartbeats.
    timeout_s : float
        Time without a change of its heartbeat after which a rank counts as dead, in seconds.

    Attributes
    ----------
    died : set of int
        Ranks that are dead.
    final : bool
        If True, a rank that is dead stays dead, even if its heartbeat changes.
    silent : bool
        If True, nothing is printed: ranks whose processes exit have ended normally.
    """

    def __init__(self, comm: MPI.Intracomm, window: PublicationWindow, timeout_s: float):
        self.died: set[int] = set()
        self.final = self.silent = False
        self._rank, self._n_ranks, self._window, self._timeout_s = comm.rank, comm.size, window, timeout_s
        self._processes: list[Process] = comm.allgather(Process.own())
        self._others = [other for other in range(comm.size) if other != comm.rank]
        self._next_rank = cycle(self._others)
        self._poll_interval_s = min(POLL_INTERVAL_S, timeout_s / POLLS_UNTIL_DEAD / comm.size)
        self._next_poll_s = 0.0
        self._reads: dict[int, _HeaderRead] = {}
        self._heartbeats = [-1] * comm.size
        self._unchanged_s, self._polled_s = [0.0] * comm.size, [0.0] * comm.size
        self._unprinted: dict[int, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._increment_heartbeats, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def timeout_s(self) -> float:
        """Time without a change of its heartbeat after which a rank counts as dead, in seconds."""
        return self._timeout_s

    @property
    def alive(self) -> list[int]:
        """Ranks that are not dead, ascending, including this one."""
        return [rank for rank in range(self._n_ranks) if rank not in self.died]

    def poll_ranks(self, now: bool = False) -> None:
        """Poll other ranks in turn, as many as are due. Never waits.

        Parameters
        ----------
        now : bool
            Poll at least one rank, even if none is due.
        """
        if now:
            self._next_poll_s = 0.0
        for _ in self._others:
            now_s = time.monotonic()
            if now_s < self._next_poll_s:
                break
            self._next_poll_s = max(
                self._next_poll_s + self._poll_interval_s, now_s - self._poll_interval_s * self._n_ranks
            )
            self._poll_rank(next(self._next_rank), now_s)

    def mark_dead(self, other: int, reason: str) -> None:
        """Count a rank as dead, and print that it died; do nothing if it already counts as dead."""
        if other in self.died:
            return
        self.died.add(other)
        self._print(f"{self._name(other)} died ({reason}): the others continue without it", other)

    def end(self) -> None:
        """End the thread with the heartbeat. Waits for the thread."""
        self._ended.set()
        self._thread.join()

    def _poll_rank(self, other: int, now_s: float) -> None:
        if self._process_exited(other):
            self.mark_dead(other, "its process has exited")
            return
        if other not in self._reads:
            header = np.zeros(HEADER_LENGTH, np.int64)
            self._reads[other] = _HeaderRead(now_s, self._window.read_header(other, 0, header), header)
        read = self._reads[other]
        if read.transfer.done():
            del self._reads[other]
            self._evaluate_heartbeat(other, read.started_s, int(read.header[HeaderField.HEARTBEAT]))
        elif now_s - read.started_s > self._timeout_s:
            self.mark_dead(other, f"no answer for {self._timeout_s:g} s")

    def _process_exited(self, other: int) -> bool:
        process = self._processes[other]
        return process.is_visible_from(self._processes[self._rank]) and process.has_exited()

    def _evaluate_heartbeat(self, other: int, read_s: float, heartbeat: int) -> None:
        """Decide by a heartbeat, read at time `read_s` or later, whether a rank is alive."""
        if heartbeat != self._heartbeats[other]:
            self._heartbeats[other], self._unchanged_s[other] = heartbeat, 0.0
            if other in self.died and not self.final:
                self.died.remove(other)
                self._print(f"{self._name(other)} is alive after all: it takes part again", other)
        else:
            # After a suspension of this rank itself, only a part of the time counts as time without a heartbeat.
            longest_s = self._timeout_s / POLLS_UNTIL_DEAD
            self._unchanged_s[other] += min(read_s - self._polled_s[other], longest_s)
        self._polled_s[other] = read_s
        if self._unchanged_s[other] >= self._timeout_s:
            self.mark_dead(other, f"no heartbeat for {self._timeout_s:g} s")

    def _print(self, text: str, about: int) -> None:
        """Print on the lowest rank alive; other ranks keep the last text about each rank until they are the lowest."""
        if self.silent:
            return
        self._unprinted[about] = text
        if self.alive[0] == self._rank:
            for each in self._unprinted.values():
                print(each, file=sys.stderr, flush=True)
            self._unprinted.clear()

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self._processes[rank].host}"

    def _increment_heartbeats(self) -> None:
        while not self._ended.wait(min(HEARTBEAT_INTERVAL_S, self._timeout_s / POLLS_UNTIL_DEAD)):
            self._window.channels[0].increment_heartbeat()
