"""Exchange `none`: each rank trains alone, the reference of benchmarks."""

import time

from hpc_dasgd.arrays.arithmetic import add_up
from hpc_dasgd.exchange.interface import Exchange, ExchangeSetup, Settled, Update
from hpc_dasgd.exchange.reader import Peer, PublicationThrottle, Reader
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow
from hpc_dasgd.window.slots import PublicationLayout

HEADER_INTERVAL_S = 0.1
"""Time from one read of a header to the next, in seconds."""


class NoExchange(Exchange):
    """Plain SGD on every rank; ranks only communicate requests to end the run.

    For this each rank reads one header ten times per second, in turn those of the ranks 1, 2, 4, ... before it.

    Passes over main memory per step, in arrays of `n_params`: gradient read, replica read and written (3).

    Parameters
    ----------
    setup : ExchangeSetup
    """

    def __init__(self, setup: ExchangeSetup):
        super().__init__(setup)
        comm = setup.comm
        self._window = PublicationWindow(comm, PublicationLayout(0, setup.x0.dtype, n_slots=1))
        self._reader = Reader(comm, self._window, n_slots=1, n_buffers=0)
        self._peers = [
            Peer(rank, 0, PublicationThrottle()) for rank in topology.exponential(comm.rank, comm.size).sources
        ]
        self._n_headers, self._next_s = 0, 0.0

    @property
    def gradients(self) -> int:
        """Number of own gradients times number of ranks: the other ranks are assumed to be equally fast."""
        return int(self.versions[self.comm.rank]) * self.comm.size

    def pull(self) -> None:
        """Read a header, if it is time, to learn whether another rank requests the end of the run."""
        now_s = time.monotonic()
        if self._peers and now_s >= self._next_s:
            self._next_s = now_s + HEADER_INTERVAL_S
            self._reader.poll_header(self._peers[self._n_headers % len(self._peers)])
            self._n_headers += 1
            self.stopping = self._reader.stopping

    def push(self, update: Update) -> None:
        """Add an own update to the replica. Not collective; never waits."""
        for lo, hi in self.blocks:
            scaled, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            update(lo, hi, scaled)
            add_up([replica, scaled], replica)
        self.versions[self.comm.rank] += 1

    def stop(self) -> None:
        """Request the end of the run on all ranks. Not collective."""
        self._reader.stop()
        self.stopping = True

    def spent(self) -> None:
        """End the run of this rank only: every rank has a budget of its own."""
        self.stopping = True

    def settle(self) -> Settled:
        """Complete reads that are under way; each rank keeps its own parameters."""
        self._reader.finish_headers(self._peers)
        return Settled(drift=0.0, dropped_reads=0)

    def free(self) -> None:
        """Free the window. Collective over `comm`."""
        self._window.free()
