"""Reading the publications of other ranks without ever waiting for them, and publishing so that they can be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hpc_dasgd.arrays.types import Int64s
from hpc_dasgd.window.memory import wait_for
from hpc_dasgd.window.publication import HEADER_LENGTH, HeaderField, PublicationWindow
from hpc_dasgd.window.slots import Slot

if TYPE_CHECKING:
    from mpi4py import MPI

HEADER_POLL_S = 30e-6
"""Time for which the read of a header is polled, in seconds. A header has 64 bytes: on networks that need no help from
the target it arrives within a few microseconds, and polling costs less than continuing with an older replica. A read
that takes longer is polled again at the next step."""

DROPS_UNTIL_NOTICE = 2
"""Number of consecutive dropped reads of a rank after which its reader sends a slow-reader notice."""

MAX_INTERVAL = 1024
"""Largest number of exchanges from one publication to the next."""

PUBLICATIONS_TO_SPEED_UP = 128
"""Number of publications without a slow-reader notice after which a channel is published twice as often."""

_ENDED = object()

Steps: TypeAlias = Generator[None, None, None]
"""A generator that yields whenever it would have to wait for a transfer."""


class PublicationThrottle:
    """Backpressure for one channel: it is published less often as long as a reader is too slow for it.

    Attributes
    ----------
    interval : int
        Number of exchanges from one publication to the next, a power of 2.
    """

    def __init__(self) -> None:
        self.interval = 1
        self._waiting = 0  # exchanges since the last publication
        self._since_change = 0  # publications since the interval changed

    def due(self) -> bool:
        """Count an exchange, and return True if it should publish."""
        self._waiting += 1
        return self._waiting >= self.interval

    def published(self) -> None:
        """Count a publication; after `PUBLICATIONS_TO_SPEED_UP` of them the interval is halved."""
        self._waiting = 0
        self._since_change += 1
        if self._since_change >= PUBLICATIONS_TO_SPEED_UP and self.interval > 1:
            self.interval //= 2
            self._since_change = 0

    def slow_down(self) -> None:
        """Double the interval."""
        self.interval = min(2 * self.interval, MAX_INTERVAL)
        self._since_change = 0


class Peer:
    """A rank whose headers are read.

    Parameters
    ----------
    rank : int
    channel : int
        The channel of that rank whose header is read.
    throttle : PublicationThrottle
        Throttle of the own channel that this rank reads.

    Attributes
    ----------
    rank, channel, throttle
        As above.
    version : int
        Number of updates that the rank has made, according to its last header.
    header : ndarray, shape (HEADER_LENGTH,), int64
        The header that was read last.
    reading : generator or None
        The read that is under way.
    """

    def __init__(self, rank: int, channel: int, throttle: PublicationThrottle):
        self.rank, self.channel, self.throttle = rank, channel, throttle
        self.version = 0
        self.header: Int64s = np.zeros(HEADER_LENGTH, np.int64)
        self.reading: Steps | None = None
        self.answered_notice = 0  # the last of its slow-reader notices for which the throttle was slowed down


class Neighbour(Peer):
    """A rank whose publications are read.

    Parameters
    ----------
    rank, channel : int
        See `Peer`.
    seen : Slot
        Memory for the last publication that was read.
    throttle : PublicationThrottle
        See `Peer`.
    accept : callable, optional
        What is done with a read that contains a single publication; `swap_buffers` by default.

    Attributes
    ----------
    seen : Slot
        The last publication that was read; another slot after each read.
    publication : int
        Number of the publication in `seen`.
    """

    def __init__(
        self, rank: int, channel: int, seen: Slot, throttle: PublicationThrottle, accept: Accept | None = None
    ):
        super().__init__(rank, channel, throttle)
        self.seen = seen
        self.accept = accept or swap_buffers
        self.publication = 0
        self.drops_in_a_row = 0


Accept: TypeAlias = Callable[[Neighbour, Slot], Generator[None, None, Slot]]
"""A generator function that makes a buffer the `seen` of a neighbour, and returns a buffer for the next read."""


def swap_buffers(other: Neighbour, buffer: Slot) -> Generator[None, None, Slot]:
    """Make `buffer` the `seen` of a neighbour, and return the previous one for the next read. Never waits."""
    before, other.seen = other.seen, buffer
    yield from ()
    return before


class Reader:
    """Reads publications of neighbours, and continues each read only as far as possible without waiting.

    With *snapshot* consistency a read is accepted if it ended before the owner started to overwrite the slot: it then
    contains a single publication. Other reads are dropped. With *elementwise* consistency no read is dropped, and a
    read may contain elements of different publications.

    Nothing here is collective.

    Parameters
    ----------
    comm : MPI.Intracomm
    window : PublicationWindow
    n_slots : int
        Number of slots of each channel.
    n_buffers : int
        Number of neighbours that are read at the same time, on networks where a read takes longer than a step.
    snapshot : bool
        True for snapshot consistency, False for elementwise.

    Attributes
    ----------
    stopping : bool
        True if a header that was read requests the end of the run.
    dropped_reads : int
        Number of reads that were dropped.
    """

    def __init__(
        self, comm: MPI.Intracomm, window: PublicationWindow, n_slots: int, n_buffers: int, snapshot: bool = True
    ):
        self._rank, self._n_ranks = comm.rank, comm.size
        self._window, self._n_slots, self._snapshot = window, n_slots, snapshot
        self._buffers = [window.buffer() for _ in range(n_buffers)]
        self.stopping = False
        self.dropped_reads = 0

    def stop(self) -> None:
        """Request the end of the run in the own headers. Every rank that reads them passes the request on."""
        self.stopping = True
        self._window.set_field(HeaderField.STOP, 1)

    def advance(self, neighbours: Sequence[Neighbour]) -> list[bool]:
        """Continue the reads of `neighbours`, and start new ones. Never waits.

        Returns
        -------
        arrived : list of bool
            For each neighbour, whether a new publication is in its `seen`.
        """
        before = [other.publication for other in neighbours]
        for other in neighbours:
            if other.reading is None:
                other.reading = self._read(other)
            if next(other.reading, _ENDED) is _ENDED:
                other.reading = None
        return [other.publication != was for other, was in zip(neighbours, before, strict=True)]

    def poll_header(self, peer: Peer) -> None:
        """Continue or start a read of the header of `peer`. Never waits.

        A header may contain a slow-reader notice for this rank, or request the end of the run.
        """
        if peer.reading is None:
            peer.reading = self._read_header(peer)
        if next(peer.reading, _ENDED) is _ENDED:
            peer.reading = None

    def finish(self, neighbours: Sequence[Neighbour]) -> None:
        """Complete the reads of `neighbours` that are under way, because MPI requires that. Waits for them."""
        while under_way := [other for other in neighbours if other.reading]:
            self.advance(under_way)

    def finish_headers(self, peers: Sequence[Peer]) -> None:
        """Complete the reads of headers of `peers` that are under way. Waits for them."""
        while under_way := [peer for peer in peers if peer.reading]:
            self.poll_header(under_way[0])

    def add_buffer(self) -> None:
        """Allocate one more buffer, because a read of a rank that died may never release the one that it uses."""
        self._buffers.append(self._window.buffer())

    def _read(self, other: Neighbour) -> Steps:
        """Read one neighbour once; yields whenever it would have to wait."""
        yield from self._read_header(other)
        while other.header[HeaderField.PUBLICATION] != other.publication and not self._buffers:
            yield
            yield from self._read_header(other)
        publication = int(other.header[HeaderField.PUBLICATION])
        if publication == other.publication:
            return
        buffer = self._buffers.pop()
        read = self._read_snapshot if self._snapshot else self._read_elementwise
        if (yield from read(other, publication, buffer)):
            buffer = yield from other.accept(other, buffer)
            other.publication = publication
        self._buffers.append(buffer)

    def _read_snapshot(self, other: Neighbour, publication: int, buffer: Slot) -> Generator[None, None, bool]:
        slot = publication % self._n_slots
        yield from wait_for(self._window.read_slot(other.rank, other.channel, slot, buffer))
        self._window.fence()
        yield from self._read_header(other)
        whole = bool(other.header[HeaderField.BEGUN] - publication < self._n_slots)
        self._count_read(other, whole)
        return whole

    def _read_elementwise(self, other: Neighbour, publication: int, buffer: Slot) -> Generator[None, None, bool]:
        # The versions are read before the payload, so that the payload contains at least these versions.
        slot = publication % self._n_slots
        yield from wait_for(self._window.read_versions(other.rank, other.channel, slot, buffer))
        self._window.fence()
        yield from wait_for(self._window.read_payload(other.rank, other.channel, slot, buffer))
        # An old header may refer to a slot that was being filled for a later publication: older versions are refused.
        return bool(np.all(buffer.versions >= other.seen.versions))

    def _read_header(self, peer: Peer) -> Steps:
        transfer = self._window.read_header(peer.rank, peer.channel, peer.header)
        end_s = time.perf_counter() + HEADER_POLL_S
        while not transfer.done():
            if time.perf_counter() > end_s:
                yield
        self._window.fence()
        peer.version = int(peer.header[HeaderField.VERSION])
        if peer.header[HeaderField.STOP] and not self.stopping:
            self.stop()
        self._answer_notice(peer)

    def _count_read(self, other: Neighbour, whole: bool) -> None:
        """Count consecutive drops, and post a slow-reader notice if the owner publishes too fast to be read."""
        if whole:
            other.drops_in_a_row = 0
            return
        self.dropped_reads += 1
        other.drops_in_a_row += 1
        if other.drops_in_a_row >= DROPS_UNTIL_NOTICE:
            # A notice is the pair (owner, number of drops): each further drop is a new notice, and the owner answers
            # each notice only once.
            self._window.set_field(HeaderField.DROPPED_READS, self.dropped_reads * self._n_ranks + other.rank)

    def _answer_notice(self, peer: Peer) -> None:
        """Slow down the throttle of `peer` if its header contains a new slow-reader notice for this rank."""
        notice = int(peer.header[HeaderField.DROPPED_READS])
        if notice != peer.answered_notice and notice % self._n_ranks == self._rank:
            peer.answered_notice = notice
            peer.throttle.slow_down()


def count_missed(used: Int64s, versions: Int64s, peers: Sequence[Peer], own: int) -> int:
    """Return the number of updates of other ranks that a gradient has missed, as far as this rank knows.

    Parameters
    ----------
    used : ndarray, shape (n_ranks,), int64
        Version vector of the replica at which the gradient was computed.
    versions : ndarray, shape (n_ranks,), int64
        Current version vector of the replica.
    peers : sequence of Peer
        Ranks whose headers may report newer updates.
    own : int
        This rank, whose updates are not counted.
    """
    known = versions.copy()
    for other in peers:
        known[other.rank] = max(known[other.rank], other.version)
    known[own] = used[own]
    return int((known - used).sum())
