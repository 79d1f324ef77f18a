"""Staleness of the gradients of a run, and between its models (``docs/theory.md``, "Definitions")."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_dasgd.arrays.types import Float64s, Int64s
from hpc_dasgd.theory.version_vectors import (
    MissedGradients,
    Order,
    VectorRows,
    between_models,
    missed_gradients,
    replicas_at,
)

_MAX_MOMENTS = 100  # number of moments at which models are compared with each other
_MAX_PAIR_OPERATIONS = 10**9  # largest number of operations of all comparisons; one moment takes n_ranks**3
_HISTOGRAM_BINS = 20
_PERCENTS = (25, 50, 75, 90, 99)


@dataclass(frozen=True, eq=False)
class Staleness:
    """Staleness of a run; made by `measure`.

    Attributes
    ----------
    missed : MissedGradients
        ``S_t`` of every gradient whose vector was logged, and ``W_s`` of every gradient.
    counts : ndarray, shape (n_ranks,), int64
        Number of gradients of each rank.
    between_mean : float
        Mean staleness between two different models, over all pairs of ranks that computed gradients and over moments
        that are evenly spaced in the run, from the vectors last logged. Too large if not every vector was logged.
    between_max : int
        Largest staleness between two models at these moments.
    """

    missed: MissedGradients
    counts: Int64s
    between_mean: float
    between_max: int

    def histogram(self, n_bins: int = _HISTOGRAM_BINS) -> tuple[Int64s, Int64s]:
        """Count gradients by staleness in at most `n_bins` bins of equal integer width.

        Returns
        -------
        edges : ndarray, shape (n + 1,), int64
            Bin ``b`` counts the gradients with ``edges[b] <= S_t < edges[b + 1]``.
        counts : ndarray, shape (n,), int64
            Number of gradients in each bin.
        """
        width = int(self.missed.staleness.max()) // n_bins + 1
        counts = np.bincount(self.missed.staleness // width)
        return np.arange(counts.size + 1) * width, counts

    def as_dict(self) -> dict[str, Any]:
        """Return all results as numbers, lists and dicts that can be written as JSON.

        Returns
        -------
        results : dict
            ``S_avg``, ``S_rms``, ``S_max``, ``W_max``, ``gradients`` (number of gradients), ``measured`` (number of
            gradients whose vector was logged), ``n_ranks``, ``between_models`` (mean and max), ``percentiles`` (by
            percent), ``histogram`` (edges and counts) and ``per_rank`` (a list of dicts). The staleness of a rank
            without measured gradients is None.
        """
        staleness = self.missed.staleness
        edges, counts = self.histogram()
        percentiles = np.percentile(staleness, _PERCENTS).tolist()
        return {
            **_summary(staleness),
            "W_max": int(self.missed.reach.max()),
            "gradients": int(self.counts.sum()),
            "measured": int(staleness.size),
            "n_ranks": int(self.counts.size),
            "between_models": {"mean": self.between_mean, "max": self.between_max},
            "percentiles": dict(zip(map(str, _PERCENTS), percentiles, strict=True)),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "per_rank": self._per_rank(),
        }

    def _per_rank(self) -> list[dict[str, Any]]:
        by_rank = self.missed.staleness[np.argsort(self.missed.rank)]
        ends = np.cumsum(np.bincount(self.missed.rank, minlength=self.counts.size))
        columns = (self.counts.tolist(), self.missed.per_source.tolist(), np.split(by_rank, ends[:-1]))
        return [
            {"rank": rank, "gradients": count, "missed_by_others": missed} | _summary(own)
            for rank, (count, missed, own) in enumerate(zip(*columns, strict=True))
        ]


def measure(
    starts: Sequence[Float64s],
    order: Order,
    versions: Sequence[VectorRows],
    every: int,
    n_ranks_at: Callable[[Float64s], Int64s] | None = None,
) -> Staleness:
    """Compute the staleness of a run from its log.

    Parameters
    ----------
    starts : sequence of n_ranks ndarrays, shape (n_gradients_i,), float64, s
        Times at which the computation of the gradients of each rank began. There must be at least one gradient.
    order : Order
        From `version_vectors.causal_order` of the same log.
    versions, every
        As for `version_vectors.causal_order`.
    n_ranks_at : callable, optional
        Returns the number of ranks at given moments; only these ranks have models. By default all ranks do.

    Returns
    -------
    staleness : Staleness
    """
    missed = missed_gradients(order, versions, every)
    return Staleness(missed, order.counts, *_between(starts, versions, every, n_ranks_at))


def _summary(staleness: Int64s) -> dict[str, float | None]:
    """Return mean, root mean square and maximum; None if there is no measured gradient."""
    if not staleness.size:
        return dict.fromkeys(("S_avg", "S_rms", "S_max"))
    squares = np.square(staleness, dtype=np.float64)
    return {
        "S_avg": float(staleness.mean()),
        "S_rms": math.sqrt(squares.mean()),
        "S_max": int(staleness.max()),
    }


def _between(
    starts: Sequence[Float64s],
    versions: Sequence[VectorRows],
    every: int,
    n_ranks_at: Callable[[Float64s], Int64s] | None,
) -> tuple[float, int]:
    """Return mean and maximum of the staleness between two different models, at moments evenly spaced in the run."""
    # The log of a rank without gradients, such as a server that computes none, contains nothing about its model.
    ranks = [rank for rank, times in enumerate(starts) if len(times)]
    if len(ranks) < 2:
        return 0.0, 0
    n_moments = max(1, min(_MAX_MOMENTS, _MAX_PAIR_OPERATIONS // len(starts) ** 3))
    first, last = min(starts[rank][0] for rank in ranks), max(starts[rank][-1] for rank in ranks)
    moments = np.linspace(first, last, n_moments + 2)[1:-1]
    total = n_pairs = largest = 0
    n_ranks = np.full(n_moments, len(starts)) if n_ranks_at is None else n_ranks_at(moments)
    for n_present, replicas in zip(n_ranks, replicas_at(moments, starts, versions, every), strict=True):
        present = [rank for rank in ranks if rank < n_present]
        between = between_models(replicas[present]) if present else np.zeros((0, 0), int)
        total += int(between.sum())
        n_pairs += len(present) * (len(present) - 1)
        largest = max(largest, int(between.max(initial=0)))
    return total / max(1, n_pairs), largest
