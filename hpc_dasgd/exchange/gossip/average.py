"""Exchange `gossip`: each rank reads the published state of one neighbour at a time, and mixes it into its own.

An exchange so costs `n_params` numbers of traffic, whatever the number of ranks. In return a replica is no
longer ``x_0`` and a sum of updates: replicas agree only as far as mixing brings them together, and what an
update weighs in one is not known. Entry `j` of a version vector therefore means that the replica holds a
*share* of the updates of rank `j` up to that one: the elementwise maximum of what was mixed, the own entry
being the updates that this rank has made.
"""

import numpy as np

from hpc_dasgd.exchange.gossip.mixing import N_SLOTS, MixingExchange
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow


class AverageExchange(MixingExchange):
    """Each rank publishes its replica, reads one source at a time, and moves half-way towards it.

    The one-sided relative of AD-PSGD (Lian, Zhang, Zhang, Liu, arXiv 1710.06952), which it changes in one
    respect: there both partners of an average become it, in one atomic operation, so that the mean over
    replicas stays what it is; here the reader alone moves, ``x_i <- (x_i + x_j) / 2``. The mean over replicas
    is then not preserved: on a regular graph of equally fast ranks it is in expectation, and what an update
    weighs in it depends on timing. `push-sum` preserves it.

    Passes over main memory per step, in arrays of `n_params`:

    - 4 in `push`: gradient read, replica read and written, slot written. Update and publication share the
      pass. 3 in steps that do not exchange.
    - 5 more with news: slot read, buffer written; buffer read, replica read and written.

    Memory, in the same unit, whatever the number of sources: replica 1, slots 3, buffers 2; while rank 0
    measures the consensus distance 1 more, and 1 in float64.
    """

    def __init__(self, comm, x0, *, neighbours: topology.Neighbours, every=1, request_reads=None):
        window = PublicationWindow(comm, x0.size, x0.dtype, N_SLOTS, n_versions=comm.size, request_reads=request_reads)
        super().__init__(comm, x0, neighbours, every, window, keeps_seen=False, n_looked_at=1)

    def _mix(self, news, before):
        for lo, hi in self.blocks:
            replica = self.parameters[lo:hi]
            np.add(replica, news.payload[lo:hi], out=replica)
            np.multiply(replica, 0.5, out=replica)

    def _publishes(self):
        return self._n_targets > 0 and self._pacer.due()

    def _apply(self, update, slot):
        for lo, hi in self.blocks:
            scaled, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            update(lo, hi, scaled)
            np.add(replica, scaled, out=replica)
            if slot is not None:
                np.copyto(slot.payload[lo:hi], replica)

    def _final_terms(self):
        """The mean of all replicas."""
        self._reader.finish(self._sources)
        return self.parameters, 1.0

    def _replica_in(self, slots):
        return lambda lo, hi: slots[0].payload[lo:hi]
