"""Measuring the distance between replicas, from what ranks publish anyway."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from hpc_dasgd.arrays.types import Float64s, Floats, Int64s
from hpc_dasgd.exchange.interface import Blocks
from hpc_dasgd.window.memory import Transfer
from hpc_dasgd.window.publication import HEADER_LENGTH, HeaderField, PublicationWindow
from hpc_dasgd.window.slots import Slot

MAX_RANKS = 64
"""Largest number of ranks that are read for one measurement."""

MAX_TRIES = 3
"""Number of tries to read a rank that publishes at the same time."""


def ranks_to_sample(rank: int, n_ranks: int) -> list[int]:
    """Return at most `MAX_RANKS` ranks other than `rank`, evenly spaced, ascending.

    Examples
    --------
    >>> ranks_to_sample(1, 4)
    [0, 2, 3]
    """
    others = [other for other in range(n_ranks) if other != rank]
    n_sampled = min(MAX_RANKS, len(others))
    return [others[k * len(others) // n_sampled] for k in range(n_sampled)]


class Spread:
    """Root mean square distance of replicas from their mean, updated with one replica after another.

    It uses Welford's recurrence in float64: no replica is kept, and no large numbers are subtracted from each other
    (B. P. Welford, Technometrics 4 (1962)).

    Parameters
    ----------
    first : ndarray, shape (n_params,), float32 or float64
        The first replica.
    blocks : list of (lo, hi)
        Ranges in which replicas are given.

    Attributes
    ----------
    n_replicas : int
        Number of replicas so far.
    """

    def __init__(self, first: Floats, blocks: Blocks):
        self._mean: Float64s = first.astype(np.float64)
        self._blocks = blocks
        self._squares = 0.0
        self.n_replicas = 1

    def add(self, replica: Callable[[int, int], Floats]) -> None:
        """Add a replica; ``replica(lo, hi)`` returns its elements ``lo:hi``."""
        self.n_replicas += 1
        for lo, hi in self._blocks:
            difference = replica(lo, hi) - self._mean[lo:hi]
            self._squares += float(difference @ difference) * (self.n_replicas - 1) / self.n_replicas
            difference /= self.n_replicas
            self._mean[lo:hi] += difference

    @property
    def distance(self) -> float:
        """Root of the mean over replicas of the squared distance from their mean."""
        return math.sqrt(self._squares / self.n_replicas)


class PublicationSampler:
    """Reads the last publications of any ranks, for measurements only.

    It sends no slow-reader notices: owners do not publish less often because of it. Nothing here is collective.

    Parameters
    ----------
    window : PublicationWindow
        Its channel 0 is read.
    n_slots : int
        Number of slots of each channel.
    n_publications : int
        Number of the last publications that are read together. The memory for them is allocated at the first read and
        kept.
    """

    def __init__(self, window: PublicationWindow, n_slots: int, n_publications: int):
        self._window, self._n_slots, self._n_publications = window, n_slots, n_publications
        self._header: Int64s = np.zeros(HEADER_LENGTH, np.int64)
        self._buffers: list[Slot] = []
        self._transfer: Transfer | None = None

    def read(self, rank: int, end_s: float) -> list[Slot] | None:
        """Read the last publications of a rank. Waits for them until `end_s`.

        Parameters
        ----------
        rank : int
        end_s : float
            Value of ``time.perf_counter()`` at which the read is given up.

        Returns
        -------
        slots : list of Slot or None
            The newest publication first; publication 0, before the first one, consists of zeros. None if `rank` has
            not published yet, has published too much during the read, or did not answer in time.
        """
        for _ in range(MAX_TRIES):
            # A read that was given up has to complete before its memory is used again.
            if self._has_arrived(end_s) and (slots := self._read_slots(rank, end_s)) is not None:
                return slots
        return None

    def finish(self) -> None:
        """Complete a read that was given up, because MPI requires that. Waits for it."""
        self._has_arrived(math.inf)

    def _read_slots(self, rank: int, end_s: float) -> list[Slot] | None:
        if not self._read_header(rank, end_s):
            return None
        newest = int(self._header[HeaderField.PUBLICATION])
        if newest == 0:
            return None
        if not self._buffers:
            self._buffers = [self._window.buffer() for _ in range(self._n_publications)]
        for age, buffer in enumerate(self._buffers):
            self._transfer = self._window.read_slot(rank, 0, (newest - age) % self._n_slots, buffer)
            if not self._has_arrived(end_s):
                return None
        oldest = newest - self._n_publications + 1
        if not self._read_header(rank, end_s) or self._header[HeaderField.BEGUN] - oldest >= self._n_slots:
            return None
        return self._buffers

    def _read_header(self, rank: int, end_s: float) -> bool:
        self._transfer = self._window.read_header(rank, 0, self._header)
        return self._has_arrived(end_s)

    def _has_arrived(self, end_s: float) -> bool:
        """Wait for the transfer under way, if any, until `end_s`. Return True if it is complete."""
        while self._transfer is not None:
            if self._transfer.done():
                self._transfer = None
            elif time.perf_counter() > end_s:
                return False
        self._window.fence()
        return True
