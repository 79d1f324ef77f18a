"""Windows with a model to which ranks add their updates, and with the number of updates of each rank in it.

The memory of a rank is::

    flags | counters, one per rank | payload: the model

A rank that adds an update to the payload adds to its own counter only after that is complete. The updates that a
reader finds counted are therefore part of a payload that it reads after the counters; the payload may contain more.
Once the window is made, its owner stores nothing into it, because updates that other ranks add between a load and a
store of the owner would be lost. The owner adds to its own model by the same calls as the other ranks.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from hpc_dasgd.arrays.types import AnyArray, Floats, Int64s
from hpc_dasgd.window.memory import ALIGNMENT_BYTES, Transfer, WindowMemory, aligned

if TYPE_CHECKING:
    from mpi4py import MPI


class Flag(IntEnum):
    """Flags in front of the counters, by index; each is an int64 that any rank may raise and no rank lowers."""

    STOP = 0  # a rank requests the end of the run


N_FLAGS = ALIGNMENT_BYTES // 8
_COUNTERS_OFFSET_BYTES = N_FLAGS * 8


class ModelHeader:
    """Flags and counters of a rank, contiguous as in its window.

    Parameters
    ----------
    memory : ndarray, shape (N_FLAGS + n_ranks,), int64

    Attributes
    ----------
    memory : ndarray, shape (N_FLAGS + n_ranks,), int64
    counters : ndarray, shape (n_ranks,), int64
        Number of updates of each rank in the payload; a view of `memory`.
    """

    def __init__(self, memory: Int64s):
        self.memory = memory
        self.counters = memory[N_FLAGS:]

    @property
    def stopping(self) -> bool:
        """True if a rank requests the end of the run."""
        return bool(self.memory[Flag.STOP])


class ModelWindow:
    """A model of this rank, which every rank of `comm` can read and add to at any time.

    Making one and `free` are collective over `comm`; the other methods are not collective, and never wait.

    Parameters
    ----------
    comm : MPI.Intracomm
    model : ndarray, shape (n_params,), float32 or float64, optional
        Initial values of the payload. Without it the window of this rank has flags and counters only.

    Attributes
    ----------
    rank : int
        This rank.
    header : ModelHeader
        Header of this rank, read-only; other ranks add to it at any time. After `free`, a copy of the last values.
    """

    def __init__(self, comm: MPI.Intracomm, model: Floats | None = None):
        self.rank = comm.rank
        self._comm = comm
        n_words = N_FLAGS + comm.size
        self._payload_offset_bytes = aligned(n_words * 8)
        payload_bytes = 0 if model is None else model.nbytes
        self._memory = WindowMemory(comm, self._payload_offset_bytes + payload_bytes)
        self.header = ModelHeader(self._memory.memory[: n_words * 8].view(np.int64))
        if model is not None:
            self._memory.memory[self._payload_offset_bytes :].view(model.dtype)[:] = model
        self._memory.fence()
        comm.Barrier()  # no rank adds to a payload before it is initialized

    @property
    def transferred_bytes(self) -> int:
        """Number of bytes that this rank has read from and added to windows of other ranks, headers included."""
        return self._memory.transferred_bytes

    def new_header(self) -> ModelHeader:
        """Return a zeroed header in ordinary memory, into which headers of other ranks can be read."""
        return ModelHeader(np.zeros_like(self.header.memory))

    def read_header(self, target: int, out: ModelHeader) -> Transfer:
        """Start to copy the header of `target` into `out`; that of this rank is copied at once.

        Raises
        ------
        WindowError
            If the window was freed and `target` is another rank.
        """
        return self._read(target, 0, out.memory)

    def read_payload(self, target: int, lo: int, out: Floats) -> Transfer:
        """Start to copy elements of the payload of `target`; those of this rank are copied at once.

        Elements to which another rank adds at the same time are read with or without its update.

        Parameters
        ----------
        target : int
            Rank to read; it must have a payload.
        lo : int
            Index of the first element.
        out : ndarray, shape (n,), the payload's dtype, C-contiguous
            Overwritten by the elements ``lo`` to ``lo + n - 1``.

        Raises
        ------
        WindowError
            If the window was freed and `target` is another rank.
        """
        return self._read(target, self._payload_offset_bytes + lo * out.itemsize, out)

    def add_payload(self, target: int, lo: int, values: Floats, fetched: Floats) -> Transfer:
        """Start to add `values` to the payload of `target` from element `lo` on; see `WindowMemory.add`."""
        return self._memory.add(target, self._payload_offset_bytes + lo * values.itemsize, values, fetched)

    def add_count(self, target: int, n_updates: int, buffer: Int64s) -> Transfer:
        """Start to add `n_updates` to the counter of this rank in the header of `target`.

        `buffer` (int64, shape (2,)) is overwritten, and must not be used until the transfer is complete.
        """
        return self._add_word(target, _COUNTERS_OFFSET_BYTES + self.rank * 8, n_updates, buffer)

    def raise_flag(self, target: int, flag: Flag, buffer: Int64s) -> Transfer:
        """Start to raise a flag of `target`; `buffer` as for `add_count`."""
        return self._add_word(target, flag * 8, 1, buffer)

    def fence(self) -> None:
        """Issue a full memory fence, which matters on ARM."""
        self._memory.fence()

    def progress(self) -> None:
        """Let MPI process requests of other ranks, on networks that leave this to the target."""
        self._comm.Iprobe()

    def free(self) -> None:
        """Free the window; a second call does nothing. Collective over `comm`."""
        self.header = ModelHeader(self.header.memory.copy())
        self._memory.free()

    def _read(self, target: int, source: int, out: AnyArray) -> Transfer:
        if target != self.rank:
            return self._memory.read(target, source, out)
        np.copyto(out, self._memory.memory[source : source + out.nbytes].view(out.dtype))
        return Transfer([])

    def _add_word(self, target: int, source: int, value: int, buffer: Int64s) -> Transfer:
        buffer[0] = value
        return self._memory.add(target, source, buffer[:1], buffer[1:])
