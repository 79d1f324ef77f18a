"""The writer of a rank's log: a row per gradient and a row per evaluation, in one or more segments.

    with RankLog(directory, LogSettings(rank, n_ranks, versions_every=1)) as log:
        log.append(...)

Not collective: every rank writes files of its own. If a file cannot be written, because the disk is full or was
removed, training continues: rows wait in memory until writing succeeds again, in a new segment if necessary. How one
segment is written is in `log_segment`.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, creation_errors, error_reason, fsync_path, require_space
from hpc_dasgd.storage.log_segment import CHUNK_ROWS, LogRows, LogSegment, LogSettings

_RETRY_S = 5.0
_MEMORY_BYTES = 64 << 20  # limit of the rows that wait
_SPARE_BYTES = 16 << 20  # a disk with less counts as full: all ranks on it may find this space at the same time
_MIN_SPARE_BYTES = 1 << 20  # the same at the start, before a checkpoint and at the end, when rows cannot wait longer
_MIN_BATCH_ROWS = 64
_BATCH_BYTES = 1 << 22  # of version vectors
_OVERHEAD_BYTES = 1024  # memory of a `LogRows` without rows


class RankLog:
    """Log of one rank in one generation; a context manager. Not collective.

    The constructor creates the first segment, so that a directory that cannot be written to is reported before the
    first step. `append` fills a buffer, which is written when it is full or `layout.FLUSH_EVERY_S` old. Leaving the
    context writes the buffer and closes the file, even after an exception.

    If a segment cannot be written later, rows wait in memory and writing is attempted again every few seconds; beyond
    64 MiB the oldest rows are dropped. A new segment is started if the file was deleted (its directory is created
    again), if a write failed, and after rows were dropped.

    Parameters
    ----------
    directory : Path
        Directory of the generation; must not contain a log of this rank.
    settings : LogSettings
    versions_before : ndarray, shape (n_streams,), integer, optional
        Updates of each stream (see `log_index`) before this generation, ``n_streams >= n_ranks``; zeros by default.
        They are added to all versions and counts logged; arguments of the methods count from 0 in each generation.
    warn : callable, optional
        Called with one line of text when a file cannot be written for the first time; prints to standard error by
        default.

    Raises
    ------
    ConfigError
        If the file cannot be created.
    """

    def __init__(
        self,
        directory: Path,
        settings: LogSettings,
        versions_before: AnyArray | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        rank, n_ranks = settings.rank, settings.n_ranks
        before = np.zeros(n_ranks, np.int64) if versions_before is None else np.asarray(versions_before, np.int64)
        self._directory, self._settings, self._n_streams = directory, settings, before.size
        self._rank, self._every = rank, settings.versions_every
        self._warn = warn or _print_warning
        self._warned = False
        self._own_before, self._all_before = int(before[rank]), int(before.sum())
        self._ranks_before = before[:n_ranks].astype(layout.VERSIONS.dtype)
        vector_bytes = before.size * np.dtype(layout.VERSIONS.dtype).itemsize
        capacity = max(_MIN_BATCH_ROWS, min(CHUNK_ROWS, _BATCH_BYTES // vector_bytes))
        self._rows = np.empty(capacity, layout.record_dtype(layout.GRADIENT_COLUMNS))
        self._vectors = np.empty((capacity, before.size), layout.VERSIONS.dtype)
        self._vectors[:] = before
        self._ranks_vectors = self._vectors[:, :n_ranks]
        self._evaluations: list[tuple[float, int, float, float, float]] = []
        self._intervals: list[tuple[float, int, int, float]] = []
        self._n_rows = self._n_vectors = 0
        self._next_version = self._own_before
        self._flush_due_s = layout.FLUSH_EVERY_S

        self._waiting: deque[LogRows] = deque()
        self._retry_s = -math.inf
        self._failure = ""  # reason of the last failed write
        self._n_dropped = self._n_deleted = 0  # gradients
        self._n_segments = 1
        path = directory / layout.rank_file(rank)
        with creation_errors("log file", path):
            require_space(directory, _MIN_SPARE_BYTES)
            self._segment: LogSegment | None = LogSegment(path, settings, self._next_version, self._n_streams)
        self._paths = [path]

    def append(
        self,
        t_start_s: float,
        t_end_s: float,
        loss: float,
        gradient_norm: float,
        version: int,
        versions: AnyArray,
        stepsize: float = math.nan,
    ) -> None:
        """Log one gradient. Takes 1 to 2 us on average, half of it for writing full buffers.

        Parameters
        ----------
        t_start_s, t_end_s, loss, gradient_norm : float
            As described in `layout.GRADIENT_COLUMNS`.
        version : int
            As described in `layout.GRADIENT_COLUMNS`, counted from 0 in each generation.
        versions : ndarray, shape (n_ranks,), integer
            Version vector of the replica that the gradient was computed at; copied.
        stepsize : float, optional
            As described in `layout.GRADIENT_COLUMNS`.
        """
        self._rows[self._n_rows] = t_start_s, t_end_s, loss, gradient_norm, version, stepsize
        self._n_rows += 1
        if self._every and self._next_version % self._every == 0:
            self._ranks_vectors[self._n_vectors] = versions
            self._n_vectors += 1
        self._next_version += 1
        if t_end_s >= self._flush_due_s or self._n_rows == len(self._rows):
            self._flush()
            self._flush_due_s = t_end_s + layout.FLUSH_EVERY_S

    def append_evaluation(
        self, t_s: float, gradients: int, loss: float, accuracy: float, consensus_distance: float = math.nan
    ) -> None:
        """Log one evaluation and flush the log; parameters are described in `layout.EVALUATION_COLUMNS`."""
        self._evaluations.append((t_s, gradients + self._all_before, loss, accuracy, consensus_distance))
        self._flush()

    def append_interval(self, t_s: float, version: int, every: int, overhead: float) -> None:
        """Log that the exchange interval is now `every`; parameters are described in `layout.INTERVAL_COLUMNS`."""
        self._intervals.append((t_s, version + self._own_before, every, overhead))

    def flush(self) -> bool:
        """Write all buffered and waiting rows now. Returns True if everything logged so far is in files."""
        self._flush(retry_now=True, spare_bytes=_MIN_SPARE_BYTES)
        return not self.missing

    def sync(self) -> bool:
        """Make everything written so far durable. Returns True if that succeeded. May be called from any thread."""
        try:
            for path in (*self._paths, self._directory):
                fsync_path(path)
        except OSError:
            return False
        return True

    @property
    def missing(self) -> list[str]:
        """Lines that state which rows are in no file; empty if none. Final after the context has been left."""
        n_waiting = sum(len(rows.gradients) for rows in self._waiting)
        n_others = sum(len(rows.evaluations) + len(rows.intervals) for rows in self._waiting)
        losses = [
            (self._n_deleted, f"{self._n_deleted} gradients were in a file that was deleted"),
            (self._n_dropped, f"{self._n_dropped} gradients were dropped while no file could be written"),
            (n_waiting, f"{n_waiting} gradients could not be written: {self._failure}"),
            (n_others, f"{n_others} evaluations and interval changes could not be written: {self._failure}"),
        ]
        return [f"log of rank {self._rank}: {text}" for n_rows, text in losses if n_rows]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush(retry_now=True, spare_bytes=_MIN_SPARE_BYTES)
        if self._segment is not None:
            self._segment.close()

    def _flush(self, retry_now: bool = False, spare_bytes: int = _SPARE_BYTES) -> None:
        buffered = self._buffered()
        if buffered.n_bytes or not self._waiting:
            self._waiting.append(buffered)
        try:
            if retry_now or time.monotonic() >= self._retry_s:
                self._write_waiting(spare_bytes)
                self._retry_s = -math.inf
        except HDF5_ERRORS as error:
            self._retry_s, self._failure = time.monotonic() + _RETRY_S, error_reason(error)
            self._warn_once(f"{self._failure}; rows wait in memory")
        if self._waiting:
            self._waiting[-1] = self._waiting[-1].copy()  # the buffers it refers to are filled again
            self._limit_memory()
        self._n_rows = self._n_vectors = 0
        self._evaluations, self._intervals = [], []

    def _buffered(self) -> LogRows:
        """Return the content of the buffers, counted over all generations; gradients and vectors are views."""
        rows, vectors = self._rows[: self._n_rows], self._vectors[: self._n_vectors]
        rows["version"] += self._own_before
        self._ranks_vectors[: self._n_vectors] += self._ranks_before
        evaluations = np.array(self._evaluations, layout.record_dtype(layout.EVALUATION_COLUMNS))
        intervals = np.array(self._intervals, layout.record_dtype(layout.INTERVAL_COLUMNS))
        return LogRows(self._next_version - self._n_rows, rows, vectors, evaluations, intervals)

    def _write_waiting(self, spare_bytes: int) -> None:
        """Write the waiting rows, oldest first; raises one of `HDF5_ERRORS` at the first that cannot be written."""
        while self._waiting:
            rows = self._waiting[0]
            if self._segment is not None and not self._segment.exists():
                self._leave_deleted(self._segment)
            if self._segment is None:
                self._directory.mkdir(parents=True, exist_ok=True)
            # HDF5 does not recover from a failed write; do not attempt one that would fail.
            require_space(self._directory, 2 * rows.n_bytes + spare_bytes)
            segment = self._segment
            if segment is None or rows.first_version != segment.next_version:
                segment = self._start_segment(rows.first_version)
            try:
                segment.write(rows)
            except HDF5_ERRORS:
                self._leave_failed(segment)
                raise
            self._waiting.popleft()

    def _leave_deleted(self, segment: LogSegment) -> None:
        self._n_deleted += segment.n_gradients
        self._paths.remove(segment.path)
        segment.abandon()
        self._segment = None
        self._warn_once("its file was deleted; the log continues in another file")

    def _leave_failed(self, segment: LogSegment) -> None:
        segment.abandon()
        if segment.is_empty and self._n_segments > 1:  # otherwise each retry would leave a file
            segment.path.unlink(missing_ok=True)
            self._paths.remove(segment.path)
            self._n_segments -= 1
        self._segment = None

    def _start_segment(self, first_version: int) -> LogSegment:
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        while True:
            path = self._directory / layout.rank_file(self._rank, self._n_segments)
            try:
                self._segment = LogSegment(path, self._settings, first_version, self._n_streams)
            except FileExistsError:
                self._n_segments += 1
                continue
            self._n_segments += 1
            self._paths.append(path)
            return self._segment

    def _limit_memory(self) -> None:
        while sum(rows.n_bytes + _OVERHEAD_BYTES for rows in self._waiting) > _MEMORY_BYTES:
            self._n_dropped += len(self._waiting.popleft().gradients)

    def _warn_once(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"log of rank {self._rank} in {self._directory}: {what}")


def _print_warning(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
