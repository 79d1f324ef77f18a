"""Windows in which a rank publishes payloads for others to read.

The memory of a rank holds one or more *channels*; each channel serves some of the readers::

    header | slot 0: version vector, payload | slot 1: ... | ...

Publication `p` of a channel is in slot ``p mod n_slots``. The owner first stores into the header which publication it
starts to write, then writes the slot, and then stores that the publication is complete, with memory fences in between.
A reader transfers the header, the slot, and the header again: it has read a single publication only if the owner had
not started publication ``p + n_slots`` in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hpc_dasgd.arrays.devices import Device, Host
from hpc_dasgd.arrays.types import Int64s
from hpc_dasgd.window.memory import ALIGNMENT_BYTES, Transfer, TransferSequence, WindowMemory, aligned
from hpc_dasgd.window.slots import ContiguousSlot, PublicationLayout, Slot, SplitSlot

if TYPE_CHECKING:
    from mpi4py import MPI


class HeaderField(IntEnum):
    """Fields of a channel's header, by index; each is an int64 that only the owner stores."""

    PUBLICATION = 0  # number of publications so far
    BEGUN = 1  # newest publication that the owner has started to write
    STOP = 2  # not 0: the owner requests the end of the run
    DROPPED_READS = 3  # n_dropped * n_ranks + rank: reads dropped so far, and the rank that publishes too fast; 0: none
    VERSION = 4  # number of updates that the owner has made, published or not
    LEFT_TREE = 5  # not 0: the owner has left the tree overlay, and reads every rank
    HEARTBEAT = 6  # of channel 0: grows as long as the owner runs, if ranks are to survive the deaths of others


HEADER_LENGTH = ALIGNMENT_BYTES // 8


class Channel:
    """One channel of this rank, as its owner uses it. Nothing here is collective, and nothing waits.

    Parameters
    ----------
    header : ndarray, shape (HEADER_LENGTH,), int64
        Header of the channel in the window.
    slots : sequence of Slot
        Slots of the channel in the window.
    fence : callable
        Issues a full memory fence.

    Attributes
    ----------
    slots : sequence of Slot
    publication : int
        Number of publications so far.
    """

    def __init__(self, header: Int64s, slots: Sequence[Slot], fence: Callable[[], None]):
        self.slots = slots
        self.publication = 0
        self._header, self._fence = header, fence

    @property
    def published(self) -> Slot:
        """Slot of the last publication."""
        return self.slots[self.publication % len(self.slots)]

    def begin(self) -> Slot:
        """Return the slot of the next publication, which may be written until `publish` is called.

        Further calls before `publish` return the same slot.
        """
        begun = self.publication + 1
        if self._header[HeaderField.BEGUN] != begun:
            self._header[HeaderField.BEGUN] = begun
            self._fence()
        return self.slots[begun % len(self.slots)]

    def publish(self) -> None:
        """Publish the slot that `begin` returned."""
        self.publication += 1
        self._fence()
        self._header[HeaderField.PUBLICATION] = self.publication
        self._fence()

    def set_field(self, field: HeaderField, value: int) -> None:
        """Store `value` into a field of the header."""
        self._header[field] = value

    def increment_heartbeat(self) -> None:
        """Increment the heartbeat. The only call that a second thread may make; it does not call MPI."""
        self._header[HeaderField.HEARTBEAT] += 1


class PublicationWindow:
    """The publications of this rank, which every other rank of `comm` can read at any time.

    Making one and `free` are collective over `comm`; the other methods are not collective.

    Parameters
    ----------
    comm : MPI.Intracomm
    layout : PublicationLayout
    request_reads : bool, optional
        See `WindowMemory`.
    device : Device, optional
        Device to and from which payloads are copied: the memory of the window and buffers is page-locked for it. By
        default the processor.
    on_device : bool, optional
        Put payloads into memory of `device`, in a window of their own. Headers and version vectors stay in host
        memory, and slots are `SplitSlot` objects. Without it slots are `ContiguousSlot` objects.

    Attributes
    ----------
    channels : list of Channel
        Channels of this rank; empty after `free`.

    Raises
    ------
    WindowError
        As for `WindowMemory`.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        layout: PublicationLayout,
        request_reads: bool | None = None,
        device: Device | None = None,
        on_device: bool = False,
    ):
        self._device: Device = device or Host()
        self._layout = layout
        self._host_layout = replace(layout, n_params=0) if on_device else layout
        self._slot_bytes, self._channel_bytes = self._host_layout.slot_bytes, self._host_layout.channel_bytes
        self._payload_offset_bytes = layout.payload_offset_bytes
        n_bytes = layout.n_channels * self._channel_bytes
        self._memory = WindowMemory(comm, n_bytes, request_reads, self._device.piece_bytes)
        self._registered = self._device.register(self._memory.memory)
        self._payloads: WindowMemory | None = None
        self._payload_stride_bytes = aligned(layout.payload_bytes)
        if on_device:
            n_bytes = layout.n_channels * layout.n_slots * self._payload_stride_bytes
            self._payloads = WindowMemory(comm, n_bytes, request_reads, device=self._device)
        self.channels = [self._channel(number) for number in range(layout.n_channels)]

    @property
    def on_device(self) -> bool:
        """True if payloads are in memory of the device."""
        return self._payloads is not None

    @property
    def uses_requests(self) -> bool:
        """True if reads are completed by polling requests."""
        return self._memory.uses_requests

    @property
    def transferred_bytes(self) -> int:
        """Number of bytes that this rank has read from other ranks so far, headers included."""
        return sum(memory.transferred_bytes for memory in (self._memory, self._payloads) if memory is not None)

    def buffer(self) -> Slot:
        """Return a zeroed slot outside the window, into which slots of other ranks can be read."""
        if self._payloads is not None:
            versions = np.zeros(self._layout.n_versions, np.int64)
            return SplitSlot(versions, self._device.zeros(self._layout.n_params, self._layout.dtype))
        return ContiguousSlot(self._device.host_zeros(self._slot_bytes), self._layout)

    def set_field(self, field: HeaderField, value: int) -> None:
        """Store `value` into a field of the headers of all own channels. Never waits."""
        for channel in self.channels:
            channel.set_field(field, value)

    def read_header(self, target: int, channel: int, out: Int64s) -> Transfer:
        """Start to copy the header of a channel of `target`. Never waits for `target`.

        Parameters
        ----------
        target : int
            Rank to read, ``0 <= target < n_ranks``.
        channel : int
            Number of the channel of `target`.
        out : ndarray, shape (HEADER_LENGTH,), int64, host memory
            Overwritten.

        Raises
        ------
        WindowError
            If the window was freed.
        """
        return self._memory.read(target, channel * self._channel_bytes, out)

    def read_slot(self, target: int, channel: int, slot: int, out: Slot) -> Transfer:
        """Start to copy the version vector and the payload of a slot of `target`. Never waits for `target`.

        Parameters
        ----------
        target : int
            Rank to read, ``0 <= target < n_ranks``.
        channel : int
            Number of the channel of `target`.
        slot : int
            Number of the slot of the channel, ``0 <= slot < n_slots``.
        out : Slot
            Overwritten; a slot from `buffer` is filled as fast as possible.

        Raises
        ------
        WindowError
            If the window was freed.
        """
        if self._payloads is None and isinstance(out, ContiguousSlot):
            return self._memory.read(target, self._slot_offset(channel, slot), out.memory)
        parts = self.read_versions, self.read_payload
        return TransferSequence(partial(part, target, channel, slot, out) for part in parts)

    def read_versions(self, target: int, channel: int, slot: int, out: Slot) -> Transfer:
        """Start to copy only the version vector of a slot of `target`; otherwise as `read_slot`."""
        return self._memory.read(target, self._slot_offset(channel, slot), out.versions)

    def read_payload(self, target: int, channel: int, slot: int, out: Slot) -> Transfer:
        """Start to copy only the payload of a slot of `target`; otherwise as `read_slot`."""
        if self._payloads is not None:
            source = (channel * self._layout.n_slots + slot) * self._payload_stride_bytes
            return self._payloads.read(target, source, out.payload)
        source = self._slot_offset(channel, slot) + self._payload_offset_bytes
        return self._memory.read(target, source, out.payload)

    def fence(self) -> None:
        """Issue a full memory fence, which matters on ARM. Never waits."""
        self._memory.fence()

    def free(self) -> None:
        """Free the window; a second call does nothing. Collective over `comm`.

        Every slot and header of the window is invalid afterwards.
        """
        self.channels.clear()
        if self._registered:
            self._device.unregister(self._memory.memory)
            self._registered = False
        if self._payloads is not None:
            self._payloads.free()
        self._memory.free()

    def _channel(self, number: int) -> Channel:
        """Return an own channel: views of the memory of the window."""
        memory = self._memory.memory[number * self._channel_bytes :][: self._channel_bytes]
        header = memory[:ALIGNMENT_BYTES].view(np.int64)
        starts = range(ALIGNMENT_BYTES, self._channel_bytes, self._slot_bytes)
        slots = [ContiguousSlot(memory[start : start + self._slot_bytes], self._host_layout) for start in starts]
        if self._payloads is None:
            return Channel(header, slots, self._memory.fence)
        first = number * self._layout.n_slots
        split_slots = []
        for position, slot in enumerate(slots, start=first):
            payload = self._payloads.memory[position * self._payload_stride_bytes :][: self._layout.payload_bytes]
            split_slots.append(SplitSlot(slot.versions, payload.view(self._layout.dtype)))
        return Channel(header, split_slots, self._memory.fence)

    def _slot_offset(self, channel: int, slot: int) -> int:
        return channel * self._channel_bytes + ALIGNMENT_BYTES + slot * self._slot_bytes
