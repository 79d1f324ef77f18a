"""Exchange `read`: decentralized asynchronous SGD by one-sided reads of contributions.

A rank's contribution is the sum of all updates that it has made itself; rank 0's also holds ``x_0``. Each
rank publishes its own and reads the others'; a replica is the sum of all contributions, each at the version
last read. Reading twice changes nothing, and missing ten versions and reading the eleventh brings all eleven:
every update arrives exactly once, whatever the timing.
"""

import time

import numpy as np
from mpi4py import MPI

from hpc_dasgd import topology
from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.window import N_WORDS, PublicationWindow, Slot, Transfer, Word

# A header is 64 bytes: on networks that need no help from the target it is here in a few microseconds, and
# polling for it costs less than to go on with an older replica. Where it takes longer it is looked for again
# at the next step.
HEADER_PATIENCE_S = 30e-6
N_SLOTS = 4
DROPS_TO_STARVE = 2
LONGEST_INTERVAL = 1024
PUBLICATIONS_TO_RELAX = 128


class Neighbour:
    """A rank whose contribution is read, and how far that has come."""

    def __init__(self, rank: int, seen: Slot):
        self.rank = rank
        self.seen = seen  # what the replica holds of this rank
        self.publication = 0  # the publication `seen` was read from
        self.header = np.zeros(N_WORDS, np.int64)
        self.reading = None  # generator of the read under way
        self.drops_in_a_row = 0
        self.complaint = 0  # the last of this rank's complaints that was answered


class ReadExchange(Exchange):
    """Every rank reads every other rank's contribution (complete overlay).

    The replica is summed anew whenever a contribution in it has changed: first the others' in rank order,
    then the own. It is therefore a function of its version vector alone, with nothing to drift apart, and a
    run can be replayed.

    Publication `p` stands in slot `p mod 4` until publication `p + 4` is begun. With *snapshot* consistency
    a read that began at `p` and ended before `p + 3` was published saw one version only; any other is
    dropped. With *elementwise* consistency nothing is dropped: a read during which three are published may
    mix versions from element to element, which the next read mends.

    Passes over main memory per step, in arrays of `n_params`:

    - 5 in `push`: gradient read, last publication read, next one written, the others' sum read, replica
      written. The update, the publication and the replica share this one pass, and publishing costs no copy.
    - 2 for each neighbour with news: its slot read, buffer written. Buffer and what was seen before then
      change places. The buffer has to be whole before it is used, since an unconfirmed read may be dropped.
    - ``n_ranks`` if one of several neighbours has news: their contributions read, their sum written. With a
      single neighbour its contribution is the sum.
    - 3 in `pull` if news came since the `push` before: own contribution and the others' sum read, replica
      written.
    - A neighbour without news costs 64 bytes.

    Two things that would save memory or passes were measured to cost time instead: fewer slots, since a rank
    then stores into memory that its neighbours' caches still hold; and, in elementwise mode, reads by blocks,
    each added while it is in cache.

    Memory, in the same unit: replica 1, slots 4, contributions seen ``n_ranks - 1``, their sum 1 (where there
    are several), buffers `reads_in_flight`.

    Parameters
    ----------
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
        The same on every rank.
    consistency : {"snapshot", "elementwise"}
    every : int
        Steps between publications, and between reads.
    reads_in_flight : int
        Neighbours read at once on networks where a read takes longer than a step.
    request_reads : bool, optional
        See `PublicationWindow`.
    """

    def __init__(self, comm, x0, *, consistency="snapshot", every=1, reads_in_flight=1, request_reads=None):
        super().__init__(comm, x0)
        self._snapshot = consistency == "snapshot"
        self._every = every
        self._window = PublicationWindow(comm, x0.size, x0.dtype, n_slots=N_SLOTS, request_reads=request_reads)
        self._neighbours = [Neighbour(rank, self._window.buffer()) for rank in topology.complete(comm.rank, comm.size)]
        self._buffers = [self._window.buffer() for _ in self._neighbours[:reads_in_flight]]
        self._others_sum = np.zeros_like(self.parameters) if comm.size > 2 else None
        self._others = None  # sum of the others' contributions: their seen one, or the array above
        self._own = self._window.slots[0]
        start = self._own if comm.rank == 0 else self._neighbours[0].seen
        start.payload[:] = x0
        self._version = 0
        self._known = np.zeros(comm.size, np.int64)  # the newest version of each rank that this one has heard of
        self._publication = 0
        self._unpublished = 0  # own updates since the last publication
        self._interval = every  # own updates from one publication to the next
        self._since_change = 0  # publications since the interval was changed
        self.dropped_reads = 0
        if self._neighbours:
            self._others = self._neighbours[0].seen.payload
            if comm.size > 2:
                self._sum_others()

    def pull(self) -> None:
        """Read on, as far as it goes without waiting, and sum the replica anew where news came."""
        if self._version % self._every == 0 and self._take_in():
            self._sum(self._own)

    def push(self, update: Update) -> None:
        """Read on, make an own update, sum the replica anew, publish. Not collective; never waits."""
        if (self._version + 1) % self._every == 0:
            self._take_in()
        new = self._window.slots[(self._publication + 1) % N_SLOTS]
        self._version += 1
        self._sum(new, update)
        self._window.fence()  # a version is never ahead of its payload
        new.versions[0] = self._version
        self._window.set_word(Word.VERSION, self._version)
        self._own = new
        self._unpublished += 1
        if self._unpublished >= self._interval:
            self._publish()

    def missed(self, held: np.ndarray) -> int:
        """Count the others' updates beyond `held`, as far as their headers have told."""
        self._known[self.comm.rank] = held[self.comm.rank]
        return int((self._known - held).sum())

    def stop(self) -> None:
        """Raise the flag that every reader of this rank's header sees and raises too."""
        self.stopping = True
        self._window.set_word(Word.STOP, 1)

    def settle(self) -> Settled:
        """Read every rank's last publication, then sum ``C_0 + C_1 + ...`` in rank order.

        Each rank sums its share of the elements and all gather the shares, so that every replica has the same bits.
        """
        if self._unpublished:
            self._publish()
        last = self.comm.allgather(self._publication)
        while any(other.publication != last[other.rank] for other in self._neighbours):
            self._take_in()
        while any(other.reading for other in self._neighbours):  # MPI wants every request completed
            for other in self._neighbours:
                if other.reading and next(other.reading, "done") == "done":
                    other.reading = None
        contributions = {other.rank: other.seen.payload for other in self._neighbours}
        contributions[self.comm.rank] = self._own.payload
        self._sum(self._own)
        share = self._share(self.comm.rank)
        total = contributions[0][share].copy()
        for rank in range(1, self.comm.size):
            total += contributions[rank][share]
        kept = self.parameters.copy()
        counts = [self._share(rank).stop - self._share(rank).start for rank in range(self.comm.size)]
        self.comm.Allgatherv(total, [self.parameters, counts])
        return Settled(drift=self.comm.allreduce(self._difference(kept), MPI.MAX), dropped_reads=self.dropped_reads)

    def free(self) -> None:
        self._own = None
        self._window.free()

    def _share(self, rank: int) -> slice:
        """The elements that `rank` sums up at the end."""
        n_params, n_ranks = self.parameters.size, self.comm.size
        return slice(n_params * rank // n_ranks, n_params * (rank + 1) // n_ranks)

    def _take_in(self) -> bool:
        """Read on; where news came sum up the others' contributions anew, in rank order, and say so."""
        news = self._advance_reads()
        if news:
            for other in self._neighbours:
                self.versions[other.rank] = other.seen.versions[0]
            self._others = self._neighbours[0].seen.payload
            if len(self._neighbours) > 1:
                self._sum_others()
        return news

    def _sum_others(self) -> None:
        first, second, *rest = (other.seen.payload for other in self._neighbours)
        self._others = self._others_sum
        for lo, hi in self.blocks:
            total = self._others[lo:hi]
            np.add(first[lo:hi], second[lo:hi], out=total)
            for payload in rest:
                np.add(total, payload[lo:hi], out=total)

    def _sum(self, own: Slot, update: Update | None = None) -> None:
        """Make the replica of the own contribution in `own`, put there with `update` first, and the others'."""
        self.versions[self.comm.rank] = self._version
        for lo, hi in self.blocks:
            mine, replica = own.payload[lo:hi], self.parameters[lo:hi]
            if update is not None:
                scaled = self.scratch[: hi - lo]
                update(lo, hi, scaled)
                np.add(self._own.payload[lo:hi], scaled, out=mine)
            if self._others is None:
                np.copyto(replica, mine)
            else:
                np.add(mine, self._others[lo:hi], out=replica)

    def _publish(self) -> None:
        self._publication += 1
        self._window.publish(self._publication)
        self._unpublished = 0
        self._since_change += 1
        if self._since_change >= PUBLICATIONS_TO_RELAX and self._interval > self._every:
            self._interval = max(self._every, self._interval // 2)
            self._since_change = 0

    def _advance_reads(self) -> bool:
        """Go on with the read of every neighbour, each as far as it goes without waiting; say whether news came."""
        news = False
        for other in self._neighbours:
            if other.reading is None:
                other.reading = self._read(other)
            before = other.publication
            if next(other.reading, "done") == "done":
                other.reading = None
            news |= other.publication != before
        return news

    def _read(self, other: Neighbour):
        """One read of one neighbour; yields wherever it would have to wait."""
        while not self._buffers:
            yield
        buffer = self._buffers.pop()
        yield from self._header(other)
        publication = int(other.header[Word.PUBLICATION])
        if publication != other.publication:
            slot = publication % N_SLOTS
            read = self._read_snapshot if self._snapshot else self._read_elementwise
            if (yield from read(other, publication, slot, buffer)):
                buffer, other.seen = other.seen, buffer
                other.publication = publication
        self._buffers.append(buffer)

    def _read_snapshot(self, other: Neighbour, publication: int, slot: int, buffer: Slot):
        yield from _arrival(self._window.read_slot(other.rank, slot, buffer))
        self._window.fence()
        yield from self._header(other)
        whole = other.header[Word.PUBLICATION] - publication < N_SLOTS - 1
        self._note_read(other, whole)
        return whole

    def _read_elementwise(self, other: Neighbour, publication: int, slot: int, buffer: Slot):
        # The version is read before the payload, so that it is never ahead of it.
        yield from _arrival(self._window.read_versions(other.rank, slot, buffer))
        self._window.fence()
        yield from _arrival(self._window.read_payload(other.rank, slot, buffer))
        # An old header may have pointed to a slot that was being filled for a later publication: never go back.
        return buffer.versions[0] >= other.seen.versions[0]

    def _header(self, other: Neighbour):
        transfer = self._window.read_header(other.rank, other.header)
        end_s = time.perf_counter() + HEADER_PATIENCE_S
        while not transfer.done():
            if time.perf_counter() > end_s:
                yield
        self._window.fence()
        self._known[other.rank] = other.header[Word.VERSION]
        if other.header[Word.STOP] and not self.stopping:
            self.stop()
        self._note_complaint(other)

    def _note_read(self, other: Neighbour, whole: bool) -> None:
        """Count drops in a row, and complain in the own header about an owner that publishes too fast to be read."""
        if whole:
            other.drops_in_a_row = 0
            return
        self.dropped_reads += 1
        other.drops_in_a_row += 1
        if other.drops_in_a_row >= DROPS_TO_STARVE:
            # The owner sees the pair (whom, how many): each further drop is a new complaint, an old one is
            # not heard twice.
            self._window.set_word(Word.COMPLAINT, self.dropped_reads * self.comm.size + other.rank)

    def _note_complaint(self, other: Neighbour) -> None:
        """Publish half as often where `other` says that it cannot keep up with this rank."""
        complaint = int(other.header[Word.COMPLAINT])
        if complaint == other.complaint or complaint % self.comm.size != self.comm.rank:
            return
        other.complaint = complaint
        self._interval = min(2 * self._interval, LONGEST_INTERVAL * self._every)
        self._since_change = 0


def _arrival(transfer: Transfer):
    while not transfer.done():
        yield
