"""Exchange `read`: decentralized asynchronous SGD by one-sided reads of contributions.

A rank's contribution is the sum of all updates that it has made itself; rank 0's also holds ``x_0``. Each
rank publishes its own and reads its neighbours'; a replica is the sum of its own and of what it last read of
each neighbour. Reading twice changes nothing, and missing ten versions and reading the eleventh brings all
eleven: every update arrives exactly once, whatever the timing.

On the complete overlay every rank is a neighbour and shows its contribution. On a tree it shows each
neighbour the partial sum of its own side of the edge between them (`partial_sums`): an all-reduce by reading
that never waits.
"""

import os
from collections.abc import Callable

import numpy as np

from hpc_dasgd import topology
from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.exchange.reader import Neighbour, Pacer, Reader, count_missed
from hpc_dasgd.partial_sums import merge_versions, sum_edges, sum_replica
from hpc_dasgd.window.publication import PublicationWindow, Slot, Word

COMPLETE_SLOTS, TREE_SLOTS = 3, 2
_TOWARD_TAG = 103


class ReadExchange(Exchange):
    """Every rank reads its neighbours' publications.

    The replica is summed anew whenever a term of it has changed. It is therefore a function of its version
    vector alone, with nothing to drift apart, and a run can be replayed.

    Publication `p` stands in its slot until publication ``p + n_slots`` is begun. With *snapshot* consistency
    a read that ended before that saw one version only; any other is dropped. With *elementwise* consistency
    nothing is dropped: a read may then mix versions from element to element, which the next read mends.

    With `D` neighbours (``n_ranks - 1`` on the complete overlay, independent of the number of ranks on a
    tree), passes over main memory per step in arrays of `n_params`:

    - ``D + 4`` in `push` on the complete overlay and in a tree's leaves: gradient, last publication and what
      was seen read, next publication and replica written. Update, publication and replica share this one
      pass, and publishing costs no copy. ``2 D + 4`` in other ranks of a tree: gradient, contribution and
      what was seen read; contribution, replica and an edge's partial sum for each neighbour written.
    - 2 for each neighbour with news: its slot read, buffer written. Buffer and what was seen before then
      change places. The buffer has to be whole before it is used, since an unconfirmed read may be dropped.
    - ``D + 2`` in `pull` if news came since the `push` before: contribution and what was seen read, replica
      written.
    - A neighbour without news costs 64 bytes.

    Memory, in the same unit: on the complete overlay replica 1, slots 3, seen ``n_ranks - 1``, buffers
    `reads_in_flight`; on a tree replica 1, contribution 1, slots ``2 D``, seen `D`, buffers
    `reads_in_flight`.

    Parameters
    ----------
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
        The same on every rank.
    tree : callable, optional
        rank -> tuple of its neighbours on a tree that spans all ranks, the same function on all ranks; None
        for the complete overlay.
    consistency : {"snapshot", "elementwise"}
    every : int
        Own updates from one exchange to the next.
    reads_in_flight : int
        Neighbours read at once on networks where a read takes longer than a step.
    request_reads : bool, optional
        See `WindowMemory`.
    """

    combines = "sum"

    def __init__(
        self,
        comm,
        x0,
        *,
        tree: Callable[[int], tuple[int, ...]] | None = None,
        consistency="snapshot",
        every=1,
        reads_in_flight=1,
        request_reads=None,
    ):
        super().__init__(comm, x0, every)
        rank, n_ranks = comm.rank, comm.size
        if tree is None:
            ranks, n_versions, n_slots, self._own_entry = topology.complete(rank, n_ranks), 1, COMPLETE_SLOTS, 0
            channels_read = [0] * len(ranks)
        else:
            ranks, n_versions, n_slots, self._own_entry = tree(rank), n_ranks, TREE_SLOTS, rank
            channels_read = [tree(other).index(rank) for other in ranks]
        # Where nothing that was read is shown on, the one channel's newest slot is the contribution itself.
        self._shows_own = tree is None or len(ranks) < 2
        n_channels = 1 if self._shows_own else len(ranks)
        self._window = PublicationWindow(comm, x0.size, x0.dtype, n_slots, n_channels, n_versions, request_reads)
        self._pacers = [Pacer() for _ in self._window.channels]
        pacers = self._pacers * len(ranks) if self._shows_own else self._pacers
        self._neighbours = [
            Neighbour(other, channel, self._window.buffer(), pacer)
            for other, channel, pacer in zip(ranks, channels_read, pacers, strict=True)
        ]
        # The entries of the version vector that each neighbour's slots tell.
        self._entries = [slice(other, other + 1) if tree is None else slice(None) for other in ranks]
        n_buffers = min(reads_in_flight, len(ranks))
        self._reader = Reader(comm, self._window, n_slots, n_buffers, consistency == "snapshot")
        self._own = self._window.channels[0].slots[0].payload if self._shows_own else np.zeros_like(self.parameters)
        toward = 0 if tree is None else _toward_rank_0(comm, ranks)
        start = next((other.seen.payload for other in self._neighbours if other.rank == toward), self._own)
        start[:] = x0
        self._version = 0

    @property
    def transferred_bytes(self) -> int:
        return self._window.transferred_bytes

    @property
    def contribution(self) -> np.ndarray:
        """The sum of the own updates, on rank 0 with ``x_0``."""
        return self._own

    def pull(self) -> None:
        """Read on, as far as it goes without waiting, and sum the replica anew where news came."""
        if self.exchanging and any(self._take_in()):
            self._sum_replica()

    def push(self, update: Update) -> None:
        """Read on, make an own update, sum the replica anew, publish. Not collective; never waits."""
        exchanges = self._count_step()
        if exchanges:
            self._take_in()
        self._version += 1
        self.versions[self.comm.rank] = self._version
        self._window.set_word(Word.VERSION, self._version)
        self._publish([exchanges and pacer.due() for pacer in self._pacers], update)

    def missed(self, held: np.ndarray) -> int:
        """Count the others' updates beyond `held`, as far as this rank has heard of them."""
        return count_missed(held, self.versions, self._neighbours, self.comm.rank)

    def stop(self) -> None:
        """Raise the flag that every reader of this rank's headers sees and raises too."""
        self._reader.stop()
        self.stopping = True

    def settle(self) -> Settled:
        """Read and show on until every rank holds every update; rank 0's sum of them is then everybody's.

        Sums of the same contributions differ in their last bits, by the order in which ranks take them.
        """
        last = self.comm.allgather(self._version)
        self._publish([True] * len(self._pacers))
        while self.versions.tolist() != last:
            news = self._take_in()
            if not any(news):
                os.sched_yield()  # what is missing may be with a rank that waits for this core
            elif self._shows_own:
                self._sum_replica()
            else:
                self._publish([any(news[:j] + news[j + 1 :]) for j in range(len(news))])
        self._reader.finish(self._neighbours)
        return Settled(self._take_from(0), self._reader.dropped_reads)

    def free(self) -> None:
        self._own = None
        self._window.free()

    def _seen(self, lo: int, hi: int) -> list[np.ndarray]:
        return [other.seen.payload[lo:hi] for other in self._neighbours]

    def _take_in(self) -> list[bool]:
        """Read on, and note in the version vector what came; say of which neighbour there are news."""
        news = self._reader.advance(self._neighbours)
        self.stopping = self._reader.stopping
        if any(news):
            for other, entries in zip(self._neighbours, self._entries, strict=True):
                held = self.versions[entries]
                np.maximum(held, other.seen.versions, out=held)
        return news

    def _sum_replica(self) -> None:
        for lo, hi in self.blocks:
            sum_replica(self._own[lo:hi], self._seen(lo, hi), self.parameters[lo:hi])

    def _publish(self, due: list[bool], update: Update | None = None) -> None:
        """Add `update` to the own contribution, sum the replica anew, publish on the channels that are `due`."""
        channels = self._window.channels
        # Where the contribution stands in a slot it goes on to the next one, due or not.
        slots = [
            channel.begin() if now or self._shows_own else None for channel, now in zip(channels, due, strict=True)
        ]
        self._store(slots, update)
        self._window.fence()  # a version is never ahead of its payload
        seen = [other.seen.versions for other in self._neighbours]
        for j, slot in enumerate(slots):
            if self._shows_own:
                slot.versions[self._own_entry] = self._version
            elif slot is not None:
                merge_versions(self._own_entry, self._version, seen[:j] + seen[j + 1 :], slot.versions)
        for channel, pacer, now in zip(channels, self._pacers, due, strict=True):
            if now:
                channel.publish()
                pacer.published()

    def _store(self, slots: list[Slot | None], update: Update | None) -> None:
        """Store contribution, replica and the payloads of `slots`, all in one pass."""
        before = self._own
        if self._shows_own:
            self._own = slots[0].payload
        for lo, hi in self.blocks:
            own, replica, seen = self._own[lo:hi], self.parameters[lo:hi], self._seen(lo, hi)
            if update is not None:
                scaled = self.scratch[: hi - lo]
                update(lo, hi, scaled)
                np.add(before[lo:hi], scaled, out=own)
            elif before is not self._own:
                np.copyto(own, before[lo:hi])
            if self._shows_own or not any(slots):
                sum_replica(own, seen, replica)
            else:
                sum_edges(own, seen, [slot and slot.payload[lo:hi] for slot in slots], replica)


def _toward_rank_0(comm, neighbours: tuple[int, ...]) -> int | None:
    """The neighbour on whose side of the edge rank 0 is; None on rank 0. Collective."""
    parent = None if comm.rank == 0 else comm.recv(tag=_TOWARD_TAG)
    for other in neighbours:
        if other != parent:
            comm.send(comm.rank, other, tag=_TOWARD_TAG)
    return parent
