"""Exchange `allreduce`: synchronous mini-batch SGD. The baseline."""

import os

import numpy as np
from mpi4py import MPI

from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.runtime import collective


class AllreduceExchange(Exchange):
    """Each step adds the mean of all ranks' updates to every replica, so that `n` ranks act as one with an
    `n`-fold batch.

    The mean is taken of updates; for `sgd` and `momentum`, which are linear, that is the mean gradient's update.

    Passes over main memory per step, in arrays of `n_params`: gradient read, sum written, what the MPI's
    reduction takes (2 reads and 1 write at the least), sum read, replica read and written (8).
    """

    def __init__(self, comm, x0: np.ndarray):
        super().__init__(comm, x0)
        self._sum = np.empty(self.parameters.size + 1, self.parameters.dtype)  # the last element counts votes to stop
        self._vote = 0
        # With more ranks than cores a rank that spins keeps the one it waits for from running: measured with 4 ranks
        # on 2 cores, 100,000 parameters, MPICH: 10 gradients/s, and 1,760 where it yields. Else `Allreduce` is faster.
        self._yields = collective.is_oversubscribed(comm)

    def pull(self) -> None:
        pass

    def push(self, update: Update) -> None:
        """Collective: waits for the slowest rank."""
        for lo, hi in self.blocks:
            update(lo, hi, self._sum[lo:hi])
        self._sum[-1] = self._vote
        self._reduce()
        share = self.parameters.dtype.type(1.0 / self.comm.size)
        for lo, hi in self.blocks:
            mean, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            np.multiply(self._sum[lo:hi], share, out=mean)
            np.add(replica, mean, out=replica)
        self.versions += 1
        self.stopping = bool(self._sum[-1] > 0)

    def _reduce(self) -> None:
        if not self._yields:
            self.comm.Allreduce(MPI.IN_PLACE, self._sum)
            return
        request = self.comm.Iallreduce(MPI.IN_PLACE, self._sum)
        while not request.Test():
            os.sched_yield()

    def stop(self) -> None:
        """The vote is counted in the next `push`, so that all ranks end after the same step."""
        self._vote = 1

    def settle(self) -> Settled:
        """MPI does not promise the same bits on every rank; take rank 0's."""
        return Settled(drift=self._take_from(0), dropped_reads=0)
