"""Contribution, partial sums and replica of exchange `read` in host memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_dasgd.arrays.types import Array
from hpc_dasgd.exchange.interface import Exchange, Update
from hpc_dasgd.exchange.read.channels import Channels
from hpc_dasgd.exchange.reader import Neighbour, swap_buffers
from hpc_dasgd.overlay.partial_sums import merge_versions, sum_edges, sum_replica
from hpc_dasgd.window.publication import PublicationWindow
from hpc_dasgd.window.slots import Slot


class HostStore:
    """A `Store` in host memory. Contribution and partial sums are stored in the window, where other ranks read them.

    If channel 0 publishes the contribution, its newest slot is the contribution itself.

    Parameters
    ----------
    exchange : Exchange
        Whose replica, blocks and scratch are used.
    window : PublicationWindow
    channels : Channels

    Attributes
    ----------
    own : ndarray, shape (n_params,), host memory
        The contribution; another array after each call of `publish`.
    """

    accept = staticmethod(swap_buffers)

    def __init__(self, exchange: Exchange, window: PublicationWindow, channels: Channels):
        self._exchange, self._window = exchange, window
        self._publishes_own, self._own_entry = channels.publishes_own, channels.own_entry
        self.own: Array = (
            window.channels[0].slots[0].payload if self._publishes_own else np.zeros_like(exchange.parameters)
        )

    def new_seen(self) -> Slot:
        """Return zeroed memory for the last publication of a neighbour."""
        return self._window.buffer()

    def sum_replica(self, neighbours: Sequence[Neighbour]) -> None:
        """Store the sum of the contribution and of what was read from `neighbours` into the replica."""
        for lo, hi in self._exchange.blocks:
            seen = [other.seen.payload[lo:hi] for other in neighbours]
            sum_replica(self.own[lo:hi], seen, self._exchange.parameters[lo:hi])

    def publish(
        self,
        due: list[bool],
        version: int,
        neighbours: Sequence[Neighbour],
        update: Update | None = None,
        catching_up: bool = False,
    ) -> list[bool]:
        """Add an update to the contribution, sum the replica again, and publish; see `Store.publish`."""
        channels = self._window.channels[: len(due)]
        # A contribution that is kept in a slot moves to the next slot, whether it is due or not.
        begins = [self._publishes_own or due[0], *due[1:]]
        slots = [channel.begin() if now else None for channel, now in zip(channels, begins, strict=True)]
        own, edges = (slots[0], slots[1:]) if self._publishes_own else (None, slots)
        self._store(own, edges, neighbours, update, catching_up)
        self._window.fence()  # versions are stored after the payload, so that they are never ahead of it
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
        """Do nothing: publications are complete when `publish` returns."""

    def finish(self) -> None:
        """Do nothing: publications are complete when `publish` returns."""

    def publish_start(self) -> None:
        """Do nothing: the contribution is in the window."""

    def free(self) -> None:
        """Release the memory of the window."""
        self.own = None

    def _store(
        self,
        slot: Slot | None,
        edges: list[Slot | None],
        neighbours: Sequence[Neighbour],
        update: Update | None,
        catching_up: bool,
    ) -> None:
        """Store contribution, replica and partial sums in a single pass over memory.

        The contribution is stored into `slot`, if there is one, and the partial sums into the payloads of `edges`.
        """
        before = self.own
        if slot is not None:
            self.own = slot.payload
        for lo, hi in self._exchange.blocks:
            own, replica = self.own[lo:hi], self._exchange.parameters[lo:hi]
            if update is not None:
                scaled = self._exchange.scratch[: hi - lo]
                update(lo, hi, scaled)
                np.add(before[lo:hi], scaled, out=own)
                if catching_up:
                    np.add(replica, scaled, out=replica)
            elif before is not self.own:
                np.copyto(own, before[lo:hi])
            if catching_up:
                continue
            seen = [other.seen.payload[lo:hi] for other in neighbours]
            if not any(edges):
                sum_replica(own, seen, replica)
            else:
                sum_edges(own, seen, [edge and edge.payload[lo:hi] for edge in edges], replica)
