"""What the training loop knows of an exchange."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np


def _block_bytes() -> int:
    """Half of this core's L2 cache: a block stays in it from one operation to the next; smaller ones cost calls."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(size.removesuffix("K")) * 1024 // 2
    except (OSError, ValueError):
        return 256 * 1024


BLOCK_BYTES = _block_bytes()

Update = Callable[[int, int, np.ndarray], None]


class Settled(NamedTuple):
    """What `Exchange.settle` found."""

    drift: float
    """Largest difference over ranks and elements between the replicas as they were and the final one: rounding."""
    dropped_reads: int
    """Reads of this rank that were dropped because the owner had published too much meanwhile."""


class Exchange(ABC):
    """A replica and the way it takes part in all ranks' updates.

    An *update* is a function ``update(lo, hi, out)`` that writes what is to be added to elements ``lo:hi`` of
    the parameters into `out`, shape (hi - lo,). The exchange calls it once for each block, so that a scaled
    gradient lives in a block-sized scratch and never travels to main memory.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,), float32 or float64
        The replica. The same memory for the whole run; changed by `pull`, `push` and `settle` alone. Holds
        all own updates after `pull` and `settle`.
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

    def missed(self, held: np.ndarray) -> int:
        """Staleness, as known here and now, of a gradient taken at version vector `held`, behind its `push`."""
        return 0

    def _difference(self, kept: np.ndarray) -> float:
        """Largest difference between `kept` and the replica, by blocks: memory may be short."""
        largest = 0.0
        for lo, hi in self.blocks:
            difference = np.subtract(kept[lo:hi], self.parameters[lo:hi], out=self.scratch[: hi - lo])
            largest = max(largest, float(np.abs(difference, out=difference).max()))
        return largest

    @abstractmethod
    def pull(self) -> None:
        """Bring the replica up to date with what has arrived. Not collective; never waits for a rank."""

    @abstractmethod
    def push(self, update: Update) -> None:
        """Make an own update, which the replica holds after the next `pull` at the latest, and publish it."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all ranks to end the run. Not collective; `stopping` follows, here and there."""

    @abstractmethod
    def settle(self) -> Settled:
        """After the last step bring every update into every replica. Collective."""

    def free(self) -> None:  # noqa: B027, most exchanges hold nothing
        """Give back what the exchange holds of MPI. Collective."""
