"""What one rank of exchange `read` holds: its window, what it has read from others, and its own version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_dasgd.arrays.types import Floats
from hpc_dasgd.exchange.interface import Exchange, Update
from hpc_dasgd.exchange.read.channels import Channels
from hpc_dasgd.exchange.read.device_store import DeviceStore
from hpc_dasgd.exchange.read.host_store import HostStore
from hpc_dasgd.exchange.read.neighbourhood import Neighbourhood
from hpc_dasgd.exchange.read.store import Store
from hpc_dasgd.exchange.reader import Neighbour, PublicationThrottle, Reader
from hpc_dasgd.window.publication import HeaderField, PublicationWindow
from hpc_dasgd.window.slots import PublicationLayout

if TYPE_CHECKING:
    from mpi4py import MPI

_PARENT_TAG = 103


class ReadState:
    """The state of one rank, and the elementary operations on it.

    Making one is collective over ``exchange.comm``, as is `free`; nothing else is collective.

    Parameters
    ----------
    exchange : Exchange
        Whose replica, version vector and `stopping` this state changes.
    channels : Channels
    x0 : ndarray, shape (n_params,), float32 or float64, host memory
    request_reads : bool, optional
        See `WindowMemory`.

    Attributes
    ----------
    exchange, channels
        As above.
    comm : MPI.Intracomm
    window : PublicationWindow
    store : Store
    reader : Reader
    neighbourhood : Neighbourhood
        Replaced when the rank leaves a tree.
    version : int
        Number of updates that this rank has made.
    """

    def __init__(self, exchange: Exchange, channels: Channels, x0: Floats, request_reads: bool | None = None):
        settings, device, comm = exchange.settings, exchange.device, exchange.comm
        self.exchange, self.channels, self.comm = exchange, channels, comm
        self.version = 0
        layout = PublicationLayout(x0.size, x0.dtype, channels.n_slots, channels.n_channels, channels.n_versions)
        self.window = PublicationWindow(comm, layout, request_reads, device, settings.device_windows)
        make_store = HostStore if device.on_host else DeviceStore
        self.store: Store = make_store(exchange, self.window, channels)
        self.neighbourhood = self._make_neighbourhood()
        n_buffers = min(settings.reads_in_flight, len(channels.ranks))
        self.reader = Reader(comm, self.window, channels.n_slots, n_buffers, settings.consistency == "snapshot")
        self._store_start()

    def make_neighbour(self, rank: int, channel: int, throttle: PublicationThrottle) -> Neighbour:
        """Return a neighbour from which nothing has been read, with memory of the store."""
        return Neighbour(rank, channel, self.store.new_seen(), throttle, self.store.accept)

    def read(self) -> list[bool]:
        """Continue all reads, and update the version vector and `stopping` of the exchange. Never waits.

        Returns
        -------
        arrived : list of bool
            See `Neighbourhood.advance`. The replica has to be summed again if any is True.
        """
        arrived = self.neighbourhood.advance(self.reader, self.exchange.versions)
        self.exchange.stopping = self.reader.stopping
        return arrived

    def sum_replica(self) -> None:
        """Store the sum of all that is known into the replica."""
        self.store.sum_replica(self.neighbourhood.neighbours)

    def count_update(self) -> None:
        """Count an own update, in the version vector of the replica and in the headers."""
        self.version += 1
        self.exchange.versions[self.comm.rank] = self.version
        self.window.set_field(HeaderField.VERSION, self.version)

    def publish(self, due: list[bool], update: Update | None = None) -> None:
        """Add `update` to the contribution, sum the replica again, and publish on the channels that are `due`."""
        neighbourhood = self.neighbourhood
        published = self.store.publish(due, self.version, neighbourhood.neighbours, update, neighbourhood.catching_up)
        for throttle, now in zip(neighbourhood.throttles, published, strict=True):
            if now:
                throttle.published()

    def publish_all(self) -> None:
        """Publish the current state on all channels. Waits until the publications are complete."""
        self.store.finish()
        self.publish([True] * len(self.neighbourhood.throttles))
        self.store.finish()

    def _make_neighbourhood(self) -> Neighbourhood:
        channels, n_ranks = self.channels, len(self.channels.ranks)
        throttles = [PublicationThrottle() for _ in self.window.channels]
        of_edges = throttles[channels.publishes_own :] or throttles * n_ranks
        neighbours = [
            self.make_neighbour(other, channel, throttle)
            for other, channel, throttle in zip(channels.ranks, channels.channels_read, of_edges, strict=True)
        ]
        entries = [slice(None) if channels.on_tree else slice(other, other + 1) for other in channels.ranks]
        return Neighbourhood(neighbours, entries, throttles, channels.on_tree)

    def _store_start(self) -> None:
        """Store x_0 into the contribution of rank 0, or into what would be read from it. Collective."""
        toward = _neighbour_toward_rank_0(self.comm, self.channels.ranks) if self.channels.on_tree else 0
        neighbours = self.neighbourhood.neighbours
        start = next((other.seen.payload for other in neighbours if other.rank == toward), self.store.own)
        start[...] = self.exchange.parameters
        self.store.publish_start()


def _neighbour_toward_rank_0(comm: MPI.Intracomm, neighbours: tuple[int, ...]) -> int | None:
    """Return the neighbour on whose side of the edge rank 0 is; None on rank 0. Collective; waits."""
    parent: int | None = None if comm.rank == 0 else comm.recv(tag=_PARENT_TAG)
    for other in neighbours:
        if other != parent:
            comm.send(comm.rank, other, tag=_PARENT_TAG)
    return parent
