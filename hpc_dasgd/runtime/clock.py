"""One clock for all ranks."""

import time

import numpy as np

ROUNDS = 16
_PING, _PONG = 101, 102


class Clock:
    """Seconds since the run began, on the clock of rank 0.

    Ranks of one host read the same hardware clock. The first rank of every other host than rank 0's
    estimates its offset, for all of its host, from the quickest of several round trips, which bounds the
    error by half its duration. Making one is collective over `comm`, and so is `drift_s`: clocks of two hosts
    part by some microseconds per second.

    Parameters
    ----------
    comm : MPI.Intracomm
    host : str
        Where this rank is.
    begun_s : float
        What the clock shows at first.

    Attributes
    ----------
    offset_s : float
        What is added to this rank's own clock.
    error_s : float
        Bound on the error of `offset_s`.
    """

    def __init__(self, comm, host: str, begun_s: float = 0.0):
        self._comm, self._host = comm, host
        self.offset_s, self.error_s = self._estimate()
        self._origin_s = comm.bcast(time.monotonic(), root=0) - begun_s

    def now(self) -> float:
        return time.monotonic() + self.offset_s - self._origin_s

    def drift_s(self) -> float:
        """Estimate the offset again; what it has grown by. `now` does not change, `error_s` may grow."""
        offset_s, error_s = self._estimate()
        self.error_s = max(self.error_s, error_s)
        return offset_s - self.offset_s

    def _estimate(self) -> tuple[float, float]:
        """Offset and bound on its error."""
        first_ranks = {}
        for rank, other in enumerate(self._comm.allgather(self._host)):
            first_ranks.setdefault(other, rank)
        own = 0.0, 0.0
        for rank in first_ranks.values():
            if rank != 0 and self._comm.rank in (0, rank):
                own = _round_trips(self._comm, rank) if self._comm.rank else _answer(self._comm, rank)
        return self._comm.allgather(own)[first_ranks[self._host]]


def _answer(comm, rank: int) -> tuple[float, float]:
    for _ in range(ROUNDS):
        comm.Recv(np.empty(1), source=rank, tag=_PING)
        comm.Send(np.array([time.monotonic()]), dest=rank, tag=_PONG)
    return 0.0, 0.0


def _round_trips(comm, rank: int) -> tuple[float, float]:
    reply, trips = np.empty(1), []
    for _ in range(ROUNDS):
        sent_s = time.monotonic()
        comm.Send(reply, dest=0, tag=_PING)
        comm.Recv(reply, source=0, tag=_PONG)
        received_s = time.monotonic()
        trips.append((received_s - sent_s, float(reply[0]) - (sent_s + received_s) / 2))
    duration_s, offset_s = min(trips)
    return offset_s, duration_s / 2
