"""Which ranks take part in exchange `read`, and how they agree at the end: the interface, and the case without deaths.

`survivors` implements the case in which the ranks continue without those that died.
"""

import os
from typing import Any, Protocol

from hpc_dasgd.exchange.read.state import ReadState


class Membership(Protocol):
    """The ranks that take part in a run."""

    @property
    def died(self) -> tuple[int, ...]:
        """Ranks that died, ascending, as far as this rank knows."""

    def poll(self) -> None:
        """Detect deaths, and adapt what is read to them. Not collective; never waits. Called once for each `pull`."""

    def allgather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, by rank; None for a rank that died. Collective over the ranks alive."""

    def settle(self) -> float:
        """Make all replicas the same. Collective over the ranks alive; waits.

        Every rank has published all its updates before.

        Returns
        -------
        drift : float
            See `hpc_dasgd.exchange.interface.Settled`.
        """

    def free(self) -> bool:
        """Free what the membership holds. Collective over the ranks alive.

        Returns
        -------
        complete : bool
            True if all ranks are alive, so that they can free their windows.
        """


class AllRanks:
    """All ranks of the communicator; the death of one of them ends the run.

    Parameters
    ----------
    state : ReadState
    """

    died: tuple[int, ...] = ()

    def __init__(self, state: ReadState):
        self._state = state

    def poll(self) -> None:
        """Do nothing."""

    def allgather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, by rank. Collective; waits."""
        return self._state.comm.allgather(value)

    def settle(self) -> float:
        """Read and publish until every rank holds every update, then broadcast the replica of rank 0. Collective.

        Sums of the same contributions differ in their last bits, because ranks add them in different orders.
        """
        state = self._state
        last = state.comm.allgather(state.version)
        while state.exchange.versions.tolist() != last:
            arrived = state.read()
            if not any(arrived):
                os.sched_yield()  # a rank that has to publish first may wait for this core
            elif state.channels.publishes_own:
                state.sum_replica()
            else:
                state.store.finish()
                state.publish([any(arrived[:j] + arrived[j + 1 :]) for j in range(len(arrived))])
                state.store.finish()
        state.reader.finish(state.neighbourhood.neighbours)
        return state.exchange.broadcast_replica(0)

    def free(self) -> bool:
        """Return True: all ranks are alive."""
        return True
