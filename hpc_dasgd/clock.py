"""One clock for all ranks."""

import time

import numpy as np

ROUNDS = 16
_PING, _PONG = 101, 102


class Clock:
    """Seconds since the run began, on the clock of rank 0.

    Ranks of one host read the same hardware clock. The first rank of every other host than rank 0's
    estimates its offset, for all of its host, from the quickest of several round trips, which bounds the
    error by half its duration. Making one is collective over `comm`.

    Attributes
    ----------
    offset_s : float
        What is added to this rank's own clock.
    error_s : float
        Bound on the error of `offset_s`.
    """

    def __init__(self, comm, host: str):
        first_ranks = {}
        for rank, other in enumerate(comm.allgather(host)):
            first_ranks.setdefault(other, rank)
        self.offset_s, self.error_s = 0.0, 0.0
        for rank in first_ranks.values():
            if rank != 0:
                self._measure(comm, rank)
        estimates = comm.allgather((self.offset_s, self.error_s))
        self.offset_s, self.error_s = estimates[first_ranks[host]]
        self._origin_s = comm.bcast(time.monotonic(), root=0)

    def now(self) -> float:
        return time.monotonic() + self.offset_s - self._origin_s

    def _measure(self, comm, rank: int) -> None:
        reply = np.empty(1)
        if comm.rank == 0:
            for _ in range(ROUNDS):
                comm.Recv(reply, source=rank, tag=_PING)
                comm.Send(np.array([time.monotonic()]), dest=rank, tag=_PONG)
        elif comm.rank == rank:
            trips = []
            for _ in range(ROUNDS):
                sent_s = time.monotonic()
                comm.Send(reply, dest=0, tag=_PING)
                comm.Recv(reply, source=0, tag=_PONG)
                received_s = time.monotonic()
                trips.append((received_s - sent_s, reply[0] - (sent_s + received_s) / 2))
            duration_s, self.offset_s = min(trips)
            self.error_s = duration_s / 2
