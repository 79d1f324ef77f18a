"""What the training loop knows of an exchange."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpc_dasgd.arrays.devices import Host


def _block_bytes() -> int:
    """Half of this core's L2 cache: a block stays in it from one operation to the next; smaller ones cost calls."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(size.removesuffix("K")) * 1024 // 2
    except (OSError, ValueError):
        return 256 * 1024


BLOCK_BYTES = _block_bytes()
IDLE_S = 1e-4  # between two looks of a rank that takes no gradients

Update = Callable[[int, int, np.ndarray], None]


def _bounds(size: int, n_block: int) -> list[tuple[int, int]]:
    return [(lo, min(lo + n_block, size)) for lo in range(0, size, n_block)]


class Settled(NamedTuple):
    """What `Exchange.settle` found."""

    drift: float
    """Largest difference over ranks and elements between the replicas as they were and the final one: rounding,
    where the exchange brings every update to every replica; nan where they did not hold all of them."""
    dropped_reads: int
    """Reads of this rank that were dropped because the owner had published too much meanwhile."""
    consensus_distance: float = math.nan
    """Root of the mean over ranks of the squared distance between a replica and the mean of all, just before
    they were made one; nan for exchanges that bring every update to every replica."""


class Exchange(ABC):
    """A replica and the way it takes part in all ranks' updates.

    An *update* is a function ``update(lo, hi, out)`` that writes what is to be added to elements ``lo:hi`` of
    the parameters into `out`, shape (hi - lo,), of the device. The exchange calls it once for each block, so that a
    scaled gradient lives in a block-sized scratch and never travels to main memory; on a GPU all is one block.

    Parameters
    ----------
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
        The same on every rank.
    every : int
        Own updates from one exchange to the next.
    device : Host or Gpu, optional
        Where the replica is.

    Attributes
    ----------
    parameters : array of the device, shape (n_params,), float32 or float64
        The replica. The same memory for the whole run; changed by `pull`, `push` and `settle` alone.
    versions : ndarray, shape (n_ranks,), int64
        The replica's version vector: how many updates of each rank it holds.
    stopping : bool
        Whether a rank asked for the end of the run, as far as this rank knows.
    computes : bool
        Whether this rank takes gradients; one that does not still calls `pull`.
    every : int
        As above; may be changed between steps.
    exchanging : bool
        Whether the last `push` exchanged, as the next `pull` then does; with ``every > 1`` most do not.
    combines : {"sum", "newest", "mean", "own"}
        How the contributions of all ranks become parameters when a run is resumed: their sum, the one that holds the
        most gradients, their mean, or to each rank its own.
    """

    computes = True
    combines = "newest"

    def __init__(self, comm, x0: np.ndarray, every: int = 1, device=None):
        self.comm = comm
        self.device = device or Host()
        self.parameters = self.device.to_device(x0)
        self.versions = np.zeros(comm.size, np.int64)
        self.stopping = False
        self.every = every
        self.exchanging = True
        self._steps_since = 0  # own updates since the last exchange
        self._host_blocks = _bounds(x0.size, BLOCK_BYTES // x0.itemsize)
        self.blocks = self._host_blocks if self.device.on_host else [(0, x0.size)]
        self.scratch = self.device.zeros(self.blocks[0][1], x0.dtype)

    @property
    def made(self) -> int:
        """Updates that this rank has made."""
        return int(self.versions[self.comm.rank])

    @property
    def gradients(self) -> int:
        """Gradients of all ranks that this replica knows of."""
        return int(self.versions.sum())

    @property
    def transferred_bytes(self) -> int:
        """What this rank has read from and sent to others so far; 0 where MPI's collectives hide it."""
        return 0

    @property
    def contribution(self):
        """What a checkpoint of this rank has to hold, array of the device, shape (n_params,); not a copy, and to be
        asked for between two steps.
        """
        return self.parameters

    @property
    def died(self) -> tuple[int, ...]:
        """Ranks without which the others have gone on, ascending, as far as this rank knows."""
        return ()

    @property
    def leads(self) -> bool:
        """Whether this rank is the lowest that lives, as far as it knows."""
        return self.comm.rank == next(rank for rank in range(self.comm.size) if rank not in self.died)

    def missed(self, held: np.ndarray) -> int:
        """Staleness of a gradient taken at `held`, as known here and now: during its `push`, or later."""
        return 0

    def allgather(self, value) -> list:
        """What every rank passes as `value`, by rank; None for a rank that died. Collective."""
        return self.comm.allgather(value)

    def consensus_distance(self) -> float:
        """See `Settled`; here and now, from what the others have published. Not collective.

        nan where replicas differ by what they have not read yet and by nothing else.
        """
        return math.nan

    def _count_step(self) -> bool:
        """Count an own update; whether to exchange with it. To be called once by each `push`."""
        self._steps_since += 1
        self.exchanging = self._steps_since >= self.every
        if self.exchanging:
            self._steps_since = 0
        return self.exchanging

    def _show(self, mine: np.ndarray) -> None:
        """Make the replica `mine`, which stands in host memory, perhaps the replica's own."""
        if not self.device.on_host:
            self.parameters[...] = self.device.to_device(mine)

    def _take_from(self, root: int) -> float:
        """Give every rank `root`'s replica, by blocks: memory may be short. Collective.

        Returns the largest difference over ranks and elements from what the replicas were.
        """
        mine, largest = self.device.to_host(self.parameters), 0.0
        received = np.empty(self._host_blocks[0][1], mine.dtype)
        for lo, hi in self._host_blocks:
            block, replica = received[: hi - lo], mine[lo:hi]
            if self.comm.rank == root:
                np.copyto(block, replica)
            self.comm.Bcast(block, root=root)
            np.subtract(replica, block, out=replica)
            largest = max(largest, float(np.abs(replica, out=replica).max()))
            np.copyto(replica, block)
        self._show(mine)
        return max(self.comm.allgather(largest))

    @abstractmethod
    def pull(self) -> None:
        """Bring the replica up to date with what has arrived. Not collective; never waits for a rank."""

    def read_on(self) -> None:  # noqa: B027, most exchanges do all in `pull` and `push`
        """Go on with what is under way, while the device computes a gradient; the replica stays as it is."""

    @abstractmethod
    def push(self, update: Update) -> None:
        """Make an own update and publish it. Not collective; never waits for a rank."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all ranks to end the run. Not collective; `stopping` follows, here and there."""

    def spent(self) -> None:
        """Say that by what this rank knows the budget of all ranks is spent; as `stop`."""
        self.stop()

    @abstractmethod
    def settle(self) -> Settled:
        """After the last step bring every update into every replica. Collective."""

    def free(self) -> None:  # noqa: B027, most exchanges hold nothing
        """Give back what the exchange holds of MPI. Collective."""
