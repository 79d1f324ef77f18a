"""Exchange `accumulate`: decentralized asynchronous SGD as the paper has it, by pushing updates to everybody.

Every rank's model is a window, and each update is added (MPI_SUM) to the models of all ranks, the own one
included. Nothing is lost and nothing comes twice, since additions commute; models differ in rounding only, by
the order in which additions arrived.
"""

import numpy as np

from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.exchange.push.outbox import Buffers, Outbox
from hpc_dasgd.window.model import ModelWindow


class AccumulateExchange(Exchange):
    """Every rank adds its updates to every rank's model, and computes on a copy of its own.

    The window changes at any time, so that gradients are taken at a copy of it, the replica. Counters are
    copied before the payload: the replica holds all that its version vector says. It may hold more, up to what
    arrived while it was copied, and of such an update a part of the elements only. The logged staleness is
    therefore never too low.

    To each target at most one call is under way. Updates made meanwhile are added up and travel with the next
    one, so that a slow target only gets fewer and larger sums. Nothing waits, but where the network needs the
    target's help (most do, for this) additions arrive when the target calls `pull` or `push`.

    With ``every > 1`` the updates between two exchanges are added to the replica and to what is to be sent, and
    reach the window, the own one too, with the next exchange.

    Passes over main memory per exchange in arrays of `n_params`, with `n` ranks:

    - 2 for the update: gradient read, sum to be sent written.
    - ``3 n`` for sending: sum read, a target's payload read and written, the own one included. The elements
      as they were, which come back, stay in cache where calls are through at once.
    - 2 in `pull`: own payload read, replica written.
    - Between exchanges 5: gradient read, sum and replica read and written.
    - 3 more for each further sum, where calls to some targets take longer than to others.

    Memory, in the same unit: window 1, replica 1, sum to be sent 1. Where calls take their time, 1 more for
    each call under way (what comes back), and as many sums as there are groups of targets that have got or
    wait for the same updates: at most 2 for each other rank, 2 where all are equally fast.

    Parameters
    ----------
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
        The same on every rank.
    every : int
        Own updates from one exchange to the next.
    """

    def __init__(self, comm, x0: np.ndarray, every: int = 1):
        super().__init__(comm, x0, every)
        self._window = ModelWindow(comm, self.parameters)
        # Each rank begins with itself and goes on with the next ones, so that not all are at the same target.
        targets = [(comm.rank + distance) % comm.size for distance in range(comm.size)]
        buffers = Buffers(self.scratch.size, self.parameters.size, self.parameters.dtype)
        self._outbox = Outbox(self._window, targets, self.blocks, buffers)
        self._made = 0

    @property
    def made(self) -> int:
        return self._made

    @property
    def transferred_bytes(self) -> int:
        return self._window.transferred_bytes

    def pull(self) -> None:
        """Go on with what is being sent, and copy the own window where something came."""
        self._window.progress()
        if self.exchanging:
            self._outbox.send()
            self._take_in()
        else:
            self._outbox.poll()
            self.stopping |= self._window.header.stopping

    def push(self, update: Update) -> None:
        """Make an own update and begin to add it to all models; the replica has it after the next `pull`."""
        if self._count_step():
            self._outbox.add(update)
            self._outbox.send()
            self._made += 1
            return
        if self.versions[self.comm.rank] != self._made:  # `push` after `push`
            self._take_in()
        self._outbox.add(update, self.parameters)
        self._outbox.poll()
        self._made += 1
        self.versions[self.comm.rank] = self._made

    def missed(self, held: np.ndarray) -> int:
        """Count the others' updates beyond `held` that have arrived."""
        beyond = self._window.header.counters - held
        beyond[self.comm.rank] = 0
        return int(beyond.sum())

    def stop(self) -> None:
        """Have the flags in all windows raised."""
        if not self.stopping:  # else somebody does already
            self.stopping = True
            self._outbox.stop()

    def settle(self) -> Settled:
        """Send all there is to send; when everybody has, rank 0's model is everybody's."""
        self._outbox.finish()
        counts = self.comm.allgather(self._made)
        self._take_in()
        assert self.versions.tolist() == counts, "what was added is there"
        return Settled(self._take_from(0), dropped_reads=0)

    def free(self) -> None:
        self._window.free()

    def _take_in(self) -> None:
        """Copy the own window where something came. Not before all own updates are in it."""
        self._window.fence()
        header = self._window.header
        self.stopping |= header.stopping
        counters = header.counters.copy()
        if np.array_equal(counters, self.versions):
            return
        self._window.fence()  # counters are never ahead of the payload
        self._window.read_payload(self.comm.rank, 0, self.parameters)
        self.versions[:] = counters
