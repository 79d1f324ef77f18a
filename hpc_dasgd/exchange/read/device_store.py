"""Contribution, partial sums and replica of exchange `read` on a GPU.

Windows are in page-locked host memory by default. What is published is copied there from a separate array while the GPU
continues to compute, and its version is raised when the copy is complete. What is read, into page-locked memory too, is
copied to the GPU, and counts as read when the copy is complete.

With ``exchange.device_windows`` the payloads of windows are on the GPU. What is published is then stored where other
ranks read it, and MPI reads into the memory of the GPU, without a copy in between.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from hpc_dasgd.arrays.arithmetic import add_up
from hpc_dasgd.arrays.devices import Completion, Device
from hpc_dasgd.arrays.types import Array, Int64s
from hpc_dasgd.exchange.interface import Exchange, Update
from hpc_dasgd.exchange.read.channels import Channels
from hpc_dasgd.exchange.reader import Neighbour, swap_buffers
from hpc_dasgd.overlay.partial_sums import merge_versions, sum_edges, sum_replica
from hpc_dasgd.window.memory import wait_for
from hpc_dasgd.window.publication import Channel, PublicationWindow
from hpc_dasgd.window.slots import Slot, SplitSlot


class Publisher:
    """Publishes payloads of a GPU in a channel, one at a time.

    Parameters
    ----------
    channel : Channel
    device : Device
    payload : array of the device, shape (n_params,), or None
        Array from which a payload is copied to the window; None if the window is on the device.
    """

    def __init__(self, channel: Channel, device: Device, payload: Array | None):
        self._channel, self._device, self._payload = channel, device, payload
        self._slot: Slot | None = None  # the slot that was begun
        self._pending: tuple[Completion, Slot, Int64s] | None = None

    @property
    def busy(self) -> bool:
        """True if a publication is under way."""
        return self._pending is not None

    def begin(self) -> Array:
        """Return the array into which the next payload is to be stored. Must not be called while `busy`."""
        self._slot = self._channel.begin()
        return self._slot.payload if self._payload is None else self._payload

    def publish(self, stored: Completion, versions: Int64s) -> None:
        """Publish the payload as soon as it is in the window. Never waits.

        Parameters
        ----------
        stored : Completion
            Event after which the payload is in the array from `begin`.
        versions : ndarray, shape (n_versions,), int64
            Version vector of the payload.
        """
        assert self._slot is not None, "`begin` was called"
        copied = stored
        if self._payload is not None:
            copied = self._device.download(self._payload, self._slot.payload, after=stored)
        self._pending, self._slot = (copied, self._slot, versions), None

    def poll(self) -> None:
        """Complete the publication if its payload is in the window. Never waits."""
        if self._pending is None:
            return
        copied, slot, versions = self._pending
        if copied.done():
            slot.versions[:] = versions
            self._channel.publish()  # it begins with a fence, so that versions are never ahead of the payload
            self._pending = None


class DeviceStore:
    """A `Store` in the memory of a GPU; see the docstring of the module.

    Passes over the device's memory per step, in arrays of `n_params`, with `D` neighbours: ``D + 9`` in `publish` on
    the complete overlay (gradient read; update written and read; contribution read and written, read again and
    copied, and read again for the sum; last reads of the neighbours read, replica written). This is little
    compared with a gradient. There is one copy to the host for each publication, and one from the host for each
    neighbour with a new publication, both while the gradient is computed.

    Memory of the device, in the same unit: replica, gradient, scratch and contribution 1 each, one copy for each
    channel, `D` for the last reads of the neighbours, and one more for each read in flight.

    Parameters
    ----------
    exchange : Exchange
        Whose replica, scratch and device are used.
    window : PublicationWindow
    channels : Channels

    Attributes
    ----------
    own : array of the device, shape (n_params,)
        The contribution; the same array for the whole run.
    """

    def __init__(self, exchange: Exchange, window: PublicationWindow, channels: Channels):
        self._exchange, self._window, self._device = exchange, window, exchange.device
        self._publishes_own, self._own_entry = channels.publishes_own, channels.own_entry
        self._n_versions = channels.n_versions
        self._size, self._dtype = exchange.parameters.size, exchange.parameters.dtype
        self._direct = window.on_device
        self.own: Array = self._new()
        self._publishers = [
            Publisher(channel, self._device, None if self._direct else self._new()) for channel in window.channels
        ]
        self._spares: list[Slot] = []
        # Event after which the device does not use the last reads of the neighbours any more.
        self._used = self._device.record_event()

    def new_seen(self) -> Slot:
        """Return zeroed memory for the last publication of a neighbour: payload on the device, versions on the host."""
        return SplitSlot(np.zeros(self._n_versions, np.int64), self._new())

    def accept(self, other: Neighbour, buffer: Slot) -> Generator[None, None, Slot]:
        """Copy what was read to the device, unless it is there; see `Store.accept`."""
        if self._direct:
            while not self._used.done():  # MPI reads into the previous `seen` next, which the device may still use
                yield
            return (yield from swap_buffers(other, buffer))
        spare = self._spares.pop() if self._spares else self.new_seen()
        yield from wait_for(self._device.upload(buffer.payload, spare.payload, after=self._used))
        spare.versions[:] = buffer.versions
        self._spares.append(other.seen)
        other.seen = spare
        return buffer

    def sum_replica(self, neighbours: Sequence[Neighbour]) -> None:
        """Store the sum of the contribution and of what was read from `neighbours` into the replica."""
        sum_replica(self.own, [other.seen.payload for other in neighbours], self._exchange.parameters)
        self._used = self._device.record_event()

    def publish(
        self,
        due: list[bool],
        version: int,
        neighbours: Sequence[Neighbour],
        update: Update | None = None,
        catching_up: bool = False,
    ) -> list[bool]:
        """Add an update to the contribution, sum the replica again, and publish; see `Store.publish`."""
        publishers = self._publishers[: len(due)]
        waits = self._own_busy
        due = [now and not (waits or publisher.busy) for now, publisher in zip(due, publishers, strict=True)]
        payloads = [publisher.begin() if now else None for publisher, now in zip(publishers, due, strict=True)]
        self._store(payloads, neighbours, update, catching_up)
        self._used = self._device.record_event()
        seen = [other.seen.versions for other in neighbours]
        for number, (publisher, now) in enumerate(zip(publishers, due, strict=True)):
            if now:
                edge = number - self._publishes_own
                others = seen[:edge] + seen[edge + 1 :] if edge >= 0 else []
                versions = np.zeros(self._n_versions, np.int64)
                merge_versions(self._own_entry, version, others, versions)
                publisher.publish(self._used, versions)
        return due

    def poll(self) -> None:
        """Continue publications that are under way. Never waits."""
        for publisher in self._publishers:
            publisher.poll()
            if self._own_busy:  # the contribution is published first: it contains what an edge publishes of this rank
                break

    def finish(self) -> None:
        """Wait until all publications are complete."""
        while any(publisher.busy for publisher in self._publishers):
            self.poll()

    def publish_start(self) -> None:
        """Copy the initial contribution into the slot of publication 0. Waits for the copy."""
        if self._publishes_own:
            start = self._window.channels[0].published.payload
            start[...] = self.own if self._direct else self._device.to_host(self.own)
            self._device.wait()

    def free(self) -> None:
        """Wait until all publications are complete, and release the memory of the window."""
        self.finish()
        self._publishers.clear()

    @property
    def _own_busy(self) -> bool:
        return self._publishes_own and self._publishers[0].busy

    def _store(
        self, payloads: list[Array | None], neighbours: Sequence[Neighbour], update: Update | None, catching_up: bool
    ) -> None:
        """Store contribution, replica, and what the channels publish into `payloads`."""
        replica = self._exchange.parameters
        if update is not None:
            scaled = self._exchange.scratch
            update(0, self._size, scaled)
            add_up([self.own, scaled], self.own)
            if catching_up:
                add_up([replica, scaled], replica)
        own, edges = payloads[: self._publishes_own], payloads[self._publishes_own :]
        for payload in own:
            if payload is not None:
                payload[...] = self.own
        if catching_up:
            return
        seen = [other.seen.payload for other in neighbours]
        if any(edge is not None for edge in edges):
            sum_edges(self.own, seen, edges, replica)
        else:
            sum_replica(self.own, seen, replica)

    def _new(self) -> Array:
        return self._device.zeros(self._size, self._dtype)
