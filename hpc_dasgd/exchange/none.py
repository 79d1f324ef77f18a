"""Exchange `none`: each rank alone. The yardstick of benchmarks."""

import numpy as np

from hpc_dasgd.exchange.interface import Exchange, Settled, Update


class NoExchange(Exchange):
    """Plain SGD on every rank; nothing travels.

    Passes over main memory per step, in arrays of `n_params`: gradient read, replica read and written (3).
    """

    @property
    def gradients(self) -> int:
        """Own gradients times ranks: the others are taken to be as fast."""
        return int(self.versions[self.comm.rank]) * self.comm.size

    def pull(self) -> None:
        pass

    def push(self, update: Update) -> None:
        for lo, hi in self.blocks:
            scaled, replica = self.scratch[: hi - lo], self.parameters[lo:hi]
            update(lo, hi, scaled)
            np.add(replica, scaled, out=replica)
        self.versions[self.comm.rank] += 1

    def stop(self) -> None:
        self.stopping = True

    def settle(self) -> Settled:
        return Settled(drift=0.0, dropped_reads=0)
