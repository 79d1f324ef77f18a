"""Exchange `none`: each rank alone. The yardstick of benchmarks."""

import time

import numpy as np

from hpc_dasgd.arrays.arithmetic import add_up
from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle, Reader
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow

LISTEN_EVERY_S = 0.1


class NoExchange(Exchange):
    """Plain SGD on every rank; nothing travels but the wish to end the run.

    For that each rank reads a header ten times a second, of the ranks 1, 2, 4, ... before it in turn.

    Passes over main memory per step, in arrays of `n_params`: gradient read, replica read and written (3).
    """

    combines = "own"

    def __init__(self, comm, x0: np.ndarray, device=None):
        super().__init__(comm, x0, device=device)
        self._window = PublicationWindow(comm, 0, x0.dtype, n_slots=1)
        self._reader = Reader(comm, self._window, n_slots=1, n_buffers=0)
        sources = topology.exponential(comm.rank, comm.size).sources
        self._listened = [Neighbour(rank, 0, None, PublicationThrottle()) for rank in sources]
        self._n_listened, self._next_s = 0, 0.0

    @property
    def gradients(self) -> int:
        """Own gradients times ranks: the others are taken to be as fast."""
        return int(self.versions[self.comm.rank]) * self.comm.size

    def pull(self) -> None:
        """Now and then see whether another rank wants to end the run."""
        now_s = time.monotonic()
        if self._listened and now_s >= self._next_s:
            self._next_s = now_s + LISTEN_EVERY_S
            self._reader.listen(self._listened[self._n_listened % len(self._listened)])
            self._n_listened += 1
            self.stopping = self._reader.stopping

    def push(self, update: Update) -> None:
        for lo, hi in self.blocks:
            scaled, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            update(lo, hi, scaled)
            add_up([replica, scaled], replica)
        self.versions[self.comm.rank] += 1

    def stop(self) -> None:
        self._reader.stop()
        self.stopping = True

    def spent(self) -> None:
        """End this rank alone: every rank has a budget of its own."""
        self.stopping = True

    def settle(self) -> Settled:
        while under_way := [other for other in self._listened if other.reading]:
            self._reader.listen(under_way[0])
        return Settled(drift=0.0, dropped_reads=0)

    def free(self) -> None:
        self._window.free()
