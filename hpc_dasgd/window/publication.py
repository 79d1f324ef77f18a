"""What a rank publishes for others to read.

A rank's memory holds one or more *channels*, each with what it publishes for some readers::

    header | slot 0: version vector, payload | slot 1: ... | ...

Publication `p` of a channel stands in slot ``p mod n_slots``. The owner says in the header which publication
it begins to write, writes the slot, and then says that it is published, with memory fences between. A reader
gets the header, the slot, and the header again: the slot held one publication only if the owner had not begun
publication ``p + n_slots`` meanwhile.
"""

from enum import IntEnum
from functools import partial

import numpy as np

from hpc_dasgd.arrays.devices import Host
from hpc_dasgd.window.memory import ALIGNMENT_BYTES, Successive, Transfer, WindowMemory, aligned


class Word(IntEnum):
    """Words of a channel's header, each an int64 that only the owner stores."""

    PUBLICATION = 0  # how many publications there have been
    BEGUN = 1  # the newest publication that the owner has begun to write
    STOP = 2  # not 0: the owner has a reason to end the run
    COMPLAINT = 3  # whom the owner cannot keep up with, and how many reads it has dropped so far; 0 at first
    VERSION = 4  # how many updates the owner has made, published or not
    OVERLAY = 5  # not 0: the owner has left the tree, and reads every rank
    HEARTBEAT = 6  # of channel 0: grows while the owner lives, if ranks are to survive others


N_WORDS = ALIGNMENT_BYTES // 8


class Slot:
    """A version vector and a payload side by side in one piece of memory, as they stand in a window.

    Attributes
    ----------
    memory : ndarray, shape (n_bytes,), uint8
        All of it, what one whole read transfers.
    versions : ndarray, shape (n_versions,), int64
    payload : ndarray, shape (n_params,), float32 or float64
    """

    def __init__(self, memory: np.ndarray, n_versions: int, n_params: int, dtype):
        offset = self.payload_offset_bytes(n_versions)
        self.memory = memory
        self.versions = memory[: n_versions * 8].view(np.int64)
        self.payload = memory[offset : offset + n_params * np.dtype(dtype).itemsize].view(dtype)

    @staticmethod
    def payload_offset_bytes(n_versions: int) -> int:
        """Bytes from the start of a slot to its payload."""
        return aligned(n_versions * 8)


class SplitSlot:
    """A version vector in host memory, and a payload elsewhere; see `Slot`."""

    def __init__(self, versions: np.ndarray, payload):
        self.versions, self.payload = versions, payload


class Channel:
    """The owner's side of a channel."""

    def __init__(self, header: np.ndarray, slots: list[Slot | SplitSlot], fence):
        self.slots = slots
        self.publication = 0
        self._header, self._fence = header, fence

    @property
    def published(self) -> Slot:
        """The slot of the last publication."""
        return self.slots[self.publication % len(self.slots)]

    def begin(self) -> Slot:
        """The slot of the next publication, which may be stored into until `publish`. Never waits."""
        begun = self.publication + 1
        if self._header[Word.BEGUN] != begun:
            self._header[Word.BEGUN] = begun
            self._fence()
        return self.slots[begun % len(self.slots)]

    def publish(self) -> None:
        """Let readers see the slot that was begun. Never waits."""
        self.publication += 1
        self._fence()
        self._header[Word.PUBLICATION] = self.publication
        self._fence()

    def set_word(self, word: Word, value: int) -> None:
        """Store `value` into the header. Never waits."""
        self._header[word] = value

    def beat(self) -> None:
        """Let the heartbeat grow. The one call that a second thread may make; it is none to MPI."""
        self._header[Word.HEARTBEAT] += 1


class PublicationWindow:
    """A rank's publications, readable by every other rank of `comm` at any time.

    Collective over `comm`, as is `free`.

    Parameters
    ----------
    comm : MPI.Intracomm
    n_params : int
        Length of a payload.
    dtype : float32 or float64
        Of a payload.
    n_slots : int
        Publications of a channel that stand side by side, at least 2.
    n_channels : int
        Of this rank; ranks may have different ones. All else is the same on all.
    n_versions : int
        Length of the version vector in front of each payload.
    request_reads : bool, optional
        See `WindowMemory`, also for what this may raise.
    device : Host or Gpu, optional
        To and from which payloads are copied: windows and buffers are made fast for that.
    on_device : bool, optional
        Have payloads in memory of `device`, in a window of their own; headers and version vectors stay in that of
        the host. Slots are `SplitSlot` then.

    Attributes
    ----------
    channels : list of Channel
    """

    def __init__(
        self,
        comm,
        n_params: int,
        dtype,
        n_slots: int,
        n_channels: int = 1,
        n_versions: int = 1,
        request_reads: bool | None = None,
        device=None,
        on_device: bool = False,
    ):
        self._device = device or Host()
        self._shape = (n_versions, 0 if on_device else n_params, np.dtype(dtype))
        self._slot_bytes = aligned(Slot.payload_offset_bytes(n_versions) + self._shape[1] * self._shape[2].itemsize)
        self._channel_bytes = ALIGNMENT_BYTES + n_slots * self._slot_bytes
        self._memory = WindowMemory(comm, n_channels * self._channel_bytes, request_reads, self._device.piece_bytes)
        self._registered = self._device.register(self._memory.memory)
        self._n_slots, self._payloads = n_slots, None
        if on_device:
            self._payload_bytes = aligned(n_params * self._shape[2].itemsize)
            self._n_params = n_params
            self._payloads = WindowMemory(
                comm,
                n_channels * n_slots * self._payload_bytes,
                request_reads,
                device=self._device,
            )
        self.channels = [self._channel(number, n_slots) for number in range(n_channels)]

    @property
    def on_device(self) -> bool:
        """Whether payloads are."""
        return self._payloads is not None

    @property
    def requests(self) -> bool:
        """Whether reads are completed by polling requests."""
        return self._memory.requests

    @property
    def transferred_bytes(self) -> int:
        """What this rank has read from others so far, headers included."""
        return sum(memory.transferred_bytes for memory in (self._memory, self._payloads) if memory is not None)

    def buffer(self) -> Slot | SplitSlot:
        """A slot outside the window, zeroed, to read another rank's into."""
        if self._payloads is not None:
            versions = np.zeros(self._shape[0], np.int64)
            return SplitSlot(versions, self._device.zeros(self._n_params, self._shape[2]))
        return Slot(self._device.host_zeros(self._slot_bytes), *self._shape)

    def set_word(self, word: Word, value: int) -> None:
        """Store `value` into the headers of all own channels. Never waits."""
        for channel in self.channels:
            channel.set_word(word, value)

    def read_header(self, target: int, channel: int, out: np.ndarray) -> Transfer:
        """Begin to copy a header of `target` into `out` (int64, shape (N_WORDS,)). Never waits for `target`."""
        return self._memory.read(target, channel * self._channel_bytes, out)

    def read_slot(self, target: int, channel: int, slot: int, out: Slot | SplitSlot) -> Transfer:
        """Begin to copy a slot of `target`, version vector and payload, into `out`. Never waits for `target`."""
        if self._payloads is not None:
            parts = self.read_versions, self.read_payload
            return Successive(partial(part, target, channel, slot, out) for part in parts)
        return self._memory.read(target, self._slot_offset(channel, slot), out.memory)

    def read_versions(self, target: int, channel: int, slot: int, out: Slot | SplitSlot) -> Transfer:
        """Begin to copy the version vector of a slot of `target` alone. Never waits for `target`."""
        return self._memory.read(target, self._slot_offset(channel, slot), out.versions)

    def read_payload(self, target: int, channel: int, slot: int, out: Slot | SplitSlot) -> Transfer:
        """Begin to copy the payload of a slot of `target` alone. Never waits for `target`."""
        if self._payloads is not None:
            return self._payloads.read(target, (channel * self._n_slots + slot) * self._payload_bytes, out.payload)
        source = self._slot_offset(channel, slot) + Slot.payload_offset_bytes(self._shape[0])
        return self._memory.read(target, source, out.payload)

    def fence(self) -> None:
        """Order all loads and stores before it before all behind it (it matters on ARM). Never waits."""
        self._memory.fence()

    def free(self) -> None:
        """Give the memory back. Collective; every `Slot` of this window is invalid afterwards."""
        self.channels.clear()
        if self._registered:
            self._device.unregister(self._memory.memory)
            self._registered = False
        if self._payloads is not None:
            self._payloads.free()
        self._memory.free()

    def _channel(self, number: int, n_slots: int) -> Channel:
        memory = self._memory.memory[number * self._channel_bytes :][: self._channel_bytes]
        header = memory[:ALIGNMENT_BYTES].view(np.int64)
        starts = range(ALIGNMENT_BYTES, self._channel_bytes, self._slot_bytes)
        slots = [Slot(memory[start : start + self._slot_bytes], *self._shape) for start in starts]
        if self._payloads is not None:
            first, n_bytes = number * n_slots, self._n_params * self._shape[2].itemsize
            places = [self._payloads.memory[(first + k) * self._payload_bytes :][:n_bytes] for k in range(n_slots)]
            slots = [
                SplitSlot(slot.versions, place.view(self._shape[2])) for slot, place in zip(slots, places, strict=True)
            ]
        return Channel(header, slots, self._memory.fence)

    def _slot_offset(self, channel: int, slot: int) -> int:
        return channel * self._channel_bytes + ALIGNMENT_BYTES + slot * self._slot_bytes
