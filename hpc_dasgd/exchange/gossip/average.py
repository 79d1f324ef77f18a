"""Exchange `gossip`: each rank reads the published state of one neighbour at a time, and mixes it into its own.

An exchange transfers `n_params` numbers, independent of the number of ranks. In return a replica is not ``x_0`` plus a
sum of updates: replicas agree only as far as mixing brings them together, and the weight of an update in a replica is
unknown. Entry `j` of a version vector therefore means that the replica holds a *share* of the updates of rank `j` up to
that number. It is the elementwise maximum of the version vectors that were mixed; the own entry is the number of
updates that this rank has made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpc_dasgd.arrays.types import Floats
from hpc_dasgd.exchange.gossip.mixing import N_SLOTS, MixingExchange, neighbours_of
from hpc_dasgd.exchange.interface import ExchangeSetup, Update
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow
from hpc_dasgd.window.slots import PublicationLayout, Slot


class AverageExchange(MixingExchange):
    """Each rank publishes its replica, reads one source at a time, and averages the two.

    This is the one-sided relative of AD-PSGD (Lian, Zhang, Zhang, Liu, arXiv 1710.06952), from which it differs in one
    respect. In AD-PSGD both partners become their average, in one atomic operation, so that the mean over replicas
    does not change. Here only the reader moves, ``x_i <- (x_i + x_j) / 2``. The mean over replicas is then not
    preserved: on a regular graph of equally fast ranks it is preserved in expectation, and the weight of an update in
    it depends on timing. Mixing by push-sum preserves the mean.

    Passes over main memory per step, in arrays of `n_params`:

    - 4 in `push`: gradient read, replica read and written, slot written. Update and publication share the pass. 3 in
      steps that do not exchange.
    - 5 more with a new publication: slot read, buffer written; buffer read, replica read and written.

    Memory, in the same unit, for any number of sources: replica 1, slots 3, buffers 2; while rank 0 measures the
    consensus distance 1 more, and 1 in float64.

    Parameters
    ----------
    setup : ExchangeSetup
    neighbours : topology.Neighbours, optional
        Sources and targets of this rank, by default those on the graph that the settings name.
    request_reads : bool, optional
        See `WindowMemory`.
    """

    def __init__(
        self,
        setup: ExchangeSetup,
        *,
        neighbours: topology.Neighbours | None = None,
        request_reads: bool | None = None,
    ):
        comm, x0 = setup.comm, setup.x0
        layout = PublicationLayout(x0.size, x0.dtype, N_SLOTS, n_versions=comm.size)
        window = PublicationWindow(comm, layout, request_reads)
        super().__init__(setup, window, neighbours or neighbours_of(setup), keeps_seen=False, n_sampled=1)

    def _mix(self, seen: Slot, before: Slot) -> None:
        for lo, hi in self.blocks:
            replica = self.parameters[lo:hi]
            np.add(replica, seen.payload[lo:hi], out=replica)
            np.multiply(replica, 0.5, out=replica)

    def _publishes(self) -> bool:
        return self._n_targets > 0 and self._throttle.due()

    def _apply(self, update: Update, slot: Slot | None) -> None:
        for lo, hi in self.blocks:
            scaled, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            update(lo, hi, scaled)
            np.add(replica, scaled, out=replica)
            if slot is not None:
                np.copyto(slot.payload[lo:hi], replica)

    def _final_terms(self) -> tuple[Floats, float]:
        """Return the replica and 1, so that the final parameters are the mean of all replicas."""
        self._reader.finish(self._sources)
        return self.parameters, 1.0

    def _sampled_replica(self, slots: list[Slot]) -> Callable[[int, int], Floats]:
        return lambda lo, hi: slots[0].payload[lo:hi]
