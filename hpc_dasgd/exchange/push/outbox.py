"""Adding own updates to models of other ranks without ever waiting.

Updates made while a call to a target is under way are added up, and travel with the next call.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hpc_dasgd.exchange.interface import Update
from hpc_dasgd.window.memory import Transfer
from hpc_dasgd.window.model import Flag, ModelWindow

_DONE = object()


class Pool:
    """Buffers of one size: made when one is wanted and none is left, kept for the next who wants one."""

    def __init__(self, size: int, dtype):
        self._size, self._dtype = size, dtype
        self._spare = []

    def take(self) -> np.ndarray:
        """A buffer with anything in it."""
        return self._spare.pop() if self._spare else np.empty(self._size, self._dtype)

    def give_back(self, buffer: np.ndarray) -> None:
        """Say that nobody uses `buffer` any more."""
        self._spare.append(buffer)


class Buffers:
    """The buffers of an exchange.

    Attributes
    ----------
    blocks : Pool
        Of buffers that stay in cache.
    models : Pool
        Of buffers as long as the model.
    """

    def __init__(self, n_block: int, n_params: int, dtype):
        self.blocks, self.models = Pool(n_block, dtype), Pool(n_params, dtype)


class ModelTransfer:
    """Moves whole models to or from one rank.

    Block by block as long as each block is through at once, as in shared memory: the other end of the transfer
    is then a block in cache, not a model in memory. Where transfers take their time the rest goes in one.
    """

    def __init__(self, n_params: int, buffers: Buffers):
        self._n_params, self._buffers = n_params, buffers
        self._at_once = True

    def move(
        self,
        begin: Callable[[int, np.ndarray], Transfer],
        arrived: Callable[[int, np.ndarray], None] | None = None,
    ):
        """Move one model; a generator that yields wherever it would have to wait.

        ``begin(lo, buffer)`` begins to move as many elements as `buffer` has, from element `lo` on, into `buffer`;
        ``arrived(lo, buffer)`` is called behind each such transfer.
        """
        n_moved = 0
        while n_moved < self._n_params:
            pool = self._buffers.blocks if self._at_once else self._buffers.models
            buffer = pool.take()
            piece = buffer[: self._n_params - n_moved]
            transfer = begin(n_moved, piece)
            self._at_once = transfer.done()
            yield from waiting(transfer)
            if arrived is not None:
                arrived(n_moved, piece)
            pool.give_back(buffer)
            n_moved += piece.size


class PendingSum:
    """A sum of own updates that one or more targets are to get. Not to be changed while it is being sent."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.n_updates = 0
        self.n_waiting = 0  # targets that get it with their next call
        self.n_sending = 0  # targets that get it with a call under way


class TargetQueue:
    """The way to one target: at most one call at a time."""

    def __init__(self, target: int, passage: ModelTransfer):
        self.target, self.passage = target, passage
        self.next = None  # the parcel of the next call
        self.sending = None  # generator of what is under way
        self.stop = False  # whether the target's flag is to be raised
        self.words = np.zeros(2, np.int64)


class Outbox:
    """Own updates on their way to the models of `targets`.

    Targets for which the same updates wait share a parcel. One that some target is getting is not changed: for
    the others it is replaced by a new one when the next update comes.

    Parameters
    ----------
    window : ModelWindow
    targets : sequence of int
    blocks : list of (int, int)
        Of `Exchange`.
    buffers : Buffers
    """

    def __init__(self, window: ModelWindow, targets: Sequence[int], blocks, buffers: Buffers):
        self._window, self._blocks, self._buffers = window, blocks, buffers
        self._lines = [TargetQueue(target, ModelTransfer(blocks[-1][1], buffers)) for target in targets]

    @property
    def under_way(self) -> bool:
        """Whether a call to any target is."""
        return any(line.sending is not None for line in self._lines)

    def add(self, update: Update, replica: np.ndarray | None = None) -> None:
        """Take in an own update for all targets, and add it to `replica` as well; nothing is sent."""
        fresh, sums = self._renew()
        block = None if fresh else self._buffers.blocks.take()
        for lo, hi in self._blocks:
            values = fresh.values[lo:hi] if fresh else block[: hi - lo]
            update(lo, hi, values)
            for before, parcel in sums:
                np.add(before.values[lo:hi], values, out=parcel.values[lo:hi])
            if replica is not None:
                np.add(replica[lo:hi], values, out=replica[lo:hi])
        if fresh:
            fresh.n_updates = 1
        else:
            self._buffers.blocks.give_back(block)
        for before, parcel in sums:
            parcel.n_updates = before.n_updates + 1

    def send(self) -> None:
        """Begin what waits for targets without a call under way, and go on with what is."""
        for line in self._lines:
            while line.sending is not None or line.next is not None or line.stop:
                if line.sending is None:
                    line.sending = self._deliver(line)
                if not self._go_on(line):
                    break

    def poll(self) -> None:
        """Go on with what is under way."""
        for line in self._lines:
            if line.sending is not None:
                self._go_on(line)

    def stop(self) -> None:
        """Have the flag of every target raised."""
        for line in self._lines:
            line.stop = True
        self.send()

    def finish(self) -> None:
        """Send until nothing is left. Waits for targets where the network needs their help."""
        while any(line.sending is not None or line.next is not None or line.stop for line in self._lines):
            self.send()

    def _go_on(self, line: TargetQueue) -> bool:
        """Go on with what is under way to a target; whether it is through.

        What this rank sends itself depends on nobody else: it goes on to the end.
        """
        through = ended(line.sending)
        while line.target == self._window.rank and not through:
            through = ended(line.sending)
        if through:
            line.sending = None
        return through

    def _deliver(self, line: TargetQueue):
        """One delivery; yields wherever it would have to wait."""
        if line.stop:
            line.stop = False
            yield from waiting(self._window.raise_flag(line.target, Flag.STOP, line.words))
        if line.next is None:
            return
        parcel, line.next = line.next, None
        parcel.n_waiting -= 1
        parcel.n_sending += 1
        values, n_updates = parcel.values, parcel.n_updates

        def begin(lo: int, fetched: np.ndarray) -> Transfer:
            return self._window.add_payload(line.target, lo, values[lo : lo + fetched.size], fetched)

        yield from line.passage.move(begin)
        parcel.n_sending -= 1
        self._release(parcel)
        # Only now, that a counter may never be ahead of the payload.
        yield from waiting(self._window.add_count(line.target, n_updates, line.words))

    def _renew(self) -> tuple[PendingSum | None, list[tuple[PendingSum, PendingSum]]]:
        """Give each target a parcel that may be changed.

        Returns
        -------
        fresh : Parcel or None
            Of the targets for which nothing waited, to be stored into.
        sums : list of (Parcel, Parcel)
            What waited, and where the sum of that and a new update belongs; the same one where that may be
            changed.
        """
        fresh, sums = None, {}
        for line in self._lines:
            before = line.next
            if before is None:
                fresh = parcel = fresh or PendingSum(self._buffers.models.take())
            elif before in sums:
                parcel = sums[before]
            else:
                parcel = sums[before] = PendingSum(self._buffers.models.take()) if before.n_sending else before
            if parcel is not before:
                parcel.n_waiting += 1
                line.next = parcel
                if before is not None:
                    before.n_waiting -= 1
        return fresh, list(sums.items())

    def _release(self, parcel: PendingSum) -> None:
        if parcel.n_waiting == parcel.n_sending == 0:
            self._buffers.models.give_back(parcel.values)


def waiting(transfer: Transfer):
    """Yield until `transfer` is done."""
    while not transfer.done():
        yield


def ended(work: Iterator) -> bool:
    """Go on with `work` as far as it goes without waiting; whether that is its end."""
    return next(work, _DONE) is _DONE
