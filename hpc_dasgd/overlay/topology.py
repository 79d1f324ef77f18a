"""Topologies of overlays, as pure functions: every rank can compute the neighbours of any rank, with the same result.

A rank *reads* its sources and is read by its targets. Trees are for exchange `read`: they are undirected and have no
cycles, so that every update arrives along one path only, and therefore once. Graphs are for exchange `gossip`: they may
be directed, and are strongly connected and regular (all ranks have the same number of sources and of targets), which
makes the mixing matrix of the averages doubly stochastic.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from hpc_dasgd.overlay.random_graph import random_targets


class Neighbours(NamedTuple):
    """Neighbours of a rank on a graph, without the rank itself.

    Attributes
    ----------
    sources : tuple of int
        Ranks that this rank reads, ascending.
    targets : tuple of int
        Ranks that read this rank, ascending.
    """

    sources: tuple[int, ...]
    targets: tuple[int, ...]


def complete(rank: int, n_ranks: int) -> tuple[int, ...]:
    """Return the neighbours of `rank` on the complete overlay: every other rank, ascending.

    Examples
    --------
    >>> complete(1, 4)
    (0, 2, 3)
    """
    _check_rank(rank, n_ranks)
    return tuple(other for other in range(n_ranks) if other != rank)


# Trees: each function returns the neighbours of `rank`, ascending.


def tree(rank: int, nodes: Sequence[int], fan_out: int = 2) -> tuple[int, ...]:
    """Return the neighbours of `rank` on a tree of trees, in which one edge leads from each node towards the root.

    The ranks of a node form a tree with the lowest of them, their leader, as its root. The leaders form another tree,
    in ascending order. Each of these trees is a heap: entry ``k`` is the parent of the entries ``fan_out * k + 1`` to
    ``fan_out * k + fan_out``. No rank has more than ``2 * fan_out + 1`` neighbours, and distances grow with the
    logarithm of the number of ranks.

    Parameters
    ----------
    rank : int
        ``0 <= rank < len(nodes)``.
    nodes : sequence of int
        Node of each rank. The ranks of a node need not be consecutive.
    fan_out : int
        Number of children of a rank, at least 1. With 1 the trees are lines, whose distances grow with the number of
        ranks.

    Returns
    -------
    neighbours : tuple of int
        Ascending.

    Raises
    ------
    ValueError
        If `rank` or `fan_out` is out of range.

    Examples
    --------
    >>> tree(0, nodes=[0, 0, 0, 1, 1])
    (1, 2, 3)
    """
    _check_rank(rank, len(nodes))
    _check_at_least_one("fan_out", fan_out)
    members = [other for other, node in enumerate(nodes) if node == nodes[rank]]
    neighbours = _heap_neighbours(rank, members, fan_out)
    if rank == members[0]:
        neighbours += _heap_neighbours(rank, list(_leaders(nodes).values()), fan_out)
    return tuple(sorted(neighbours))


def chain(rank: int, nodes: Sequence[int]) -> tuple[int, ...]:
    """Return the neighbours of `rank` on a line through all ranks, node after node; parameters as for `tree`."""
    _check_rank(rank, len(nodes))
    leaders = _leaders(nodes)
    line = sorted(range(len(nodes)), key=lambda other: (leaders[nodes[other]], other))
    position = line.index(rank)
    return tuple(sorted(line[max(position - 1, 0) : position] + line[position + 1 : position + 2]))


def star(rank: int, n_ranks: int) -> tuple[int, ...]:
    """Return the neighbours of `rank` on the star with rank 0 in its centre."""
    _check_rank(rank, n_ranks)
    return tuple(range(1, n_ranks)) if rank == 0 else (0,)


# Graphs: each is defined for every number of ranks from 1 on.


def ring(rank: int, n_ranks: int) -> Neighbours:
    """Return the neighbours of `rank` on a ring: it reads the previous and the next rank."""
    _check_rank(rank, n_ranks)
    return _both_ways({(rank - 1) % n_ranks, (rank + 1) % n_ranks} - {rank})


def torus(rank: int, n_ranks: int) -> Neighbours:
    """Return the neighbours of `rank` on a grid whose opposite edges are joined: left, right, above and below.

    The ranks fill the grid row by row. Of all grids with `n_ranks` cells and no more rows than columns, it is the one
    with the most rows. For a prime number of ranks it has a single row, the ring.
    """
    _check_rank(rank, n_ranks)
    n_rows = max(count for count in range(1, math.isqrt(n_ranks) + 1) if n_ranks % count == 0)
    n_columns = n_ranks // n_rows
    row, column = divmod(rank, n_columns)
    beside = {row * n_columns + (column + step) % n_columns for step in (-1, 1)}
    above_and_below = {(row + step) % n_rows * n_columns + column for step in (-1, 1)}
    return _both_ways((beside | above_and_below) - {rank})


def exponential(rank: int, n_ranks: int) -> Neighbours:
    """Return the neighbours of `rank` on the exponential graph: it reads ``rank - 1``, ``rank - 2``, ``rank - 4``, ...

    Ranks are counted modulo `n_ranks`; distances are all powers of 2 below `n_ranks`.

    Examples
    --------
    >>> exponential(0, 9)
    Neighbours(sources=(1, 5, 7, 8), targets=(1, 2, 4, 8))
    """
    _check_rank(rank, n_ranks)
    distances = [1 << k for k in range((n_ranks - 1).bit_length())]
    return Neighbours(
        sources=tuple(sorted((rank - distance) % n_ranks for distance in distances)),
        targets=tuple(sorted((rank + distance) % n_ranks for distance in distances)),
    )


def random_regular(rank: int, n_ranks: int, degree: int = 4, seed: int = 0) -> Neighbours:
    """Return the neighbours of `rank` on a random graph: every rank reads `degree` ranks, and is read by as many.

    `random_graph` describes the construction.

    Parameters
    ----------
    rank : int
        ``0 <= rank < n_ranks``.
    n_ranks : int
    degree : int
        Number of sources of a rank, at least 1. If it is ``n_ranks - 1`` or more, the graph is complete.
    seed : int
        The same on every rank. The same seed gives the same graph on every platform.

    Returns
    -------
    neighbours : Neighbours

    Raises
    ------
    ValueError
        If `rank` or `degree` is out of range.
    """
    _check_rank(rank, n_ranks)
    _check_at_least_one("degree", degree)
    if degree >= n_ranks - 1:
        return _both_ways(complete(rank, n_ranks))
    targets = random_targets(n_ranks, degree, seed)
    return Neighbours(
        sources=tuple(other for other in range(n_ranks) if rank in targets[other]),
        targets=tuple(sorted(targets[rank])),
    )


def push_sum_share(n_targets: int) -> float:
    """Return the share of its parameters and weight that a rank keeps, and gives to each target, in push-sum.

    Examples
    --------
    >>> push_sum_share(3)
    0.25
    """
    return 1 / (n_targets + 1)


# By the names that settings use. The ring is cut open at one place, which makes it a tree.
TREES: dict[str, Callable[[int, Sequence[int], int], tuple[int, ...]]] = {
    "tree": lambda rank, nodes, fan_out: tree(rank, nodes, fan_out),
    "ring": lambda rank, nodes, fan_out: chain(rank, nodes),
    "star": lambda rank, nodes, fan_out: star(rank, len(nodes)),
}
GRAPHS: dict[str, Callable[[int, int, int, int], Neighbours]] = {
    "ring": lambda rank, n_ranks, degree, seed: ring(rank, n_ranks),
    "torus": lambda rank, n_ranks, degree, seed: torus(rank, n_ranks),
    "exponential": lambda rank, n_ranks, degree, seed: exponential(rank, n_ranks),
    "random-regular": lambda rank, n_ranks, degree, seed: random_regular(rank, n_ranks, degree, seed),
    "complete": lambda rank, n_ranks, degree, seed: _both_ways(complete(rank, n_ranks)),
}


def tree_neighbours(topology: str, rank: int, nodes: Sequence[int], *, fan_out: int) -> tuple[int, ...]:
    """Return the neighbours of `rank` on the tree with the name `topology`, ascending.

    Parameters
    ----------
    topology : {"tree", "ring", "star"}
        A key of `TREES`.
    rank : int
        ``0 <= rank < len(nodes)``.
    nodes : sequence of int
        Node of each rank.
    fan_out : int
        Number of children of a rank; only "tree" uses it.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    _check_topology(topology, TREES)
    return TREES[topology](rank, nodes, fan_out)


def all_tree_neighbours(topology: str, nodes: Sequence[int], *, fan_out: int) -> list[tuple[int, ...]]:
    """Return `tree_neighbours` of every rank, by rank, in a time proportional to the number of ranks."""
    _check_topology(topology, TREES)
    _check_at_least_one("fan_out", fan_out)
    members: dict[int, list[int]] = {}
    for rank, node in enumerate(nodes):
        members.setdefault(node, []).append(rank)
    # A line is a heap with fan-out 1, a star a heap with fan-out n.
    line = [rank for ranks in members.values() for rank in ranks]
    leaders = [ranks[0] for ranks in members.values()]
    heaps_of: dict[str, tuple[list[list[int]], int]] = {
        "tree": ([leaders, *members.values()], fan_out),
        "ring": ([line], 1),
        "star": ([list(range(len(nodes)))], len(nodes)),
    }
    heaps, fan_out = heaps_of[topology]
    neighbours: list[list[int]] = [[] for _ in nodes]
    for heap in heaps:
        for k in range(1, len(heap)):
            parent = heap[(k - 1) // fan_out]
            neighbours[parent].append(heap[k])
            neighbours[heap[k]].append(parent)
    return [tuple(sorted(others)) for others in neighbours]


def graph_neighbours(topology: str, rank: int, n_ranks: int, *, degree: int, seed: int) -> Neighbours:
    """Return the neighbours of `rank` on the graph with the name `topology`.

    Parameters
    ----------
    topology : {"ring", "torus", "exponential", "random-regular", "complete"}
        A key of `GRAPHS`.
    rank : int
        ``0 <= rank < n_ranks``.
    n_ranks : int
    degree, seed : int
        As for `random_regular`; only "random-regular" uses them.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    _check_topology(topology, GRAPHS)
    return GRAPHS[topology](rank, n_ranks, degree, seed)


def _leaders(nodes: Sequence[int]) -> dict[int, int]:
    """Return the lowest rank of each node, by node, in ascending order of ranks."""
    leaders: dict[int, int] = {}
    for rank, node in enumerate(nodes):
        leaders.setdefault(node, rank)
    return leaders


def _heap_neighbours(rank: int, ranks: list[int], fan_out: int) -> list[int]:
    """Return the parent, if any, and the children of `rank` in the heap of `ranks`."""
    position = ranks.index(rank)
    parent = [ranks[(position - 1) // fan_out]] if position else []
    return parent + ranks[fan_out * position + 1 : fan_out * position + fan_out + 1]


def _both_ways(others: Iterable[int]) -> Neighbours:
    """Return `others` as sources and as targets."""
    neighbours = tuple(sorted(others))
    return Neighbours(neighbours, neighbours)


def _check_rank(rank: int, n_ranks: int) -> None:
    if not 0 <= rank < n_ranks:
        raise ValueError(f"`rank` must be in [0, {n_ranks}), got {rank}")


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")


def _check_topology(topology: str, known: Mapping[str, object]) -> None:
    if topology not in known:
        raise ValueError(f"`topology` must be one of {', '.join(known)}, got {topology!r}")
