"""The reach of gradients: how many later gradients missed each of them, weighted by their staleness."""

import numpy as np

from hpc_dasgd.arrays.types import AnyArray

_MOST_ENTRIES = 1 << 26


class ReachRecord:
    """Record of the reach ``W_s`` of the gradients of some ranks (``docs/theory.md``, "Definitions").

    Stored as differences over the index of a gradient, so that adding to a range changes two entries.

    Parameters
    ----------
    n_sources : int
        Number of ranks whose gradients are recorded.
    """

    def __init__(self, n_sources: int) -> None:
        self._differences: AnyArray | None = np.zeros((n_sources, 64))
        self._begin = np.arange(n_sources) * 64

    def add(self, vector: AnyArray, completed: AnyArray, staleness: float) -> None:
        """Add the staleness of a gradient to the reach of all gradients that it missed.

        Parameters
        ----------
        vector, completed : ndarray, shape (n_sources,), int32
            Number of gradients of each source that the gradient's replica contains, and number that are complete. The
            gradient missed those between the two.
        staleness : float
            Staleness of the gradient.
        """
        if self._differences is None:
            return
        n_sources, n_columns = self._differences.shape
        if completed.max() >= n_columns:
            if 2 * self._differences.size > _MOST_ENTRIES:
                self._differences = None
                return
            self._differences = np.hstack([self._differences, np.zeros((n_sources, n_columns))])
            self._begin = np.arange(n_sources) * 2 * n_columns
        flat = self._differences.reshape(-1)
        flat[self._begin + vector] += staleness
        flat[self._begin + completed] -= staleness

    def largest(self) -> float | None:
        """Return ``W_max``; None if there were too many gradients to record."""
        return None if self._differences is None else float(np.cumsum(self._differences, axis=1).max())
