"""Staleness of a run's gradients, and between its models (``theory.md``, "Definitions")."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hpc_dasgd.theory.version_vectors import Missed, Order, between_models, missed_gradients, replicas_at

_MOMENTS = 100  # at which models are compared with each other
_PAIR_OPERATIONS = 10**9  # all that may be spent on it; one moment costs n_ranks**3
_HISTOGRAM_BINS = 20
_PERCENTS = (25, 50, 75, 90, 99)
_BAR_WIDTH = 40
_TABLE_RANKS = 32


@dataclass(frozen=True, eq=False)
class Staleness:
    """Staleness of a run. Made by `measure`.

    Attributes
    ----------
    missed : Missed
        ``S_t`` of every gradient whose vector was logged, ``W_s`` of every gradient.
    counts : ndarray, shape (n_ranks,), int64
        Gradients of each rank.
    between_mean : float
        Staleness between two different models: mean over all pairs of ranks with gradients, at moments spread
        over the run, from the vectors last logged; too high where not every vector was logged.
    between_max : int
        The largest of these.
    """

    missed: Missed
    counts: np.ndarray
    between_mean: float
    between_max: int

    def histogram(self, n_bins: int = _HISTOGRAM_BINS) -> tuple[np.ndarray, np.ndarray]:
        """Count gradients by staleness in at most `n_bins` bins of equal, whole width.

        Returns
        -------
        edges : ndarray, shape (n + 1,), int64
            Bin ``b`` holds ``edges[b] <= S_t < edges[b + 1]``.
        counts : ndarray, shape (n,), int64
        """
        width = int(self.missed.staleness.max()) // n_bins + 1
        counts = np.bincount(self.missed.staleness // width)
        return np.arange(counts.size + 1) * width, counts

    def as_dict(self) -> dict:
        """Everything in numbers, lists and dicts that JSON can hold."""
        staleness = self.missed.staleness
        edges, counts = self.histogram()
        percentiles = np.percentile(staleness, _PERCENTS).tolist()
        return {
            **_moments(staleness),
            "W_max": int(self.missed.reach.max()),
            "gradients": int(self.counts.sum()),
            "measured": int(staleness.size),
            "n_ranks": int(self.counts.size),
            "between_models": {"mean": self.between_mean, "max": self.between_max},
            "percentiles": dict(zip(map(str, _PERCENTS), percentiles, strict=True)),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "per_rank": self._per_rank(),
        }

    def table(self) -> str:
        """The same as text for the terminal; of many ranks the first."""
        numbers = self.as_dict()
        n_ranks = numbers["n_ranks"]
        percentiles = [f"{percent} % {value:.4g}" for percent, value in numbers["percentiles"].items()]
        lines = [
            f"{numbers['gradients']} gradients on {n_ranks} ranks",
            "  ".join(f"{name} {numbers[name]:.4g}" for name in ("S_avg", "S_rms", "S_max", "W_max")),
            "between models: mean {mean:.4g}, max {max}".format(**numbers["between_models"]),
            f"percentiles: {', '.join(percentiles)}",
            "",
            f"{'staleness':>13} {'gradients':>11}",
        ]
        edges, counts = numbers["histogram"].values()
        for (first, end), count in zip(pairwise(edges), counts, strict=True):
            span = f"{first}" if end == first + 1 else f"{first}-{end - 1}"
            bar = "#" * math.ceil(_BAR_WIDTH * count / max(counts))
            lines.append(f"{span:>13} {count:>11} {count / numbers['measured']:>7.1%} {bar}".rstrip())
        lines += ["", f"{'rank':>13} {'gradients':>11} {'S_avg':>9} {'S_rms':>9} {'S_max':>7} {'missed by others':>17}"]
        for row in numbers["per_rank"][:_TABLE_RANKS]:
            known = row["S_avg"] is not None
            own = "{S_avg:>9.4g} {S_rms:>9.4g} {S_max:>7}".format(**row) if known else f"{'-':>9}{'':18}"
            lines.append(f"{row['rank']:>13} {row['gradients']:>11} {own} {row['missed_by_others']:>17}")
        if n_ranks > _TABLE_RANKS:
            lines.append(f"{'...':>13} {n_ranks - _TABLE_RANKS} more ranks in the JSON form")
        return "\n".join(lines)

    def _per_rank(self) -> list[dict]:
        by_rank = self.missed.staleness[np.argsort(self.missed.rank)]
        ends = np.cumsum(np.bincount(self.missed.rank, minlength=self.counts.size))
        columns = (self.counts.tolist(), self.missed.per_source.tolist(), np.split(by_rank, ends[:-1]))
        return [
            {"rank": rank, "gradients": count, "missed_by_others": missed} | _moments(own)
            for rank, (count, missed, own) in enumerate(zip(*columns, strict=True))
        ]


def measure(
    starts: Sequence,
    order: Order,
    versions: Sequence,
    every: int,
    n_ranks_at: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Staleness:
    """Compute the staleness of a run from its log.

    Parameters
    ----------
    starts : sequence of n_ranks ndarrays, shape (n_gradients_i,), float64, s
        When each rank's gradients began; at least one gradient in all.
    order : Order
    versions, every
        As for `versions.causal_order`.
    n_ranks_at : callable, optional
        How many ranks there were at given moments; only they have models. All by default.
    """
    missed = missed_gradients(order, versions, every)
    return Staleness(missed, order.counts, *_between(starts, versions, every, n_ranks_at))


def _moments(staleness: np.ndarray) -> dict:
    if not staleness.size:
        return dict.fromkeys(("S_avg", "S_rms", "S_max"))
    squares = np.square(staleness, dtype=np.float64)
    return {
        "S_avg": float(staleness.mean()),
        "S_rms": math.sqrt(squares.mean()),
        "S_max": int(staleness.max()),
    }


def _between(starts: Sequence[np.ndarray], versions: Sequence, every: int, n_ranks_at) -> tuple[float, int]:
    """Mean and maximum staleness between two different models, at moments spread evenly over the run."""
    # A rank without gradients, such as a server that takes none, has no model that its log tells of.
    ranks = [rank for rank, times in enumerate(starts) if len(times)]
    if len(ranks) < 2:
        return 0.0, 0
    n_moments = max(1, min(_MOMENTS, _PAIR_OPERATIONS // len(starts) ** 3))
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
