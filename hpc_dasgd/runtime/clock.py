"""A clock that is common to all ranks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

N_ROUND_TRIPS = 16
_PING, _PONG = 101, 102


class Clock:
    """Seconds since the start of the run, by the clock of rank 0.

    All ranks of a host read the same hardware clock. The lowest rank of each host other than that of rank 0 estimates
    the offset of its host's clock: it exchanges messages with rank 0 `N_ROUND_TRIPS` times and takes the offset from
    the fastest round trip. Half the duration of this round trip bounds the error.

    Making a clock and `drift_s` are collective over `comm`, and wait for all ranks; `now` is not collective.

    Parameters
    ----------
    comm : MPI.Intracomm
        Communicator of all ranks of the run.
    host : str
        Name of the host of this rank.
    begun_s : float
        Initial value of the clock, s; not 0 if an earlier run is resumed.

    Attributes
    ----------
    offset_s : float
        Offset that is added to the hardware clock of this rank, s.
    error_s : float
        Bound on the error of `offset_s`, s.
    """

    def __init__(self, comm: MPI.Intracomm, host: str, begun_s: float = 0.0):
        self._comm, self._host = comm, host
        self.offset_s, self.error_s = self._estimate()
        self._origin_s: float = comm.bcast(time.monotonic(), root=0) - begun_s

    def now(self) -> float:
        """Return the time since the start of the run, s. Not collective; never waits."""
        return time.monotonic() + self.offset_s - self._origin_s

    def drift_s(self) -> float:
        """Estimate the offset again, and return by how much it has grown, s. Collective over `comm`.

        Clocks of two hosts drift apart by some microseconds per second. `now` does not change; `error_s` may grow.
        """
        offset_s, error_s = self._estimate()
        self.error_s = max(self.error_s, error_s)
        return offset_s - self.offset_s

    def _estimate(self) -> tuple[float, float]:
        """Return the offset of this host and a bound on its error, s. Collective over `comm`."""
        first_ranks: dict[str, int] = {}
        for rank, host in enumerate(self._comm.allgather(self._host)):
            first_ranks.setdefault(host, rank)
        estimate = 0.0, 0.0
        for rank in first_ranks.values():
            if rank != 0 and self._comm.rank == 0:
                _reply(self._comm, rank)
            elif rank != 0 and self._comm.rank == rank:
                estimate = _measure_offset(self._comm)
        estimates: list[tuple[float, float]] = self._comm.allgather(estimate)
        return estimates[first_ranks[self._host]]


def _reply(comm: MPI.Intracomm, rank: int) -> None:
    """Answer each message of `rank` with the time of this rank; called by rank 0."""
    for _ in range(N_ROUND_TRIPS):
        comm.Recv(np.empty(1), source=rank, tag=_PING)
        comm.Send(np.array([time.monotonic()]), dest=rank, tag=_PONG)


def _measure_offset(comm: MPI.Intracomm) -> tuple[float, float]:
    """Return the offset to the clock of rank 0 and a bound on its error, s, from the fastest round trip."""
    reply, round_trips = np.empty(1), []
    for _ in range(N_ROUND_TRIPS):
        sent_s = time.monotonic()
        comm.Send(reply, dest=0, tag=_PING)
        comm.Recv(reply, source=0, tag=_PONG)
        received_s = time.monotonic()
        round_trips.append((received_s - sent_s, float(reply[0]) - (sent_s + received_s) / 2))
    duration_s, offset_s = min(round_trips)
    return offset_s, duration_s / 2
