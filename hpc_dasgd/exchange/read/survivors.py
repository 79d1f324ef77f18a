"""Continuing without ranks that died, and agreeing with the other survivors without collective calls.

On every overlay each rank publishes its contribution in channel 0. A rank on a tree that learns of a death leaves the
tree; see `fallback`. A false alarm is harmless: contributions of a rank that is counted as dead are read as before.

Deaths become final when the run is settled: the ranks agree on who is dead, and a rank that the others count as dead
leaves with `LeftBehindError`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from hpc_dasgd.errors import LeftBehindError, TrainingError
from hpc_dasgd.exchange.interface import IDLE_S
from hpc_dasgd.exchange.read.failure_detector import HEARTBEAT_INTERVAL_S, FailureDetector
from hpc_dasgd.exchange.read.fallback import leave_tree, must_leave_tree
from hpc_dasgd.exchange.read.final_sum import FinalSum
from hpc_dasgd.exchange.read.state import ReadState
from hpc_dasgd.exchange.reader import Neighbour
from hpc_dasgd.runtime import mpi
from hpc_dasgd.window.board import Board

BOARD_BYTES = 1 << 15
"""Size of a value on the board, in bytes, to which `BOARD_BYTES_PER_RANK` is added for each rank."""

BOARD_BYTES_PER_RANK = 64

AGREEMENT_ROUNDS = 100
"""Number of rounds after which the ranks stop trying to agree on who died."""


class Survivors:
    """The ranks that are alive; the run continues without those that died.

    Making one is collective over ``state.comm``.

    Parameters
    ----------
    state : ReadState
        State of a run in which every rank publishes its contribution in channel 0.
    timeout_s : float
        Time without a heartbeat after which a rank counts as dead, in seconds.
    """

    def __init__(self, state: ReadState, timeout_s: float):
        self._state, self._rank, self._n_ranks = state, state.comm.rank, state.comm.size
        self._board = Board(state.comm, BOARD_BYTES + BOARD_BYTES_PER_RANK * self._n_ranks)
        self._detector = FailureDetector(state.comm, state.window, timeout_s)
        self._final_sum = FinalSum(state, self._detector)
        self._stuck: list[Neighbour] = []  # neighbours that died while they were read
        self._unfinished: list[Iterator[object]] = []  # reads of dead ranks that never end; MPI owns their buffers

    @property
    def died(self) -> tuple[int, ...]:
        """Ranks that died, ascending, as far as this rank knows."""
        return tuple(sorted(self._detector.died))

    def poll(self) -> None:
        """Detect deaths, replace buffers that dead ranks block, and leave a tree that a death has divided.

        Not collective; never waits.
        """
        self._detector.poll_ranks()
        died = self._detector.died
        for other in self._state.neighbourhood.neighbours:
            if other.reading and other.rank in died and other not in self._stuck:
                self._stuck.append(other)
                self._state.reader.add_buffer()
        if must_leave_tree(self._state, died):
            leave_tree(self._state)

    def allgather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, by rank; None for a rank that died before it posted its value.

        Collective over the ranks alive; waits for them.

        Raises
        ------
        LeftBehindError
            If the others have continued without this rank.
        """
        self._board.post(value)
        values = [value if rank == self._rank else self._value_of(rank) for rank in range(self._n_ranks)]
        if self._detector.died and self._detector.final:
            mpi.skip_mpi_finalize()
        return values

    def settle(self) -> float:
        """Make the replicas of all ranks alive the same. Collective over them; waits.

        Each rank sums the contributions itself, in the order of ranks, and repeats this until all ranks agree on who
        died and on the versions: a rank that seemed to be dead may have published more in the meantime.

        Returns
        -------
        drift : float
            The largest drift of the ranks alive; nan if it is unknown.

        Raises
        ------
        LeftBehindError
            If the others count this rank as dead.
        TrainingError
            If the ranks do not agree, or a contribution cannot be read any more.
        """
        detector = self._detector
        detector.poll_ranks(now=True)  # a rank that was counted as dead may be alive
        self.allgather(self._state.version)  # from here on, no rank publishes any more
        detector.final = True
        for _ in range(AGREEMENT_ROUNDS):
            versions, drift = self._final_sum.store_into_replica()
            outcome = versions, sorted(detector.died)
            outcomes = [each for each in self.allgather((outcome, drift)) if each is not None]
            died = detector.died.union(*(dead for (_, dead), _ in outcomes))
            if self._rank in died:
                self._leave("the other ranks counted this rank as dead, and end the run without it")
            if all(each == outcome for each, _ in outcomes):
                return max((drift for _, drift in outcomes if not math.isnan(drift)), default=math.nan)
            for other in died - detector.died:
                detector.mark_dead(other, "as another rank found")
        raise TrainingError(f"the ranks did not agree on which ranks died and what they published; here: {outcome}")

    def free(self) -> bool:
        """Free the board and end the heartbeat. Collective over the ranks alive.

        Returns
        -------
        complete : bool
            True if no rank died, so that all ranks can free their windows.
        """
        self._detector.silent = True
        self.allgather(None)
        self._detector.end()
        if self._detector.died:
            time.sleep(HEARTBEAT_INTERVAL_S)  # other ranks may still read the last value of this one
            return False
        self._board.free()
        return True

    def _value_of(self, other: int) -> Any:
        """Return the value of `other` in this round; None if it died before it posted one. Waits."""
        while True:
            was_dead, started_s = other in self._detector.died, time.monotonic()
            answer, read = None, self._board.read(other)
            while answer is None:
                self._detector.poll_ranks()
                try:
                    answer = next(read)
                except LeftBehindError as error:
                    self._leave(str(error))
                if other in self._detector.died and time.monotonic() - started_s > self._detector.timeout_s:
                    self._unfinished.append(read)
                    return None
            if answer:
                return answer[0]
            if was_dead:
                return None
            time.sleep(IDLE_S)

    def _leave(self, reason: str) -> NoReturn:
        mpi.skip_mpi_finalize()
        raise LeftBehindError(reason)
