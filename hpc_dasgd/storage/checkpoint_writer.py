"""Writing checkpoints beside the training, in a thread."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpc_dasgd.arrays.arithmetic import copy_to_host
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, RankState, path_of, short_name, write_checkpoint

RETRY_S = 5.0  # from a checkpoint that could not be written to the next attempt


class CheckpointWriter:
    """Writes one rank's checkpoints, one at a time, in a thread.

    What is handed over is copied, which is all that training waits for: memory of a contribution and an optimizer
    state. A disk that is too slow makes checkpoints rarer, one that fails is tried again after `RETRY_S`.

    Parameters
    ----------
    directory : Path
        The run directory.
    every_s : float
        Seconds from one checkpoint to the next.
    keep : int, at least 2
        How many files take turns.
    slot : int
        The first of them to be written.
    warn : callable
        Called with one line of text when a checkpoint could not be written, once in a row.
    before_write : callable, optional
        Called in the thread ahead of each: what a checkpoint counts has to be on the disk before it.

    Attributes
    ----------
    longest_stall_s : float
        The longest time that training waited for a copy.
    """

    def __init__(
        self,
        directory: Path,
        every_s: float,
        keep: int,
        slot: int,
        warn: Callable[[str], None],
        before_write: Callable[[], None] = lambda: None,
    ):
        self._directory, self._every_s, self._keep, self._slot = directory, every_s, keep, slot % keep
        self._warn, self._before_write = warn, before_write
        self._thread: threading.Thread | None = None
        self._copies: dict[str, np.ndarray] = {}
        self._next_s = -math.inf
        self._failed = False
        self.longest_stall_s = 0.0

    def reserve(self, state: RankState, now_s: float) -> None:
        """Take the memory for copies of states like this; the next one is due `every_s` after `now_s`."""
        self._copied(state)
        self._next_s = now_s + self._every_s

    def due(self, now_s: float) -> bool:
        """Whether to begin the next one now; the one before is through."""
        return now_s >= self._next_s and not self.busy

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def good(self) -> bool:
        """Whether the last one was written."""
        return not self._failed

    def begin(self, header: CheckpointHeader, state: RankState) -> None:
        """Copy `state` and begin to write it. Waits for the one before, if that is still being written."""
        self.finish()
        begun_s = time.perf_counter()
        state = self._copied(state)
        self.longest_stall_s = max(self.longest_stall_s, time.perf_counter() - begun_s)
        self._next_s = header.t_s + self._every_s
        self._thread = threading.Thread(target=self._write, args=(header, state), name="checkpoint")
        self._thread.start()

    def finish(self) -> bool:
        """Wait until nothing is being written; whether the last one was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.good

    def _write(self, header: CheckpointHeader, state: RankState) -> None:
        path = path_of(self._directory, header.rank, self._slot)
        try:
            self._before_write()
            write_checkpoint(path, header, state)
        except Exception as error:  # whatever it is, training goes on, and is told so
            self._next_s = min(self._next_s, header.t_s + RETRY_S)
            if not self._failed:
                self._warn(f"cannot write checkpoint {short_name(path)}: {layout.reason(error)}; training goes on")
            self._failed = True
        else:
            self._failed = False
            self._slot = (self._slot + 1) % self._keep

    def _copied(self, state: RankState) -> RankState:
        optimizer = {name: self._copy(f"optimizer/{name}", value) for name, value in state.optimizer_state.items()}
        return RankState(state.versions.copy(), self._copy("contribution", state.contribution), optimizer)

    def _copy(self, name: str, value):
        """A copy of an array into host memory that is kept; anything else as it is."""
        if not hasattr(value, "shape"):
            return value
        if name not in self._copies:
            self._copies[name] = np.empty(value.shape, value.dtype)
        copy_to_host(value, self._copies[name])
        return self._copies[name]
