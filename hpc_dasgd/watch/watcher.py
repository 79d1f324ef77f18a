"""Status of a run, read from its files while they grow. No MPI.

    with Watcher("runs/digits-20250101-120000") as watcher:
        status = watcher.read_status(time.time())

The cost of one reading does not depend on the length of the run: only the times written since the last reading and a
few of the last rows are read. If the run was resumed, the status is that of the newest generation, whose counts and
times continue those of the earlier ones.
"""

import math
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_dasgd.arrays.types import Float64s
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import find_run_directory, newest_generation
from hpc_dasgd.storage.layout import FLUSH_EVERY_S
from hpc_dasgd.storage.run_settings import config_sections
from hpc_dasgd.watch.file_change import FileChange
from hpc_dasgd.watch.log_tail import LogTail
from hpc_dasgd.watch.run_status import RunStatus

_ACTIVE_S = 5 * FLUSH_EVERY_S  # a rank whose log has not grown for this time is assumed to have completed no gradients
_KEPT_TIMES = 1 << 22  # end times of all ranks together; must reach back to the last gradient of the slowest rank
_MAX_KEPT, _MIN_KEPT = 1 << 15, 1 << 8  # limits of the number of times kept per rank
_VECTOR_BYTES = 1 << 24  # size of the version vectors read at once; at least one vector per rank is read
_MAX_VECTORS = 32  # version vectors of one rank read at once
_SPARE_FILES = 64


class Watcher:
    """Reader of the files of a run that may be growing. A context manager, which closes the files.

    Parameters
    ----------
    path : path
        The run directory, or its ``run.h5``; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._directory = find_run_directory(Path(path))
        self._generation: int | None = None
        self._run_file: FileChange
        self._tails: list[LogTail] = []

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def may_appear(self) -> bool:
        """Whether a run can be created at this path, or is being created."""
        return self._directory.is_dir() or (self._directory.parent.is_dir() and not self._directory.exists())

    def read_status(self, now_s: float) -> RunStatus:
        """Read what was written since the last call.

        Parameters
        ----------
        now_s : float, s
            Current time as returned by ``time.time``.

        Returns
        -------
        status : RunStatus

        Raises
        ------
        OSError or KeyError
            If ``run.h5`` does not exist or is not complete yet.
        ConfigError
            If a later version of the package wrote the run, or the limit of open files is too low for its ranks.
        """
        self._follow_generations()
        # `run.h5` is read first: if the run has ended according to it, the logs are complete when they are read.
        attributes = self._read_attributes(now_s)
        n_ranks, status, settings = (attributes[name] for name in ("n_ranks", "status", "config"))
        n_before, begun_s = attributes.get("versions_before", [0] * n_ranks), attributes.get("begun_s", 0.0)
        if not self._tails:
            self._open_logs(n_ranks, n_before, begun_s)
        for tail in self._tails:
            tail.read(now_s)
        tails, ended = self._tails, status != "running"
        unchanged_s = np.array([now_s - tail.changed_s for tail in tails])
        return RunStatus(
            directory=self._directory,
            status=status,
            summary={name: attributes[name] for name in ("gradients", "seconds") if name in attributes},
            budget=config_sections(settings).get("budget", {}),
            counts=np.array([tail.count for tail in tails]),
            n_earlier=sum(n_before[n_ranks:]),
            rates=np.array([tail.rate(0.0 if ended else s) for tail, s in zip(tails, unchanged_s, strict=True)]),
            unchanged_s=unchanged_s,
            staleness=_mean_staleness(tails, unchanged_s),
            loss=float(np.mean([tail.loss for tail in tails if tail.ends_s.size] or math.nan)),
            evaluation=tails[0].evaluation,
            elapsed_s=max((float(tail.ends_s[-1]) for tail in tails if tail.ends_s.size), default=begun_s),
            idle_s=float(np.nanmin([*unchanged_s, now_s - self._run_file.changed_s])),
        )

    def _follow_generations(self) -> None:
        """Change to the newest generation, if there is a new one."""
        if (generation := newest_generation(self._directory)) != self._generation:
            self._close()
            folder = layout.generation_directory(self._directory, generation)
            self._generation, self._run_file = generation, FileChange(folder / layout.RUN_FILE)

    def _read_attributes(self, now_s: float) -> dict[str, Any]:
        """Return the attributes of ``run.h5``. Raises like `read_status`."""
        self._run_file.poll(now_s)
        path = self._run_file.path
        if not path.stat().st_size:  # the job is about to lock the file
            raise OSError(f"{path} is empty so far")
        with h5py.File(path) as file:
            attributes = {name: np.asarray(value).tolist() for name, value in file.attrs.items()}
        if attributes["schema"] > layout.SCHEMA:
            raise ConfigError(f"{path} must have a schema of at most {layout.SCHEMA}, got {attributes['schema']}")
        return attributes

    def _open_logs(self, n_ranks: int, n_before: Sequence[int], begun_s: float) -> None:
        _allow_open_files(n_ranks + _SPARE_FILES)
        n_kept, folder = min(_MAX_KEPT, max(_MIN_KEPT, _KEPT_TIMES // n_ranks)), self._run_file.path.parent
        self._tails = [LogTail(folder, rank, n_kept, n_before[rank], begun_s) for rank in range(n_ranks)]

    def _close(self) -> None:
        for tail in self._tails:
            tail.close()
        self._tails = []


def _mean_staleness(tails: Sequence[LogTail], unchanged_s: Float64s) -> Float64s:
    """Return the mean staleness of the last logged gradients of each rank; nan if unknown.

    A gradient that ended at time ``t`` and was computed with the version vector ``v`` missed those gradients of rank
    ``j`` that were completed before ``t`` and that ``v`` does not count. Only gradients are used whose ``t`` lies in
    the time span that is known for all ranks: from the latest of the first kept times to the earliest of the last times
    that active ranks have written. The result is then exact up to the errors of the clock (times are not corrected to a
    causal order here).
    """
    since_s = max(
        (tail.ends_s[0] for tail in tails if tail.ends_s.size and not tail.reaches_back_to_begin), default=-math.inf
    )
    active = [tail.ends_s[-1] for tail, s in zip(tails, unchanged_s, strict=True) if tail.ends_s.size and s < _ACTIVE_S]
    until_s = min(active, default=math.inf)
    n_rows = min(_MAX_VECTORS, max(1, _VECTOR_BYTES // (4 * len(tails) ** 2)))
    by_rank = [tail.vectors(since_s, until_s, n_rows) for tail in tails]
    ends_s, counts = np.concatenate([times for times, _ in by_rank]), np.array([times.size for times, _ in by_rank])
    if not ends_s.size:
        return np.full(len(tails), math.nan)
    vectors = np.concatenate([rows for _, rows in by_rank if len(rows)])
    missed = np.zeros(ends_s.size)
    for source, tail in enumerate(tails):
        completed = tail.count - tail.ends_s.size + np.searchsorted(tail.ends_s, ends_s, "left")
        missed += np.maximum(0, completed - vectors[:, source].astype(np.int64))
    sums = np.bincount(np.repeat(np.arange(len(tails)), counts), missed, len(tails))
    return np.divide(sums, counts, out=np.full(len(tails), math.nan), where=counts > 0)


def _allow_open_files(n_files: int) -> None:
    """Raise the soft limit of open files if needed. Raises `ConfigError` if the hard limit is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < n_files:
        raise ConfigError(f"`ulimit -n` must be at least {n_files} to watch that many ranks, got {hard}")
    if soft != resource.RLIM_INFINITY and soft < n_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, hard))
