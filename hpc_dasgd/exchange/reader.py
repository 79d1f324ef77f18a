"""Reading neighbours' publications without ever waiting, and publishing so that they can be read."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_dasgd.window.memory import arrival
from hpc_dasgd.window.publication import N_WORDS, PublicationWindow, Slot, Word

# A header is 64 bytes: on networks that need no help from the target it is here in a few microseconds, and
# polling for it costs less than to go on with an older replica. Where it takes longer it is looked for again
# at the next step.
HEADER_PATIENCE_S = 30e-6
DROPS_TO_STARVE = 2
LONGEST_INTERVAL = 1024
PUBLICATIONS_TO_RELAX = 128


class PublicationThrottle:
    """How often a channel is published: more rarely while a reader cannot keep up."""

    def __init__(self):
        self.interval = 1  # exchanges from one publication to the next
        self._waiting = 0  # exchanges since the last one
        self._since_change = 0

    def due(self) -> bool:
        """Count an exchange; whether to publish with it."""
        self._waiting += 1
        return self._waiting >= self.interval

    def published(self) -> None:
        """Count a publication; after many without a complaint the next ones come twice as often."""
        self._waiting = 0
        self._since_change += 1
        if self._since_change >= PUBLICATIONS_TO_RELAX and self.interval > 1:
            self.interval //= 2
            self._since_change = 0

    def slow_down(self) -> None:
        """Publish half as often."""
        self.interval = min(2 * self.interval, LONGEST_INTERVAL)
        self._since_change = 0


def swap(other: "Neighbour", buffer: Slot) -> Iterator[None]:
    """Have `other` seen what was read into `buffer`; yields wherever it would have to wait.

    Returns a buffer to read into next; here, what was seen before.
    """
    before, other.seen = other.seen, buffer
    yield from ()
    return before


class Neighbour:
    """A rank that is read, and how far that has come.

    Parameters
    ----------
    rank : int
    channel : int
        The one of its channels that is read.
    seen : Slot
        Takes what was last read.
    pacer : Pacer
        Of the own channel that this neighbour reads.
    keep : callable
        What to do with a read that saw one publication only; see `swap`.
    """

    def __init__(self, rank: int, channel: int, seen: Slot, pacer: PublicationThrottle, keep=swap):
        self.rank, self.channel, self.seen, self.pacer, self.keep = rank, channel, seen, pacer, keep
        self.publication = 0  # the publication `seen` was read from
        self.version = 0  # updates that it has made, as far as its header has told
        self.header = np.zeros(N_WORDS, np.int64)
        self.reading = None  # generator of the read under way
        self.drops_in_a_row = 0
        self.complaint = 0  # the last of its complaints that was answered


class Reader:
    """Reads the publications of neighbours, each as far as it goes without waiting.

    With *snapshot* consistency a read that ended before its slot was begun again saw one publication only;
    any other is dropped. With *elementwise* consistency nothing is dropped: a read may then mix publications
    from element to element.

    Parameters
    ----------
    comm : MPI.Intracomm
    window : PublicationWindow
    n_slots : int
        Of each of its channels.
    n_buffers : int
        Neighbours read at once on networks where a read takes longer than a step.
    snapshot : bool

    Attributes
    ----------
    stopping : bool
        Whether a rank asked for the end of the run, as far as headers have told.
    dropped_reads : int
    """

    def __init__(self, comm, window: PublicationWindow, n_slots: int, n_buffers: int, snapshot: bool = True):
        self._comm, self._window, self._n_slots, self._snapshot = comm, window, n_slots, snapshot
        self._buffers = [window.buffer() for _ in range(n_buffers)]
        self.stopping = False
        self.dropped_reads = 0

    def stop(self) -> None:
        """Raise the flag that every reader of this rank's headers sees and raises too."""
        self.stopping = True
        self._window.set_word(Word.STOP, 1)

    def advance(self, neighbours: Sequence[Neighbour]) -> list[bool]:
        """Go on with the reads of `neighbours`; say whose `seen` is new."""
        before = [other.publication for other in neighbours]
        for other in neighbours:
            self._go_on(other, self._read)
        return [other.publication != was for other, was in zip(neighbours, before, strict=True)]

    def listen(self, other: Neighbour) -> None:
        """Go on with reading the header of `other` alone: it may complain about this rank, or ask for the end."""
        self._go_on(other, self._header)

    def finish(self, neighbours: Sequence[Neighbour]) -> None:
        """End the reads under way, since MPI wants every request completed. Waits."""
        while under_way := [other for other in neighbours if other.reading]:
            self.advance(under_way)

    def add_buffer(self) -> None:
        """Read one more neighbour at once; for a buffer that a read of a dead rank may hold for ever."""
        self._buffers.append(self._window.buffer())

    def _go_on(self, other: Neighbour, begin) -> None:
        if other.reading is None:
            other.reading = begin(other)
        if next(other.reading, "done") == "done":
            other.reading = None

    def _read(self, other: Neighbour):
        """One read of one neighbour; yields wherever it would have to wait."""
        yield from self._header(other)
        while other.header[Word.PUBLICATION] != other.publication and not self._buffers:
            yield
            yield from self._header(other)
        publication = int(other.header[Word.PUBLICATION])
        if publication == other.publication:
            return
        buffer = self._buffers.pop()
        read = self._read_snapshot if self._snapshot else self._read_elementwise
        if (yield from read(other, publication, buffer)):
            buffer = yield from other.keep(other, buffer)
            other.publication = publication
        self._buffers.append(buffer)

    def _read_snapshot(self, other: Neighbour, publication: int, buffer: Slot):
        slot = publication % self._n_slots
        yield from arrival(self._window.read_slot(other.rank, other.channel, slot, buffer))
        self._window.fence()
        yield from self._header(other)
        whole = other.header[Word.BEGUN] - publication < self._n_slots
        self._note_read(other, whole)
        return whole

    def _read_elementwise(self, other: Neighbour, publication: int, buffer: Slot):
        # The versions are read before the payload, so that they are never ahead of it.
        slot = publication % self._n_slots
        yield from arrival(self._window.read_versions(other.rank, other.channel, slot, buffer))
        self._window.fence()
        yield from arrival(self._window.read_payload(other.rank, other.channel, slot, buffer))
        # An old header may have pointed to a slot that was being filled for a later publication: never go back.
        return bool(np.all(buffer.versions >= other.seen.versions))

    def _header(self, other: Neighbour):
        transfer = self._window.read_header(other.rank, other.channel, other.header)
        end_s = time.perf_counter() + HEADER_PATIENCE_S
        while not transfer.done():
            if time.perf_counter() > end_s:
                yield
        self._window.fence()
        other.version = int(other.header[Word.VERSION])
        if other.header[Word.STOP] and not self.stopping:
            self.stop()
        self._note_complaint(other)

    def _note_read(self, other: Neighbour, whole: bool) -> None:
        """Count drops in a row, and complain in the own headers about an owner that publishes too fast to be read."""
        if whole:
            other.drops_in_a_row = 0
            return
        self.dropped_reads += 1
        other.drops_in_a_row += 1
        if other.drops_in_a_row >= DROPS_TO_STARVE:
            # The owner sees the pair (whom, how many): each further drop is a new complaint, an old one is
            # not heard twice.
            self._window.set_word(Word.COMPLAINT, self.dropped_reads * self._comm.size + other.rank)

    def _note_complaint(self, other: Neighbour) -> None:
        """Publish half as often where `other` says that it cannot keep up with this rank."""
        complaint = int(other.header[Word.COMPLAINT])
        if complaint != other.complaint and complaint % self._comm.size == self._comm.rank:
            other.complaint = complaint
            other.pacer.slow_down()


def count_missed(held: np.ndarray, versions: np.ndarray, neighbours: Sequence[Neighbour], own: int) -> int:
    """Count the others' updates beyond `held`, as far as `versions` and the neighbours' headers tell.

    `held` and `versions`, the replica's now, have shape (n_ranks,); `own` is this rank, whose updates do not count.
    """
    known = versions.copy()
    for other in neighbours:
        known[other.rank] = max(known[other.rank], other.version)
    known[own] = held[own]
    return int((known - held).sum())
