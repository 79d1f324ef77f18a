"""Exchange `server`: centralized asynchronous SGD, the baseline with which decentralized SGD is compared.

The window of one rank contains the model. All ranks read it, compute a gradient at what they have read, and add their
update to the model; no rank waits for another.
"""

from __future__ import annotations

import time

import numpy as np

from hpc_dasgd.arrays.types import Array, Floats, Int64s
from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.exchange.interface import ExchangeSetup
from hpc_dasgd.exchange.push.outbox import ModelTransfer, Steps, has_ended
from hpc_dasgd.exchange.push.pushing import PushExchange
from hpc_dasgd.exchange.reader import HEADER_POLL_S
from hpc_dasgd.window.memory import Transfer


class ServerExchange(PushExchange):
    """Every rank, including the server, reads the model of the server and adds its updates to it.

    A replica is what its rank has read from the server; own updates are part of it after the rank has read them back.
    The own entry of the version vector may therefore be lower than `made`. Counters are read before the payload: the
    replica holds at least the updates of its version vector. It may also hold updates that arrived while it was read,
    some of them only in a part of the elements. The logged staleness is therefore never too low.

    With ``every > 1`` updates are summed, and every `every`-th step sends the sum and reads the model. Nothing waits:
    while an addition is under way updates are summed too, and while a read is under way the old replica stays. Updates
    that have not been sent yet are also added to the replica until a newer model replaces it. (Gradients that are all
    computed at the same replica act as one gradient with a multiple of the stepsize: such runs often diverged.)

    In shared memory additions and reads complete at once: `pull` leaves the newest model. On networks that need the
    server's help, both progress when the server calls `pull` or `push`.

    Passes over main memory per exchange in arrays of `n_params`, at a worker or at the server for itself:

    - 2 for the update: gradient read, sum to be sent written; 5 if the update waits to be sent, since sum and replica
      are both read and written.
    - 3 for sending: sum read, payload of the server read and written.
    - 2 in `pull`, if the server has new updates: its payload read, replica written; 2 more if reads do not complete at
      once. The server's memory thus sees 4 passes for each exchange of a rank.

    Memory, in the same unit: replica 1, sum to be sent 1, and at the server the window 1. If calls do not complete at
    once, 1 more for the next sum and 1 for each kind of call under way.

    Parameters
    ----------
    setup : ExchangeSetup
        ``settings.server_rank`` is the server; ``settings.server_computes`` tells whether it computes gradients too.
    """

    def __init__(self, setup: ExchangeSetup):
        self._server = setup.settings.server_rank
        serves = setup.comm.rank == self._server
        super().__init__(setup, [self._server], has_model=serves, root=self._server)
        self.computes = setup.settings.server_computes or not serves
        self._model_transfer = ModelTransfer(self.parameters.size, self._buffers)
        self._header = self._window.new_header()
        self._counters: Int64s = np.zeros(setup.comm.size, np.int64)  # of the server, in the last header that was read
        self._model_counters: Int64s = np.zeros(setup.comm.size, np.int64)  # of the server, before the replica was read
        self._header_read: Transfer | None = None
        self._model_read: Steps | None = None

    @classmethod
    def check_settings(cls, settings: ExchangeConfig, n_ranks: int) -> None:
        """Check that the server exists and that a rank computes gradients.

        Raises
        ------
        ConfigError
            If the server does not exist, or no rank computes gradients.
        """
        server = settings.server_rank
        if server >= n_ranks:
            raise ConfigError(f"`exchange.server_rank` must be below the number of ranks, {n_ranks}, got {server}")
        if n_ranks == 1 and not settings.server_computes:
            raise ConfigError("`exchange.server_computes` must be true on a single rank, got false")

    def missed(self, versions: Int64s) -> int:
        """Return the number of updates beyond `versions`: those in the server's last header, and the own ones."""
        beyond = self._counters - versions
        beyond[self.comm.rank] = self._made - 1 - versions[self.comm.rank]
        return int(beyond.sum())

    def _copy_model(self) -> None:
        """Read the header of the server, and its model if it is new, as far as possible without waiting."""
        arrived = (self.exchanging or self._header_read is not None) and self._poll_header()
        if arrived and self._model_read is None and np.any(self._counters != self._model_counters):
            self._model_read = self._read_model(self._counters.copy())
        if self._model_read is not None and has_ended(self._model_read):
            self._model_read = None

    def _prepare_push(self, exchanges: bool) -> Array | None:
        if exchanges:
            self._poll_header()  # the stepsize may depend on what the gradient has missed
        waits = not exchanges or self._outbox.under_way
        if waits and self.versions[self.comm.rank] == self._made:  # otherwise the replica lacks an earlier own update
            self.versions[self.comm.rank] += 1
        return self.parameters if waits else None

    def _copy_final_model(self, counts: list[int]) -> None:
        self.exchanging = True
        while self._header_read is not None or self._model_read is not None or self._model_counters.tolist() != counts:
            self._copy_model()

    def _poll_header(self) -> bool:
        """Read the header of the server, as far as possible without waiting. Return True if it has arrived."""
        if self._header_read is None:
            self._header_read = self._window.read_header(self._server, self._header)
        end_s = time.perf_counter() + HEADER_POLL_S
        while not self._header_read.done():
            if time.perf_counter() > end_s:
                return False
        self._header_read = None
        self._window.fence()  # the payload is read after the counters, so that it holds at least these updates
        self.stopping |= self._header.stopping
        self._counters[:] = self._header.counters
        return True

    def _read_model(self, counters: Int64s) -> Steps:
        """Read the payload into the replica; yields whenever it would have to wait."""

        def start(lo: int, buffer: Floats) -> Transfer:
            return self._window.read_payload(self._server, lo, buffer)

        def store(lo: int, buffer: Floats) -> None:
            self.parameters[lo : lo + buffer.size] = buffer
            # Own updates that were added to the replica since are not part of this block any more.
            self.versions[self.comm.rank] = self._model_counters[self.comm.rank]

        yield from self._model_transfer.move(start, store)
        self._model_counters[:] = self.versions[:] = counters
