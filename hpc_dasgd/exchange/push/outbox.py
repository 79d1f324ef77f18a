"""Adding own updates to models of other ranks without ever waiting.

Updates made while a call to a target is under way are summed, and sent by the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from hpc_dasgd.arrays.types import AnyArray, DType, Floats, Int64s
from hpc_dasgd.exchange.interface import Blocks, Update
from hpc_dasgd.window.memory import Transfer, wait_for
from hpc_dasgd.window.model import Flag, ModelWindow

_ENDED = object()

Steps: TypeAlias = Iterator[None]
"""A generator that yields whenever it would have to wait for a transfer."""


class Pool:
    """Buffers of one size, which are allocated when needed and reused.

    Parameters
    ----------
    size : int
        Number of elements.
    dtype : dtype_like
    """

    def __init__(self, size: int, dtype: DType):
        self._size, self._dtype = size, dtype
        self._spare: list[AnyArray] = []

    def take(self) -> AnyArray:
        """Return a buffer with undefined contents."""
        return self._spare.pop() if self._spare else np.empty(self._size, self._dtype)

    def give_back(self, buffer: AnyArray) -> None:
        """Return a buffer to the pool; the caller must not use it any more."""
        self._spare.append(buffer)


class Buffers:
    """The buffers of an exchange.

    Parameters
    ----------
    n_block, n_params : int
        Number of elements of a block, and of the model.
    dtype : dtype_like

    Attributes
    ----------
    blocks : Pool
        Buffers of the size of a block, which stay in cache.
    models : Pool
        Buffers of the size of the model.
    """

    def __init__(self, n_block: int, n_params: int, dtype: DType):
        self.blocks, self.models = Pool(n_block, dtype), Pool(n_params, dtype)


class ModelTransfer:
    """Moves whole models to or from one rank.

    A model is moved block by block as long as each block is transferred at once, as in shared memory: the other end of
    the transfer is then a block in cache, not a model in main memory. If a transfer does not complete at once, the rest
    of the model is moved by a single transfer.

    Parameters
    ----------
    n_params : int
    buffers : Buffers
    """

    def __init__(self, n_params: int, buffers: Buffers):
        self._n_params, self._buffers = n_params, buffers
        self._immediate = True  # whether the last transfer was complete when it was started

    def move(
        self, start: Callable[[int, Floats], Transfer], arrived: Callable[[int, Floats], None] | None = None
    ) -> Steps:
        """Move one model; yields whenever it would have to wait.

        Parameters
        ----------
        start : callable
            ``start(lo, buffer)`` starts a transfer of the elements ``lo : lo + buffer.size`` that uses `buffer`.
        arrived : callable, optional
            ``arrived(lo, buffer)`` is called after each of these transfers.
        """
        n_moved = 0
        while n_moved < self._n_params:
            pool = self._buffers.blocks if self._immediate else self._buffers.models
            buffer = pool.take()
            piece = buffer[: self._n_params - n_moved]
            transfer = start(n_moved, piece)
            self._immediate = transfer.done()
            yield from wait_for(transfer)
            if arrived is not None:
                arrived(n_moved, piece)
            pool.give_back(buffer)
            n_moved += piece.size


class PendingSum:
    """A sum of own updates that one or more targets will receive. It must not change while it is being sent.

    Attributes
    ----------
    values : ndarray, shape (n_params,)
    n_updates : int
        Number of updates in it.
    n_waiting : int
        Number of targets that will receive it by the next call to them.
    n_sending : int
        Number of targets that receive it by a call that is under way.
    """

    def __init__(self, values: AnyArray):
        self.values = values
        self.n_updates = 0
        self.n_waiting = 0
        self.n_sending = 0


class TargetQueue:
    """What one target will receive; at most one call is under way.

    Attributes
    ----------
    target : int
    transfer : ModelTransfer
    next : PendingSum or None
        The sum that the next call will send.
    sending : generator or None
        The delivery that is under way.
    stop : bool
        True if the target's flag has to be raised.
    words : ndarray, shape (2,), int64
        Buffer for counters and flags.
    """

    def __init__(self, target: int, transfer: ModelTransfer):
        self.target, self.transfer = target, transfer
        self.next: PendingSum | None = None
        self.sending: Steps | None = None
        self.stop = False
        self.words: Int64s = np.zeros(2, np.int64)

    @property
    def is_idle(self) -> bool:
        """True if nothing is under way and nothing waits."""
        return self.sending is None and self.next is None and not self.stop


class Outbox:
    """Own updates that are being added to the models of `targets`.

    Targets that wait for the same updates share a pending sum. A sum that is being sent to a target does not change:
    for the other targets it is replaced by a new one when the next update is made.

    Nothing here is collective.

    Parameters
    ----------
    window : ModelWindow
    targets : sequence of int
    blocks : list of (int, int)
        See `Exchange`.
    buffers : Buffers
    """

    def __init__(self, window: ModelWindow, targets: Sequence[int], blocks: Blocks, buffers: Buffers):
        self._window, self._blocks, self._buffers = window, blocks, buffers
        self._queues = [TargetQueue(target, ModelTransfer(blocks[-1][1], buffers)) for target in targets]

    @property
    def under_way(self) -> bool:
        """True if a call to any target is under way."""
        return any(queue.sending is not None for queue in self._queues)

    def add(self, update: Update, replica: Floats | None = None) -> None:
        """Add an own update to the pending sums of all targets; nothing is sent.

        Parameters
        ----------
        update : Update
        replica : ndarray, shape (n_params,), optional
            An array to which the update is added as well.
        """
        fresh, sums = self._renew_sums()
        memory = self._buffers.blocks.take() if fresh is None else fresh.values
        for lo, hi in self._blocks:
            values = memory[: hi - lo] if fresh is None else memory[lo:hi]
            update(lo, hi, values)
            for before, pending in sums:
                np.add(before.values[lo:hi], values, out=pending.values[lo:hi])
            if replica is not None:
                np.add(replica[lo:hi], values, out=replica[lo:hi])
        if fresh is None:
            self._buffers.blocks.give_back(memory)
        else:
            fresh.n_updates = 1
        for before, pending in sums:
            pending.n_updates = before.n_updates + 1

    def send(self) -> None:
        """Continue calls that are under way, and start those that wait for an idle target. Never waits."""
        for queue in self._queues:
            while not queue.is_idle:
                if queue.sending is None:
                    queue.sending = self._deliver(queue)
                if not self._continue(queue, queue.sending):
                    break

    def poll(self) -> None:
        """Continue calls that are under way. Never waits."""
        for queue in self._queues:
            if queue.sending is not None:
                self._continue(queue, queue.sending)

    def stop(self) -> None:
        """Raise, at every target, the flag that requests the end of the run. Never waits."""
        for queue in self._queues:
            queue.stop = True
        self.send()

    def finish(self) -> None:
        """Send until nothing is left. Waits for targets if the network needs their help."""
        while not all(queue.is_idle for queue in self._queues):
            self.send()

    def _continue(self, queue: TargetQueue, sending: Steps) -> bool:
        """Continue the delivery to a target. Return True if it is complete.

        A delivery to this rank itself depends on no other rank: it is completed.
        """
        complete = has_ended(sending)
        while queue.target == self._window.rank and not complete:
            complete = has_ended(sending)
        if complete:
            queue.sending = None
        return complete

    def _deliver(self, queue: TargetQueue) -> Steps:
        """Deliver a request to stop and the next sum to a target; yields whenever it would have to wait."""
        if queue.stop:
            queue.stop = False
            yield from wait_for(self._window.raise_flag(queue.target, Flag.STOP, queue.words))
        if queue.next is None:
            return
        pending, queue.next = queue.next, None
        pending.n_waiting -= 1
        pending.n_sending += 1
        values, n_updates = pending.values, pending.n_updates

        def start(lo: int, fetched: Floats) -> Transfer:
            return self._window.add_payload(queue.target, lo, values[lo : lo + fetched.size], fetched)

        yield from queue.transfer.move(start)
        pending.n_sending -= 1
        self._release(pending)
        # The counter follows the payload, so that the payload holds at least the updates that are counted.
        yield from wait_for(self._window.add_count(queue.target, n_updates, queue.words))

    def _renew_sums(self) -> tuple[PendingSum | None, list[tuple[PendingSum, PendingSum]]]:
        """Give each target a pending sum that may be changed.

        Returns
        -------
        fresh : PendingSum or None
            The sum of the targets that waited for nothing; the update is to be stored into it.
        sums : list of (PendingSum, PendingSum)
            Previous sums, and the sums that have to become the previous one plus the update. Both are the same object
            if the previous one may be changed.
        """
        fresh: PendingSum | None = None
        sums: dict[PendingSum, PendingSum] = {}
        for queue in self._queues:
            before = queue.next
            if before is None:
                fresh = pending = fresh or PendingSum(self._buffers.models.take())
            elif before in sums:
                pending = sums[before]
            else:
                pending = sums[before] = PendingSum(self._buffers.models.take()) if before.n_sending else before
            if pending is not before:
                pending.n_waiting += 1
                queue.next = pending
                if before is not None:
                    before.n_waiting -= 1
        return fresh, list(sums.items())

    def _release(self, pending: PendingSum) -> None:
        if pending.n_waiting == pending.n_sending == 0:
            self._buffers.models.give_back(pending.values)


def has_ended(steps: Steps) -> bool:
    """Continue a generator until it would have to wait. Return True if it has ended."""
    return next(steps, _ENDED) is _ENDED
