"""A piece of memory that every rank reads and accumulates into at any time; the only caller of ``MPI.Win``.

When may I do this: making and freeing one is collective. Between the two, everybody uses everybody's, each at
any moment and without waiting for anybody.

The window is one passive-target epoch long: ``Lock_all(MODE_NOCHECK)`` when it is made, ``Unlock_all`` when
it is freed. NOCHECK is legal because nobody ever takes an exclusive lock.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from mpi4py import MPI

from hpc_dasgd.errors import WindowError

ALIGNMENT_BYTES = 64
TRANSFER_LIMIT_BYTES = 1 << 30  # larger single transfers fail on some networks
_PROBE_SIGNATURE = 0x0DA56D << 32  # plus the rank: what stands in front of each rank's memory
_DATATYPES = {np.dtype(np.float32): MPI.FLOAT, np.dtype(np.float64): MPI.DOUBLE, np.dtype(np.int64): MPI.INT64_T}


class Transfer:
    """A transfer under way. `done` polls; the buffers belong to it until it answers True.

    Parameters
    ----------
    requests : list of MPI.Request
    rest : iterator of list of MPI.Request, optional
        Pieces that are to follow, one after the other; each begins when it is asked for.
    """

    def __init__(self, requests: list, rest: Iterator[list] | None = None):
        self._requests, self._rest = requests, rest

    def done(self) -> bool:
        """Whether all of it is through; gives MPI a chance to progress, and begins what follows. Never waits."""
        while self._requests:
            if not self._requests[-1].Test():
                return False
            self._requests.pop()
        following = None if self._rest is None else next(self._rest, None)
        if following is None:
            return True
        self._requests = following
        return False


class Successive(Transfer):
    """Transfers one after the other, each begun by a function when the one before is through."""

    def __init__(self, begin: Iterable[Callable[[], Transfer]]):
        self._begin = iter(begin)
        self._under_way = next(self._begin)()

    def done(self) -> bool:
        """See `Transfer`."""
        while self._under_way.done():
            begin = next(self._begin, None)
            if begin is None:
                return True
            self._under_way = begin()
        return False


def arrival(transfer: Transfer) -> Iterator[None]:
    """Yield wherever one would have to wait for `transfer`."""
    while not transfer.done():
        yield


class WindowMemory:
    """Memory of this rank in a window. Collective over `comm`, as is `free`.

    Parameters
    ----------
    comm : MPI.Intracomm
    n_bytes : int
        This rank's; ranks may have different ones.
    request_reads : bool, optional
        Complete reads by polling requests (``Rget``) or at once (``Get`` and ``Flush``, which waits where the
        network needs the target's help). By default a probe decides: requests, where each rank really
        received what stands in its neighbour's memory through one.
    piece_bytes : int, optional
        Read larger pieces than that one after the other: where memory is shared, a read is a copy by this
        processor, which has something to do in between.
    device : Gpu, optional
        Whose memory to use in place of MPI's own, which allocates none there: reads then need an MPI that takes such
        memory, and may need the target's help. Raises `WindowError` where the probe moves nothing.

    Attributes
    ----------
    memory : array, shape (n_bytes,), uint8
        Zeroed, 64-byte aligned; of NumPy, or of `device`.
    transferred_bytes : int
        What this rank has read from and accumulated into other ranks' memory so far.

    Raises
    ------
    WindowError
        If the MPI library does not offer the unified memory model for this window.
    """

    def __init__(
        self,
        comm,
        n_bytes: int,
        request_reads: bool | None = None,
        piece_bytes: int | None = None,
        device=None,
    ):
        self.comm = comm
        self._device = device
        self._piece_bytes = piece_bytes
        self.transferred_bytes = 0
        # One more alignment unit, because not every MPI aligns what it allocates; one for the probe.
        n_bytes_in_all = n_bytes + 2 * ALIGNMENT_BYTES
        if device is None:
            self._window = MPI.Win.Allocate(n_bytes_in_all, 1, comm=comm)
            memory = np.frombuffer(self._window.tomemory(), np.uint8)
            memory[:] = 0
            base = -memory.ctypes.data % ALIGNMENT_BYTES
        else:
            memory, base = device.zeros(n_bytes_in_all, np.uint8), 0
            self._window = MPI.Win.Create(memory, 1, comm=comm)
        if self._window.model != MPI.WIN_UNIFIED:
            self._window.Free()
            raise WindowError(
                "one-sided reads need the unified memory model (MPI_WIN_UNIFIED), which this MPI does not offer here"
            )
        self._bases = comm.allgather(base)
        memory[base : base + 8].view(np.int64)[...] = _PROBE_SIGNATURE + comm.rank
        if device is not None:
            device.wait()
        self.memory = memory[base + ALIGNMENT_BYTES : base + ALIGNMENT_BYTES + n_bytes]
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        comm.Barrier()
        self._request_reads = True
        if request_reads is None or device is not None:
            self._request_reads = self._requests_work()
        if device is not None and not self._request_reads and not self._requests_work():
            self.free()
            raise WindowError("a probe read nothing from another rank's GPU memory")
        if request_reads is not None and device is None:
            self._request_reads = request_reads
        self.transferred_bytes = 0

    @property
    def requests(self) -> bool:
        """Whether reads are completed by polling requests."""
        return self._request_reads

    def read(self, target: int, source: int, out: np.ndarray) -> Transfer:
        """Begin to copy bytes of `target`'s memory from `source` on into `out` (contiguous). Never waits."""
        pieces = self._get(target, source, out.view(np.uint8))
        if self._piece_bytes is None:
            return Transfer([request for requests in pieces for request in requests])
        return Transfer(next(pieces, []), pieces)

    def add(self, target: int, source: int, values: np.ndarray, fetched: np.ndarray) -> Transfer:
        """Begin to add `values` to as many elements of `target`'s memory from byte `source` on. Never waits.

        Each element is added to atomically. When the transfer is done, all are: MPI has no other call whose
        request tells that (that of ``Raccumulate`` says no more than that `values` may be used again), and
        ``Flush`` would wait. The price is that the elements as they were come back.

        Parameters
        ----------
        target : int
        source : int
            A multiple of the element's size.
        values : ndarray, contiguous, float32, float64 or int64
            Not to be changed until the transfer is done.
        fetched : ndarray like `values`
            Overwritten.
        """
        window, datatype = self._open(), _DATATYPES[values.dtype]
        back = self._pieces(target, source, fetched)
        requests = [
            window.Rget_accumulate(
                [piece, piece.size, datatype],
                [next(back)[1], piece.size, datatype],
                target,
                [offset, piece.size, datatype],
                MPI.SUM,
            )
            for offset, piece in self._pieces(target, source, values)
        ]
        return Transfer(requests)

    def fence(self) -> None:
        """Order all loads and stores before it before all behind it (it matters on ARM). Never waits."""
        self._open().Sync()

    def free(self) -> None:
        """Give the memory back. Collective; every view of it is invalid afterwards."""
        if self._window is None:
            return
        self.memory = None
        self._window.Unlock_all()
        self._window.Free()
        self._window = None

    def _open(self):
        if self._window is None:
            raise WindowError("the window was freed")
        return self._window

    def _offset(self, target: int, source: int) -> int:
        return self._bases[target] + ALIGNMENT_BYTES + source

    def _get(self, target: int, source: int, out: np.ndarray) -> Iterator[list]:
        """Begin to copy piece after piece into `out`, uint8; yield the requests of each."""
        window = self._open()
        for offset, piece in self._pieces(target, source, out, self._piece_bytes or TRANSFER_LIMIT_BYTES):
            get = window.Rget if self._request_reads else window.Get
            request = get([piece, piece.size, MPI.BYTE], target, [offset, piece.size, MPI.BYTE])
            if not self._request_reads:
                window.Flush(target)
            yield [request] if self._request_reads else []

    def _pieces(self, target: int, source: int, local: np.ndarray, piece_bytes: int = TRANSFER_LIMIT_BYTES):
        """Yield (offset in the target's window, piece of `local`) of a transfer."""
        offset = self._offset(target, source)
        n_piece = min(piece_bytes, TRANSFER_LIMIT_BYTES) // local.itemsize
        for first in range(0, local.size, n_piece):
            piece = local[first : first + n_piece]
            self.transferred_bytes += piece.nbytes if target != self.comm.rank else 0
            yield offset + first * local.itemsize, piece

    def _requests_work(self) -> bool:
        """Read what stands in front of the next rank's memory, through a request at first. Collective."""
        target = (self.comm.rank + 1) % self.comm.size
        found = np.zeros(1, np.int64) if self._device is None else self._device.zeros(1, np.int64)
        transfer = self.read(target, -ALIGNMENT_BYTES, found)
        while not transfer.done():
            pass
        arrived = int(found[0]) == _PROBE_SIGNATURE + target
        # One answer for all, and nobody goes on to compute before its neighbour's probe is through.
        return self.comm.allreduce(bool(arrived), MPI.LAND)


def aligned(n_bytes: int) -> int:
    """`n_bytes`, rounded up to whole alignment units."""
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
