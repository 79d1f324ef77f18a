"""Exchanges that work in host memory, with the replica on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hpc_dasgd.arrays.types import AnyArray, Array, Bytes, Int64s
from hpc_dasgd.exchange.interface import Exchange, ExchangeSetup, Settled, Update


class MirroredExchange(Exchange):
    """An exchange in host memory whose replica is copied to a device, and whose updates are copied from there.

    It serves the exchanges whose traits do not say `on_device`. Each step waits for the copy of an update to the host
    and for the copy of the replica to the device.

    Parameters
    ----------
    setup : ExchangeSetup
        With a device that is not the host.
    make : callable
        Makes the inner exchange, which keeps its replica in host memory.

    Attributes
    ----------
    parameters : array of the device, shape (n_params,)
        Copy of the inner replica as of the last `pull` or `settle`.
    versions : ndarray, shape (n_ranks,), int64
        The version vector of the inner exchange itself.
    """

    def __init__(self, setup: ExchangeSetup, make: Callable[[ExchangeSetup], Exchange]):
        super().__init__(setup)
        self._inner = make(replace(setup, device=None))
        self.versions = self._inner.versions
        self.computes = self._inner.computes
        inner: AnyArray = self._inner.parameters
        self._update: AnyArray = self.device.host_zeros(inner.nbytes).view(inner.dtype)
        self._inner_bytes: Bytes = inner.view(np.uint8)
        self._registered = self.device.register(self._inner_bytes)

    @property
    def made(self) -> int:
        """Number of updates that this rank has made."""
        return self._inner.made

    @property
    def gradients(self) -> int:
        """Number of gradients of all ranks that the inner exchange knows of."""
        return self._inner.gradients

    @property
    def transferred_bytes(self) -> int:
        """Number of bytes that the inner exchange has transferred."""
        return self._inner.transferred_bytes

    @property
    def contribution(self) -> Array:
        """Contribution of the inner exchange: ndarray, shape (n_params,), host memory."""
        return self._inner.contribution

    @property
    def died(self) -> tuple[int, ...]:
        """Ranks that died, as far as the inner exchange knows."""
        return self._inner.died

    def missed(self, versions: Int64s) -> int:
        """Return the staleness of a gradient that the inner exchange knows of. Not collective."""
        return self._inner.missed(versions)

    def allgather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, by rank; see `Exchange.allgather`. Collective over the ranks alive."""
        return self._inner.allgather(value)

    def consensus_distance(self) -> float:
        """Return the distance of the inner replicas from their mean. Not collective."""
        return self._inner.consensus_distance()

    def pull(self) -> None:
        """Call `pull` of the inner exchange, and copy its replica to the device. Waits for the copy, not for a rank."""
        self._inner.every = self.every
        self._inner.pull()
        self._copy_state()
        self._upload_replica()

    def read_on(self) -> None:
        """Continue transfers of the inner exchange. Not collective."""
        self._inner.read_on()
        self._copy_state()

    def push(self, update: Update) -> None:
        """Copy an own update to the host, and pass it to `push` of the inner exchange. Waits for the copy."""
        update(0, self.scratch.size, self.scratch)
        copy = self.device.download(self.scratch, self._update, after=self.device.record_event())
        while not copy.done():
            pass

        def update_from_host(lo: int, hi: int, out: AnyArray) -> None:
            np.copyto(out, self._update[lo:hi])

        self._inner.every = self.every
        self._inner.push(update_from_host)
        self._copy_state()

    def stop(self) -> None:
        """Request the end of the run through the inner exchange. Not collective."""
        self._inner.stop()
        self._copy_state()

    def spent(self) -> None:
        """Report to the inner exchange that the budget is spent. Not collective."""
        self._inner.spent()
        self._copy_state()

    def settle(self) -> Settled:
        """Settle the inner exchange, and copy its replica to the device. Collective over `comm`; waits."""
        settled = self._inner.settle()
        self._copy_state()
        self._upload_replica()
        return settled

    def free(self) -> None:
        """Free what the inner exchange holds. Collective over `comm`."""
        if self._registered:
            self.device.unregister(self._inner_bytes)
            self._registered = False
        self._inner.free()

    def _copy_state(self) -> None:
        self.stopping = self._inner.stopping
        self.exchanging = self._inner.exchanging

    def _upload_replica(self) -> None:
        copy = self.device.upload(self._inner.parameters, self.parameters, after=self.device.record_event())
        while not copy.done():
            pass
