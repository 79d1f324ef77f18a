"""Exchange `read`: decentralized asynchronous SGD by one-sided reads of contributions.

A rank's contribution is the sum of all updates that it has made itself. Each rank publishes its own and reads the others';
a replica is ``x_0`` plus every contribution at the version last read. Reading twice adds zero, and missing ten versions and
reading the eleventh brings all eleven: every update arrives exactly once, whatever the timing.
"""

import time

import numpy as np
from mpi4py import MPI

from hpc_dasgd import topology
from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.window import N_WORDS, PublicationWindow, Slot, Transfer, Word

# A header is 64 bytes: on networks that need no help from the target it is here in a few microseconds, and polling for it
# costs less than to go on with an older replica. Where it takes longer it is looked for again at the next step.
HEADER_PATIENCE_S = 30e-6
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

    *snapshot* consistency keeps three slots: publication `p` stands in slot `p mod 3` until publication `p + 3` is begun, so
    a read that began at `p` and ended before `p + 2` was published saw one version only; any other is dropped.
    *elementwise* consistency updates one slot in place; a read may mix versions from element to element, which the next
    read mends, because what was really read is kept in `seen`.

    Passes over main memory per step, in arrays of `n_params`:

    - `push`, 5: gradient read, replica read and written, contribution read and written. A new snapshot is the old slot plus
      the update, written to the next slot, so that publishing costs no copy.
    - `pull`, per neighbour with news, snapshot 6: its slot read, buffer written; buffer and `seen` read, replica read and
      written. The buffer has to be whole before the first element is added, since an unconfirmed read may be dropped.
      Elementwise 5: each block is added while it is in cache, so that the buffer is not read again.
      In both, buffer and `seen` change places afterwards instead of being copied.
    - a neighbour without news: 64 bytes.

    Memory, in the same unit: replica 1, slots 3 (elementwise 1), `seen` ``n_ranks - 1``, buffers `reads_in_flight`.

    Parameters
    ----------
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
        The same on every rank.
    consistency : {"snapshot", "elementwise"}
    every : int
        Steps between publications, and between pulls.
    reads_in_flight : int
        Neighbours read at once on networks where a read takes longer than a step.
    request_reads : bool, optional
        See `PublicationWindow`.
    """

    def __init__(self, comm, x0, *, consistency="snapshot", every=1, reads_in_flight=1, request_reads=None):
        super().__init__(comm, x0)
        self._snapshot = consistency == "snapshot"
        self._every = every
        self._window = PublicationWindow(comm, x0.size, x0.dtype, n_slots=3 if self._snapshot else 1, request_reads=request_reads)
        self._neighbours = [Neighbour(rank, self._window.buffer()) for rank in topology.complete(comm.rank, comm.size)]
        self._buffers = [self._window.buffer() for _ in self._neighbours[:reads_in_flight]]
        self._x0_share = self.parameters[self._share(comm.rank)].copy()
        self._publication = 0
        self._unpublished = 0  # own updates since the last publication
        self._interval = every  # own updates from one publication to the next
        self._since_change = 0  # publications since the interval was changed
        self._pulls = 0
        self.dropped_reads = 0

    def pull(self) -> None:
        """Go on with the read of every neighbour, in ascending rank order, each as far as it goes without waiting.

        A neighbour is folded in at most once per pull and always in this order, so that the replica is a function of the
        version vectors alone and a run can be replayed.
        """
        self._pulls += 1
        if self._pulls % self._every:
            return
        self._advance_reads()

    def push(self, update: Update) -> None:
        """Apply and publish an own update. Not collective; never waits."""
        slots, rank = self._window.slots, self.comm.rank
        new = slots[(self._publication + 1) % len(slots)]
        old = new if self._unpublished else slots[self._publication % len(slots)]
        for lo, hi in self.blocks:
            scaled, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            update(lo, hi, scaled)
            np.add(replica, scaled, out=replica)
            np.add(old.payload[lo:hi], scaled, out=new.payload[lo:hi])
        self.versions[rank] += 1
        self._window.fence()  # a version is never ahead of its payload
        new.versions[0] = self.versions[rank]
        self._unpublished += 1
        if self._unpublished >= self._interval:
            self._publish()

    def stop(self) -> None:
        """Raise the flag that every reader of this rank's header sees and raises too."""
        self.stopping = True
        self._window.set_word(Word.STOP, 1)

    def settle(self) -> Settled:
        """Read every rank's last publication, then sum ``x_0 + C_0 + C_1 + ...`` in rank order.

        Each rank sums its share of the elements and all gather the shares, so that every replica has the same bits.
        """
        if self._unpublished:
            self._publish()
        last = self.comm.allgather(self._publication)
        while any(other.publication != last[other.rank] for other in self._neighbours):
            self._advance_reads()
        contributions = {other.rank: other.seen for other in self._neighbours}
        contributions[self.comm.rank] = self._window.slots[self._publication % len(self._window.slots)]
        share = self._share(self.comm.rank)
        total = self._x0_share
        for rank in range(self.comm.size):
            total += contributions[rank].payload[share]
        kept = self.parameters.copy()
        counts = [self._share(rank).stop - self._share(rank).start for rank in range(self.comm.size)]
        self.comm.Allgatherv(total, [self.parameters, counts])
        drift = float(np.max(np.abs(kept - self.parameters), initial=0.0))
        return Settled(drift=self.comm.allreduce(drift, MPI.MAX), dropped_reads=self.dropped_reads)

    def free(self) -> None:
        self._window.free()

    def _share(self, rank: int) -> slice:
        """The elements that `rank` sums up at the end."""
        n_params, n_ranks = self.parameters.size, self.comm.size
        return slice(n_params * rank // n_ranks, n_params * (rank + 1) // n_ranks)

    def _publish(self) -> None:
        self._publication += 1
        self._window.publish(self._publication)
        self._unpublished = 0
        self._since_change += 1
        if self._since_change >= PUBLICATIONS_TO_RELAX and self._interval > self._every:
            self._interval = max(self._every, self._interval // 2)
            self._since_change = 0

    def _advance_reads(self) -> None:
        for other in self._neighbours:
            if other.reading is None:
                other.reading = self._read(other)
            if next(other.reading, "done") == "done":
                other.reading = None

    def _read(self, other: Neighbour):
        """One read of one neighbour; yields wherever it would have to wait."""
        while not self._buffers:
            yield
        buffer = self._buffers.pop()
        yield from self._header(other)
        publication = int(other.header[Word.PUBLICATION])
        if publication == other.publication:
            self._buffers.append(buffer)
            return
        slot = publication % len(self._window.slots)
        read = self._read_snapshot if self._snapshot else self._read_elementwise
        if (yield from read(other, publication, slot, buffer)):
            buffer, other.seen = other.seen, buffer
            other.publication = publication
            self.versions[other.rank] = other.seen.versions[0]
        self._buffers.append(buffer)

    def _read_snapshot(self, other: Neighbour, publication: int, slot: int, buffer: Slot):
        yield from _arrival(self._window.read_slot(other.rank, slot, buffer))
        self._window.fence()
        yield from self._header(other)
        whole = other.header[Word.PUBLICATION] - publication < self._window.n_slots - 1
        self._note_read(other, whole)
        if whole:
            self._fold(buffer, other.seen, 0, self.parameters.size)
        return whole

    def _read_elementwise(self, other: Neighbour, publication: int, slot: int, buffer: Slot):
        # The version is read before the payload, so that it is never ahead of it.
        yield from _arrival(self._window.read_versions(other.rank, slot, buffer))
        self._window.fence()
        for lo, hi in self.blocks:
            transfer = self._window.read_payload(other.rank, slot, lo, hi, buffer)
            if not transfer.done():  # a network: what is left goes in one piece, one wait instead of many
                yield from _arrival(transfer)
                hi = self.parameters.size
                yield from _arrival(self._window.read_payload(other.rank, slot, lo, hi, buffer))
            self._fold(buffer, other.seen, lo, hi)
            if hi == self.parameters.size:
                return True

    def _header(self, other: Neighbour):
        transfer = self._window.read_header(other.rank, other.header)
        end_s = time.perf_counter() + HEADER_PATIENCE_S
        while not transfer.done():
            if time.perf_counter() > end_s:
                yield
        self._window.fence()
        if other.header[Word.STOP] and not self.stopping:
            self.stop()
        self._note_complaint(other)

    def _fold(self, new: Slot, seen: Slot, lo: int, hi: int) -> None:
        """Add ``new - seen`` to the replica, block by block."""
        n_block = self.scratch.size
        for start in range(lo, hi, n_block):
            end = min(start + n_block, hi)
            difference, replica = self.scratch[: end - start], self.parameters[start:end]
            np.subtract(new.payload[start:end], seen.payload[start:end], out=difference)
            np.add(replica, difference, out=replica)

    def _note_read(self, other: Neighbour, whole: bool) -> None:
        """Count drops in a row, and complain in the own header about an owner that publishes too fast to be read."""
        if whole:
            other.drops_in_a_row = 0
            return
        self.dropped_reads += 1
        other.drops_in_a_row += 1
        if other.drops_in_a_row >= DROPS_TO_STARVE:
            # The owner sees the pair (whom, how many): each further drop is a new complaint, an old one is not heard twice.
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
