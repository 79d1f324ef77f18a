"""What the exchanges that accumulate into windows of other ranks share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from hpc_dasgd.arrays.types import Array
from hpc_dasgd.exchange.interface import Exchange, ExchangeSetup, Settled, Update
from hpc_dasgd.exchange.push.outbox import Buffers, Outbox
from hpc_dasgd.window.model import ModelWindow


class PushExchange(Exchange):
    """Adds own updates to the models of some ranks, and copies one of these models into the replica.

    Parameters
    ----------
    setup : ExchangeSetup
    targets : sequence of int
        Ranks to whose models own updates are added, in this order.
    has_model : bool
        True if this rank has a model to which updates are added.
    root : int
        Rank whose replica becomes that of all ranks at the end.
    """

    def __init__(self, setup: ExchangeSetup, targets: Sequence[int], has_model: bool, root: int):
        super().__init__(setup)
        self._root = root
        self._window = ModelWindow(setup.comm, self.parameters if has_model else None)
        self._buffers = Buffers(self.scratch.size, self.parameters.size, self.parameters.dtype)
        self._outbox = Outbox(self._window, targets, self.blocks, self._buffers)
        self._made = 0

    @property
    def made(self) -> int:
        """Number of updates that this rank has made; the replica may not hold all of them."""
        return self._made

    @property
    def transferred_bytes(self) -> int:
        """Number of bytes that this rank has read from and added to windows of other ranks."""
        return self._window.transferred_bytes

    def pull(self) -> None:
        """Continue calls that are under way, and copy a newer model. Not collective; never waits."""
        self._window.progress()
        self._continue_sending()
        self._copy_model()

    def push(self, update: Update) -> None:
        """Make an own update, and start to add it to the models of the targets. Not collective; never waits."""
        exchanges = self.count_step()
        replica = self._prepare_push(exchanges)
        self._made += 1
        self._outbox.add(update, replica)
        self._continue_sending()

    def stop(self) -> None:
        """Raise, at the targets, the flag that requests the end of the run. Not collective."""
        if not self.stopping:  # otherwise another rank has raised it
            self.stopping = True
            self._outbox.stop()

    def settle(self) -> Settled:
        """Send all updates, and replace all replicas by that of `root`, which then holds them. Collective; waits."""
        self._outbox.finish()
        self._copy_final_model(self.comm.allgather(self._made))
        return Settled(self.broadcast_replica(self._root), dropped_reads=0)

    def free(self) -> None:
        """Free the window; a second call does nothing. Collective over `comm`."""
        self._window.free()

    def _continue_sending(self) -> None:
        """Continue calls that are under way, and start new ones if this step exchanges. Never waits."""
        if self.exchanging:
            self._outbox.send()
        else:
            self._outbox.poll()

    @abstractmethod
    def _copy_model(self) -> None:
        """Copy a newer model into the replica, as far as possible without waiting."""

    @abstractmethod
    def _prepare_push(self, exchanges: bool) -> Array | None:
        """Return the replica if the own update has to be added to it at once, and count it in `versions` then."""

    @abstractmethod
    def _copy_final_model(self, counts: list[int]) -> None:
        """Copy the model into the replica until it holds ``counts[rank]`` updates of each rank. May wait."""
