"""How far replicas are apart, from what ranks have published anyway."""

import math
import time
from collections.abc import Callable

import numpy as np

from hpc_dasgd.window.memory import Transfer
from hpc_dasgd.window.publication import N_WORDS, PublicationWindow, Slot, Word

MOST_RANKS = 64  # looked at for one measurement
N_TRIES = 3  # to read a rank that publishes meanwhile


def ranks_to_look_at(rank: int, n_ranks: int) -> list[int]:
    """At most `MOST_RANKS` of the ranks other than `rank`, spread evenly, ascending."""
    others = [other for other in range(n_ranks) if other != rank]
    n_looks = min(MOST_RANKS, len(others))
    return [others[k * len(others) // n_looks] for k in range(n_looks)]


class Spread:
    """Root of the mean squared distance of replicas from their mean, one replica after the other.

    By Welford's recurrence, in float64: no replica is kept, and no large numbers are subtracted from each
    other (B. P. Welford, Technometrics 4 (1962)).

    Parameters
    ----------
    first : ndarray, shape (n_params,), float32 or float64
        A replica.
    blocks : list of (lo, hi)
        The pieces in which replicas come.

    Attributes
    ----------
    n_replicas : int
    """

    def __init__(self, first: np.ndarray, blocks: list[tuple[int, int]]):
        self._mean = first.astype(np.float64)
        self._blocks = blocks
        self._squares = 0.0
        self.n_replicas = 1

    def add(self, replica: Callable[[int, int], np.ndarray]) -> None:
        """Count another replica; ``replica(lo, hi)`` is its elements ``lo:hi``."""
        self.n_replicas += 1
        for lo, hi in self._blocks:
            difference = replica(lo, hi) - self._mean[lo:hi]
            self._squares += float(difference @ difference) * (self.n_replicas - 1) / self.n_replicas
            difference /= self.n_replicas
            self._mean[lo:hi] += difference

    @property
    def distance(self) -> float:
        return math.sqrt(self._squares / self.n_replicas)


class Observer:
    """Reads the last publications of any ranks, for measurements alone.

    It never complains: an owner need not mind whether it can keep up.

    Parameters
    ----------
    window : PublicationWindow
        Channel 0 is read.
    n_slots : int
        Of each channel.
    n_publications : int
        How many to read at once, the last ones; the memory for as many is taken at the first look and kept.
    """

    def __init__(self, window: PublicationWindow, n_slots: int, n_publications: int):
        self._window, self._n_slots, self._n_publications = window, n_slots, n_publications
        self._header = np.zeros(N_WORDS, np.int64)
        self._buffers: list[Slot] = []
        self._under_way: Transfer | None = None

    def look(self, rank: int, end_s: float) -> list[Slot] | None:
        """Read the last publications of `rank`, the newest first. Not collective.

        None where there are none yet, where `rank` published too much meanwhile, and where they are not here
        at `end_s` of ``time.perf_counter``. Before the first publication stands one of zeros.
        """
        for _ in range(N_TRIES):
            # Nothing new is begun before what was given up is through.
            if self._arrived(end_s) and (slots := self._read(rank, end_s)) is not None:
                return slots
        return None

    def finish(self) -> None:
        """End a read that was given up, since MPI wants every request completed. Waits."""
        self._arrived(math.inf)

    def _read(self, rank: int, end_s: float) -> list[Slot] | None:
        if not self._read_header(rank, end_s):
            return None
        newest = int(self._header[Word.PUBLICATION])
        if newest == 0:
            return None
        if not self._buffers:
            self._buffers = [self._window.buffer() for _ in range(self._n_publications)]
        for age, buffer in enumerate(self._buffers):
            self._under_way = self._window.read_slot(rank, 0, (newest - age) % self._n_slots, buffer)
            if not self._arrived(end_s):
                return None
        oldest = newest - self._n_publications + 1
        if not self._read_header(rank, end_s) or self._header[Word.BEGUN] - oldest >= self._n_slots:
            return None
        return self._buffers

    def _read_header(self, rank: int, end_s: float) -> bool:
        self._under_way = self._window.read_header(rank, 0, self._header)
        return self._arrived(end_s)

    def _arrived(self, end_s: float) -> bool:
        """Whether the transfer under way, if any, is through by `end_s`; until it is its memory is not free."""
        while self._under_way is not None:
            if self._under_way.done():
                self._under_way = None
            elif time.perf_counter() > end_s:
                return False
        self._window.fence()
        return True
