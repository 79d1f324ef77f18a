"""Version vectors, causal order and staleness of gradients (``docs/theory.md``, "Definitions").

All functions use two things from the log of each rank ``i``: the times at which its gradients were completed, and the
version vectors of the replicas at which they were computed. ``versions[i][r, j]`` is the number of updates of rank `j`
in the replica. Its own entry, ``j = i``, is the index of the gradient itself among those of rank `i`, except for the
exchange "server": there the entry may be smaller, because the replica that the server returned need not contain the
last updates of the rank yet. If only every ``every``-th vector was logged, row `r` belongs to the gradient with the
index ``r * every`` of its rank.

The vectors are processed in blocks of the global order, so that memory grows with the number of gradients, not with the
number of gradients times ranks. `versions[i]` may be any object that can be sliced by rows, such as an open HDF5 data
set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.types import AnyArray, Float64s, Int64s, UInt32s

_BLOCK_ENTRIES = 1 << 21  # version-vector entries per block: 8 MiB, large enough for efficient file reads
_MAX_SWEEPS = 1000  # one or two suffice for a log that can be ordered, except for contrived times


class VectorRows(Protocol):
    """Version vectors of one rank, shape (n_vectors, n_ranks), uint32: an array, or data that is read when sliced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of vectors and number of ranks."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return one row, or the rows of a slice, as an array."""


@dataclass(frozen=True)
class Order:
    """The global order ``t = 0 .. T-1`` of the gradients of all ranks.

    Attributes
    ----------
    rank : ndarray, shape (T,), int32
        Rank that computed gradient ``t``.
    index : ndarray, shape (T,), int64
        Index of gradient ``t`` among those of its rank.
    counts : ndarray, shape (n_ranks,), int64
        Number of gradients of each rank.
    """

    rank: npt.NDArray[np.int32]
    index: Int64s
    counts: Int64s


@dataclass(frozen=True)
class MissedGradients:
    """Staleness and reach of gradients; made by `missed_gradients`.

    Attributes
    ----------
    rank : ndarray, shape (n_measured,), int32
        Rank of each gradient whose vector was logged, in the global order.
    staleness : ndarray, shape (n_measured,), int64
        ``S_t``, the number of gradients that each of them missed.
    per_pair : ndarray, shape (n_ranks, n_ranks), int64
        ``per_pair[i, j]``: number of gradients of rank `j` that the gradients of rank `i` missed; the sum of all
        entries is ``staleness.sum()``.
    reach : ndarray, shape (T,), int64
        ``W_s`` of every gradient, in the global order; an estimate if not every vector was logged.
    """

    rank: npt.NDArray[np.int32]
    staleness: Int64s
    per_pair: Int64s
    reach: Int64s

    @property
    def per_source(self) -> Int64s:
        """Number of missed gradients of each rank, shape (n_ranks,), int64."""
        return self.per_pair.sum(axis=0)


def causal_order(times: Sequence[Float64s], versions: Sequence[VectorRows], every: int = 1) -> Order:
    """Order all gradients by completion time, corrected so that the order is causal.

    A gradient must come after the previous one of its rank and after every gradient whose update its replica
    contained. A time that was logged too late (the rank was descheduled between publishing and reading the clock, or
    its clock is fast) is lowered to just before the first gradient whose replica contained the update. Equal times are
    ordered by rank.

    Parameters
    ----------
    times : sequence of n_ranks ndarrays, shape (n_gradients_i,), float64, s
        Completion times of the gradients of each rank, on any common clock.
    versions : sequence of n_ranks VectorRows, shape (ceil(n_gradients_i / every), n_ranks), uint32
        Logged version vectors. An entry larger than the number of gradients logged by that rank is lowered to it.
    every : int
        A rank logs the vector of one gradient in this number.

    Returns
    -------
    order : Order

    Raises
    ------
    ValueError
        If shapes do not agree, or if there is no causal order.

    Examples
    --------
    Rank 1 computes its only gradient after it has read the first update of rank 0:

    >>> order = causal_order([np.array([1.0, 3.0]), np.array([2.0])], [np.array([[0, 0], [1, 0]]), np.array([[1, 0]])])
    >>> order.rank.tolist(), order.index.tolist()
    ([0, 1, 0], [0, 0, 1])
    """
    counts = np.array([len(own) for own in times], dtype=np.int64)
    _check_shapes(counts, versions, every)
    ends = np.cumsum(counts)
    flat = np.concatenate([np.asarray(own, dtype=np.float64) for own in times])
    for _ in range(min(_MAX_SWEEPS, flat.size) + 1):
        for start, end in zip(ends - counts, ends, strict=True):
            flat[start:end] = np.minimum.accumulate(flat[start:end][::-1])[::-1]
        order = _sorted_order(flat, counts)
        if not _lower_late_times(flat, order, versions, every):
            return order
    raise ValueError("`versions` has no causal order: some replicas contained each other's later updates")


def missed_gradients(order: Order, versions: Sequence[VectorRows], every: int = 1) -> MissedGradients:
    """Compute the staleness and the reach of the gradients (``docs/theory.md``, "Definitions").

    With ``c_t[j]`` the number of gradients of rank `j` before ``t`` in the order, and ``v_t`` the version vector of
    the replica: ``S_t = sum_j (c_t[j] - v_t[j])``, and ``W_s = sum of S_t over all t that missed s``. For ``s`` the
    gradient with index ``m`` of rank ``j``, these are all ``t`` after ``s`` except those with ``v_t[j] > m``. The cost
    is O(n_ranks T).

    Parameters
    ----------
    order : Order
        From `causal_order` of the same log.
    versions, every
        As for `causal_order`. Gradients without a logged vector are not measured; each measured gradient counts
        `every` times in the reach of others, in place of those that are not measured.

    Returns
    -------
    missed : MissedGradients
    """
    staleness = np.zeros(order.rank.size, dtype=np.int64)
    per_pair = np.zeros((order.counts.size, order.counts.size), dtype=np.int64)
    # by_version[j][v] is the sum of S_t over all t with v_t[j] = v.
    by_version = [np.zeros(count + 1, dtype=np.int64) for count in order.counts]
    for t, vectors, completed in logged_blocks(order, versions, every):
        missed = completed - vectors
        staleness[t] = missed.sum(axis=1, dtype=np.int64)
        _add_rows_at(per_pair, order.rank[t], missed)
        for versions_of_source, sums in zip(vectors.T, by_version, strict=True):
            _add_at(sums, versions_of_source, staleness[t])
    after = staleness.sum() - np.cumsum(staleness)
    reach = np.empty_like(after)
    for source, sums in enumerate(by_version):
        contained_later = sums.sum() - np.cumsum(sums)[:-1]  # by index m: sum of S_t over all t with v_t[source] > m
        position = np.flatnonzero(order.rank == source)
        reach[position] = after[position] - contained_later
    measured = order.index % every == 0
    return MissedGradients(order.rank[measured], staleness[measured], per_pair, every * reach)


def replicas_at(
    moments: Float64s, starts: Sequence[Float64s], versions: Sequence[VectorRows], every: int = 1
) -> Int64s:
    """Return the version vectors of all replicas at given moments.

    Parameters
    ----------
    moments : ndarray, shape (n_moments,), float64, s
        Ascending.
    starts : sequence of n_ranks ndarrays, shape (n_gradients_i,), float64, s
        Times at which the computation of the gradients of each rank began.
    versions, every
        As for `causal_order`.

    Returns
    -------
    replicas : ndarray, shape (n_moments, n_ranks, n_ranks), int64
        ``replicas[m, i]``: last vector that rank `i` had logged at moment `m`; zeros before its first.
    """
    n_ranks = len(starts)
    replicas = np.zeros((len(moments), n_ranks, n_ranks), dtype=np.int64)
    for rank, start in enumerate(starts):
        rows = (np.searchsorted(start, moments, side="right") - 1) // every
        for row in np.unique(rows[rows >= 0]):
            replicas[rows == row, rank] = versions[rank][row]
    return replicas


def between_models(replicas: Int64s) -> Int64s:
    """Compute the staleness between all pairs of models at one moment (``docs/theory.md``, "Definitions").

    Parameters
    ----------
    replicas : ndarray, shape (n_ranks, n_ranks), signed integer
        Version vector of each replica.

    Returns
    -------
    staleness : ndarray, shape (n_ranks, n_ranks), int64
        ``sum_j |v_i[j] - v_k[j]|``: number of updates that are in one of the two replicas only.

    Examples
    --------
    >>> between_models(np.array([[1, 1], [4, 0]])).tolist()
    [[0, 4], [4, 0]]
    """
    return np.stack([np.abs(replicas - own).sum(axis=1) for own in replicas])


def logged_blocks(
    order: Order, versions: Sequence[VectorRows], every: int = 1
) -> Iterator[tuple[Int64s, UInt32s, UInt32s]]:
    """Yield the gradients whose vector was logged, in blocks of the global order.

    Parameters
    ----------
    order : Order
        From `causal_order` of the same log.
    versions, every
        As for `causal_order`.

    Yields
    ------
    t : ndarray, shape (m,), int64
        Positions in the global order, ascending.
    vectors : ndarray, shape (m, n_ranks), uint32
        ``v_t``, version vectors of the replicas at which the gradients were computed. The logs of a killed run end at
        different moments: entries are limited to the number of gradients logged by each rank.
    completed : ndarray, shape (m, n_ranks), uint32
        ``c_t``, number of gradients of each rank before ``t``.
    """
    ranks = np.arange(order.counts.size, dtype=np.int32)
    limit = order.counts.astype(np.uint32)
    before = np.zeros(ranks.size, dtype=np.uint32)
    n_rows = max(1, _BLOCK_ENTRIES // ranks.size)
    for begin in range(0, order.rank.size, n_rows):
        rank, index = order.rank[begin : begin + n_rows], order.index[begin : begin + n_rows]
        own = rank[:, np.newaxis] == ranks
        completed = np.cumsum(own, axis=0, dtype=np.uint32)
        completed += before
        before = completed[-1].copy()
        completed -= own
        logged = np.flatnonzero(index % every == 0)
        vectors = _gather_vectors(rank[logged], index[logged] // every, versions)
        np.minimum(vectors, limit, out=vectors)
        yield begin + logged, vectors, completed if logged.size == index.size else completed[logged]


def _check_shapes(counts: Int64s, versions: Sequence[VectorRows], every: int) -> None:
    for rank, (count, rows) in enumerate(zip(counts.tolist(), versions, strict=True)):
        expected = (ceil_div(count, every), counts.size)
        if tuple(rows.shape) != expected:
            raise ValueError(
                f"`versions[{rank}]` must have shape {expected} for {count} gradients with one "
                f"vector per {every}, got {tuple(rows.shape)}"
            )


def _sorted_order(flat: Float64s, counts: Int64s) -> Order:
    """Order gradients by time, then rank, then index; `flat` has their times, rank after rank."""
    position = np.argsort(flat, kind="stable")
    rank = np.repeat(np.arange(counts.size, dtype=np.int32), counts)[position]
    return Order(rank, position - (np.cumsum(counts) - counts)[rank], counts)


def _lower_late_times(flat: Float64s, order: Order, versions: Sequence[VectorRows], every: int) -> bool:
    """Lower the times of gradients that come after a gradient whose replica contained their update.

    Parameters
    ----------
    flat : ndarray, shape (T,), float64, s
        Times of the gradients, rank after rank; changed in place.
    order : Order
        The order of `flat`.
    versions, every
        As for `causal_order`.

    Returns
    -------
    late : bool
        True if a time was lowered.
    """
    first = np.cumsum(order.counts) - order.counts
    times = flat.copy()  # the times of `order`: bounds do not depend on times that were lowered already
    late = False
    for t, vectors, completed in logged_blocks(order, versions, every):
        row, source = np.nonzero(vectors > completed)
        if row.size == 0:
            continue
        late = True
        rank, index = order.rank[t[row]], order.index[t[row]]
        if np.any(rank == source):
            wrong = np.argmax(rank == source)
            raise ValueError(
                f"`versions` says that the replica of gradient {index[wrong]} of rank {rank[wrong]} contained "
                f"{vectors[row[wrong], source[wrong]]} updates of its own rank"
            )
        bound = np.nextafter(times[first[rank] + index], -np.inf)
        np.minimum.at(flat, first[source] + vectors[row, source] - 1, bound)
    return late


def _gather_vectors(rank: npt.NDArray[np.int32], row: Int64s, versions: Sequence[VectorRows]) -> UInt32s:
    """Return the logged vectors, shape (m, n_ranks), uint32, of gradients given by their ranks and rows in the logs."""
    vectors = np.empty((rank.size, len(versions)), dtype=np.uint32)
    by_rank = np.argsort(rank, kind="stable")
    ends = np.searchsorted(rank[by_rank], np.arange(len(versions)), side="right")
    begin = 0
    for rows, end in zip(versions, ends, strict=True):
        if end > begin:
            positions = by_rank[begin:end]
            # The gradients of one rank are in order: their vectors are a contiguous slice of its log.
            vectors[positions] = rows[row[positions[0]] : row[positions[-1]] + 1]
        begin = end
    return vectors


def _add_at(total: Int64s, index: AnyArray, amount: Int64s) -> None:
    """Do ``total[index] += amount`` with repeated indices; fast if the indices are close to each other."""
    if index.size == 0:
        return
    low = index.min()
    # float64 weights are exact: the sums of a block stay far below 2**53
    sums = np.bincount(index - low, weights=amount)
    total[low : low + sums.size] += sums.astype(np.int64)


def _add_rows_at(total: Int64s, index: AnyArray, rows: AnyArray) -> None:
    """Do ``total[index] += rows`` with repeated indices."""
    if index.size == 0:
        return
    by_index = np.argsort(index, kind="stable")
    values, begins = np.unique(index[by_index], return_index=True)
    total[values] += np.add.reduceat(rows[by_index], begins, axis=0, dtype=np.int64)
