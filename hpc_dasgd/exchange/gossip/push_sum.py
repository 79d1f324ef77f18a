"""Exchange `gossip` with push-sum mixing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from hpc_dasgd.arrays.types import Float64s, Floats
from hpc_dasgd.exchange.gossip import running_sums
from hpc_dasgd.exchange.gossip.mixing import N_SLOTS, MixingExchange, neighbours_of
from hpc_dasgd.exchange.interface import ExchangeSetup, Update
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow
from hpc_dasgd.window.slots import PublicationLayout, Slot


class PushSumExchange(MixingExchange):
    """Replicas are numerators divided by weights, and ranks give shares of both: the mean is preserved.

    This is the asynchronous relative of SGP (Assran, Loizou, Ballas, Rabbat, arXiv 1811.10792), by running sums; see
    `running_sums`. Without updates, the sum over ranks of the numerators, together with what is given and not yet
    taken, stays ``n_ranks * x_0``, that of the weights stays `n_ranks`, and every replica converges to their quotient.
    What a rank is given is kept for it, no matter how late it reads.

    A rank gives by publishing. It does so at every `n_targets`-th exchange, while one source is read at each exchange,
    so that each source is read as often as it gives. It does not give while readers are too slow
    (`PublicationThrottle`) or while its weight is small (`running_sums.may_give`): the rank then keeps its mass, and
    nothing is lost. A gift does not change the own replica, up to the last bit of the running sum divided by the
    weight.

    The update is ``z_i += w_i * u``, so that the replica moves by exactly `u`, and `u` has the weight ``w_i`` in the
    mean. With the update ``z_i += u`` of SGP, which is the same if all weights are 1, `u` would always have the weight
    1, but the replica would move by ``u / w_i``: by 100 times the stepsize on a rank with weight 0.01. Weights become
    proportional to the time of a step, so that all updates of a rank together have the same weight for each rank: per
    second, not per update (except on ranks so fast that they wait for weight, whose updates weigh more). Mass in
    transit receives no update, so that the mean moves by the weights that ranks hold: 0.56 to 0.77 of the total,
    simulated for 8 ranks on ring, exponential and complete graph.

    Passes over main memory per step, in float64 arrays of `n_params` (gradient and replica are half of one each if
    parameters are float32):

    - 4 in `push`: gradient read, numerator read and written, replica written; 6 with a gift: previous running sum
      read, next one written.
    - 7 more with a new publication: slot read, buffer written; buffer and previous running sum read, numerator read and
      written, replica written.

    Memory, in the same unit: replica 1 (or a half), numerator 1, slots 3, last reads `n_sources`, buffer 1; on rank 0
    2 more from its first measurement of the consensus distance, and 1 during a measurement. The replica
    that is measured is that of a rank's last gift: the growth of the numerator of the running sum, divided by the
    growth of its weight. Two of the slots contain both, at no cost for the owner.

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
        layout = PublicationLayout(x0.size + 1, np.float64, N_SLOTS, n_versions=comm.size)
        window = PublicationWindow(comm, layout, request_reads)
        super().__init__(setup, window, neighbours or neighbours_of(setup), keeps_seen=True, n_sampled=2)
        self._share = topology.push_sum_share(self._n_targets)
        self._mass: Float64s = np.append(x0.astype(np.float64), 1.0)
        self._wide_scratch: Float64s = np.empty(max(hi - lo for lo, hi in self.blocks))
        self._n_exchanges_to_give = 0

    @property
    def weight(self) -> float:
        """Weight that this rank holds."""
        return float(self._mass[-1])

    def _mix(self, seen: Slot, before: Slot) -> None:
        for lo, hi in self._take(seen, before):
            np.divide(self._mass[lo:hi], self.weight, out=self.parameters[lo:hi], casting="same_kind")

    def _publishes(self) -> bool:
        self._n_exchanges_to_give += 1
        if self._n_targets == 0 or self._n_exchanges_to_give % self._n_targets:
            return False
        return running_sums.may_give(self.weight) and self._throttle.due()

    def _apply(self, update: Update, slot: Slot | None) -> None:
        weight, given = self.weight, self._channel.published.payload
        for lo, hi in self.blocks:
            scaled, mass, scratch = self.scratch[: hi - lo], self._mass[lo:hi], self._wide_scratch[: hi - lo]
            update(lo, hi, scaled)
            running_sums.add_update(mass, weight, scaled, self.parameters[lo:hi], scratch)
            if slot is not None:
                running_sums.give(mass, self._share, self._n_targets, given[lo:hi], slot.payload[lo:hi], scratch)
        if slot is not None:
            mass, scratch = self._mass[-1:], self._wide_scratch[:1]
            running_sums.give(mass, self._share, self._n_targets, given[-1:], slot.payload[-1:], scratch)

    def _take(self, seen: Slot, before: Slot) -> Iterator[tuple[int, int]]:
        """Take what `seen` gives beyond `before`: first the weight, then block by block; yields each block."""
        mass, now, previous = self._mass, seen.payload, before.payload
        running_sums.take(mass[-1:], now[-1:], previous[-1:], self._wide_scratch[:1])
        for lo, hi in self.blocks:
            running_sums.take(mass[lo:hi], now[lo:hi], previous[lo:hi], self._wide_scratch[: hi - lo])
            yield lo, hi

    def _final_terms(self) -> tuple[Floats, float]:
        """Return numerator and weight, after every rank has taken what was in transit to it. Collective; waits.

        The replica does not change, because its distance from the others has yet to be measured.
        """
        last = self.comm.allgather(self._channel.publication)
        while pending := [
            source for source in self._sources if source.reading or source.publication != last[source.rank]
        ]:
            for source in pending:
                before = self._advance(source)
                if before is not None:
                    list(self._take(source.seen, before))
        return self._mass[:-1], self.weight

    def _sampled_replica(self, slots: list[Slot]) -> Callable[[int, int], Floats]:
        now, before = (slot.payload for slot in slots)
        weight = now[-1] - before[-1]

        def replica(lo: int, hi: int) -> Floats:
            difference: Floats = (now[lo:hi] - before[lo:hi]) / weight
            return difference

        return replica
