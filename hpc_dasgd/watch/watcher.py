"""What was last written to the files of a run while they grow. Needs no MPI.

    with Watcher("runs/digits-20250101-120000") as watcher:
        look = watcher.look(time.time())

A look costs the same however long the run: it reads the times written since the last one and a few last rows. Of a
run that was resumed it is at the newest generation, the counts and times of which go on from those before.
"""

import math
import os
import resource
import tomllib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import newest_number, run_directory
from hpc_dasgd.storage.h5clear import open_growing
from hpc_dasgd.storage.layout import FLUSH_EVERY_S

_RATE_S = 10.0  # over which gradients per second are taken
_LIVE_S = 5 * FLUSH_EVERY_S  # a rank that wrote nothing for so long is taken to have completed nothing either
_LOSSES = 100  # of a rank, whose mean is shown
_KEPT_TIMES = 1 << 22  # of all ranks; they have to reach back to what the slowest wrote last
_MAX_KEPT, _MIN_KEPT = 1 << 15, 1 << 8  # of a rank
_VECTOR_BYTES = 1 << 24  # read in a look, but one vector of each rank at the least
_MAX_VECTORS = 32  # of a rank, read in a look
_SPARE_FILES = 64


@dataclass(frozen=True, eq=False)
class RunStatus:
    """What a run's files said at one moment. Arrays are by rank, "lately" is the last ten seconds or a few rows.

    Attributes
    ----------
    directory : Path
    status : str
        As in ``run.h5``.
    summary : dict
        Attributes of ``run.h5``: ``gradients`` and ``seconds`` are there when the run is complete.
    budget : dict
        The settings ``budget``.
    counts : ndarray, int64
        Gradients so far.
    n_earlier : int
        Gradients of ranks that this generation does not have.
    rates : ndarray, float64, 1/s
        Gradients per second lately.
    quiet_s : ndarray, float64, s
        Since a rank's file last grew; nan where there is none yet.
    staleness : ndarray, float64
        Mean of the last vectors, see `_staleness`; nan where unknown.
    loss : float
        Mean of the last batches of all ranks.
    evaluation : dict or None
        The last, by `schema.EVALUATION_COLUMNS`.
    elapsed_s : float, s
        End of the newest gradient, since the run began.
    silent_s : float, s
        Since any file last grew.
    """

    directory: Path
    status: str
    summary: dict
    budget: dict
    counts: np.ndarray
    n_earlier: int
    rates: np.ndarray
    quiet_s: np.ndarray
    staleness: np.ndarray
    loss: float
    evaluation: dict | None
    elapsed_s: float
    silent_s: float

    @property
    def gradients(self) -> int:
        """Gradients of all ranks."""
        return int(self.counts.sum()) + self.n_earlier

    @property
    def ended(self) -> bool:
        """Whether the run says that it is complete, or was stopped."""
        return self.status in ("complete", "stopped")

    @property
    def rate(self) -> float:
        """Gradients of all ranks per second, lately."""
        return float(self.rates.sum())

    @property
    def mean_staleness(self) -> float:
        """Mean over gradients lately: a fast rank makes more of them."""
        known = np.isfinite(self.staleness) & (self.rates > 0)
        return float(np.average(self.staleness[known], weights=self.rates[known])) if known.any() else math.nan

    @property
    def remaining_s(self) -> float:
        """Estimate when the budget is used up, apart from its target loss; nan where nothing tells."""
        ends = []
        if "gradients" in self.budget and self.rate > 0:
            ends.append((self.budget["gradients"] - self.gradients) / self.rate)
        if "seconds" in self.budget:
            ends.append(self.budget["seconds"] - self.elapsed_s)
        return max(0.0, min(ends)) if ends else math.nan


class Watcher:
    """The files of a run, opened once. A context manager.

    Parameters
    ----------
    path : path
        The run directory, or its ``run.h5``; need not be there yet.
    """

    def __init__(self, path: str | os.PathLike):
        self._directory = run_directory(Path(path))
        self._generation, self._news, self._tails = None, None, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    @property
    def may_come(self) -> bool:
        """Whether a run may be made at this place, or is being made."""
        return self._directory.is_dir() or (self._directory.parent.is_dir() and not self._directory.exists())

    def look(self, now_s: float) -> RunStatus:
        """Read what has grown since the last look.

        Parameters
        ----------
        now_s : float, s
            Of the clock that files are dated by.

        Raises
        ------
        OSError or KeyError
            If ``run.h5`` is not there or not written yet.
        ConfigError
            If it is not for this version, or there are more ranks than files may be open.
        """
        if (generation := newest_number(self._directory)) != self._generation:
            self._close()
            folder = layout.generation_directory(self._directory, generation)
            self._generation, self._news = generation, _News(folder / layout.RUN_FILE)
        # First: when it says that the run has ended, so are the files of the ranks. It is replaced then.
        self._news.hear(now_s)
        if not self._news.path.stat().st_size:  # about to be locked by the job
            raise OSError(f"{self._news.path} is empty so far")
        with h5py.File(self._news.path) as file:
            attributes = {name: np.asarray(value).tolist() for name, value in file.attrs.items()}
        number, n_ranks, status, settings = (attributes[name] for name in ("schema", "n_ranks", "status", "config"))
        if number > layout.SCHEMA:
            raise ConfigError(f"{self._news.path} must have a schema of at most {layout.SCHEMA}, got {number}")
        before, begun_s = attributes.get("versions_before", [0] * n_ranks), attributes.get("begun_s", 0.0)
        if not self._tails:
            _allow_open_files(n_ranks + _SPARE_FILES)
            n_kept, folder = min(_MAX_KEPT, max(_MIN_KEPT, _KEPT_TIMES // n_ranks)), self._news.path.parent
            self._tails = [_Tail(folder, rank, n_kept, before[rank], begun_s) for rank in range(n_ranks)]
        for tail in self._tails:
            tail.read(now_s)
        tails, ended = self._tails, status != "running"
        quiet_s = np.array([now_s - tail.news_s for tail in tails])
        return RunStatus(
            directory=self._directory,
            status=status,
            summary={name: attributes[name] for name in ("gradients", "seconds") if name in attributes},
            budget=_budget(settings),
            counts=np.array([tail.count for tail in tails]),
            n_earlier=sum(before[n_ranks:]),
            rates=np.array([tail.rate(0.0 if ended else s) for tail, s in zip(tails, quiet_s, strict=True)]),
            quiet_s=quiet_s,
            staleness=_staleness(tails, quiet_s),
            loss=float(np.mean([tail.loss for tail in tails if tail.times.size] or math.nan)),
            evaluation=tails[0].evaluation,
            elapsed_s=max((float(tail.times[-1]) for tail in tails if tail.times.size), default=begun_s),
            silent_s=float(np.nanmin([*quiet_s, now_s - self._news.news_s])),
        )

    def _close(self) -> None:
        for tail in self._tails:
            tail.close()
        self._tails = []


class _News:
    """When a file last grew, by the clock of the one who looks; its date counts only at the first look."""

    def __init__(self, path: Path):
        self.path, self.news_s, self._date_s = path, math.nan, None

    def hear(self, now_s: float) -> bool:
        """Whether the file has changed since the last call, or is new."""
        date_s = self.path.stat().st_mtime
        if date_s == self._date_s:
            return False
        self.news_s = now_s if self._date_s is not None else min(date_s, now_s)
        self._date_s = date_s
        return True


class _Tail(_News):
    """The last rows of a rank's log, in the numbering of its stream."""

    def __init__(self, folder: Path, rank: int, n_kept: int, before: int, begun_s: float):
        super().__init__(folder / layout.rank_file(rank))
        self._folder, self._rank, self._part = folder, rank, 0
        self._before = self._first = before  # the generation's first gradient, and the file's
        self.count, self.times, self.loss, self.evaluation = before, np.empty(0), math.nan, None
        self._n_kept, self._marks, self._file = n_kept, deque([(begun_s, before)]), None

    @property
    def has_all(self) -> bool:
        """Whether `times` go back to the generation's first gradient."""
        return self.count - self.times.size == self._before

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, now_s: float) -> None:
        """Take in the rows that were written since the last time, or the last `n_kept` of them."""
        count = self.count
        try:
            self.hear(now_s)
            # An empty file is about to be locked by its rank, which must not find it locked by us.
            if self._file is None and self.path.stat().st_size:
                # Without a chunk cache only the rows asked for are read, not whole chunks of vectors.
                self._file = open_growing(self.path, cache_bytes=0)
                self._begin_at(int(self._file.attrs.get("first_version", self._first)))
            if self._file is not None:
                self._read_gradients(now_s)
                if self._rank == 0:
                    self._read_evaluation()
        except (OSError, KeyError):
            # Not there, or not readable yet: to be opened anew at the next look.
            self.close()
        following = self._folder / layout.rank_file(self._rank, self._part + 1)
        if self.count == count and following.exists():
            self.close()
            self.path, self._part = following, self._part + 1

    def _begin_at(self, first: int) -> None:
        """Go on in a file whose rows begin there: where this one's end, before that, or behind rows that are lost."""
        n_kept = self.times.size - (self.count - first)
        if self._first != first and self.count != first:
            self.times = self.times[: max(0, n_kept)] if first < self.count else np.empty(0)
            self.count = first
        self._first = first

    def _read_gradients(self, now_s: float) -> None:
        ends, losses = (self._grown(f"gradient/{name}") for name in ("t_end_s", "loss"))
        n_rows, n_known = min(len(ends), len(losses)), self.count - self._first
        if n_rows <= n_known:
            return
        if self.times.size:
            self.news_s = now_s  # whatever the file is dated
        elif n_rows > 1:
            self._marks[0] = (float(ends[3 * n_rows // 4 - 1]), self._first + 3 * n_rows // 4)
        new = ends[max(n_known, n_rows - self._n_kept) : n_rows]
        self.loss = float(np.mean(losses[max(0, n_rows - _LOSSES) : n_rows]))
        self.times = np.concatenate([self.times, new])[-self._n_kept :]
        self.count = self._first + n_rows
        self._marks.append((float(new[-1]), self.count))
        while self._marks[-1][0] - self._marks[1][0] >= _RATE_S:
            self._marks.popleft()

    def _read_evaluation(self) -> None:
        columns = {c.name: self._grown(f"evaluation/{c.name}") for c in layout.EVALUATION_COLUMNS[:4]}
        n_rows = min(map(len, columns.values()))
        if n_rows:
            self.evaluation = {name: data_set[n_rows - 1].item() for name, data_set in columns.items()}

    def _grown(self, name: str) -> h5py.Dataset:
        data_set = self._file[name]
        try:
            data_set.refresh()
        except RuntimeError as error:  # as h5py reports what cannot be read here
            raise OSError(str(error)) from None
        return data_set

    def rate(self, quiet_s: float) -> float:
        """Gradients per second lately; sinks when no more come."""
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / max(last_s - first_s, quiet_s) if last > first else 0.0

    def vectors(self, since_s: float, until_s: float, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The last `n_rows` logged vectors of gradients that ended in a span of time, behind their ends."""
        if self._file is None or not (every := int(self._file.attrs["versions_every"])):
            return np.empty(0), np.empty((0, 0))
        before = self.count - self.times.size
        data_set, in_earlier = self._grown(f"gradient/{layout.VERSIONS.name}"), -(-self._first // every)
        first = max(in_earlier, -(-(before + np.searchsorted(self.times, since_s, "left")) // every))
        end = -(-(before + np.searchsorted(self.times, until_s, "right")) // every)
        end = min(in_earlier + len(data_set), end)
        rows = np.arange(max(first, end - n_rows), end)
        vectors = data_set[rows[0] - in_earlier : end - in_earlier] if rows.size else np.empty((0, 0))
        return self.times[rows * every - before], vectors


def _staleness(tails: list[_Tail], quiet_s: np.ndarray) -> np.ndarray:
    """Mean staleness of the last gradients of each rank.

    A gradient that ended at ``t``, taken at the vector ``v``, missed of rank j what that had completed by ``t``
    and ``v`` lacks. Exact up to the clock's error (the log's order in time is not made causal here), for only
    those gradients count whose ``t`` lies in what is known of all ranks: after the first of the kept times,
    before the last that each rank still at work has written.
    """
    since_s = max((tail.times[0] for tail in tails if tail.times.size and not tail.has_all), default=-math.inf)
    at_work = [tail.times[-1] for tail, s in zip(tails, quiet_s, strict=True) if tail.times.size and s < _LIVE_S]
    n_rows = min(_MAX_VECTORS, max(1, _VECTOR_BYTES // (4 * len(tails) ** 2)))
    found = [tail.vectors(since_s, min(at_work, default=math.inf), n_rows) for tail in tails]
    ends, n_found = np.concatenate([times for times, _ in found]), np.array([times.size for times, _ in found])
    if not ends.size:
        return np.full(len(tails), math.nan)
    vectors = np.concatenate([rows for _, rows in found if len(rows)])
    missed = np.zeros(ends.size)
    for source, tail in enumerate(tails):
        done = tail.count - tail.times.size + np.searchsorted(tail.times, ends, "left")
        missed += np.maximum(0, done - vectors[:, source].astype(np.int64))
    sums = np.bincount(np.repeat(np.arange(len(tails)), n_found), missed, len(tails))
    return np.divide(sums, n_found, out=np.full(len(tails), math.nan), where=n_found > 0)


def _budget(settings: str) -> dict:
    """The budget as far as it can be read, also of settings that are not this version's."""
    try:
        budget = tomllib.loads(settings).get("budget", {})
    except tomllib.TOMLDecodeError:
        budget = {}
    return budget if isinstance(budget, dict) else {}


def _allow_open_files(n_files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < n_files:
        raise ConfigError(f"`ulimit -n` must be at least {n_files} to watch that many ranks, got {hard}")
    if soft != resource.RLIM_INFINITY and soft < n_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, hard))
