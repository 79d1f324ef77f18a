"""Exchanges that work in host memory, for replicas on a GPU."""

import numpy as np

from hpc_dasgd.exchange.interface import Exchange, Update


class MirroredExchange:
    """An exchange in host memory whose replica is copied to a device, and whose updates come from there.

    The way of the exchanges that are there to be compared with; `read` and `none` have their replicas on the device.
    Each step waits for a copy of an update to the host and one of the replica back.

    Parameters
    ----------
    inner : Exchange
        In host memory; all but what stands here is asked of it.
    device : Gpu

    Attributes
    ----------
    parameters : array of the device, shape (n_params,)
        As they were in `inner` at the last `pull` or `settle`.
    """

    def __init__(self, inner: Exchange, device):
        self._inner, self.device = inner, device
        size, dtype = inner.parameters.size, inner.parameters.dtype
        self.parameters = device.to_device(inner.parameters)
        self._scaled, self._update = device.zeros(size, dtype), device.host_zeros(size * dtype.itemsize).view(dtype)
        self._registered = device.register(inner.parameters)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @property
    def every(self) -> int:
        return self._inner.every

    @every.setter
    def every(self, every: int) -> None:
        self._inner.every = every

    def pull(self) -> None:
        """Have `inner` bring its replica up to date, and copy it."""
        self._inner.pull()
        self._show()

    def push(self, update: Update) -> None:
        """Copy an own update to the host, and have `inner` make it."""
        update(0, self._scaled.size, self._scaled)
        copy = self.device.download(self._scaled, self._update, after=self.device.record_event())
        while not copy.done():
            pass

        def from_host(lo: int, hi: int, out: np.ndarray) -> None:
            np.copyto(out, self._update[lo:hi])

        self._inner.push(from_host)

    def settle(self):
        """See `Exchange`."""
        settled = self._inner.settle()
        self._show()
        return settled

    def free(self) -> None:
        """See `Exchange`."""
        if self._registered:
            self.device.unregister(self._inner.parameters)
        self._inner.free()

    def _show(self) -> None:
        copy = self.device.upload(self._inner.parameters, self.parameters, after=self.device.record_event())
        while not copy.done():
            pass
