"""Exchange `server`: centralized asynchronous SGD, the baseline that decentralized SGD is held against.

One rank's window holds the model. All ranks get it, take a gradient at what they got, and add their update to
it; nobody waits for anybody.
"""

import time

import numpy as np

from hpc_dasgd.exchange.interface import Exchange, Settled, Update
from hpc_dasgd.exchange.push.outbox import Buffers, ModelTransfer, Outbox, ended
from hpc_dasgd.exchange.reader import HEADER_PATIENCE_S
from hpc_dasgd.window.model import ModelWindow


class ServerExchange(Exchange):
    """Every rank, the server included, gets the server's model and adds its updates to it.

    A replica is what its rank got of the server; own updates that were sent are in it when they come back from
    there. The own entry of the version vector may thus lag behind `made`, as that of any rank. Counters are
    read before the payload: the replica holds all that its version vector says. It may hold more, up to what
    was added while it was read, and of such an update a part of the elements only. The logged staleness is
    therefore never too low.

    With ``every > 1`` updates are added up and every `every`-th sends their sum and gets the model. Nothing
    waits: while an addition is under way updates are added up too, and while a read is, the old replica stays.
    Updates that wait to be sent are also added to the replica until a newer model replaces it. (Gradients all
    taken at the replica as it came would act as one with a multiple of the stepsize: such runs often diverged.)

    In shared memory additions and reads are through at once: `pull` leaves the newest model. Where the network
    needs the server's help, both go as far as the server calls `pull` or `push`.

    Passes over main memory per exchange in arrays of `n_params`, at a worker or at the server for itself:

    - 2 for the update: gradient read, sum to be sent written; 5 where it waits to be sent, since sum and replica are
      both read and written.
    - 3 for sending: sum read, server's payload read and written.
    - 2 in `pull`, if the server has news: its payload read, replica written; 2 more where reads take their
      time. The server's memory thus sees 4 passes for each rank's exchange.

    Memory, in the same unit: replica 1, sum to be sent 1, at the server the window's 1. Where calls take their
    time, 1 more for the next sum and 1 for what comes back of each kind of call under way.

    Parameters
    ----------
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
        The same on every rank.
    server_rank : int
    server_computes : bool
        Whether the server takes gradients too.
    every : int
        Own updates from one exchange to the next.
    """

    def __init__(self, comm, x0: np.ndarray, server_rank: int = 0, server_computes: bool = True, every: int = 1):
        super().__init__(comm, x0, every)
        self._server = server_rank
        serves = comm.rank == server_rank
        self.computes = server_computes or not serves
        self._window = ModelWindow(comm, self.parameters if serves else None)
        buffers = Buffers(self.scratch.size, self.parameters.size, self.parameters.dtype)
        self._outbox = Outbox(self._window, [server_rank], self.blocks, buffers)
        self._passage = ModelTransfer(self.parameters.size, buffers)
        self._header = self._window.new_header()
        self._known = np.zeros(comm.size, np.int64)  # the server's counters as last seen
        self._got = np.zeros(comm.size, np.int64)  # as they were before the model was read that the replica began as
        self._looking = None  # read of the header under way
        self._getting = None  # generator of the read of the payload under way
        self._made = 0

    @property
    def made(self) -> int:
        return self._made

    @property
    def transferred_bytes(self) -> int:
        return self._window.transferred_bytes

    def pull(self) -> None:
        """Go on with what is being sent and got; begin to get the model where it is new."""
        self._window.progress()
        if self.exchanging:
            self._outbox.send()
        else:
            self._outbox.poll()
        self._get()

    def push(self, update: Update) -> None:
        """Make an own update and begin to add it to the server's model; the replica has one that waits."""
        exchanges = self._count_step()
        if exchanges:
            self._look()  # the stepsize may depend on what the gradient has missed
        waits = not exchanges or self._outbox.under_way
        if waits and self.versions[self.comm.rank] == self._made:  # else an older one is missing
            self.versions[self.comm.rank] += 1
        self._made += 1
        self._outbox.add(update, self.parameters if waits else None)
        if exchanges:
            self._outbox.send()
        else:
            self._outbox.poll()

    def missed(self, held: np.ndarray) -> int:
        """Count updates beyond `held` that the server had when last looked at, and the own ones."""
        beyond = self._known - held
        beyond[self.comm.rank] = self._made - 1 - held[self.comm.rank]
        return int(beyond.sum())

    def stop(self) -> None:
        """Have the server's flag raised, which all ranks see when they look there."""
        if not self.stopping:
            self.stopping = True
            self._outbox.stop()

    def settle(self) -> Settled:
        """Send all there is to send; when everybody has, get the model once more."""
        self._outbox.finish()
        counts = self.comm.allgather(self._made)
        self.exchanging = True
        while self._looking is not None or self._getting is not None or self._got.tolist() != counts:
            self._get()
        return Settled(self._take_from(self._server), dropped_reads=0)

    def free(self) -> None:
        self._window.free()

    def _get(self) -> None:
        """Look at the server and read its model, as far as it goes without waiting."""
        looked = (self.exchanging or self._looking is not None) and self._look()
        if looked and self._getting is None and np.any(self._known != self._got):
            self._getting = self._read_model(self._known.copy())
        if self._getting is not None and ended(self._getting):
            self._getting = None

    def _look(self) -> bool:
        """Read the server's header as far as it goes without waiting; whether that is through."""
        if self._looking is None:
            self._looking = self._window.read_header(self._server, self._header)
        end_s = time.perf_counter() + HEADER_PATIENCE_S
        while not self._looking.done():
            if time.perf_counter() > end_s:
                return False
        self._looking = None
        self._window.fence()  # counters are never ahead of the payload
        self.stopping |= self._header.stopping
        self._known[:] = self._header.counters
        return True

    def _read_model(self, counters: np.ndarray):
        """Read the payload into the replica; yields wherever it would have to wait."""

        def begin(lo: int, buffer: np.ndarray):
            return self._window.read_payload(self._server, lo, buffer)

        def arrived(lo: int, buffer: np.ndarray):
            self.parameters[lo : lo + buffer.size] = buffer
            self.versions[self.comm.rank] = self._got[self.comm.rank]  # own updates since are gone there

        yield from self._passage.move(begin, arrived)
        self._got[:] = self.versions[:] = counters
