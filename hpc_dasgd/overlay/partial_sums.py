"""Sums of contributions, on the complete overlay and over the edges of a tree: the arithmetic of exchange `read`.

On a tree, rank `i` shows its neighbour `j` the *partial sum* of everything on its own side of the edge between
them: its own contribution and what it has read of all its other neighbours. The sides of an edge have no rank
in common, so no update comes twice, and every one comes. The complete overlay is the case in which nothing
that was read is shown on.

All sums are taken in one order, the own contribution first and then neighbour after neighbour, so that a
partial sum is a function of the version vectors in it alone, and so is a replica.
"""

from collections.abc import Sequence

import numpy as np

from hpc_dasgd.arrays.arithmetic import add_up, namespace


def sum_replica(own, seen: Sequence, replica) -> None:
    """Store ``own + seen[0] + seen[1] + ...`` into `replica`; all of one shape and dtype."""
    add_up([own, *seen], replica)


def sum_edges(own, seen: Sequence, edges: Sequence, replica) -> None:
    """Store the partial sum of every edge, and the replica, in 3 additions per edge.

    ``edges[j]`` becomes ``(own + seen[0] + ... + seen[j-1]) + (seen[j+1] + ... + seen[-1])``, the second sum
    from its end; where it is None nothing is stored. Shapes and dtypes are those of `own`, at least one edge;
    no two arrays overlap. All are of one library, NumPy or CuPy.
    """
    last = len(seen) - 1
    after = [seen[last]] * last  # after[j]: sum of what comes behind neighbour j
    for j in range(last - 2, -1, -1):
        # The place of an edge not wanted now is not to be touched: the sum then needs one of its own.
        place = namespace(own).empty_like(own) if edges[j] is None else edges[j]
        add_up([seen[j + 1], after[j + 1]], place)
        after[j] = place
    before = own
    if last == 0 and edges[0] is not None:
        edges[0][...] = own
    for j, values in enumerate(seen):
        if j < last and edges[j] is not None:
            add_up([before, after[j]], edges[j])
        ends_in_edge = j == last - 1 and edges[last] is not None
        place = edges[last] if ends_in_edge else replica
        add_up([before, values], place)
        before = place


def merge_versions(own: int, version: int, seen: Sequence[np.ndarray], out: np.ndarray) -> None:
    """Store the version vector of a sum of contributions into `out`, shape (n_ranks,), int64.

    `version` of the own ones, which stand at index `own`, and what the vectors `seen` hold.
    """
    out[:] = 0
    for versions in seen:
        np.maximum(out, versions, out=out)
    out[own] = version
