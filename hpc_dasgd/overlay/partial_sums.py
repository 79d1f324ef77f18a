"""Sums of contributions, on the complete overlay and along the edges of a tree: the arithmetic of exchange `read`.

On a tree, rank `i` publishes for its neighbour `j` the *partial sum* of all contributions on its own side of the edge
between them: its own contribution and what it has read from all its other neighbours. The two sides of an edge have no
rank in common, so that each update is contained once. On the complete overlay a rank publishes its own contribution
only.

All sums are taken in one order: the own contribution first, then the neighbours one after the other. A partial sum is
therefore a function of its version vector alone, and so is a replica.
"""

from collections.abc import Sequence

import numpy as np

from hpc_dasgd.arrays.arithmetic import add_up, namespace
from hpc_dasgd.arrays.types import Array, Int64s


def sum_replica(own: Array, seen: Sequence[Array], replica: Array) -> None:
    """Store ``own + seen[0] + seen[1] + ...`` into `replica`.

    Parameters
    ----------
    own : array, shape (n_params,)
        Contribution of this rank.
    seen : sequence of array like `own`
        Contributions or partial sums read from the neighbours.
    replica : array like `own`
        Overwritten.

    Examples
    --------
    >>> replica = np.zeros(2)
    >>> sum_replica(np.array([1.0, 2.0]), [np.array([10.0, 20.0])], replica)
    >>> replica.tolist()
    [11.0, 22.0]
    """
    add_up([own, *seen], replica)


def sum_edges(own: Array, seen: Sequence[Array], edges: Sequence[Array | None], replica: Array) -> None:
    """Store the partial sum of every edge, and the replica, with three additions per edge.

    ``edges[j]`` becomes ``(own + seen[0] + ... + seen[j-1]) + (seen[j+1] + ... + seen[-1])``, where the second sum is
    taken from its end. No two arrays may overlap; all are of one library, NumPy or CuPy.

    Parameters
    ----------
    own : array, shape (n_params,)
        Contribution of this rank.
    seen : sequence of array like `own`
        Partial sums read from the neighbours; at least one.
    edges : sequence of array like `own`, or None
        One per neighbour, overwritten; None if the partial sum of that edge is not needed.
    replica : array like `own`
        Overwritten as by `sum_replica`.

    Examples
    --------
    >>> own, seen = np.array([1.0]), [np.array([10.0]), np.array([100.0])]
    >>> edges, replica = [np.zeros(1), np.zeros(1)], np.zeros(1)
    >>> sum_edges(own, seen, edges, replica)
    >>> edges[0].item(), edges[1].item(), replica.item()
    (101.0, 11.0, 111.0)
    """
    last = len(seen) - 1
    after = [seen[last]] * last  # after[j]: sum of what was read from the neighbours after j
    for j in range(last - 2, -1, -1):
        # An edge that is not needed offers no array for the intermediate sum.
        out = namespace(own).empty_like(own) if edges[j] is None else edges[j]
        add_up([seen[j + 1], after[j + 1]], out)
        after[j] = out
    before = own
    if last == 0 and edges[0] is not None:
        edges[0][...] = own
    for j, values in enumerate(seen):
        if j < last and edges[j] is not None:
            add_up([before, after[j]], edges[j])
        ends_in_edge = j == last - 1 and edges[last] is not None
        out = edges[last] if ends_in_edge else replica
        add_up([before, values], out)
        before = out


def merge_versions(own: int, version: int, seen: Sequence[Int64s], out: Int64s) -> None:
    """Store the version vector of a sum of contributions into `out`.

    Parameters
    ----------
    own : int
        Index of this rank in the version vectors.
    version : int
        Number of own updates in the sum.
    seen : sequence of ndarray, shape (n_ranks,), int64
        Version vectors of the other terms.
    out : ndarray, shape (n_ranks,), int64
        Overwritten.

    Examples
    --------
    >>> out = np.zeros(3, np.int64)
    >>> merge_versions(0, 5, [np.array([4, 2, 0]), np.array([0, 0, 7])], out)
    >>> out.tolist()
    [5, 2, 7]
    """
    out[:] = 0
    for versions in seen:
        np.maximum(out, versions, out=out)
    out[own] = version
