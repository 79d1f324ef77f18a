"""What the exchanges of `gossip` share: which rank is read when, and the end of a run."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from hpc_dasgd.arrays.types import AnyArray, Floats, Int64s
from hpc_dasgd.exchange.gossip.consensus import PublicationSampler, Spread, ranks_to_sample
from hpc_dasgd.exchange.interface import Exchange, ExchangeSetup, Settled, Update
from hpc_dasgd.exchange.reader import Neighbour, Peer, PublicationThrottle, Reader, count_missed
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import HeaderField, PublicationWindow
from hpc_dasgd.window.slots import Slot

N_SLOTS = 3
"""Number of slots in which a rank publishes."""

HEADER_INTERVAL = 16
"""Number of exchanges from one read of a header of a rank that is not a source to the next."""

MEASUREMENT_S = 1.0
"""Longest time that one measurement of the consensus distance may take, in seconds."""


def neighbours_of(setup: ExchangeSetup) -> topology.Neighbours:
    """Return sources and targets of this rank on the graph that the settings name. Not collective."""
    settings, comm = setup.settings, setup.comm
    return topology.graph_neighbours(settings.topology, comm.rank, comm.size, degree=settings.degree, seed=setup.seed)


class MixingExchange(Exchange):
    """Reads one source at each exchange, in turn, and mixes what it has read into the replica.

    The turn starts at a different source on each rank. `push` reads and mixes before the own update, so that what is
    published contains what was read. A read that does not complete at once continues in the background, during the
    gradient, until a later `pull` or `push` finds it complete; there is one read at a time. On networks that need the
    target's help, a source with a long gradient therefore keeps its readers from reading other sources, but never from
    making updates.

    Every header that is read may request the end of the run, and the reader passes the request on. Graphs are strongly
    connected and all sources are read in turn, so that the request reaches every rank.

    Parameters
    ----------
    setup : ExchangeSetup
        With ``every > 1`` the updates between two exchanges change the own replica only.
    window : PublicationWindow
        With one channel of `N_SLOTS` slots and version vectors of `n_ranks` entries.
    neighbours : topology.Neighbours
        Sources and targets of this rank.
    keeps_seen : bool
        True if the last publication of a source is needed until the source is read again.
    n_sampled : int
        Number of the last publications of a rank that `_sampled_replica` needs.
    """

    def __init__(
        self,
        setup: ExchangeSetup,
        window: PublicationWindow,
        neighbours: topology.Neighbours,
        keeps_seen: bool,
        n_sampled: int,
    ):
        super().__init__(setup)
        sources, targets = neighbours
        self._window, self._channel = window, window.channels[0]
        self._n_targets = len(targets)
        self._throttle = PublicationThrottle()
        # A single slot is enough for all sources if its content is not needed after it was mixed in.
        shared = None if keeps_seen or not sources else window.buffer()
        self._sources = [Neighbour(rank, 0, shared or window.buffer(), self._throttle) for rank in sources]
        # Slow-reader notices of targets are in their headers, which are read for that purpose if they are not sources.
        self._other_targets = [Peer(rank, 0, self._throttle) for rank in targets if rank not in sources]
        self._reader = Reader(setup.comm, window, N_SLOTS, n_buffers=min(1, len(sources)))
        self._sampler = PublicationSampler(window, N_SLOTS, n_sampled)
        self._turn = setup.comm.rank % max(1, len(sources))
        self._n_exchanges = 0

    @property
    def transferred_bytes(self) -> int:
        """Number of bytes that this rank has read from other ranks, headers included."""
        return self._window.transferred_bytes

    def pull(self) -> None:
        """Mix in what has arrived since `push`. Not collective; never waits."""
        if self.exchanging and self._is_reading:
            self._read_source()
            self.stopping = self._reader.stopping

    def push(self, update: Update) -> None:
        """Mix in what the next source has published, make an own update, and publish. Not collective; never waits.

        If a source has published nothing new, which costs the read of a header, the next one is tried, each of them at
        most once. A read that would have to wait is continued later.
        """
        exchanges = self.count_step()
        if exchanges:
            self._exchange()
        self.versions[self.comm.rank] += 1
        self._window.set_field(HeaderField.VERSION, self.made)
        slot = self._channel.begin() if exchanges and self._publishes() else None
        self._apply(update, slot)
        if slot is not None:
            np.copyto(slot.versions, self.versions)
            self._channel.publish()
            self._throttle.published()

    def missed(self, versions: Int64s) -> int:
        """Return the number of updates of other ranks beyond `versions` that this rank knows of. Not collective."""
        return count_missed(versions, self.versions, [*self._sources, *self._other_targets], self.comm.rank)

    def consensus_distance(self) -> float:
        """Return the distance of the replicas from their mean; see `Settled`. Not collective.

        It is computed from the own replica and from what other ranks have published. At most `consensus.MAX_RANKS`
        others are read, which adds to the transferred bytes. A rank is left out if it has not published yet, publishes
        too fast, or has not been read after `MEASUREMENT_S` altogether; the result is nan if no rank remains. It needs
        memory of `n_params` float64 numbers for the time of the call.
        """
        spread = Spread(self.parameters, self.blocks)
        end_s = time.perf_counter() + MEASUREMENT_S
        for rank in ranks_to_sample(self.comm.rank, self.comm.size):
            slots = self._sampler.read(rank, end_s)
            if slots is not None:
                spread.add(self._sampled_replica(slots))
            if time.perf_counter() > end_s:
                break
        return spread.distance if spread.n_replicas > 1 else math.nan

    def stop(self) -> None:
        """Request the end of the run: every rank that reads a header of this one passes it on. Not collective."""
        self._reader.stop()
        self.stopping = True

    def settle(self) -> Settled:
        """Make all replicas the same, and the version vector the updates of all ranks. Collective; waits."""
        made = self.comm.allgather(self.made)
        numerator, weight = self._final_terms()
        self._sampler.finish()
        self._reader.finish_headers(self._other_targets)
        self.versions[:] = made
        return self._replace_by_mean(numerator, weight)

    def free(self) -> None:
        """Free the window. Collective over `comm`."""
        self._window.free()

    @property
    def _is_reading(self) -> bool:
        return bool(self._sources) and self._sources[self._turn].reading is not None

    def _exchange(self) -> None:
        """Complete the read under way, if possible; then start to read the next source with a new publication."""
        if self._is_reading:
            self._read_source()
        if not self._is_reading:
            any(self._read_source() for _ in self._sources)
        self._n_exchanges += 1
        if self._other_targets and self._n_exchanges % HEADER_INTERVAL == 0:
            number = self._n_exchanges // HEADER_INTERVAL % len(self._other_targets)
            self._reader.poll_header(self._other_targets[number])
        self.stopping = self._reader.stopping

    def _read_source(self) -> bool:
        """Read the source whose turn it is, and mix in what has arrived.

        Returns
        -------
        has_news : bool
            True if a publication has arrived or a read is under way.
        """
        source = self._sources[self._turn]
        before = self._advance(source)
        if source.reading is None:
            self._turn = (self._turn + 1) % len(self._sources)
        if before is not None:
            np.maximum(self.versions, source.seen.versions, out=self.versions)
            self._mix(source.seen, before)
        return before is not None or source.reading is not None

    def _advance(self, source: Neighbour) -> Slot | None:
        """Continue the read of `source`. Return its previous `seen` if a new publication has arrived, else None.

        The previous `seen` keeps its content until the next read uses it as a buffer.
        """
        before = source.seen
        return before if self._reader.advance([source])[0] else None

    def _replace_by_mean(self, numerator: Floats, weight: float) -> Settled:
        """Make every replica ``sum(numerator) / sum(weight)`` over ranks, with the same bits on all. Collective; waits.

        Block by block, in float64: each block is reduced to rank 0 and broadcast from there, together with the mean of
        the previous replicas.
        """
        total = self.comm.allreduce(weight)
        squares = drift = 0.0
        for lo, hi in self.blocks:
            replica: AnyArray = self.parameters[lo:hi]
            sums = np.stack([replica, numerator[lo:hi]]).astype(np.float64, copy=False)
            if self.comm.rank == 0:
                self.comm.Reduce(MPI.IN_PLACE, sums, root=0)
                sums /= [[self.comm.size], [total]]
            else:
                self.comm.Reduce(sums, None, root=0)
            self.comm.Bcast(sums, root=0)
            mean, final = sums
            mean -= replica
            squares += float(mean @ mean)
            before = replica.astype(np.float64)
            np.copyto(replica, final, casting="same_kind")
            drift = max(drift, float(np.abs(replica - before).max()))
        squares, drift = self.comm.allreduce(squares), self.comm.allreduce(drift, MPI.MAX)
        return Settled(drift, self._reader.dropped_reads, math.sqrt(squares / self.comm.size))

    @abstractmethod
    def _mix(self, seen: Slot, before: Slot) -> None:
        """Mix in the publication `seen` of a source; `before` is its publication that was read previously."""

    @abstractmethod
    def _publishes(self) -> bool:
        """Count an exchange, and return True if it should publish."""

    @abstractmethod
    def _apply(self, update: Update, slot: Slot | None) -> None:
        """Make an own update, and store what others are to read into the payload of `slot`, if there is one."""

    @abstractmethod
    def _final_terms(self) -> tuple[Floats, float]:
        """Complete all reads. Return this rank's terms of numerator and weight of the final parameters. Collective."""

    @abstractmethod
    def _sampled_replica(self, slots: list[Slot]) -> Callable[[int, int], Floats]:
        """Return the replica that the last publications of a rank describe, as a function of ``lo, hi``.

        Parameters
        ----------
        slots : list of Slot
            The newest publication first.
        """
