"""Where exchange `read` keeps its contribution, what it has read of others, and their sum: on a GPU.

Windows stay in host memory, page-locked. What is to be published is copied there from an array of its own while the
GPU goes on to compute, and its version is raised only when it is there. What was read, into page-locked memory too,
is copied to the GPU, and counts as read when it is there. Or windows are on the GPU too: then it is stored where others
read it, and MPI reads it into the GPU's memory, with no copy between.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hpc_dasgd.arrays.arithmetic import add_up
from hpc_dasgd.exchange.reader import Neighbour, swap
from hpc_dasgd.overlay.partial_sums import merge_versions, sum_edges, sum_replica
from hpc_dasgd.window.memory import arrival
from hpc_dasgd.window.publication import Channel, PublicationWindow, Slot, SplitSlot


class Outlet:
    """What a channel publishes, on its way to the window.

    Parameters
    ----------
    channel : Channel
    device : Gpu
    payload : array of the device, shape (n_params,), or None
        From where it is copied to the window; None where the window is on the device.
    """

    def __init__(self, channel: Channel, device, payload):
        self._channel, self._device, self._payload = channel, device, payload
        self._under_way, self._slot, self._versions = None, None, None

    @property
    def busy(self) -> bool:
        return self._under_way is not None

    def begin(self):
        """The array that the next publication is to be stored into; not while `busy`."""
        self._slot = self._channel.begin()
        return self._slot.payload if self._payload is None else self._payload

    def publish(self, mark, versions: np.ndarray) -> None:
        """Have what was stored, there at `mark`, published when it is in the window."""
        self._versions, self._under_way = versions, mark
        if self._payload is not None:
            self._under_way = self._device.download(self._payload, self._slot.payload, after=mark)

    def poll(self) -> None:
        """Publish what has come to the window. Never waits."""
        if self.busy and self._under_way.done():
            self._slot.versions[:] = self._versions
            self._channel.publish()  # behind a fence: a version is never ahead of its payload
            self._under_way = self._slot = None


class DeviceStore:
    """See `store.HostStore`, also for the parameters.

    Passes over the device's memory per step, in arrays of `n_params`, with `D` neighbours: ``D + 9`` in `publish` on
    the complete overlay (gradient read; update written and read; contribution read, written, and read twice more, for
    the copy, which is written, and for the sum; what was seen read, replica written), all of which is little beside a
    gradient. One copy to the host for each publication, one from it for each neighbour with news, both beside the
    gradient.

    Memory of the device, in the same unit: replica, gradient, scratch and contribution 1 each, a copy of what is on its
    way for each channel, seen `D`, and one more for each read in flight.
    """

    def __init__(self, exchange, window: PublicationWindow, shows_own: bool, own_entry: int):
        self._exchange, self._window, self._device = exchange, window, exchange.device
        self._shows_own, self._own_entry = shows_own, own_entry
        self._size, self._dtype = exchange.parameters.size, exchange.parameters.dtype
        self._n_versions = window.channels[0].slots[0].versions.size
        self._direct = window.on_device
        self.own = self._new()
        self._outlets = [
            Outlet(channel, self._device, None if self._direct else self._new()) for channel in window.channels
        ]
        self._spares: list[SplitSlot] = []
        self._mark = self._device.record_event()  # what was seen is not used any more by what was told before

    def new_seen(self) -> SplitSlot:
        return SplitSlot(np.zeros(self._n_versions, np.int64), self._new())

    def keep(self, other: Neighbour, buffer: Slot | SplitSlot) -> Iterator[None]:
        """Copy what was read to the device, if it is not there; see `reader.swap`."""
        if self._direct:
            while not self._mark.done():  # what was seen before, where MPI reads next, may be used until then
                yield
            return (yield from swap(other, buffer))
        spare = self._spares.pop() if self._spares else self.new_seen()
        yield from arrival(self._device.upload(buffer.payload, spare.payload, after=self._mark))
        spare.versions[:] = buffer.versions
        self._spares.append(other.seen)
        other.seen = spare
        return buffer

    def sum_replica(self, neighbours: Sequence[Neighbour]) -> None:
        sum_replica(self.own, [other.seen.payload for other in neighbours], self._exchange.parameters)
        self._mark = self._device.record_event()

    def publish(
        self, due: list[bool], version: int, neighbours: Sequence[Neighbour], update=None, mends: bool = False
    ) -> list[bool]:
        outlets = self._outlets[: len(due)]
        waits = self._own_busy
        due = [now and not (waits or outlet.busy) for now, outlet in zip(due, outlets, strict=True)]
        payloads = [outlet.begin() if now else None for outlet, now in zip(outlets, due, strict=True)]
        self._store(payloads, neighbours, update, mends)
        self._mark = self._device.record_event()
        seen = [other.seen.versions for other in neighbours]
        for number, (outlet, now) in enumerate(zip(outlets, due, strict=True)):
            if now:
                edge = number - self._shows_own
                others = seen[:edge] + seen[edge + 1 :] if edge >= 0 else []
                versions = np.zeros(self._n_versions, np.int64)
                merge_versions(self._own_entry, version, others, versions)
                outlet.publish(self._mark, versions)
        return due

    def poll(self) -> None:
        for outlet in self._outlets:
            outlet.poll()
            if self._own_busy:  # what an edge shows is always to be had from its owner too
                break

    @property
    def _own_busy(self) -> bool:
        return self._shows_own and self._outlets[0].busy

    def finish(self) -> None:
        while any(outlet.busy for outlet in self._outlets):
            self.poll()

    def show_start(self) -> None:
        """Have the contribution as it was first stand where those look who read it before it is published."""
        if self._shows_own:
            start = self._window.channels[0].published.payload
            start[...] = self.own if self._direct else self._device.to_host(self.own)
            self._device.wait()

    def free(self) -> None:
        self.finish()
        self._outlets.clear()

    def _store(self, payloads: list, neighbours, update, mends: bool) -> None:
        replica = self._exchange.parameters
        if update is not None:
            scaled = self._exchange.scratch
            update(0, self._size, scaled)
            add_up([self.own, scaled], self.own)
            if mends:
                add_up([replica, scaled], replica)
        shown, edges = payloads[: self._shows_own], payloads[self._shows_own :]
        for payload in shown:
            if payload is not None:
                payload[...] = self.own
        if mends:
            return
        seen = [other.seen.payload for other in neighbours]
        if any(edge is not None for edge in edges):
            sum_edges(self.own, seen, edges, replica)
        else:
            sum_replica(self.own, seen, replica)

    def _new(self):
        return self._device.zeros(self._size, self._dtype)
