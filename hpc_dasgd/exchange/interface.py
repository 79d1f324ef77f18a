"""What the training loop knows of an exchange."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Half an L2 cache of 512 KiB, the smallest of current server cores: the blocks of two arrays stay in it from one
# operation on them to the next.
BLOCK_BYTES = 128 * 1024

Update = Callable[[int, int, np.ndarray], None]


class Settled(NamedTuple):
    """What `Exchange.settle` found."""

    drift: float
    """Largest difference over ranks and elements between a replica kept up step by step and the final sum."""
    dropped_reads: int
    """Reads of this rank that were dropped because the owner had published too much meanwhile."""


class Exchange(ABC):
    """A replica and the way it takes part in all ranks' updates.

    An *update* is a function ``update(lo, hi, out)`` that writes what is to be added to elements ``lo:hi`` of the parameters
    into `out`, shape (hi - lo,). The exchange calls it once for each block, so that a scaled gradient lives in a block-sized
    scratch and never travels to main memory.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,), float32 or float64
        The replica. The same memory for the whole run; changed by `pull`, `push` and `settle` alone.
    versions : ndarray, shape (n_ranks,), int64
        The replica's version vector: how many updates of each rank it holds.
    stopping : bool
        Whether a rank asked for the end of the run, as far as this rank knows.
    """

    def __init__(self, comm, x0: np.ndarray):
        self.comm = comm
        self.parameters = np.array(x0)
        self.versions = np.zeros(comm.size, np.int64)
        self.stopping = False
        n_block = BLOCK_BYTES // self.parameters.itemsize
        n_params = self.parameters.size
        self.blocks = [(lo, min(lo + n_block, n_params)) for lo in range(0, n_params, n_block)]
        self.scratch = np.empty(min(n_block, n_params), self.parameters.dtype)

    @property
    def gradients(self) -> int:
        """Gradients of all ranks that this replica knows of."""
        return int(self.versions.sum())

    @abstractmethod
    def pull(self) -> None:
        """Fold in what has arrived of other ranks' updates. Not collective; never waits for a rank."""

    @abstractmethod
    def push(self, update: Update) -> None:
        """Apply an own update to the replica and publish it."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all ranks to end the run. Not collective; `stopping` follows, here and there."""

    @abstractmethod
    def settle(self) -> Settled:
        """After the last step bring every update into every replica. Collective."""

    def free(self) -> None:
        """Give back what the exchange holds of MPI. Collective."""
