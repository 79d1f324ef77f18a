"""A model that ranks add their updates to, and how many of whose updates are in it.

A rank's memory is::

    flags | counters, one for each rank | payload: the model

Who adds an update to the payload adds to its own counter only when that is done. What a reader finds counted
is therefore in a payload that it reads after the counters; the payload may hold more. Once the window is made
its owner stores nothing into it: what others add between a load of the owner and its store would get lost.
The owner adds to itself, as everybody does.
"""

from enum import IntEnum

import numpy as np

from hpc_dasgd.window.memory import ALIGNMENT_BYTES, Transfer, WindowMemory, aligned


class Flag(IntEnum):
    """Words in front of the counters, each an int64 that anybody may raise and nobody lowers."""

    STOP = 0  # somebody asked for the end of the run


N_FLAGS = ALIGNMENT_BYTES // 8
_COUNTERS_OFFSET_BYTES = N_FLAGS * 8


class ModelHeader:
    """Flags and counters side by side, as they stand in a window.

    Attributes
    ----------
    memory : ndarray, shape (N_FLAGS + n_ranks,), int64
    counters : ndarray, shape (n_ranks,), int64
        Updates of each rank that are in the payload.
    """

    def __init__(self, memory: np.ndarray):
        self.memory = memory
        self.counters = memory[N_FLAGS:]

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for the end of the run."""
        return bool(self.memory[Flag.STOP])


class ModelWindow:
    """A rank's model, which every rank of `comm` may read and add to at any time.

    Collective over `comm`, as is `free`.

    Parameters
    ----------
    comm : MPI.Intracomm
    model : ndarray, shape (n_params,), float32 or float64, optional
        What the payload starts as. Without it this rank's window has flags and counters alone.

    Attributes
    ----------
    rank : int
        This rank.
    header : Header
        This rank's, to be looked at only; others add to it meanwhile.
    """

    def __init__(self, comm, model: np.ndarray | None = None):
        self.rank = comm.rank
        self._comm = comm
        n_words = N_FLAGS + comm.size
        self._payload_offset_bytes = aligned(n_words * 8)
        payload_bytes = 0 if model is None else model.nbytes
        self._memory = WindowMemory(comm, self._payload_offset_bytes + payload_bytes)
        self.header = ModelHeader(self._memory.memory[: n_words * 8].view(np.int64))
        self._payload = None
        if model is not None:
            self._payload = self._memory.memory[self._payload_offset_bytes :].view(model.dtype)
            self._payload[:] = model
        self._memory.fence()
        comm.Barrier()  # nobody adds to what is not there yet

    @property
    def transferred_bytes(self) -> int:
        """What this rank has read from and added to other ranks' windows so far, headers included."""
        return self._memory.transferred_bytes

    def new_header(self) -> ModelHeader:
        """A header in ordinary memory, zeroed, to read another rank's into."""
        return ModelHeader(np.zeros_like(self.header.memory))

    def read_header(self, target: int, out: ModelHeader) -> Transfer:
        """Begin to copy the header of `target`. Never waits for `target`; this rank's own is there at once."""
        return self._read(target, 0, self.header.memory, out.memory)

    def read_payload(self, target: int, lo: int, out: np.ndarray) -> Transfer:
        """Begin to copy the payload of `target` from element `lo` on. Never waits for `target`.

        This rank's own is there at once. Elements that somebody adds to meanwhile are read as they were or as
        they are then.
        """
        own = None if self._payload is None else self._payload[lo : lo + out.size]
        return self._read(target, self._payload_offset_bytes + lo * out.itemsize, own, out)

    def add_payload(self, target: int, lo: int, values: np.ndarray, fetched: np.ndarray) -> Transfer:
        """Begin to add `values` to the payload of `target` from element `lo` on; see `WindowMemory.add`."""
        return self._memory.add(target, self._payload_offset_bytes + lo * values.itemsize, values, fetched)

    def add_count(self, target: int, n_updates: int, words: np.ndarray) -> Transfer:
        """Begin to add `n_updates` to the counter of this rank that stands at `target`.

        `words` (int64, shape (2,)) is overwritten and belongs to the transfer until it is done.
        """
        return self._add_word(target, _COUNTERS_OFFSET_BYTES + self.rank * 8, n_updates, words)

    def raise_flag(self, target: int, flag: Flag, words: np.ndarray) -> Transfer:
        """Begin to raise a flag of `target`; `words` as for `add_count`."""
        return self._add_word(target, flag * 8, 1, words)

    def fence(self) -> None:
        """Order all loads and stores before it before all behind it (it matters on ARM). Never waits."""
        self._memory.fence()

    def progress(self) -> None:
        """Let MPI do what others ask of this rank, where the network leaves that to it. Never waits."""
        self._comm.Iprobe()

    def free(self) -> None:
        """Give the memory back. Collective; `header` is invalid afterwards."""
        self.header = self._payload = None
        self._memory.free()

    def _read(self, target: int, source: int, own: np.ndarray | None, out: np.ndarray) -> Transfer:
        if target != self.rank:
            return self._memory.read(target, source, out)
        np.copyto(out, own)
        return Transfer([])

    def _add_word(self, target: int, source: int, value: int, words: np.ndarray) -> Transfer:
        words[0] = value
        return self._memory.add(target, source, words[:1], words[1:])
