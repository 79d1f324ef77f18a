"""Writing the checkpoints of one rank in a thread while training continues; `checkpoint_file` writes one file."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_dasgd.arrays.arithmetic import copy_to_host
from hpc_dasgd.arrays.types import AnyArray, Array
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, RankState, checkpoint_path, write_checkpoint
from hpc_dasgd.storage.checkpoint_user_block import display_name
from hpc_dasgd.storage.hdf5_io import error_reason

RETRY_S = 5.0
"""Seconds from a checkpoint that could not be written to the next attempt."""


@dataclass(frozen=True)
class CheckpointSchedule:
    """When checkpoints are written, and to which files.

    Attributes
    ----------
    every_s : float
        Seconds from one checkpoint to the next.
    keep : int, at least 2
        Number of files that are used in turn.
    first_slot : int
        Slot of the first checkpoint, modulo `keep`.
    """

    every_s: float
    keep: int
    first_slot: int = 0


class CheckpointWriter:
    """Writes the checkpoints of one rank, one at a time, in a thread. Not collective.

    Training waits only while the state is copied, which needs memory for one more contribution and optimizer state.
    If a checkpoint takes longer than the interval, the next one is written later; if one cannot be written, the next
    attempt is after `RETRY_S`.

    Parameters
    ----------
    run_directory : Path
    schedule : CheckpointSchedule
    warn : callable
        Called with one line of text when a checkpoint cannot be written but the previous one could be.
    before_write : callable, optional
        Called in the thread before each write, to make durable the log of the updates that the checkpoint contains.

    Attributes
    ----------
    longest_stall_s : float
        Longest time in seconds that training waited for a copy.
    """

    def __init__(
        self,
        run_directory: Path,
        schedule: CheckpointSchedule,
        warn: Callable[[str], None],
        before_write: Callable[[], object] = lambda: None,
    ):
        self._directory, self._schedule = run_directory, schedule
        self._slot = schedule.first_slot % schedule.keep
        self._warn, self._before_write = warn, before_write
        self._thread: threading.Thread | None = None
        self._copies: dict[str, AnyArray] = {}
        self._next_s = -math.inf
        self._failed = False
        self.longest_stall_s = 0.0

    def reserve(self, state: RankState, now_s: float) -> None:
        """Allocate memory for copies of states like `state`; the next checkpoint is due ``every_s`` after `now_s`."""
        self._copied(state)
        self._next_s = now_s + self._schedule.every_s

    def due(self, now_s: float) -> bool:
        """Return whether the next checkpoint is due and none is being written."""
        return now_s >= self._next_s and not self.busy

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def last_succeeded(self) -> bool:
        """Whether the last checkpoint was written; True before the first."""
        return not self._failed

    def begin(self, header: CheckpointHeader, state: RankState) -> None:
        """Copy `state` and start to write it.

        Waits for the previous checkpoint if it is still being written. `state` may be modified after the call.
        """
        self.finish()
        begun_s = time.perf_counter()
        state = self._copied(state)
        self.longest_stall_s = max(self.longest_stall_s, time.perf_counter() - begun_s)
        self._next_s = header.t_s + self._schedule.every_s
        self._thread = threading.Thread(target=self._write, args=(header, state), name="checkpoint")
        self._thread.start()

    def finish(self) -> bool:
        """Wait until no checkpoint is being written. Returns `last_succeeded`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.last_succeeded

    def _write(self, header: CheckpointHeader, state: RankState) -> None:
        path = checkpoint_path(self._directory, header.rank, self._slot)
        try:
            self._before_write()
            write_checkpoint(path, header, state)
        except Exception as error:  # no error of a checkpoint may end training; the next `finish` reports it
            self._next_s = min(self._next_s, header.t_s + RETRY_S)
            if not self._failed:
                self._warn(f"cannot write checkpoint {display_name(path)}: {error_reason(error)}; training continues")
            self._failed = True
        else:
            self._failed = False
            self._slot = (self._slot + 1) % self._schedule.keep

    def _copied(self, state: RankState) -> RankState:
        """Return `state` with its arrays in host memory that this object keeps."""
        items = (state.optimizer_state or {}).items()
        optimizer = {name: self._copy(f"optimizer/{name}", value) for name, value in items}
        return RankState(state.versions.copy(), self._copy("contribution", state.contribution), optimizer)

    def _copy(self, name: str, value: Array) -> Any:
        """Copy an array to host memory that the next copy of this name overwrites; return other values unchanged."""
        if not hasattr(value, "shape"):
            return value
        if name not in self._copies:
            self._copies[name] = np.empty(value.shape, value.dtype)
        copy_to_host(value, self._copies[name])
        return self._copies[name]
