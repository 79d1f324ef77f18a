"""Exchange `allreduce`: synchronous mini-batch SGD, the baseline."""

import os

import numpy as np
from mpi4py import MPI

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.exchange.interface import Exchange, ExchangeSetup, Settled, Update
from hpc_dasgd.runtime import collective


class AllreduceExchange(Exchange):
    """Each step adds the mean of the updates of all ranks to every replica.

    `n` ranks thus act as a single one with a batch `n` times as large. The mean is taken over updates; for the
    optimizers `sgd` and `momentum`, which are linear, it is the update of the mean gradient.

    Passes over main memory per step, in arrays of `n_params`: gradient read, sum written, the passes of MPI's reduction
    (at least 2 reads and 1 write), sum read, replica read and written; 8 altogether.

    Parameters
    ----------
    setup : ExchangeSetup
    """

    def __init__(self, setup: ExchangeSetup):
        super().__init__(setup)
        # The last element is the number of ranks that request the end of the run.
        self._sum: AnyArray = np.empty(self.parameters.size + 1, self.parameters.dtype)
        self._stop_requested = 0
        # With more ranks than cores, a rank that spins occupies the core of a rank that it waits for. Measured with 4
        # ranks on 2 cores, 100,000 parameters, MPICH: 10 gradients/s, and 1,760 if waiting ranks yield the core.
        # Otherwise `Allreduce` is faster.
        self._yields = collective.is_oversubscribed(setup.comm)

    def pull(self) -> None:
        """Do nothing: all ranks exchange in `push`."""

    def push(self, update: Update) -> None:
        """Add the mean of the updates of all ranks. Collective over `comm`; waits for the slowest rank."""
        for lo, hi in self.blocks:
            update(lo, hi, self._sum[lo:hi])
        self._sum[-1] = self._stop_requested
        self._reduce()
        share = self.parameters.dtype.type(1.0 / self.comm.size)
        for lo, hi in self.blocks:
            mean, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            np.multiply(self._sum[lo:hi], share, out=mean)
            np.add(replica, mean, out=replica)
        self.versions += 1
        self.stopping = bool(self._sum[-1] > 0)

    def stop(self) -> None:
        """Request the end of the run. It is counted in the next `push`, so that all ranks stop after the same step."""
        self._stop_requested = 1

    def settle(self) -> Settled:
        """Broadcast the replica of rank 0: MPI does not guarantee the same bits on every rank. Collective; waits."""
        return Settled(drift=self.broadcast_replica(0), dropped_reads=0)

    def _reduce(self) -> None:
        if not self._yields:
            self.comm.Allreduce(MPI.IN_PLACE, self._sum)
            return
        request = self.comm.Iallreduce(MPI.IN_PLACE, self._sum)
        while not request.Test():
            os.sched_yield()
