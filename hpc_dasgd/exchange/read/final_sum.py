"""The final parameters of a run with deaths: the sum of what all ranks, dead or alive, have published."""

from __future__ import annotations

import math
import time

import numpy as np

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.errors import TrainingError
from hpc_dasgd.exchange.read.failure_detector import FailureDetector
from hpc_dasgd.exchange.read.state import ReadState
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle
from hpc_dasgd.window.slots import Slot

LAST_READ_S = 60.0
"""Time after which the read of the last publication of a dead rank is given up, in seconds."""


class FinalSum:
    """Sums the contributions of all ranks in the order of ranks, so that every rank obtains the same bits.

    Nothing here is collective. It is used when no rank publishes any more.

    Parameters
    ----------
    state : ReadState
    detector : FailureDetector
    """

    def __init__(self, state: ReadState, detector: FailureDetector):
        self._state, self._detector = state, detector

    def store_into_replica(self) -> tuple[list[int], float]:
        """Make the replica the sum of the last contributions that all ranks have published. Waits for the reads.

        The slot of the next publication is used as memory for the sum.

        Returns
        -------
        versions : list of int
            Version vector of the replica.
        drift : float
            Largest absolute change of an element of the replica; nan if the replica did not hold all updates.

        Raises
        ------
        TrainingError
            If the contribution of a rank that died cannot be read any more.
        """
        state, exchange = self._state, self._state.exchange
        self._finish_reads()
        channel, buffer = state.window.channels[0], state.window.buffer()
        versions: list[int] = []
        total = channel.begin().payload
        for rank in range(state.comm.size):
            if rank == state.comm.rank:
                slot = channel.published
            else:
                slot = buffer = self._read_last(rank, buffer)
            versions.append(int(slot.versions.max()))
            for lo, hi in exchange.blocks:
                own = slot.payload[lo:hi]
                np.add(total[lo:hi], own, out=total[lo:hi]) if rank else np.copyto(total[lo:hi], own)
        drift = self._replace_replica(total, complete=exchange.versions.tolist() == versions)
        exchange.versions[:] = versions
        return versions, drift

    def _replace_replica(self, total: AnyArray, complete: bool) -> float:
        """Copy `total` into the replica; return the largest change, nan if the replica was not complete."""
        exchange = self._state.exchange
        replica, drift = exchange.device.to_host(exchange.parameters), 0.0 if complete else math.nan
        for lo, hi in exchange.blocks:
            if complete:
                drift = max(drift, float(np.abs(replica[lo:hi] - total[lo:hi]).max()))
            np.copyto(replica[lo:hi], total[lo:hi])
        exchange.store_replica(replica)
        return drift

    def _finish_reads(self) -> None:
        """Complete the reads of ranks alive; on the complete overlay read everything that was published. Waits."""
        state, neighbourhood = self._state, self._state.neighbourhood
        while True:
            self._detector.poll_ranks()
            died = self._detector.died
            arrived = [] if neighbourhood.on_tree else state.read()
            under_way = [
                other
                for other in neighbourhood.left + neighbourhood.neighbours
                if other.reading and other.rank not in died
            ]
            if not under_way and not any(arrived):
                break
            state.reader.advance([other for other in under_way if neighbourhood.on_tree or other in neighbourhood.left])
        if not neighbourhood.on_tree and not neighbourhood.catching_up:
            state.sum_replica()

    def _read_last(self, rank: int, buffer: Slot) -> Slot:
        """Return the last contribution that `rank` has published. Waits for the read.

        `buffer` is given to the reader; the returned slot takes its place.
        """
        buffer.versions[:] = 0
        other = Neighbour(rank, 0, buffer, PublicationThrottle())
        other.publication = -1
        started_s = time.monotonic()
        while not any(self._state.reader.advance([other])):
            self._detector.poll_ranks()
            if rank in self._detector.died and time.monotonic() - started_s > LAST_READ_S:
                raise TrainingError(f"what rank {rank} had published before it died can no longer be read")
        return other.seen
