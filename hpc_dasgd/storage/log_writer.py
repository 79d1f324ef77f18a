"""What a rank writes while it runs: ``rank_00000.h5``, a row per gradient and a row per evaluation.

    with RankLog(directory, rank, n_ranks, versions_every) as log:
        log.append(...)

Nothing here is collective, and no file ever has two writers. A disk that is full or away does not end the run: rows
wait in memory until it takes them again.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpc_dasgd.storage import layout
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, require_space, sync
from hpc_dasgd.storage.log_segment import CHUNK_ROWS, LogRows, LogSegment

_RETRY_S = 5.0
_MEMORY_BYTES = 64 << 20  # of rows that wait
_SPARE_BYTES = 16 << 20  # a disk with less counts as full: of all ranks that find room at once, each should have it
_LEAST_SPARE_BYTES = 1 << 20  # at the start, for a checkpoint, and at the end, when waiting helps no more
_MIN_BATCH_ROWS = 64
_BATCH_BYTES = 1 << 22  # of version vectors
_OVERHEAD_BYTES = 1024  # of rows in memory, however few


class RankLog:
    """One rank's log in one generation. A context manager.

    The constructor makes the file, so that what is wrong with the place shows before the first step;
    leaving the context writes what is buffered and closes it, after an exception too. `append` only
    fills a buffer, which goes to the file when it is full or `layout.FLUSH_EVERY_S` old.

    Where the file cannot be written, later on, rows are kept in memory and the file is tried again every few
    seconds; what is beyond 64 MiB is dropped, the oldest first. The log goes on in another part where the file
    was deleted (its directory is made again), where a write failed, and behind rows that were dropped.

    Parameters
    ----------
    directory : Path
        The generation's folder, which holds no file of this rank yet.
    rank, n_ranks : int
        Whose log this is, of how many.
    versions_every : int, at least 0
        Every how many gradients the version vector is kept: that of gradients whose version is a multiple of it.
        With 0 there is no such data set.
    paced : bool
        Whether there is a group ``pace``, for `append_pace`.
    before : ndarray, shape (n_streams,), integer, optional
        Updates of each stream before this generation, ``n_streams >= n_ranks``; zeros by default. They are added
        to all that is logged, so that this takes the numbers of the generation's exchange, which begin at 0.
    warn : callable, optional
        Given one line, once, when the file cannot be written; prints to standard error by default.

    Attributes
    ----------
    missing : list of str
        What should be in files and is not; empty where all is well. Final when the context was left.

    Raises
    ------
    ConfigError
        If the file cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        n_ranks: int,
        versions_every: int,
        paced: bool = False,
        before: np.ndarray | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        before = np.zeros(n_ranks, np.int64) if before is None else np.asarray(before, np.int64)
        self._directory, self._rank, self._every = directory, rank, versions_every
        self._warn = warn or (lambda text: print(text, file=sys.stderr, flush=True))
        self._warned = False
        self._own_before, self._all_before = int(before[rank]), int(before.sum())
        self._ranks_before = before[:n_ranks].astype(layout.VERSIONS.dtype)
        vector_bytes = before.size * np.dtype(layout.VERSIONS.dtype).itemsize
        capacity = max(_MIN_BATCH_ROWS, min(CHUNK_ROWS, _BATCH_BYTES // vector_bytes))
        self._rows = np.empty(capacity, layout.record_dtype(layout.GRADIENT_COLUMNS))
        self._vectors = np.empty((capacity, before.size), layout.VERSIONS.dtype)
        self._vectors[:] = before
        self._ranks_vectors = self._vectors[:, :n_ranks]
        self._evaluations, self._changes = [], []
        self._n_rows = self._n_vectors = 0
        self._next_version = self._own_before
        self._flush_due_s = layout.FLUSH_EVERY_S

        self._waiting: deque[LogRows] = deque()
        self._retry_s = -math.inf
        self._fault = ""
        self._n_dropped = self._n_vanished = 0
        self._part = 0
        self._options = {
            "rank": rank,
            "n_ranks": n_ranks,
            "n_streams": before.size,
            "versions_every": versions_every,
            "paced": paced,
        }
        path = directory / layout.rank_file(rank)
        with layout.making("log file", path):
            require_space(directory, _LEAST_SPARE_BYTES)
            self._file = LogSegment(path, first_version=self._next_version, **self._options)
        self._paths = [path]

    def append(self, t_start_s, t_end_s, loss, gradient_norm, version, versions, stepsize=math.nan) -> None:
        """Log one gradient. Costs 1 to 2 us, of which half is the writing of full buffers.

        Parameters
        ----------
        t_start_s, t_end_s, loss, gradient_norm : float
        version : int
            As described in `schema.GRADIENT_COLUMNS`.
        versions : ndarray, shape (n_ranks,), integer
            Version vector of the replica the gradient was taken at; copied.
        stepsize : float, optional
            As described in `schema.GRADIENT_COLUMNS`.
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
        """Log one evaluation, and hand it to the file at once; see `schema.EVALUATION_COLUMNS`."""
        self._evaluations.append((t_s, gradients + self._all_before, loss, accuracy, consensus_distance))
        self._flush()

    def append_pace(self, t_s: float, version: int, every: int, overhead: float) -> None:
        """Log that exchanges are `every` steps apart from now on; see `schema.PACE_COLUMNS`."""
        self._changes.append((t_s, version + self._own_before, every, overhead))

    def flush(self) -> bool:
        """Hand all that is buffered to the file now; whether everything logged so far is there."""
        self._flush(at_once=True, spare_bytes=_LEAST_SPARE_BYTES)
        return not self.missing

    def sync(self) -> bool:
        """Make durable what was handed to files; whether that went well. May be called from any thread."""
        try:
            for path in (*self._paths, self._directory):
                sync(path)
        except OSError:
            return False
        return True

    @property
    def missing(self) -> list[str]:
        n_waiting = sum(len(rows.gradients) for rows in self._waiting)
        n_others = sum(len(rows.evaluations) + len(rows.changes) for rows in self._waiting)
        said = [
            (self._n_vanished, f"{self._n_vanished} gradients were in a file that vanished"),
            (self._n_dropped, f"{self._n_dropped} gradients were dropped while no file could be written"),
            (n_waiting, f"{n_waiting} gradients could not be written: {self._fault}"),
            (n_others, f"{n_others} evaluations and changes of pace could not be written: {self._fault}"),
        ]
        return [f"log of rank {self._rank}: {text}" for number, text in said if number]

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self._flush(at_once=True, spare_bytes=_LEAST_SPARE_BYTES)
        if self._file is not None:
            self._file.close()

    def _flush(self, at_once: bool = False, spare_bytes: int = _SPARE_BYTES) -> None:
        buffered = self._buffered()
        if buffered.n_bytes or not self._waiting:
            self._waiting.append(buffered)
        try:
            if at_once or time.monotonic() >= self._retry_s:
                self._write_waiting(spare_bytes)
                self._retry_s = -math.inf
        except HDF5_ERRORS as error:
            self._retry_s, self._fault = time.monotonic() + _RETRY_S, layout.reason(error)
            self._warn_once(f"{self._fault}; its rows wait in memory")
        if self._waiting:
            self._waiting[-1] = self._waiting[-1].copy()  # out of the buffers, which are filled again
            self._limit_memory()
        self._n_rows = self._n_vectors = 0
        self._evaluations, self._changes = [], []

    def _buffered(self) -> LogRows:
        """What the buffers hold, in the numbering of streams; gradients and vectors are views."""
        rows, vectors = self._rows[: self._n_rows], self._vectors[: self._n_vectors]
        rows["version"] += self._own_before
        self._ranks_vectors[: self._n_vectors] += self._ranks_before
        evaluations = np.array(self._evaluations, layout.record_dtype(layout.EVALUATION_COLUMNS))
        changes = np.array(self._changes, layout.record_dtype(layout.PACE_COLUMNS))
        return LogRows(self._next_version - self._n_rows, rows, vectors, evaluations, changes)

    def _write_waiting(self, spare_bytes: int) -> None:
        while self._waiting:
            rows = self._waiting[0]
            if self._file is not None and not self._file.is_there():
                self._leave_vanished()
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
            # HDF5 takes a write that fails badly; so none is tried that would.
            require_space(self._directory, 2 * rows.n_bytes + spare_bytes)
            if self._file is None or rows.first_version != self._file.next_version:
                self._begin_part(rows.first_version)
            try:
                self._file.write(rows)
            except HDF5_ERRORS:
                self._leave_failed()
                raise
            self._waiting.popleft()

    def _leave_vanished(self) -> None:
        self._n_vanished += self._file.n_gradients
        self._paths.remove(self._file.path)
        self._file.abandon()
        self._file = None
        self._warn_once("its file vanished; the log goes on in another one")

    def _leave_failed(self) -> None:
        self._file.abandon()
        if self._file.is_empty and self._part:  # or each further try would leave a file
            self._file.path.unlink(missing_ok=True)
            self._paths.remove(self._file.path)
            self._part -= 1
        self._file = None

    def _begin_part(self, first_version: int) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        while self._file is None:
            path = self._directory / layout.rank_file(self._rank, self._part + 1)
            try:
                self._file = LogSegment(path, first_version=first_version, **self._options)
            except FileExistsError:
                self._part += 1
        self._paths.append(path)
        self._part += 1

    def _limit_memory(self) -> None:
        while sum(rows.n_bytes + _OVERHEAD_BYTES for rows in self._waiting) > _MEMORY_BYTES:
            self._n_dropped += len(self._waiting.popleft().gradients)

    def _warn_once(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"log of rank {self._rank} in {self._directory}: {what}")
