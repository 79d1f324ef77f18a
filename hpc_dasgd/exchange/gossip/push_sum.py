"""Exchange `gossip` with push-sum mixing."""

from collections.abc import Iterator

import numpy as np

from hpc_dasgd.exchange.gossip import running_sums
from hpc_dasgd.exchange.gossip.mixing import N_SLOTS, MixingExchange
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow, Slot


class PushSumExchange(MixingExchange):
    """Replicas are numerators over weights, and what travels are shares of both: the mean is preserved.

    The asynchronous relative of SGP (Assran, Loizou, Ballas, Rabbat, arXiv 1811.10792), by running sums; see
    `push_sum`. Without updates the sum over ranks of the numerators, with what is given and not yet taken,
    stays ``n_ranks * x_0``, that of the weights `n_ranks`, and every replica converges to their quotient.
    What a rank is given waits for it, however late it reads.

    To give is to publish. That is done at every `n_targets`-th exchange, while one source is read at each, so
    that each source is read as often as it gives. It is left out while readers cannot keep up (`Pacer`) and
    while the own weight is small (`push_sum.may_give`): the rank then keeps its mass, and nothing is lost. A
    gift leaves the own replica as it is, to within the last bit of the running sum over the weight.

    The update is ``z_i += w_i * u``, so that the replica moves by exactly `u`, and `u` weighs ``w_i`` in the
    mean. With SGP's own ``z_i += u`` the same where all weights are 1, `u` would always weigh 1, but the
    replica would move by ``u / w_i``: by 100 times the stepsize on a rank with weight 0.01. Weights settle in
    proportion to the time of a step, so that all updates of a rank together weigh the same for each rank: per
    second, not per update (but for ranks so fast that they wait for weight, whose updates weigh more). Mass on
    its way receives no update, so that the mean moves by the weights in hand alone: 0.56 to 0.77 of all,
    simulated for 8 ranks on ring, exponential and complete graph.

    Passes over main memory per step, in float64 arrays of `n_params` (gradient and replica are half of one
    each where parameters are float32):

    - 4 in `push`: gradient read, numerator read and written, replica written; 6 with a gift: last running sum
      read, next one written.
    - 7 more with news: slot read, buffer written; buffer and what was seen read, numerator read and
      written, replica written.

    Memory, in the same unit: replica 1 (or a half), numerator 1, slots 3, seen `n_sources`, buffer 1; from
    rank 0's first measurement of the consensus distance on 2 more, and 1 while it lasts. That distance is one
    of replicas as they were at each rank's last gift: the quotient of what numerator and weight of the
    running sum have grown by, which two of the slots tell at no cost for the owner.
    """

    def __init__(self, comm, x0, *, neighbours: topology.Neighbours, every=1, request_reads=None):
        window = PublicationWindow(
            comm, x0.size + 1, np.float64, N_SLOTS, n_versions=comm.size, request_reads=request_reads
        )
        super().__init__(comm, x0, neighbours, every, window, keeps_seen=True, n_looked_at=2)
        self._share = topology.push_sum_share(self._n_targets)
        self._mass = np.append(x0.astype(np.float64), 1.0)
        self._wide_scratch = np.empty(max(hi - lo for lo, hi in self.blocks))
        self._n_chances = 0

    @property
    def weight(self) -> float:
        """The own weight, in hand."""
        return float(self._mass[-1])

    def _mix(self, news, before):
        for lo, hi in self._take(news, before):
            np.divide(self._mass[lo:hi], self.weight, out=self.parameters[lo:hi], casting="same_kind")

    def _publishes(self):
        self._n_chances += 1
        if self._n_targets == 0 or self._n_chances % self._n_targets:
            return False
        return running_sums.may_give(self.weight) and self._pacer.due()

    def _apply(self, update, slot):
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

    def _take(self, news: Slot, before: Slot) -> Iterator[tuple[int, int]]:
        """Take what `news` gives beyond `before`, the weight first; yield each block behind that."""
        mass, now, seen = self._mass, news.payload, before.payload
        running_sums.take(mass[-1:], now[-1:], seen[-1:], self._wide_scratch[:1])
        for lo, hi in self.blocks:
            running_sums.take(mass[lo:hi], now[lo:hi], seen[lo:hi], self._wide_scratch[: hi - lo])
            yield lo, hi

    def _final_terms(self):
        """All mass of the rank, after everybody has taken what was still on its way to it.

        The replica is left as it was: how far those were apart is yet to be measured.
        """
        last = self.comm.allgather(self._channel.publication)
        while behind := [other for other in self._sources if other.reading or other.publication != last[other.rank]]:
            for source in behind:
                before = self._advance(source)
                if before is not None:
                    list(self._take(source.seen, before))
        return self._mass[:-1], self.weight

    def _replica_in(self, slots):
        now, before = (slot.payload for slot in slots)
        weight = now[-1] - before[-1]
        return lambda lo, hi: (now[lo:hi] - before[lo:hi]) / weight
