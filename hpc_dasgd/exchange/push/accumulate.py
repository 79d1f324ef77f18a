"""Exchange `accumulate`: decentralized asynchronous SGD by pushing updates to all ranks.

The model of every rank is a window, and each update is added (MPI_SUM) to the models of all ranks, including the own
one. No update is lost or added twice, and additions commute: models differ by rounding only, because additions arrive
in different orders. The algorithm is that of Tosi and Theobald (arXiv 2309.03754).
"""

import numpy as np

from hpc_dasgd.arrays.types import Array, Int64s
from hpc_dasgd.exchange.interface import ExchangeSetup
from hpc_dasgd.exchange.push.pushing import PushExchange


class AccumulateExchange(PushExchange):
    """Every rank adds its updates to the models of all ranks, and computes gradients at a copy of its own model.

    The window changes at any time, so that gradients are computed at a copy of it, the replica. Counters are copied
    before the payload: the replica holds at least the updates of its version vector. It may also hold updates that
    arrived while it was copied, some of them only in a part of the elements. The logged staleness is therefore never
    too low.

    At most one call to each target is under way. Updates made in the meantime are summed and sent by the next call, so
    that a slow target receives fewer and larger sums. Nothing waits, but on networks that need the target's help (most
    do, for accumulation) additions arrive when the target calls `pull` or `push`.

    With ``every > 1`` the updates between two exchanges are added to the replica and to the sum that is to be sent.
    They reach the windows, including the own one, with the next exchange.

    Passes over main memory per exchange in arrays of `n_params`, with `n` ranks:

    - 2 for the update: gradient read, sum to be sent written.
    - ``3 n`` for sending: sum read, payload of the target read and written, for each target including the own rank.
      The previous elements, which are transferred back, stay in cache if calls complete at once.
    - 2 in `pull`: own payload read, replica written.
    - 5 in a step that does not exchange: gradient read, sum and replica read and written.
    - 3 more for each further sum, if calls to some targets take longer than to others.

    Memory, in the same unit: window 1, replica 1, sum to be sent 1. If calls do not complete at once, 1 more for each
    call under way (the previous elements), and as many sums as there are groups of targets that receive or wait for the
    same updates: at most 2 for each other rank, and 2 if all are equally fast.

    Parameters
    ----------
    setup : ExchangeSetup
    """

    def __init__(self, setup: ExchangeSetup):
        # Each rank starts with itself and continues with the following ranks, so that not all access the same target.
        rank, n_ranks = setup.comm.rank, setup.comm.size
        targets = [(rank + distance) % n_ranks for distance in range(n_ranks)]
        super().__init__(setup, targets, has_model=True, root=0)

    def missed(self, versions: Int64s) -> int:
        """Return the number of updates of other ranks beyond `versions` that have arrived here. Not collective."""
        beyond = self._window.header.counters - versions
        beyond[self.comm.rank] = 0
        return int(beyond.sum())

    def _copy_model(self) -> None:
        if self.exchanging:
            self._copy_own_window()
        else:
            self.stopping |= self._window.header.stopping

    def _prepare_push(self, exchanges: bool) -> Array | None:
        if exchanges:
            return None
        if self.versions[self.comm.rank] != self._made:  # no `pull` since a `push` that has exchanged
            self._copy_own_window()
        self.versions[self.comm.rank] = self._made + 1
        return self.parameters

    def _copy_final_model(self, counts: list[int]) -> None:
        self._copy_own_window()
        assert self.versions.tolist() == counts, "all updates have arrived"

    def _copy_own_window(self) -> None:
        """Copy the own window if updates have arrived. All own updates must be in it."""
        self._window.fence()
        header = self._window.header
        self.stopping |= header.stopping
        counters = header.counters.copy()
        if np.array_equal(counters, self.versions):
            return
        self._window.fence()  # the payload is read after the counters, so that it holds at least these updates
        self._window.read_payload(self.comm.rank, 0, self.parameters)
        self.versions[:] = counters
