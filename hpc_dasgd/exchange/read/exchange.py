"""Exchange `read`: decentralized asynchronous SGD by one-sided reads of contributions.

The contribution of a rank is the sum of all updates that it has made; that of rank 0 also contains ``x_0``. Each rank
publishes its contribution and reads those of its neighbours. A replica is the sum of the own contribution and of the
last contributions that were read. Reading a contribution twice changes nothing, and a rank that misses ten versions and
reads the eleventh obtains all eleven: every update arrives exactly once, for any timing.

On the complete overlay all ranks are neighbours, and each publishes its contribution. On a tree a rank publishes for
each neighbour the partial sum of the own side of the edge between them (`hpc_dasgd.overlay.partial_sums`), which
amounts to an all-reduce by reads that never waits.

With ``exchange.survive`` the ranks continue without those that died; see `survivors`.
"""

from __future__ import annotations

import time

from hpc_dasgd.arrays.types import Array, Int64s
from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.exchange.interface import Exchange, ExchangeSetup, Settled, Update
from hpc_dasgd.exchange.read.channels import Channels, Tree, complete_channels, tree_channels
from hpc_dasgd.exchange.read.membership import AllRanks, Membership
from hpc_dasgd.exchange.read.state import ReadState
from hpc_dasgd.exchange.read.survivors import Survivors
from hpc_dasgd.exchange.reader import count_missed
from hpc_dasgd.overlay import topology
from hpc_dasgd.runtime import collective

POLL_INTERVAL_S = 50e-6
"""Time between two polls for new publications while a device computes and no read is under way, in seconds."""


class ReadExchange(Exchange):
    """Every rank reads the publications of its neighbours.

    The replica is summed again whenever one of its terms has changed. It is therefore a function of its version vector:
    rounding errors do not accumulate, and a run can be replayed.

    Publication `p` is in its slot until publication ``p + n_slots`` is started. With *snapshot* consistency a read that
    ended before that contains a single version; other reads are dropped. With *elementwise* consistency no read is
    dropped: a read may mix versions from element to element, and the next read corrects that.

    With `D` neighbours (``n_ranks - 1`` on the complete overlay, independent of the number of ranks on a tree), the
    passes over main memory per step in arrays of `n_params` are:

    - ``D + 4`` in `push` on the complete overlay and in the leaves of a tree: gradient, last publication and last reads
      of the neighbours read; next publication and replica written. Update, publication and replica share this pass,
      and publishing needs no copy. ``2 D + 4`` in the other ranks of a tree: gradient, contribution and last reads of
      the neighbours read; contribution, replica and a partial sum for each neighbour written.
    - 2 for each neighbour with a new publication: its slot read, a buffer written. The buffer is then exchanged for
      what was read before. It has to be complete before it is used, since a read may have to be dropped.
    - ``D + 2`` in `pull` if a publication has arrived since the previous `push`: contribution and last reads
      of the neighbours read, replica written.
    - A neighbour without a new publication costs 64 bytes.

    Memory, in the same unit: on the complete overlay replica 1, slots 3, last reads ``n_ranks - 1``, buffers
    `reads_in_flight`; on a tree replica 1, contribution 1, slots ``2 D``, last reads `D`, buffers `reads_in_flight`.
    With ``exchange.survive`` an inner rank of a tree has slots ``2 D + 2`` and no other contribution; a rank that has
    left the tree needs the memory for last reads and buffers of the complete overlay in addition.

    On a GPU, passes and memory are those of `DeviceStore`; in host memory there are the slots as above and
    `reads_in_flight` buffers.

    Parameters
    ----------
    setup : ExchangeSetup
        With ``settings.device_windows`` every rank must have a GPU and a CUDA-aware MPI.
    tree : callable, optional
        A tree as overlay: ``tree(rank)`` is the tuple of the neighbours of a rank, the same function on all ranks. By
        default ``settings.topology`` determines the overlay.
    request_reads : bool, optional
        See `WindowMemory`.
    """

    def __init__(self, setup: ExchangeSetup, *, tree: Tree | None = None, request_reads: bool | None = None):
        super().__init__(setup)
        settings, rank, n_ranks = setup.settings, setup.comm.rank, setup.comm.size
        tree = tree or _tree_of_settings(setup)
        channels: Channels
        if tree is None:
            channels = complete_channels(rank, n_ranks)
        else:
            channels = tree_channels(rank, n_ranks, tree, settings.survive)
        self._state = ReadState(self, channels, setup.x0, request_reads)
        self._membership: Membership = (
            Survivors(self._state, settings.heartbeat_timeout_s) if settings.survive else AllRanks(self._state)
        )
        self._n_read_on = 0  # calls of `read_on` since the last step
        self._next_poll_s = 0.0
        n_bytes = self.parameters.nbytes
        self._n_pieces = 2 + n_bytes // (self.device.piece_bytes or n_bytes)

    @property
    def transferred_bytes(self) -> int:
        """Number of bytes that this rank has read from other ranks, headers included."""
        return self._state.window.transferred_bytes

    @property
    def contribution(self) -> Array:
        """Sum of the own updates, on rank 0 with ``x_0``: array of the device, shape (n_params,)."""
        return self._state.store.own

    @property
    def died(self) -> tuple[int, ...]:
        """Ranks that died and without which the others continue, ascending, as far as this rank knows."""
        return self._membership.died

    def allgather(self, value: object) -> list[object]:
        """Return the `value` of every rank, by rank; None for a rank that died. Collective over the ranks alive."""
        return self._membership.allgather(value)

    def pull(self) -> None:
        """Continue reads, and sum the replica again if a publication has arrived. Not collective; never waits."""
        self._membership.poll()
        self._state.store.poll()
        if self.exchanging and any(self._state.read()):
            self._state.sum_replica()

    def read_on(self) -> None:
        """Continue the reads under way by one piece, and poll for new publications from time to time. Never waits."""
        state = self._state
        self._n_read_on += 1
        state.store.poll()
        if not self.exchanging or time.perf_counter() < self._next_poll_s:
            return
        arrived = state.read()
        if not (any(arrived) or any(other.reading for other in state.neighbourhood.neighbours)):
            self._next_poll_s = time.perf_counter() + POLL_INTERVAL_S

    def push(self, update: Update) -> None:
        """Continue reads, make an own update, sum the replica again, and publish. Not collective; never waits."""
        state = self._state
        exchanges = self.count_step()
        state.store.poll()
        if exchanges:
            for _ in range(self._n_reads_in_push()):
                state.read()
        self._n_read_on = 0
        state.count_update()
        due = [exchanges and throttle.due() for throttle in state.neighbourhood.throttles]
        # Whatever an edge publishes of this rank can also be read from the rank itself.
        due[0] |= state.channels.publishes_own and any(due)
        state.publish(due, update)

    def missed(self, versions: Int64s) -> int:
        """Return the number of updates of other ranks beyond `versions` that this rank knows of. Not collective."""
        return count_missed(versions, self.versions, self._state.neighbourhood.neighbours, self.comm.rank)

    def stop(self) -> None:
        """Request the end of the run: every rank that reads a header of this one passes it on. Not collective."""
        self._state.reader.stop()
        self.stopping = True

    def settle(self) -> Settled:
        """Publish everything, and make all replicas the same. Collective over the ranks alive; waits."""
        self._state.publish_all()
        drift = self._membership.settle()
        return Settled(drift, self._state.reader.dropped_reads)

    def free(self) -> None:
        """Free the window, if all ranks are alive. Collective over the ranks alive."""
        self._state.store.free()
        if self._membership.free():
            self._state.window.free()

    def _n_reads_in_push(self) -> int:
        """Return how often `push` continues the reads, which on a device come in pieces.

        Nothing is left to read if that was done while the device computed. An objective that waits for its gradient
        leaves no time for it.
        """
        if self.device.on_host:
            return 1
        return 0 if self._n_read_on > 1 else self._n_pieces


def _tree_of_settings(setup: ExchangeSetup) -> Tree | None:
    """Return the tree that the settings name, or None for the complete overlay. Collective unless it is None."""
    settings: ExchangeConfig = setup.settings
    if settings.topology == "complete":
        return None
    nodes = collective.node_of_each_rank(setup.comm)
    return lambda rank: topology.tree_neighbours(settings.topology, rank, nodes, fan_out=settings.fan_out)
