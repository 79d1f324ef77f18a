"""An objective whose parameters reveal which updates they contain; `trials` trains it.

The updates of each rank change elements that belong to that rank. They are positive integers that depend only on the
rank and the version. Therefore float64 adds them exactly in any order, and different numbers of updates have different
sums.
"""

import time
from pathlib import Path

import numpy as np

MAX_RANKS = 5
N_OWN = 40  # elements that belong to one rank
N_PARAMS = MAX_RANKS * N_OWN
INITIAL = np.arange(N_PARAMS, dtype=np.float64)
_PERIOD = 997  # number of versions after which updates repeat
_UNIT = 60  # divisible by every number of ranks, so that means are integers too
_MAX_VERSIONS = 1 << 18


class Updates:
    """The updates of one rank by version: negative gradients, since the stepsize is 1."""

    def __init__(self, rank: int):
        self._own = slice(rank * N_OWN, (rank + 1) * N_OWN)
        rows = _UNIT * np.random.default_rng(rank).integers(1, 1000, (_PERIOD, N_OWN))
        self._rows = rows.astype(np.float64)
        self._sums = np.concatenate([np.zeros((1, N_OWN), np.int64), np.cumsum(rows, axis=0)])

    def __getitem__(self, version: int) -> np.ndarray:
        update = np.zeros(N_PARAMS)
        update[self._own] = self._rows[version % _PERIOD]
        return update

    def write_gradient(self, version: int, out: np.ndarray) -> None:
        """Overwrite `out` with the gradient of this version."""
        out.fill(0)
        np.negative(self._rows[version % _PERIOD], out=out[self._own])

    def sum_to(self, version: int) -> np.ndarray:
        """Return the sum of the first `version` updates, shape (N_PARAMS,)."""
        total = np.zeros(N_PARAMS)
        total[self._own] = self._own_sum(version)
        return total

    def counts(self, total: np.ndarray, at_most: int) -> np.ndarray | None:
        """Return, for each element of this rank, how many of the first updates add up to `total`.

        Returns None if there is no such number up to `at_most` for some element.
        """
        sums = np.stack([self._own_sum(version) for version in range(at_most + 1)])
        found = (sums == total[self._own]).argmax(axis=0)
        return found if (sums[found, np.arange(N_OWN)] == total[self._own]).all() else None

    def _own_sum(self, version: int) -> np.ndarray:
        return version // _PERIOD * self._sums[-1] + self._sums[version % _PERIOD]


class CountedObjective:
    """The objective. Each rank records the time of each gradient in a file that remains if its process is killed.

    Parameters
    ----------
    record : path
        Folder of these files.
    step_ms : float, ms
        Minimum time of a gradient.
    """

    def __init__(self, record: str, step_ms: float):
        self._record, self._step_s = Path(record), step_ms / 1e3
        self._updates = self._times = None

    def initial(self, rng) -> np.ndarray:
        return INITIAL

    def loss_and_gradient(self, parameters: np.ndarray, batch, out: np.ndarray) -> float:
        _, rank, version = batch.source
        if self._updates is None:
            self._updates = Updates(rank)
            self._times = np.memmap(record_path(self._record, rank), np.float64, "w+", shape=(_MAX_VERSIONS,))
        time.sleep(self._step_s)
        self._updates.write_gradient(version, out)
        self._times[version] = time.time()
        return float(parameters.mean())


def make(data, record: str, step_ms: float = 1.0) -> CountedObjective:
    """Make the objective; named by ``objective.kind`` in the settings of a trial."""
    return CountedObjective(record, step_ms)


def record_path(folder: Path, rank: int) -> Path:
    return Path(folder) / f"rank_{rank}.f8"


def has_begun(folder: Path, rank: int) -> bool:
    """Return True if `rank` has computed a gradient."""
    return record_path(folder, rank).exists()


def times_of(folder: Path, rank: int) -> np.ndarray:
    """Return the time at which each version of `rank` was computed, in seconds since 1970; 0 if it was not."""
    return np.fromfile(record_path(folder, rank)) if has_begun(folder, rank) else np.zeros(_MAX_VERSIONS)
