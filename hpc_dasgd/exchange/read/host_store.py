"""Where exchange `read` keeps its contribution, what it has read of others, and their sum: here, in host memory.

`device_store` does the same on a GPU.
"""

from collections.abc import Sequence

import numpy as np

from hpc_dasgd.exchange.reader import Neighbour, swap
from hpc_dasgd.overlay.partial_sums import merge_versions, sum_edges, sum_replica
from hpc_dasgd.window.publication import PublicationWindow, Slot


class HostStore:
    """Contribution, replica and partial sums in host memory, stored where others read them.

    Where nothing that was read is shown on, one channel shows the contribution to all; to survive, so does the
    first of several. Its newest slot is the contribution itself.

    Parameters
    ----------
    exchange : Exchange
        Whose replica, blocks and scratch are used.
    window : PublicationWindow
    shows_own : bool
        Whether channel 0 shows the contribution; the others show an edge each.
    own_entry : int
        Index of this rank in the version vectors of slots.

    Attributes
    ----------
    own : array of the device, shape (n_params,)
        The contribution; another array after each `publish`.
    """

    keep = staticmethod(swap)

    def __init__(self, exchange, window: PublicationWindow, shows_own: bool, own_entry: int):
        self._exchange, self._window = exchange, window
        self._shows_own, self._own_entry = shows_own, own_entry
        self.own = window.channels[0].slots[0].payload if shows_own else np.zeros_like(exchange.parameters)

    def new_seen(self) -> Slot:
        """Memory for what was last read of a neighbour, zeroed."""
        return self._window.buffer()

    def sum_replica(self, neighbours: Sequence[Neighbour]) -> None:
        """Make the replica the contribution and what was read of `neighbours`."""
        for lo, hi in self._exchange.blocks:
            seen = [other.seen.payload[lo:hi] for other in neighbours]
            sum_replica(self.own[lo:hi], seen, self._exchange.parameters[lo:hi])

    def publish(
        self, due: list[bool], version: int, neighbours: Sequence[Neighbour], update=None, mends: bool = False
    ) -> list[bool]:
        """Add `update` to the contribution, sum the replica anew, publish on the channels that are `due`.

        Parameters
        ----------
        due : list of bool
            For each of the first channels.
        version : int
            Own updates, this one included.
        neighbours : sequence of Neighbour
        update : Update, optional
        mends : bool
            Whether the replica is to change by the update alone.

        Returns
        -------
        published : list of bool
            On which channels it was, now or as soon as all is there; a channel that is not ready is left out.
        """
        channels = self._window.channels[: len(due)]
        # Where the contribution stands in a slot it goes on to the next one, due or not.
        due_slots = [self._shows_own or due[0], *due[1:]]
        slots = [channel.begin() if now else None for channel, now in zip(channels, due_slots, strict=True)]
        own, edges = (slots[0], slots[1:]) if self._shows_own else (None, slots)
        self._store(own, edges, neighbours, update, mends)
        self._window.fence()  # a version is never ahead of its payload
        if own is not None:
            own.versions[self._own_entry] = version
        seen = [other.seen.versions for other in neighbours]
        for j, slot in enumerate(edges):
            if slot is not None:
                merge_versions(self._own_entry, version, seen[:j] + seen[j + 1 :], slot.versions)
        for channel, now in zip(channels, due, strict=True):
            if now:
                channel.publish()
        return due

    def poll(self) -> None:
        """Go on with what is being published."""

    def finish(self) -> None:
        """Wait until all is published."""

    def show_start(self) -> None:
        """Nothing: the contribution stands in the window."""

    def free(self) -> None:
        """Let go of what stands in the window."""
        self.own = None

    def _store(self, slot: Slot | None, edges: list[Slot | None], neighbours, update, mends: bool) -> None:
        """Store the contribution, in `slot` if any, the replica and the payloads of `edges`, all in one pass."""
        before = self.own
        if slot is not None:
            self.own = slot.payload
        for lo, hi in self._exchange.blocks:
            own, replica = self.own[lo:hi], self._exchange.parameters[lo:hi]
            if update is not None:
                scaled = self._exchange.scratch[: hi - lo]
                update(lo, hi, scaled)
                np.add(before[lo:hi], scaled, out=own)
                if mends:
                    np.add(replica, scaled, out=replica)
            elif before is not self.own:
                np.copyto(own, before[lo:hi])
            if mends:
                continue
            seen = [other.seen.payload[lo:hi] for other in neighbours]
            if not any(edges):
                sum_replica(own, seen, replica)
            else:
                sum_edges(own, seen, [edge and edge.payload[lo:hi] for edge in edges], replica)
