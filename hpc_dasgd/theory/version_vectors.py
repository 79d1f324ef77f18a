"""Version-vector and staleness arithmetic (``theory.md``, "Definitions").

Everything here follows from two things a run's log holds for each rank ``i``: when its gradients
were completed, and the version vector of the replica each was taken at, ``versions[i][r, j]`` =
number of updates of rank ``j`` in the replica (for ``j = i`` the gradient's own index). Where only
every ``every``-th vector was logged, row ``r`` belongs to gradient ``r * every`` of its rank.

The vectors are walked in blocks of the global order, so that memory is bounded by the number of
gradients, not by gradients times ranks; `versions[i]` may be anything that can be sliced by rows,
an open HDF5 data set included.
"""

from dataclasses import dataclass

import numpy as np

_BLOCK_ENTRIES = 1 << 21  # version-vector entries per block: 8 MiB, large enough for cheap file reads
_MAX_SWEEPS = 1000  # a log that can be ordered needs one or two, except for contrived times


@dataclass(frozen=True)
class Order:
    """The global order ``t = 0 .. T-1`` of the gradients of all ranks.

    Attributes
    ----------
    rank : ndarray, shape (T,), int32
        Rank that took gradient ``t``.
    index : ndarray, shape (T,), int64
        Which of its rank's gradients ``t`` is, from 0.
    counts : ndarray, shape (n_ranks,), int64
        Gradients of each rank.
    """

    rank: np.ndarray
    index: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Missed:
    """What the replicas had missed when the gradients were taken.

    Attributes
    ----------
    rank : ndarray, shape (n_measured,), int32
        Rank of each gradient whose vector was logged, in the global order.
    staleness : ndarray, shape (n_measured,), int64
        ``S_t``, gradients missed.
    per_pair : ndarray, shape (n_ranks, n_ranks), int64
        ``[i, j]``: how many gradients of rank `j` those of rank `i` missed; sums to ``staleness.sum()``.
    reach : ndarray, shape (T,), int64
        ``W_s`` of every gradient, in the global order; an estimate where not every vector was logged.
    """

    rank: np.ndarray
    staleness: np.ndarray
    per_pair: np.ndarray
    reach: np.ndarray

    @property
    def per_source(self) -> np.ndarray:
        """How many of the missed gradients were of each rank, shape (n_ranks,), int64."""
        return self.per_pair.sum(axis=0)


def causal_order(times, versions, every=1):
    """Order all gradients by completion time, corrected until causality holds.

    A gradient must come after its rank's previous one and after every gradient its replica held. A
    time logged too late (the rank was descheduled between publishing and reading the clock, or its
    clock runs ahead) is lowered to just before the first gradient that held the update; equal times
    are ordered by rank.

    Parameters
    ----------
    times : sequence of n_ranks ndarrays, shape (n_gradients_i,), float64, s
        Completion times of each rank's gradients, on any common clock.
    versions : sequence of n_ranks array-likes, shape (ceil(n_gradients_i / every), n_ranks), uint32
        Logged version vectors. Entries beyond a rank's last logged gradient count as that one.
    every : int
        Every how many gradients a vector was logged.

    Returns
    -------
    order : Order

    Raises
    ------
    ValueError
        If shapes do not fit, or no order is causal: some gradients held each other.
    """
    counts = np.array([len(t) for t in times], dtype=np.int64)
    _check_shapes(counts, versions, every)
    ends = np.cumsum(counts)
    flat = np.concatenate([np.asarray(t, dtype=np.float64) for t in times])
    for _ in range(min(_MAX_SWEEPS, flat.size) + 1):
        for start, end in zip(ends - counts, ends, strict=True):
            flat[start:end] = np.minimum.accumulate(flat[start:end][::-1])[::-1]
        order = _sorted_order(flat, counts)
        if not _lower_late_times(flat, order, versions, every):
            return order
    raise ValueError("`versions` cannot be ordered causally: some gradients held each other")


def missed_gradients(order, versions, every=1):
    """Compute the staleness of each gradient and the reach of each gradient (``theory.md``).

    With ``c_t`` the gradients completed before ``t``: ``S_t = sum_j (c_t[j] - v_t[j])``, and
    ``W_s = sum of S_t over all t that missed s``. For ``s`` the ``m``-th gradient of rank ``j``, those
    are the ``t`` after ``s`` less those with ``v_t[j] > m``. Costs O(n_ranks T).

    Parameters
    ----------
    order : Order
        From `causal_order` of the same log.
    versions, every
        As for `causal_order`. Gradients without a logged vector are not measured; to the reach of
        others each measured one adds `every` times its own, in place of those.

    Returns
    -------
    missed : Missed
    """
    staleness = np.zeros(order.rank.size, dtype=np.int64)
    per_pair = np.zeros((order.counts.size,) * 2, dtype=np.int64)
    holding = [np.zeros(count + 1, dtype=np.int64) for count in order.counts]
    for t, held, completed in walk(order, versions, every):
        missed = completed - held
        staleness[t] = missed.sum(axis=1, dtype=np.int64)
        _add_rows_at(per_pair, order.rank[t], missed)
        for held_of_source, weight in zip(held.T, holding, strict=True):
            _add_at(weight, held_of_source, staleness[t])
    after = staleness.sum() - np.cumsum(staleness)
    reach = np.empty_like(after)
    for source, weight in enumerate(holding):
        # weight[v] is the staleness of all t with v_t[source] = v; now of all t with v_t[source] > m
        held_later = weight.sum() - np.cumsum(weight)[:-1]
        position = np.flatnonzero(order.rank == source)
        reach[position] = after[position] - held_later
    measured = order.index % every == 0
    return Missed(order.rank[measured], staleness[measured], per_pair, every * reach)


def replicas_at(moments, starts, versions, every=1):
    """Look up the version vectors of all replicas at given moments.

    Parameters
    ----------
    moments : ndarray, shape (n_moments,), float64, s
        Ascending.
    starts : sequence of n_ranks ndarrays, shape (n_gradients_i,), float64, s
        When each rank's gradients began.
    versions, every
        As for `causal_order`.

    Returns
    -------
    replicas : ndarray, shape (n_moments, n_ranks, n_ranks), int64
        ``replicas[m, i]``: the last vector rank `i` had logged at moment `m`, zero before its first.
    """
    n_ranks = len(starts)
    replicas = np.zeros((len(moments), n_ranks, n_ranks), dtype=np.int64)
    for rank, start in enumerate(starts):
        row = (np.searchsorted(start, moments, side="right") - 1) // every
        for found in np.unique(row[row >= 0]):
            replicas[row == found, rank] = versions[rank][found]
    return replicas


def between_models(replicas):
    """Compute the staleness between all pairs of models at one moment.

    Parameters
    ----------
    replicas : ndarray, shape (n_ranks, n_ranks), signed integer
        Version vector of each replica.

    Returns
    -------
    staleness : ndarray, shape (n_ranks, n_ranks), int64
        ``sum_j |v_i[j] - v_k[j]|`` (``theory.md``): updates in one replica but not the other.
    """
    return np.stack([np.abs(replicas - own).sum(axis=1) for own in replicas])


def _check_shapes(counts, versions, every):
    for rank, (count, rows) in enumerate(zip(counts.tolist(), versions, strict=True)):
        expected = (-(-count // every), counts.size)
        if tuple(rows.shape) != expected:
            raise ValueError(
                f"`versions[{rank}]` must have shape {expected} for {count} gradients with one "
                f"vector per {every}, got {tuple(rows.shape)}"
            )


def _sorted_order(flat, counts):
    """Order gradients, given rank after rank in `flat`, by time, then rank, then index."""
    position = np.argsort(flat, kind="stable")
    rank = np.repeat(np.arange(counts.size, dtype=np.int32), counts)[position]
    return Order(rank, position - (np.cumsum(counts) - counts)[rank], counts)


def _lower_late_times(flat, order, versions, every):
    """Lower in `flat` the times of gradients ordered after one that held them; say if any were."""
    first = np.cumsum(order.counts) - order.counts
    times = flat.copy()  # bounds come from the times the order was made of
    late = False
    for t, held, completed in walk(order, versions, every):
        row, source = np.nonzero(held > completed)
        if row.size == 0:
            continue
        late = True
        rank, index = order.rank[t[row]], order.index[t[row]]
        if np.any(rank == source):
            wrong = np.argmax(rank == source)
            raise ValueError(
                f"`versions` says that gradient {index[wrong]} of rank {rank[wrong]} was taken after "
                f"{held[row[wrong], source[wrong]]} updates of its own"
            )
        bound = np.nextafter(times[first[rank] + index], -np.inf)
        np.minimum.at(flat, first[source] + held[row, source] - 1, bound)
    return late


def walk(order, versions, every=1):
    """Yield ``(t, held, completed)`` for blocks of the gradients whose vector was logged.

    `t` (m,) are positions in the global order, `held` (m, n_ranks) uint32 the vectors ``v_t``,
    `completed` (m, n_ranks) uint32 the vectors ``c_t``.
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
        held = _held(rank[logged], index[logged] // every, versions)
        # Logs of a killed run end at different moments: what is beyond one's end is left out.
        np.minimum(held, limit, out=held)
        yield begin + logged, held, completed if logged.size == index.size else completed[logged]


def _held(rank, row, versions):
    """Gather the logged vectors of gradients given by rank and log row, (m, n_ranks) uint32."""
    held = np.empty((rank.size, len(versions)), dtype=np.uint32)
    by_rank = np.argsort(rank, kind="stable")
    ends = np.searchsorted(rank[by_rank], np.arange(len(versions)), side="right")
    begin = 0
    for rows, end in zip(versions, ends, strict=True):
        if end > begin:
            here = by_rank[begin:end]
            # one rank's gradients are in order: a contiguous slice of its log
            held[here] = rows[row[here[0]] : row[here[-1]] + 1]
        begin = end
    return held


def _add_at(total, index, amount):
    """Do ``total[index] += amount`` with repeated indices, fast for indices that lie close together."""
    if index.size == 0:
        return
    low = index.min()
    # float64 weights are exact: the sums of a block stay far below 2**53
    sums = np.bincount(index - low, weights=amount)
    total[low : low + sums.size] += sums.astype(np.int64)


def _add_rows_at(total, index, rows):
    """Do ``total[index] += rows`` with repeated indices."""
    if index.size == 0:
        return
    by_index = np.argsort(index, kind="stable")
    values, begins = np.unique(index[by_index], return_index=True)
    total[values] += np.add.reduceat(rows[by_index], begins, axis=0, dtype=np.int64)
