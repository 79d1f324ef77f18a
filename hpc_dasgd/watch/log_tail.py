"""The last rows of the log of one rank, read while the log grows."""

import math
from collections import deque
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.types import AnyArray, Float64s
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.h5clear import open_growing
from hpc_dasgd.watch.file_change import FileChange

_RATE_S = 10.0  # time over which gradients per second are averaged
_LOSSES = 100  # number of losses that are averaged


class LogTail:
    """The last rows of the log of one rank. Gradients are numbered from 0 over all generations.

    Parameters
    ----------
    folder : Path
        Directory of the generation.
    rank : int
        The rank.
    n_kept : int
        Largest number of end times that are kept in memory.
    n_before : int
        Number of gradients of the rank in earlier generations.
    begun_s : float, s
        Time from the start of the run to the start of the generation.

    Attributes
    ----------
    count : int
        Number of gradients of the rank so far.
    ends_s : ndarray, shape (n,), float64, s
        End times of the last ``n`` gradients, at most `n_kept`.
    loss : float
        Mean of the last losses; nan if there are none.
    evaluation : dict or None
        The last evaluation, which only rank 0 logs.
    """

    def __init__(self, folder: Path, rank: int, n_kept: int, n_before: int, begun_s: float) -> None:
        self._folder, self._rank, self._part = folder, rank, 0
        self._change = FileChange(folder / layout.rank_file(rank))
        self._file: h5py.File | None = None
        self._n_before = n_before
        self._first = n_before  # number of the first gradient in the file
        self._n_kept = n_kept
        self._samples = deque([(begun_s, n_before)])  # (time in s, count) over the last `_RATE_S`, for the rate
        self.count = n_before
        self.ends_s: Float64s = np.empty(0)
        self.loss = math.nan
        self.evaluation: dict[str, Any] | None = None

    @property
    def changed_s(self) -> float:
        """Time, in s by the observer's clock, at which the log last grew; nan if there is none yet."""
        return self._change.changed_s

    @property
    def reaches_back_to_begin(self) -> bool:
        """Whether `ends_s` contains every gradient of this generation."""
        return self.count - self.ends_s.size == self._n_before

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, now_s: float) -> None:
        """Read the rows that were written since the last call, at most the last `n_kept`.

        Parameters
        ----------
        now_s : float, s
            Current time by the observer's clock.
        """
        count = self.count
        try:
            self._change.poll(now_s)
            # The rank locks its empty file before it writes. A reader must not lock it first.
            if self._file is None and self._change.path.stat().st_size:
                # Without a chunk cache only the requested rows are read, not whole chunks of version vectors.
                self._file = open_growing(self._change.path, cache_bytes=0)
                self._start_at(int(self._file.attrs.get("first_version", self._first)))
            if self._file is not None:
                self._read_gradients(self._file, now_s)
                if self._rank == 0:
                    self._read_evaluation(self._file)
        except (OSError, KeyError):
            # The file does not exist or cannot be read yet. The next call opens it again.
            self.close()
        following = self._folder / layout.rank_file(self._rank, self._part + 1)
        if self.count == count and following.exists():
            self.close()
            self._change.path, self._part = following, self._part + 1

    def rate(self, unchanged_s: float) -> float:
        """Return gradients per second over the last `_RATE_S`.

        Parameters
        ----------
        unchanged_s : float, s
            Time since the log last grew. The rate decreases while no rows are written.

        Returns
        -------
        rate : float, 1/s
        """
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return (last - first) / max(last_s - first_s, unchanged_s) if last > first else 0.0

    def vectors(self, since_s: float, until_s: float, n_rows: int) -> tuple[Float64s, AnyArray]:
        """Return the last logged version vectors of gradients that ended in a span of time.

        Parameters
        ----------
        since_s, until_s : float, s
            The span, both ends included.
        n_rows : int
            Largest number of vectors.

        Returns
        -------
        ends_s : ndarray, shape (n,), float64, s
            End times of the gradients.
        vectors : ndarray, shape (n, n_ranks), uint32
            Their version vectors; of shape (0, 0) if there are none.
        """
        if self._file is None or not (every := int(self._file.attrs["versions_every"])):
            return np.empty(0), np.empty((0, 0))
        n_dropped = self.count - self.ends_s.size
        data_set = _refreshed(self._file, f"gradient/{layout.VERSIONS.name}")
        n_in_earlier_files = ceil_div(self._first, every)
        first = ceil_div(n_dropped + int(np.searchsorted(self.ends_s, since_s, "left")), every)
        first = max(n_in_earlier_files, first)
        end = ceil_div(n_dropped + int(np.searchsorted(self.ends_s, until_s, "right")), every)
        end = min(n_in_earlier_files + len(data_set), end)
        rows = np.arange(max(first, end - n_rows), end)
        if not rows.size:
            return np.empty(0), np.empty((0, 0))
        return self.ends_s[rows * every - n_dropped], data_set[rows[0] - n_in_earlier_files : end - n_in_earlier_files]

    def _start_at(self, first: int) -> None:
        """Continue in a file whose first row is gradient `first`.

        The previous file may end there, later (its last rows were written again), or earlier (rows were lost).
        """
        n_kept = self.ends_s.size - (self.count - first)
        if self._first != first and self.count != first:
            self.ends_s = self.ends_s[: max(0, n_kept)] if first < self.count else np.empty(0)
            self.count = first
        self._first = first

    def _read_gradients(self, file: h5py.File, now_s: float) -> None:
        ends_s, losses = (_refreshed(file, f"gradient/{name}") for name in ("t_end_s", "loss"))
        n_rows, n_known = min(len(ends_s), len(losses)), self.count - self._first
        if n_rows <= n_known:
            return
        if self.ends_s.size:
            self._change.changed_s = now_s  # new rows show a change even if the modification time does not
        elif n_rows > 1:
            self._samples[0] = (float(ends_s[3 * n_rows // 4 - 1]), self._first + 3 * n_rows // 4)
        new_s = ends_s[max(n_known, n_rows - self._n_kept) : n_rows]
        self.loss = float(np.mean(losses[max(0, n_rows - _LOSSES) : n_rows]))
        self.ends_s = np.concatenate([self.ends_s, new_s])[-self._n_kept :]
        self.count = self._first + n_rows
        self._samples.append((float(new_s[-1]), self.count))
        while self._samples[-1][0] - self._samples[1][0] >= _RATE_S:
            self._samples.popleft()

    def _read_evaluation(self, file: h5py.File) -> None:
        columns = {c.name: _refreshed(file, f"evaluation/{c.name}") for c in layout.EVALUATION_COLUMNS[:4]}
        n_rows = min(map(len, columns.values()))
        if n_rows:
            self.evaluation = {name: data_set[n_rows - 1].item() for name, data_set in columns.items()}


def _refreshed(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a data set with its current length."""
    data_set = file[name]
    try:
        data_set.refresh()
    except RuntimeError as error:  # h5py raises it for read errors here
        raise OSError(str(error)) from None
    return data_set
