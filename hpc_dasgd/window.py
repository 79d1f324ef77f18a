"""What a rank publishes for others to read, in an MPI window; the only caller of ``MPI.Win``.

When may I do this: making and freeing a window is collective. Between the two, the owner publishes and everybody reads,
each at any moment and without waiting for anybody.

The window is one passive-target epoch long: ``Lock_all(MODE_NOCHECK)`` when it is made, ``Unlock_all`` when
it is freed. NOCHECK is legal because nobody ever takes an exclusive lock. Its memory holds a header and
`n_slots` slots::

    header | slot 0: version vector, payload | slot 1: ... | ...

The owner writes a slot and then the header's publication count, with a memory fence between; a reader gets
the header, the slot, and the header again. Memory is 64-byte aligned throughout.
"""

from enum import IntEnum

import numpy as np
from mpi4py import MPI

from hpc_dasgd.errors import WindowError

ALIGNMENT_BYTES = 64
TRANSFER_LIMIT_BYTES = 1 << 30  # larger single transfers fail on some networks


class Word(IntEnum):
    """Words of the header, each an int64 that only the owner stores."""

    PUBLICATION = 0  # how many publications there have been
    STOP = 1  # not 0: the owner has a reason to end the run
    COMPLAINT = 2  # whom the owner cannot keep up with, and how many reads it has dropped so far; 0 at first
    VERSION = 3  # how many updates the owner has made, published or not
    PROBE = 4  # PROBE_SIGNATURE + rank, for the start-up probe


N_WORDS = ALIGNMENT_BYTES // 8
_PROBE_SIGNATURE = 0x0DA56D << 32


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
        return _aligned(n_versions * 8)


class Transfer:
    """A read under way. `done` polls; the buffer is undefined until it answers True."""

    def __init__(self, requests: list):
        self._requests = requests

    def done(self) -> bool:
        """Whether all of it has arrived; gives MPI a chance to progress, never waits."""
        while self._requests:
            if not self._requests[-1].Test():
                return False
            self._requests.pop()
        return True


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
        Publications that stand side by side: slot `p` may be stored into again once `p + n_slots - 1` is published.
    n_versions : int
        Length of the version vector in front of each payload.
    request_reads : bool, optional
        Complete reads by polling requests (``Rget``) or at once (``Get`` and ``Flush``, which waits where the
        network needs the target's help). By default a probe decides: requests, where each rank really
        received its neighbour's header through one.

    Raises
    ------
    WindowError
        If the MPI library does not offer the unified memory model for this window.
    """

    def __init__(
        self, comm, n_params: int, dtype, n_slots: int, n_versions: int = 1, request_reads: bool | None = None
    ):
        self.comm = comm
        self._shape = (n_versions, n_params, np.dtype(dtype))
        self._slot_bytes = _aligned(Slot.payload_offset_bytes(n_versions) + n_params * self._shape[2].itemsize)
        # One more alignment unit, because not every MPI aligns what it allocates.
        n_bytes = ALIGNMENT_BYTES + n_slots * self._slot_bytes
        self._window = MPI.Win.Allocate(n_bytes + ALIGNMENT_BYTES, 1, comm=comm)
        if self._window.model != MPI.WIN_UNIFIED:
            self._window.Free()
            raise WindowError(
                "one-sided reads need the unified memory model (MPI_WIN_UNIFIED), which this MPI does not offer here"
            )
        memory = np.frombuffer(self._window.tomemory(), np.uint8)
        self._base = -memory.ctypes.data % ALIGNMENT_BYTES
        self._bases = comm.allgather(self._base)
        memory[:] = 0
        memory = memory[self._base : self._base + n_bytes]
        self._header = memory[:ALIGNMENT_BYTES].view(np.int64)
        self.slots = [
            Slot(memory[start : start + self._slot_bytes], *self._shape)
            for start in range(ALIGNMENT_BYTES, n_bytes, self._slot_bytes)
        ]
        self._header[Word.PROBE] = _PROBE_SIGNATURE + comm.rank
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        comm.Barrier()
        self._request_reads = True
        self._request_reads = self._requests_work() if request_reads is None else request_reads

    @property
    def requests(self) -> bool:
        """Whether reads are completed by polling requests."""
        return self._request_reads

    def buffer(self) -> Slot:
        """A slot in ordinary memory, zeroed, to read another rank's into."""
        memory = np.zeros(self._slot_bytes + ALIGNMENT_BYTES, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT_BYTES
        return Slot(memory[start : start + self._slot_bytes], *self._shape)

    def publish(self, publication: int) -> None:
        """Let readers see all stores made so far, as publication number `publication`. Never waits."""
        self.fence()
        self._header[Word.PUBLICATION] = publication
        self.fence()

    def set_word(self, word: Word, value: int) -> None:
        """Store `value` into the own header. Never waits."""
        self._header[word] = value

    def read_header(self, target: int, out: np.ndarray) -> Transfer:
        """Begin to copy the header of `target` into `out` (int64, shape (N_WORDS,)). Never waits for `target`."""
        return self._read(target, 0, out, 0, ALIGNMENT_BYTES)

    def read_slot(self, target: int, slot: int, out: Slot) -> Transfer:
        """Begin to copy one whole slot of `target`, versions and payload, into `out`. Never waits for `target`."""
        return self._read(target, self._slot_offset(slot), out.memory, 0, self._slot_bytes)

    def read_versions(self, target: int, slot: int, out: Slot) -> Transfer:
        """Begin to copy the version vector alone of one slot of `target` into `out`. Never waits for `target`."""
        return self._read(target, self._slot_offset(slot), out.memory, 0, self._shape[0] * 8)

    def read_payload(self, target: int, slot: int, out: Slot) -> Transfer:
        """Begin to copy the payload alone of one slot of `target` into `out`. Never waits for `target`."""
        start = Slot.payload_offset_bytes(self._shape[0])
        return self._read(target, self._slot_offset(slot) + start, out.memory, start, self._slot_bytes - start)

    def free(self) -> None:
        """Give the memory back. Collective; every `Slot` of this window is invalid afterwards."""
        if self._window is None:
            return
        self.slots.clear()
        self._header = None
        self._window.Unlock_all()
        self._window.Free()
        self._window = None

    def fence(self) -> None:
        """Order all loads and stores before it before all behind it (it matters on ARM). Never waits."""
        if self._window is None:
            raise WindowError("the window was freed")
        self._window.Sync()

    def _slot_offset(self, slot: int) -> int:
        return ALIGNMENT_BYTES + slot * self._slot_bytes

    def _read(self, target: int, source: int, out: np.ndarray, start: int, n_bytes: int) -> Transfer:
        if self._window is None:
            raise WindowError("the window was freed")
        out = out.view(np.uint8)
        source += self._bases[target]
        get = self._window.Rget if self._request_reads else self._window.Get
        requests = []
        for done in range(0, n_bytes, TRANSFER_LIMIT_BYTES):
            n = min(TRANSFER_LIMIT_BYTES, n_bytes - done)
            requests.append(get([out[start + done :], n, MPI.BYTE], target, [source + done, n, MPI.BYTE]))
        if not self._request_reads:
            self._window.Flush(target)
            requests.clear()
        return Transfer(requests)

    def _requests_work(self) -> bool:
        """Read the next rank's header through a request and look whether it came. Collective."""
        target = (self.comm.rank + 1) % self.comm.size
        header = np.zeros(N_WORDS, np.int64)
        transfer = self.read_header(target, header)
        while not transfer.done():
            pass
        arrived = header[Word.PROBE] == _PROBE_SIGNATURE + target
        # One answer for all, and nobody goes on to compute before its neighbour's probe is through.
        return self.comm.allreduce(bool(arrived), MPI.LAND)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
