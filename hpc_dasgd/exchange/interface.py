"""The interface between the training loop and an exchange, and the parts that all exchanges share.

``docs/adding-an-exchange.md`` describes how to write an exchange.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from hpc_dasgd.arrays.devices import Device, Host
from hpc_dasgd.arrays.types import AnyArray, Array, Floats, Int64s
from hpc_dasgd.config.settings import ExchangeConfig

if TYPE_CHECKING:
    from mpi4py import MPI

IDLE_S = 1e-4
"""Time that a rank that computes no gradients sleeps between two calls of `Exchange.pull`, in seconds."""

Update: TypeAlias = Callable[[int, int, Any], None]
"""A function ``update(lo, hi, out)`` that stores what is to be added to the parameters ``lo:hi`` into `out`, an array
of the device with shape (hi - lo,). An exchange calls it once for each of its blocks, in ascending order."""

Blocks: TypeAlias = list[tuple[int, int]]
"""Consecutive ranges ``(lo, hi)`` that cover all parameters."""


def _default_block_bytes() -> int:
    """Return half of the size of the core's L2 cache.

    A block then stays in cache from one operation to the next; smaller blocks would only cost more calls.
    """
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(size.removesuffix("K")) * 1024 // 2
    except (OSError, ValueError):
        return 256 * 1024


BLOCK_BYTES = _default_block_bytes()
"""Size of a block of parameters in host memory, in bytes."""


def _split_into_blocks(size: int, n_block: int) -> Blocks:
    return [(lo, min(lo + n_block, size)) for lo in range(0, size, n_block)]


@dataclass(frozen=True, eq=False)
class ExchangeSetup:
    """Argument of the constructor of an exchange.

    Attributes
    ----------
    comm : MPI.Intracomm
        The ranks that train together.
    x0 : ndarray, shape (n_params,), float32 or float64, host memory
        Initial parameters, the same on every rank.
    settings : ExchangeConfig
        Section ``[exchange]`` of the settings, the same on every rank.
    seed : int
        Seed of random overlays, the same on every rank.
    device : Device, optional
        Where the replica is; the processor by default. Ranks may have different devices.
    """

    comm: MPI.Intracomm
    x0: Floats
    settings: ExchangeConfig = field(default_factory=ExchangeConfig)
    seed: int = 0
    device: Device | None = None


class Settled(NamedTuple):
    """Result of `Exchange.settle`, the final synchronisation of a run."""

    drift: float
    """Largest absolute difference, over ranks and elements, between the replicas before the final synchronisation and
    the final parameters. It is caused by rounding if the exchange brings every update to every replica. nan if a
    replica did not hold all updates."""
    dropped_reads: int
    """Number of reads by this rank that were discarded because their owner published too much in the meantime."""
    consensus_distance: float = math.nan
    """Root of the mean over ranks of the squared distance between a replica and the mean of all replicas, before the
    final synchronisation; nan for exchanges that bring every update to every replica."""


class Exchange(ABC):
    """The replica of one rank, and the way in which updates travel between it and the replicas of other ranks.

    Making an exchange, `settle` and `free` are collective over `comm`. Between them a rank calls `pull`, computes a
    gradient at `parameters`, calls `push`, and so on; ranks do this at their own pace.

    Parameters
    ----------
    setup : ExchangeSetup

    Attributes
    ----------
    comm : MPI.Intracomm
    settings : ExchangeConfig
    device : Device
        Where the replica is.
    parameters : array of the device, shape (n_params,), float32 or float64
        The replica. It is the same array for the whole run; only `pull`, `push` and `settle` change it.
    versions : ndarray, shape (n_ranks,), int64
        Version vector of the replica: the number of updates of each rank that it holds. It is the same array for the
        whole run.
    stopping : bool
        True if this rank knows that a rank has requested the end of the run.
    computes : bool
        True if this rank computes gradients. A rank that does not compute still calls `pull`.
    every : int
        Number of own updates from one exchange to the next; 1 for the setting "auto". It may be changed between two
        steps.
    exchanging : bool
        True if the last `push` exchanged updates with other ranks, and the next `pull` does so too. With ``every > 1``
        it is False after most calls of `push`.
    blocks : list of (int, int)
        Ranges ``(lo, hi)`` of parameters for which an update is computed: of about `BLOCK_BYTES` in host memory, so
        that scaled gradients stay in cache; on a GPU a single one.
    scratch : array of the device, shape (size of the largest block,), dtype of the parameters
        Memory for one block of an update.
    """

    comm: MPI.Intracomm
    settings: ExchangeConfig
    device: Device
    parameters: Array
    versions: Int64s
    stopping: bool
    computes: bool
    every: int
    exchanging: bool
    blocks: Blocks
    scratch: Array

    def __init__(self, setup: ExchangeSetup):
        self.comm = setup.comm
        self.settings = setup.settings
        self.device = setup.device or Host()
        self.parameters = self.device.to_device(setup.x0)
        self.versions = np.zeros(setup.comm.size, np.int64)
        self.stopping = False
        self.computes = True
        self.every = 1 if setup.settings.every == "auto" else int(setup.settings.every)
        self.exchanging = True
        self._steps_since = 0  # own updates since the last exchange
        size = setup.x0.size
        self._host_blocks = _split_into_blocks(size, BLOCK_BYTES // setup.x0.itemsize)
        self.blocks = self._host_blocks if self.device.on_host else [(0, size)]
        self.scratch = self.device.zeros(self.blocks[0][1], setup.x0.dtype)

    @classmethod  # noqa: B027, most exchanges accept any settings
    def check_settings(cls, settings: ExchangeConfig, n_ranks: int) -> None:
        """Check settings against the number of ranks. Not collective.

        Raises
        ------
        ConfigError
            If the settings cannot be used on this number of ranks.
        """

    @property
    def made(self) -> int:
        """Number of updates that this rank has made."""
        return int(self.versions[self.comm.rank])

    @property
    def gradients(self) -> int:
        """Number of gradients of all ranks that this replica knows of."""
        return int(self.versions.sum())

    @property
    def transferred_bytes(self) -> int:
        """Number of bytes that this rank has read from and sent to other ranks; 0 if only collectives are used."""
        return 0

    @property
    def contribution(self) -> Array:
        """What a checkpoint of this rank must contain: array of the device, shape (n_params,).

        Not a copy; valid between two steps only.
        """
        return self.parameters

    @property
    def died(self) -> tuple[int, ...]:
        """Ranks that died and without which the others continue, ascending, as far as this rank knows."""
        return ()

    @property
    def leads(self) -> bool:
        """True if this rank is the lowest rank that is alive, as far as it knows."""
        died = self.died
        return self.comm.rank == next(rank for rank in range(self.comm.size) if rank not in died)

    def missed(self, versions: Int64s) -> int:
        """Return the staleness of a gradient: the number of updates of other ranks that it has missed. Not collective.

        During and after the `push` of the gradient this is what the rank knows at that moment.

        Parameters
        ----------
        versions : ndarray, shape (n_ranks,), int64
            Version vector of the replica at which the gradient was computed.
        """
        return 0

    def allgather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, by rank; None for a rank that died. Collective over the ranks alive."""
        return self.comm.allgather(value)

    def consensus_distance(self) -> float:
        """Return the distance of the replicas from their mean, see `Settled`, as published so far. Not collective.

        nan for exchanges that bring every update to every replica: their replicas differ only by updates that they
        have not received yet.
        """
        return math.nan

    @abstractmethod
    def pull(self) -> None:
        """Bring the replica up to date with what has arrived. Not collective; never waits for another rank."""

    def read_on(self) -> None:  # noqa: B027, most exchanges do everything in `pull` and `push`
        """Continue transfers while the device computes a gradient. Not collective; the replica does not change."""

    @abstractmethod
    def push(self, update: Update) -> None:
        """Apply an own update and publish it. Not collective; never waits for another rank.

        Exchanges whose traits say `synchronous` are the exception: there it is collective and waits.
        """

    @abstractmethod
    def stop(self) -> None:
        """Request the end of the run on all ranks. Not collective; `stopping` becomes True on each rank later."""

    def spent(self) -> None:
        """Report that the budget of all ranks is spent, as far as this rank knows. Not collective; calls `stop`."""
        self.stop()

    @abstractmethod
    def settle(self) -> Settled:
        """Bring every update into every replica after the last step. Collective over the ranks alive; waits."""

    def free(self) -> None:  # noqa: B027, most exchanges own no MPI objects
        """Free windows and other MPI objects. Collective over the ranks alive."""

    # For subclasses.

    def count_step(self) -> bool:
        """Count an own update, and set `exchanging`. Return True if this step exchanges.

        Every `push` calls it once, unless the exchange ignores `every`. Not collective.
        """
        self._steps_since += 1
        self.exchanging = self._steps_since >= self.every
        if self.exchanging:
            self._steps_since = 0
        return self.exchanging

    def store_replica(self, values: AnyArray) -> None:
        """Copy `values` into the replica. Not collective.

        Parameters
        ----------
        values : ndarray, shape (n_params,), host memory
            If the replica is in host memory, this must be the replica itself, and nothing is copied.
        """
        if not self.device.on_host:
            self.parameters[...] = self.device.to_device(values)

    def broadcast_replica(self, root: int) -> float:
        """Overwrite every replica by that of rank `root`. Collective over `comm`; waits.

        It is done block by block, so that only one block of additional memory is needed.

        Returns
        -------
        difference : float
            Largest absolute difference, over ranks and elements, from the previous replicas.
        """
        values, largest = self.device.to_host(self.parameters), 0.0
        received = np.empty(self._host_blocks[0][1], values.dtype)
        for lo, hi in self._host_blocks:
            block, replica = received[: hi - lo], values[lo:hi]
            if self.comm.rank == root:
                np.copyto(block, replica)
            self.comm.Bcast(block, root=root)
            np.subtract(replica, block, out=replica)
            largest = max(largest, float(np.abs(replica, out=replica).max()))
            np.copyto(replica, block)
        self.store_replica(values)
        return max(self.comm.allgather(largest))
