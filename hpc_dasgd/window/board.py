"""A board on which each rank shows one small value after another: what an allgather does, without a collective.

A rank's memory holds two slots, each a line with a word of round and length, and the value, pickled. The value
of round `r` stands in slot ``r mod 2``. It is stored over in round ``r + 2``, which nobody begins before all that
take part have shown round ``r + 1``, and so have read round `r`.
"""

import pickle
from collections.abc import Iterator

import numpy as np

from hpc_dasgd.errors import LeftBehindError
from hpc_dasgd.window.memory import ALIGNMENT_BYTES, WindowMemory, aligned, arrival

_LENGTH_BITS = 32  # round and length share a word, so that nobody reads one without the other


class Board:
    """Values of all ranks of `comm`, one of each in a round. Collective over `comm`, as is `free`.

    Parameters
    ----------
    comm : MPI.Intracomm
    n_bytes : int
        The longest value, pickled.
    """

    def __init__(self, comm, n_bytes: int):
        self._n_bytes, self._round = n_bytes, 0
        self._slot_bytes = ALIGNMENT_BYTES + aligned(n_bytes)
        self._memory = WindowMemory(comm, 2 * self._slot_bytes)

    def show(self, value) -> None:
        """Begin the next round, and show `value` in it. Never waits.

        Raises
        ------
        ValueError
            If it is too long.
        """
        pickled = np.frombuffer(pickle.dumps(value), np.uint8)
        if pickled.size > self._n_bytes:
            raise ValueError(f"`value` must have at most {self._n_bytes} bytes pickled, got {pickled.size}")
        self._round += 1
        slot = self._memory.memory[self._offset() :][: self._slot_bytes]
        slot[ALIGNMENT_BYTES:][: pickled.size] = pickled
        self._memory.fence()
        slot[:8].view(np.int64)[0] = self._round << _LENGTH_BITS | pickled.size
        self._memory.fence()

    def read(self, target: int) -> Iterator[list | None]:
        """Look once at what `target` shows in this round: None while that is under way, then an answer.

        The answer is a list of the value, empty where it is not there yet.

        Raises
        ------
        LeftBehindError
            If `target` has gone on without this rank.
        """
        word = np.zeros(1, np.int64)
        yield from arrival(self._memory.read(target, self._offset(), word))
        shown, length = divmod(int(word[0]), 1 << _LENGTH_BITS)
        if shown > self._round:
            raise LeftBehindError("the other ranks took this one for dead and have ended without it")
        if shown < self._round:
            yield []
            return
        self._memory.fence()
        pickled = np.empty(length, np.uint8)
        yield from arrival(self._memory.read(target, self._offset() + ALIGNMENT_BYTES, pickled))
        yield [pickle.loads(pickled.tobytes())]

    def free(self) -> None:
        """Give the memory back. Collective."""
        self._memory.free()

    def _offset(self) -> int:
        return self._round % 2 * self._slot_bytes
