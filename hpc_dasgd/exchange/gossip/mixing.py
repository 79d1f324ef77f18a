"""What the exchanges of `gossip` have in common: whom a rank reads when, and how the run ends."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from hpc_dasgd.exchange.gossip.consensus import Observer, Spread, ranks_to_look_at
from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle, Reader, count_missed
from hpc_dasgd.overlay import topology
from hpc_dasgd.window.publication import PublicationWindow, Slot, Word

N_SLOTS = 3
LISTEN_EVERY = 16  # exchanges from one header that is read for complaints alone to the next
LOOK_S = 1.0  # what one measurement of the consensus distance may take


class MixingExchange(Exchange):
    """Reads one source in turn at each exchange, beginning at another place on each rank; see `push`.

    That is done ahead of the own update, so that what is published holds what was read. A read that is not
    through at once goes on in the background, through the gradient, until a later `pull` or `push` finds it
    done; there is one at a time. On networks that need the target's help, a source that computes for long
    therefore keeps its readers from reading others, but never from making updates.

    Every header that is read may ask for the end of the run, and whoever sees that asks for it too. Graphs are
    strongly connected and every source is read in turn, so everybody comes to know.

    Parameters
    ----------
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
        The same on every rank.
    neighbours : topology.Neighbours
    every : int
        Own updates from one exchange to the next; those between change the own replica alone.
    window : PublicationWindow
        Of one channel with `N_SLOTS` slots and version vectors of `n_ranks` entries.
    keeps_seen : bool
        Whether what was last read of a source must stay until it is read again.
    n_looked_at : int
        How many of a rank's last publications `_replica_in` needs.
    """

    combines = "mean"

    def __init__(
        self,
        comm,
        x0,
        neighbours: topology.Neighbours,
        every: int,
        window: PublicationWindow,
        keeps_seen: bool,
        n_looked_at: int,
    ):
        super().__init__(comm, x0, every)
        sources, targets = neighbours
        self._window, self._channel = window, window.channels[0]
        self._n_targets = len(targets)
        self._pacer = PublicationThrottle()
        # One Slot for all may be filled for one source after the other, where it is done with at once.
        shared = None if keeps_seen or not sources else window.buffer()
        self._sources = [Neighbour(rank, 0, shared or window.buffer(), self._pacer) for rank in sources]
        # Targets complain in their headers, which nobody has reason to read who does not read them anyway.
        self._listened = [Neighbour(rank, 0, None, self._pacer) for rank in targets if rank not in sources]
        self._reader = Reader(comm, window, N_SLOTS, n_buffers=min(1, len(sources)))
        self._observer = Observer(window, N_SLOTS, n_looked_at)
        self._turn = comm.rank % max(1, len(sources))
        self._n_exchanges = 0

    @property
    def transferred_bytes(self) -> int:
        return self._window.transferred_bytes

    def pull(self) -> None:
        """Mix in what has arrived since `push`. Not collective; never waits."""
        if self.exchanging and self._under_way:
            self._read_on()
            self.stopping = self._reader.stopping

    def push(self, update: Update) -> None:
        """Mix in what the next source in turn has published, make an own update, publish.

        A source without news costs a header, and the next one is tried, each at most once. Not collective;
        never waits: a read that would have to is gone on with later.
        """
        exchanges = self._count_step()
        if exchanges:
            self._exchange()
        self.versions[self.comm.rank] += 1
        self._window.set_word(Word.VERSION, self.made)
        slot = self._channel.begin() if exchanges and self._publishes() else None
        self._apply(update, slot)
        if slot is not None:
            np.copyto(slot.versions, self.versions)
            self._channel.publish()
            self._pacer.published()

    def missed(self, held: np.ndarray) -> int:
        """Count the others' updates beyond `held`, as far as this rank has heard of them."""
        return count_missed(held, self.versions, self._sources + self._listened, self.comm.rank)

    def consensus_distance(self) -> float:
        """See `Settled`; over the own replica as it is and those that others have published. Not collective.

        At most `consensus.MOST_RANKS` others are read, which counts among the transferred bytes. Left out are
        those that have not published yet or publish too fast, and whatever is not here after `LOOK_S` in all;
        nan where that leaves nobody. Takes memory of `n_params` float64 numbers meanwhile.
        """
        spread = Spread(self.parameters, self.blocks)
        end_s = time.perf_counter() + LOOK_S
        for rank in ranks_to_look_at(self.comm.rank, self.comm.size):
            slots = self._observer.look(rank, end_s)
            if slots is not None:
                spread.add(self._replica_in(slots))
            if time.perf_counter() > end_s:
                break
        return spread.distance if spread.n_replicas > 1 else math.nan

    def stop(self) -> None:
        """Raise the flag that every reader of this rank's headers sees and raises too."""
        self._reader.stop()
        self.stopping = True

    def settle(self) -> Settled:
        """Make every replica the same; versions become what all ranks have made."""
        made = self.comm.allgather(self.made)
        numerator, weight = self._final_terms()
        self._observer.finish()
        while under_way := [other for other in self._listened if other.reading]:
            self._reader.listen(under_way[0])
        self.versions[:] = made
        return self._join(numerator, weight)

    def free(self) -> None:
        self._channel = None
        self._window.free()

    @property
    def _under_way(self) -> bool:
        return bool(self._sources) and self._sources[self._turn].reading is not None

    def _exchange(self) -> None:
        """End the read under way, if it can be; then begin with the next source that has news."""
        if self._under_way:
            self._read_on()
        if not self._under_way:
            any(self._read_on() for _ in self._sources)
        self._n_exchanges += 1
        if self._listened and self._n_exchanges % LISTEN_EVERY == 0:
            self._reader.listen(self._listened[self._n_exchanges // LISTEN_EVERY % len(self._listened)])
        self.stopping = self._reader.stopping

    def _read_on(self) -> bool:
        """Read the source whose turn it is, and mix in what came; whether there was anything to read."""
        source = self._sources[self._turn]
        before = self._advance(source)
        if source.reading is None:
            self._turn = (self._turn + 1) % len(self._sources)
        if before is not None:
            np.maximum(self.versions, source.seen.versions, out=self.versions)
            self._mix(source.seen, before)
        return before is not None or source.reading is not None

    def _advance(self, source: Neighbour) -> Slot | None:
        """Go on with the read of `source`; if its `seen` is new then, what that was before."""
        before = source.seen  # keeps its content until the next read takes it for a buffer
        return before if self._reader.advance([source])[0] else None

    def _join(self, numerator: np.ndarray, weight: float) -> Settled:
        """Make every replica ``sum(numerator) / sum(weight)`` over ranks, the same bits on all. Collective.

        By blocks, each reduced to rank 0 and sent to all from there, in float64; along with it the mean of
        the replicas as they were.
        """
        total = self.comm.allreduce(weight)
        squares = drift = 0.0
        for lo, hi in self.blocks:
            replica = self.parameters[lo:hi]
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
    def _mix(self, news: Slot, before: Slot) -> None:
        """Mix in the publication `news` of a source, of which `before` is what was read last."""

    @abstractmethod
    def _publishes(self) -> bool:
        """Whether to publish with this exchange."""

    @abstractmethod
    def _apply(self, update: Update, slot: Slot | None) -> None:
        """Make an own update, and store into the payload of `slot`, if any, what others are to read."""

    @abstractmethod
    def _final_terms(self) -> tuple[np.ndarray, float]:
        """End all reads; this rank's terms of numerator and weight of the final parameters. Collective."""

    @abstractmethod
    def _replica_in(self, slots: list[Slot]) -> Callable[[int, int], np.ndarray]:
        """The replica that a rank's last publications, the newest first, tell, as a function of ``lo, hi``."""
