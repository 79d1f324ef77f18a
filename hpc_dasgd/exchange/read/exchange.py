"""Exchange `read`: decentralized asynchronous SGD by one-sided reads of contributions.

A rank's contribution is the sum of all updates that it has made itself; rank 0's also holds ``x_0``. Each
rank publishes its own and reads its neighbours'; a replica is the sum of its own and of what it last read of
each neighbour. Reading twice changes nothing, and missing ten versions and reading the eleventh brings all
eleven: every update arrives exactly once, whatever the timing.

On the complete overlay every rank is a neighbour and shows its contribution. On a tree it shows each
neighbour the partial sum of its own side of the edge between them (`partial_sums`): an all-reduce by reading
that never waits.

To survive the death of ranks, each shows its contribution on a channel of its own on every overlay. A rank on a
tree that hears of a death leaves the tree for the complete overlay. Its replica stays what it is, but for own
updates, until all contributions have been read that were in it; from then on the replica is their sum.
"""

import math
import os
import time
from collections.abc import Callable

import numpy as np

from hpc_dasgd.errors import TrainingError
from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.exchange.read.device_store import DeviceStore
from hpc_dasgd.exchange.read.host_store import HostStore
from hpc_dasgd.exchange.read.survival import Survivors
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle, Reader, count_missed
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow, Slot, Word

COMPLETE_SLOTS, TREE_SLOTS = 3, 2
LOOK_AGAIN_S = 50e-6  # for news of all neighbours, while a device computes
LAST_READ_S = 60.0  # for what a rank that died has published
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
    `reads_in_flight`. To survive, an inner rank of a tree has slots ``2 D + 2`` and no other contribution; once it
    has left the tree there come seen and buffers as on the complete overlay, and it gives nothing back.

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
    heartbeat_timeout_s : float, optional
        See `Survivors`. None: the death of a rank is not survived.
    device : Host or Gpu, optional
        On a GPU passes and memory are those of `DeviceStore`; in host memory slots as above and `reads_in_flight`
        buffers, no more.
    device_windows : bool
        Have payloads in windows on the GPU, which every rank must have, of an MPI that takes its memory; not together
        with `heartbeat_timeout_s`.
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
        heartbeat_timeout_s: float | None = None,
        device=None,
        device_windows: bool = False,
    ):
        super().__init__(comm, x0, every, device)
        rank, n_ranks = comm.rank, comm.size
        survives = heartbeat_timeout_s is not None
        if tree is None:
            ranks, n_versions, n_slots, own_entry = topology.complete(rank, n_ranks), 1, COMPLETE_SLOTS, 0
            channels_read = [0] * len(ranks)
        else:
            ranks, n_versions, n_slots, own_entry = tree(rank), n_ranks, TREE_SLOTS, rank
            n_before = [int(survives and len(tree(other)) > 1) for other in ranks]
            channels_read = [before + tree(other).index(rank) for other, before in zip(ranks, n_before, strict=True)]
        # See `HostStore`.
        n_edges = 0 if tree is None or len(ranks) < 2 else len(ranks)
        self._shows_own = survives or not n_edges
        n_channels = self._shows_own + n_edges
        self._window = PublicationWindow(
            comm, x0.size, x0.dtype, n_slots, n_channels, n_versions, request_reads, self.device, device_windows
        )
        make_store = HostStore if self.device.on_host else DeviceStore
        self._store = make_store(self, self._window, self._shows_own, own_entry)
        self._pacers = [PublicationThrottle() for _ in self._window.channels]
        pacers = self._pacers[self._shows_own :] or self._pacers * len(ranks)
        self._neighbours = [
            self._neighbour(other, channel, pacer)
            for other, channel, pacer in zip(ranks, channels_read, pacers, strict=True)
        ]
        # The entries of the version vector that each neighbour's slots tell.
        self._entries = [slice(other, other + 1) if tree is None else slice(None) for other in ranks]
        n_buffers = min(reads_in_flight, len(ranks))
        self._reader = Reader(comm, self._window, n_slots, n_buffers, consistency == "snapshot")
        toward = 0 if tree is None else _toward_rank_0(comm, ranks)
        start = next((other.seen.payload for other in self._neighbours if other.rank == toward), self._store.own)
        start[...] = self.parameters
        self._store.show_start()
        self._version = 0
        self._n_read_on, self._look_s = 0, 0.0
        self._n_pieces = 2 + self.parameters.nbytes // (self.device.piece_bytes or self.parameters.nbytes)
        self._survivors = Survivors(comm, self._window, heartbeat_timeout_s) if survives else None
        self._on_tree, self._mends = tree is not None, False
        self._left = []  # neighbours on the tree that was left; their reads may be under way
        self._stuck = []  # neighbours that died while they were read

    @property
    def transferred_bytes(self) -> int:
        return self._window.transferred_bytes

    @property
    def contribution(self):
        """The sum of the own updates, on rank 0 with ``x_0``."""
        return self._store.own

    @property
    def died(self) -> tuple[int, ...]:
        return () if self._survivors is None else tuple(sorted(self._survivors.died))

    def allgather(self, value) -> list:
        return super().allgather(value) if self._survivors is None else self._survivors.allgather(value)

    def pull(self) -> None:
        """Read on, as far as it goes without waiting, and sum the replica anew where news came."""
        if self._survivors is not None:
            self._look_for_deaths()
        self._store.poll()
        if self.exchanging and any(self._take_in()):
            self._store.sum_replica(self._neighbours)

    def read_on(self) -> None:
        """Read one piece further of what is being read; look for more, but not all the time."""
        self._n_read_on += 1
        self._store.poll()
        if not self.exchanging or time.perf_counter() < self._look_s:
            return
        news = self._take_in()
        if not (any(news) or any(other.reading for other in self._neighbours)):
            self._look_s = time.perf_counter() + LOOK_AGAIN_S

    def push(self, update: Update) -> None:
        """Read on, make an own update, sum the replica anew, publish. Not collective; never waits."""
        exchanges = self._count_step()
        self._store.poll()
        if exchanges:
            for _ in range(self._n_turns()):
                self._take_in()
        self._n_read_on = 0
        self._version += 1
        self.versions[self.comm.rank] = self._version
        self._window.set_word(Word.VERSION, self._version)
        due = [exchanges and pacer.due() for pacer in self._pacers]
        due[0] |= self._shows_own and any(due)  # what an edge shows is always to be had from its owner too
        self._publish(due, update)

    def missed(self, held: np.ndarray) -> int:
        """Count the others' updates beyond `held`, as far as this rank has heard of them."""
        return count_missed(held, self.versions, self._neighbours, self.comm.rank)

    def stop(self) -> None:
        """Raise the flag that every reader of this rank's headers sees and raises too."""
        self._reader.stop()
        self.stopping = True

    def settle(self) -> Settled:
        """Read and show on until every rank holds every update; rank 0's sum of them is then everybody's.

        Sums of the same contributions differ in their last bits, by the order in which ranks take them. To survive,
        each sums them up itself, in the order of ranks, and no other waits for one that died.
        """
        if self._survivors is not None:
            self._publish_all()
            return Settled(self._survivors.settle(self._version, self._sum_up), self._reader.dropped_reads)
        last = self.comm.allgather(self._version)
        self._publish_all()
        while self.versions.tolist() != last:
            news = self._take_in()
            if not any(news):
                os.sched_yield()  # what is missing may be with a rank that waits for this core
            elif self._shows_own:
                self._store.sum_replica(self._neighbours)
            else:
                self._store.finish()
                self._publish([any(news[:j] + news[j + 1 :]) for j in range(len(news))])
                self._store.finish()
        self._reader.finish(self._neighbours)
        return Settled(self._take_from(0), self._reader.dropped_reads)

    def free(self) -> None:
        self._store.free()
        if self._survivors is None or self._survivors.free():
            self._window.free()

    def _neighbour(self, rank: int, channel: int, pacer: PublicationThrottle) -> Neighbour:
        return Neighbour(rank, channel, self._store.new_seen(), pacer, self._store.keep)

    def _take_in(self) -> list[bool]:
        """Read on, and note in the version vector what came; say of which neighbour there are news."""
        news = self._reader.advance(self._neighbours)
        self.stopping = self._reader.stopping
        if self._mends:
            self._mends = not all(self._caught_up(other) for other in self._neighbours)
            news = [not self._mends] * len(news)
        if any(news):
            for other, entries in zip(self._neighbours, self._entries, strict=True):
                held = self.versions[entries]
                np.maximum(held, other.seen.versions, out=held)
        return news

    def _n_turns(self) -> int:
        """How often to read on in a `push`: on a device not at all where that was done while it computed.

        An objective that waits for its gradient left no time for that, and what is read comes in pieces.
        """
        if self.device.on_host:
            return 1
        return 0 if self._n_read_on > 1 else self._n_pieces

    def _publish(self, due: list[bool], update: Update | None = None) -> None:
        """Add `update` to the own contribution, sum the replica anew, publish on the channels that are `due`."""
        published = self._store.publish(due, self._version, self._neighbours, update, self._mends)
        for pacer, now in zip(self._pacers, published, strict=True):
            if now:
                pacer.published()

    def _publish_all(self) -> None:
        """Publish on all channels what there is; waits until it is there."""
        self._store.finish()
        self._publish([True] * len(self._pacers))
        self._store.finish()

    # To survive.

    def _look_for_deaths(self) -> None:
        """Look whether others live; leave a tree that a death has cut. Never waits."""
        self._survivors.look()
        for other in self._neighbours:
            if other.reading and other.rank in self._survivors.died and other not in self._stuck:
                self._stuck.append(other)
                self._reader.add_buffer()  # the one in use may never come back
        heard = self._on_tree and any(other.header[Word.OVERLAY] for other in self._neighbours)
        if self._on_tree and (heard or self._survivors.died):
            self._leave_tree()

    def _leave_tree(self) -> None:
        """Go over to the complete overlay; the replica stays as it is until everything in it has been read there."""
        self._on_tree, self._mends = False, True
        self._window.set_word(Word.OVERLAY, 1)
        self._left = self._neighbours
        if any(other.reading for other in self._left):
            self._reader.add_buffer()
        self._pacers = self._pacers[:1]
        ranks = topology.complete(self.comm.rank, self.comm.size)
        self._neighbours = [self._neighbour(other, 0, self._pacers[0]) for other in ranks]
        self._entries = [slice(None)] * len(ranks)
        for other in self._neighbours:
            other.publication = -1  # the start is to be read too: rank 0's is x0

    def _caught_up(self, other: Neighbour) -> bool:
        """Whether of `other`, read on the complete overlay, everything has come that was in the replica before."""
        return other.publication >= 0 and bool(other.seen.versions[other.rank] >= self.versions[other.rank])

    def _sum_up(self) -> tuple[list[int], float]:
        """Make the replica the sum of what all ranks have published, in their order: the same bits on every rank.

        Returns its version vector, and by how much the replica was another, nan where it did not hold everything.
        Nobody publishes any more: the sum is made in the slot that would be next.
        """
        self._read_to_the_end()
        channel, buffer, versions = self._window.channels[0], self._window.buffer(), []
        total = channel.begin().payload
        for rank in range(self.comm.size):
            if rank == self.comm.rank:
                slot = channel.published
            else:
                slot = buffer = self._read_last(rank, buffer)
            versions.append(int(slot.versions.max()))
            for lo, hi in self.blocks:
                own = slot.payload[lo:hi]
                np.add(total[lo:hi], own, out=total[lo:hi]) if rank else np.copyto(total[lo:hi], own)
        mine, drift = self.device.to_host(self.parameters), 0.0 if self.versions.tolist() == versions else math.nan
        for lo, hi in self.blocks:
            if drift == drift:
                drift = max(drift, float(np.abs(mine[lo:hi] - total[lo:hi]).max()))
            np.copyto(mine[lo:hi], total[lo:hi])
        self._show(mine)
        self.versions[:] = versions
        return versions, drift

    def _read_to_the_end(self) -> None:
        """End the reads under way of ranks that live; on the complete overlay bring in all that there is."""
        while True:
            self._survivors.look()
            died = self._survivors.died
            news = [] if self._on_tree else self._take_in()
            under_way = [other for other in self._left + self._neighbours if other.reading and other.rank not in died]
            if not under_way and not any(news):
                break
            self._reader.advance([other for other in under_way if self._on_tree or other in self._left])
        if not self._on_tree and not self._mends:
            self._store.sum_replica(self._neighbours)

    def _read_last(self, rank: int, buffer: Slot) -> Slot:
        """Read what `rank` has published last, using `buffer`, which may be another afterwards."""
        buffer.versions[:] = 0
        other = Neighbour(rank, 0, buffer, self._pacers[0])
        other.publication = -1
        begun_s = time.monotonic()
        while not any(self._reader.advance([other])):
            self._survivors.look()
            if rank in self._survivors.died and time.monotonic() - begun_s > LAST_READ_S:
                raise TrainingError(f"what rank {rank} had published before it died can no longer be read")
        return other.seen


def _toward_rank_0(comm, neighbours: tuple[int, ...]) -> int | None:
    """The neighbour on whose side of the edge rank 0 is; None on rank 0. Collective."""
    parent = None if comm.rank == 0 else comm.recv(tag=_TOWARD_TAG)
    for other in neighbours:
        if other != parent:
            comm.send(comm.rank, other, tag=_TOWARD_TAG)
    return parent
