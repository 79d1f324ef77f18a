"""Window memory that every rank can read and accumulate into at any time; the only module that uses ``MPI.Win``.

When these calls may be made: making and freeing a window is collective. In between, any rank may access the memory of
any rank at any moment, and never waits for another rank.

A window has one passive-target access epoch, from ``Lock_all(MODE_NOCHECK)`` when it is made to ``Unlock_all`` when it
is freed. ``MODE_NOCHECK`` is valid because no rank ever takes an exclusive lock. ``docs/architecture.md``, "Rules of
one-sided MPI", lists the rules that exchanges follow.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.devices import Completion, Device
from hpc_dasgd.arrays.types import AnyArray, Array
from hpc_dasgd.errors import WindowError

ALIGNMENT_BYTES = 64
TRANSFER_LIMIT_BYTES = 1 << 30  # larger single transfers fail on some networks
_PROBE_SIGNATURE = 0x0DA56D << 32  # this plus the rank is stored in front of the memory of each rank
_DATATYPES: dict[np.dtype[Any], MPI.Datatype] = {
    np.dtype(np.float32): MPI.FLOAT,
    np.dtype(np.float64): MPI.DOUBLE,
    np.dtype(np.int64): MPI.INT64_T,
}


class Transfer:
    """A one-sided transfer that is under way.

    Its buffers must not be used until `done` returns True.

    Parameters
    ----------
    requests : list of MPI.Request
        Requests that have been started.
    rest : iterator of list of MPI.Request, optional
        Further pieces of the transfer. Each item is started when it is taken from the iterator, which happens when
        the previous piece is complete.
    """

    def __init__(self, requests: list[MPI.Request], rest: Iterator[list[MPI.Request]] | None = None):
        self._requests, self._rest = requests, rest

    def done(self) -> bool:
        """Return True if the transfer is complete. Not collective; never waits.

        The call gives MPI an opportunity for progress, and starts the next piece.
        """
        while self._requests:
            if not self._requests[-1].Test():
                return False
            self._requests.pop()
        following = None if self._rest is None else next(self._rest, None)
        if following is None:
            return True
        self._requests = following
        return False


class TransferSequence(Transfer):
    """Several transfers, each of which is started when the previous one is complete.

    Parameters
    ----------
    starts : iterable of callable
        Functions that start a transfer and return it; at least one.
    """

    def __init__(self, starts: Iterable[Callable[[], Transfer]]):
        super().__init__([])
        self._starts = iter(starts)
        self._current = next(self._starts)()

    def done(self) -> bool:
        """Return True if the last transfer is complete; see `Transfer.done`."""
        while self._current.done():
            start = next(self._starts, None)
            if start is None:
                return True
            self._current = start()
        return False


def wait_for(transfer: Completion) -> Iterator[None]:
    """Poll `transfer`, and yield as long as it is not complete.

    A generator that moves data uses it as ``yield from wait_for(transfer)``: control returns to the caller instead of
    waiting.

    Examples
    --------
    >>> list(wait_for(Transfer([])))
    []
    """
    while not transfer.done():
        yield


class WindowMemory:
    """Memory of this rank in a window.

    Making one and `free` are collective over `comm`; the other methods are not collective.

    Parameters
    ----------
    comm : MPI.Intracomm
    n_bytes : int
        Size of the memory of this rank, which may differ between ranks.
    request_reads : bool, optional
        True: reads are completed by polling requests (``Rget``). False: they are complete at once (``Get`` and
        ``Flush``, which waits if the network needs the target's help). By default a probe decides: requests are used
        if each rank receives the right bytes of its neighbour's memory through one.
    piece_bytes : int, optional
        Size of the pieces in which memory is read, one after the other. In shared memory a read is a copy by this
        processor, which can poll a device between two pieces. By default a read has no more pieces than
        `TRANSFER_LIMIT_BYTES` demands, and all are started together.
    device : Device, optional
        Device whose memory the window exposes, instead of host memory allocated by MPI. Reads then need a CUDA-aware
        MPI, and may need the target's help.

    Attributes
    ----------
    comm : MPI.Intracomm
    memory : array, shape (n_bytes,), uint8
        Memory of this rank, zeroed and aligned to 64 bytes: a NumPy array, or an array of `device`. None after `free`.
    transferred_bytes : int
        Number of bytes that this rank has read from and accumulated into the memory of other ranks.

    Raises
    ------
    WindowError
        If the MPI library does not offer the unified memory model for this window, or if the probe reads nothing from
        the memory of `device`.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        n_bytes: int,
        request_reads: bool | None = None,
        piece_bytes: int | None = None,
        device: Device | None = None,
    ):
        self.comm = comm
        self._device = device
        self._piece_bytes = piece_bytes
        self.transferred_bytes = 0
        # One more alignment unit, because not every MPI aligns what it allocates, and one for the probe.
        self._window, memory, base = self._allocate(n_bytes + 2 * ALIGNMENT_BYTES)
        self._bases: list[int] = comm.allgather(base)
        memory[base : base + 8].view(np.int64)[...] = _PROBE_SIGNATURE + comm.rank
        if device is not None:
            device.wait()
        self.memory = memory[base + ALIGNMENT_BYTES : base + ALIGNMENT_BYTES + n_bytes]
        self._open().Lock_all(MPI.MODE_NOCHECK)
        self._open().Sync()
        comm.Barrier()
        self._request_reads = self._choose_request_reads(request_reads)
        self.transferred_bytes = 0

    @property
    def uses_requests(self) -> bool:
        """True if reads are completed by polling requests; the same on all ranks unless `request_reads` was given."""
        return self._request_reads

    def read(self, target: int, source: int, out: Array) -> Transfer:
        """Start to copy bytes of another rank's memory into `out`. Not collective; never waits for `target`.

        Parameters
        ----------
        target : int
            Rank to read, ``0 <= target < n_ranks``.
        source : int
            Offset of the first byte in the memory of `target`.
        out : array, C-contiguous, host memory or memory of the device
            Overwritten; its size is the number of bytes to read.

        Raises
        ------
        WindowError
            If the window was freed.
        """
        pieces = self._get(target, source, out.view(np.uint8))
        if self._piece_bytes is None:
            return Transfer([request for requests in pieces for request in requests])
        return Transfer(next(pieces, []), pieces)

    def add(self, target: int, source: int, values: AnyArray, fetched: AnyArray) -> Transfer:
        """Start to add `values` to elements of another rank's memory. Not collective; never waits for `target`.

        Each element is updated atomically. The transfer is complete when all elements have been added to. MPI has no
        other call whose request indicates this: the request of ``Raccumulate`` only indicates that `values` may be used
        again, and ``Flush`` would wait. The price is that the previous values of the elements are transferred back.

        Parameters
        ----------
        target : int
            Rank whose memory is changed, ``0 <= target < n_ranks``.
        source : int
            Offset of the first element in the memory of `target`, in bytes; a multiple of the element's size.
        values : ndarray, C-contiguous, float32, float64 or int64
            Must not change until the transfer is complete.
        fetched : ndarray like `values`
            Overwritten by the previous values of the elements.

        Raises
        ------
        WindowError
            If the window was freed.
        """
        window, datatype = self._open(), _DATATYPES[values.dtype]
        results = self._pieces(target, source, fetched)
        requests: list[MPI.Request] = [
            window.Rget_accumulate(
                [piece, piece.size, datatype],
                [next(results)[1], piece.size, datatype],
                target,
                (offset, piece.size, datatype),
                MPI.SUM,
            )
            for offset, piece in self._pieces(target, source, values)
        ]
        return Transfer(requests)

    def fence(self) -> None:
        """Issue a full memory fence (``MPI_Win_sync``), which matters on ARM. Not collective; never waits."""
        self._open().Sync()

    def free(self) -> None:
        """Free the window; a second call does nothing. Collective over `comm`.

        Every view of `memory` is invalid afterwards.
        """
        if self._window is None:
            return
        self.memory = None
        self._window.Unlock_all()
        self._window.Free()
        self._window = None

    def _allocate(self, n_bytes: int) -> tuple[MPI.Win | None, Array, int]:
        """Make a window; return it, its memory and the offset of the first aligned byte. Collective over `comm`."""
        memory: Array
        if self._device is None:
            window = MPI.Win.Allocate(n_bytes, 1, comm=self.comm)
            memory = np.frombuffer(window.tomemory().cast("B"), np.uint8)
            memory[:] = 0
            base = -memory.ctypes.data % ALIGNMENT_BYTES
        else:
            memory, base = self._device.zeros(n_bytes, np.uint8), 0
            window = MPI.Win.Create(memory, 1, comm=self.comm)
        if window.model != MPI.WIN_UNIFIED:
            window.Free()
            raise WindowError(
                "one-sided reads need the unified memory model (MPI_WIN_UNIFIED), which this MPI does not offer here"
            )
        return window, memory, base

    def _choose_request_reads(self, wanted: bool | None) -> bool:
        """Return whether reads use requests; see the parameter `request_reads`. Collective over `comm`."""
        if wanted is not None and self._device is None:
            return wanted
        self._request_reads = True
        works = self._probe_reads()
        if self._device is not None and not works:
            self._request_reads = False
            if not self._probe_reads():
                self.free()
                raise WindowError("a probe read nothing from another rank's GPU memory")
        return works

    def _open(self) -> MPI.Win:
        if self._window is None:
            raise WindowError("the window was freed")
        return self._window

    def _offset(self, target: int, source: int) -> int:
        return self._bases[target] + ALIGNMENT_BYTES + source

    def _get(self, target: int, source: int, out: Array) -> Iterator[list[MPI.Request]]:
        """Start to copy piece after piece into `out`, uint8; yield the requests of each piece."""
        window = self._open()
        for offset, piece in self._pieces(target, source, out, self._piece_bytes or TRANSFER_LIMIT_BYTES):
            buffer, there = [piece, piece.size, MPI.BYTE], (offset, piece.size, MPI.BYTE)
            if self._request_reads:
                yield [window.Rget(buffer, target, there)]
            else:
                window.Get(buffer, target, there)
                window.Flush(target)
                yield []

    def _pieces(
        self, target: int, source: int, local: Array, piece_bytes: int = TRANSFER_LIMIT_BYTES
    ) -> Iterator[tuple[int, Array]]:
        """Yield (offset in the window of `target`, piece of `local`) for each piece of a transfer, and count it."""
        offset = self._offset(target, source)
        n_piece = min(piece_bytes, TRANSFER_LIMIT_BYTES) // local.itemsize
        for first in range(0, local.size, n_piece):
            piece = local[first : first + n_piece]
            self.transferred_bytes += piece.nbytes if target != self.comm.rank else 0
            yield offset + first * local.itemsize, piece

    def _probe_reads(self) -> bool:
        """Return True if every rank can read the signature of the next rank. Collective over `comm`."""
        target = (self.comm.rank + 1) % self.comm.size
        signature = np.zeros(1, np.int64) if self._device is None else self._device.zeros(1, np.int64)
        transfer = self.read(target, -ALIGNMENT_BYTES, signature)
        while not transfer.done():
            pass
        arrived = int(signature[0]) == _PROBE_SIGNATURE + target
        # All ranks get the same answer, and none starts to compute while its neighbour still waits for its probe.
        return self.comm.allreduce(bool(arrived), MPI.LAND)


def aligned(n_bytes: int) -> int:
    """Return `n_bytes`, rounded up to a multiple of `ALIGNMENT_BYTES`.

    Examples
    --------
    >>> aligned(0), aligned(1), aligned(64)
    (0, 64, 64)
    """
    return ceil_div(n_bytes, ALIGNMENT_BYTES) * ALIGNMENT_BYTES
