"""A board on which each rank posts one small value per round: an allgather without a collective call.

The memory of a rank has two slots. Each consists of a word with the number of the round and the length of the value,
followed by the pickled value. The value of round `r` is in slot ``r mod 2``. It is overwritten in round ``r + 2``. A
rank starts that round only after all participants have posted their values of round ``r + 1``, which they do after
they have read round `r`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_dasgd.errors import LeftBehindError
from hpc_dasgd.window.memory import ALIGNMENT_BYTES, WindowMemory, aligned, wait_for

if TYPE_CHECKING:
    from mpi4py import MPI

_LENGTH_BITS = 32  # round and length share one word, so that they are always read together


class Board:
    """Values of all ranks of `comm`, one per rank and round.

    Making a board and `free` are collective over `comm`; `post` and `read` are not collective.

    Parameters
    ----------
    comm : MPI.Intracomm
    n_bytes : int
        Largest size of a pickled value.
    """

    def __init__(self, comm: MPI.Intracomm, n_bytes: int):
        self._n_bytes, self._round = n_bytes, 0
        self._slot_bytes = ALIGNMENT_BYTES + aligned(n_bytes)
        self._memory = WindowMemory(comm, 2 * self._slot_bytes)

    def post(self, value: object) -> None:
        """Start the next round and post `value` in it. Not collective; never waits.

        Parameters
        ----------
        value : object
            Anything that can be pickled.

        Raises
        ------
        ValueError
            If the pickled value is larger than `n_bytes`.
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

    def read(self, target: int) -> Iterator[list[Any] | None]:
        """Read once what `target` has posted in the current round. Not collective; never waits for `target`.

        Yields
        ------
        answer : list or None
            None as long as the read is under way. The last item is a list: it contains the value, or it is empty if
            `target` has not posted a value in this round yet.

        Raises
        ------
        LeftBehindError
            If `target` is in a later round, which means that the other ranks have continued without this rank.
        """
        word = np.zeros(1, np.int64)
        yield from wait_for(self._memory.read(target, self._offset(), word))
        posted, length = divmod(int(word[0]), 1 << _LENGTH_BITS)
        if posted > self._round:
            raise LeftBehindError("the other ranks counted this rank as dead and have ended the run without it")
        if posted < self._round:
            yield []
            return
        self._memory.fence()
        pickled = np.empty(length, np.uint8)
        yield from wait_for(self._memory.read(target, self._offset() + ALIGNMENT_BYTES, pickled))
        yield [pickle.loads(pickled.tobytes())]

    def free(self) -> None:
        """Free the window. Collective over `comm`."""
        self._memory.free()

    def _offset(self) -> int:
        return self._round % 2 * self._slot_bytes
