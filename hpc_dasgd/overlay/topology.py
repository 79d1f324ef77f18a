"""Overlays: who reads whom, as pure functions that any rank can ask for any rank, with the same answer everywhere.

A rank *reads* its sources and is read by its targets. Trees serve exchange `read`: they are undirected, and
without cycles, so that every update arrives on one path only, that is once. Graphs serve exchange `gossip`:
they may be directed, and are strongly connected and regular (every rank has as many sources, and as many
targets, as any other), which makes the mixing matrix of the averages doubly stochastic.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple


class Neighbours(NamedTuple):
    """Neighbours of a rank on a graph; without the rank itself, each once, ascending."""

    sources: tuple[int, ...]  # ranks that this one reads
    targets: tuple[int, ...]  # ranks that read this one


def complete(rank: int, n_ranks: int) -> tuple[int, ...]:
    """Neighbours of `rank` on the complete overlay: every other rank, ascending."""
    _check_rank(rank, n_ranks)
    return tuple(other for other in range(n_ranks) if other != rank)


# Trees: each function returns the neighbours of `rank`, ascending.


def tree(rank: int, nodes: Sequence[int], fan_out: int = 2) -> tuple[int, ...]:
    """Neighbours of `rank` on a tree of trees, one edge of which leaves each node but the root's.

    The ranks of a node form a tree below the lowest of them, their leader. The leaders form a tree again, in
    ascending order. Each of these trees is a heap: entry ``k`` is joined to ``fan_out * k + 1`` up to
    ``fan_out * k + fan_out``. So no rank has more than ``2 * fan_out + 1`` neighbours, and distances grow with
    the logarithm of the number of ranks.

    Parameters
    ----------
    rank : int
        ``0 <= rank < len(nodes)``.
    nodes : sequence of int
        The node that each rank runs on. The ranks of a node need not follow one another.
    fan_out : int
        At least 1, which makes lines of the trees, whose distances grow with the number of ranks.
    """
    _check_rank(rank, len(nodes))
    _check_at_least_one("fan_out", fan_out)
    members = [other for other, node in enumerate(nodes) if node == nodes[rank]]
    neighbours = _heap_neighbours(rank, members, fan_out)
    if rank == members[0]:
        neighbours += _heap_neighbours(rank, list(_leaders(nodes).values()), fan_out)
    return tuple(sorted(neighbours))


def chain(rank: int, nodes: Sequence[int]) -> tuple[int, ...]:
    """Neighbours of `rank` on a line through all ranks: node after node, each entered once; see `tree`."""
    _check_rank(rank, len(nodes))
    leaders = _leaders(nodes)
    line = sorted(range(len(nodes)), key=lambda other: (leaders[nodes[other]], other))
    position = line.index(rank)
    return tuple(sorted(line[max(position - 1, 0) : position] + line[position + 1 : position + 2]))


def star(rank: int, n_ranks: int) -> tuple[int, ...]:
    """Neighbours of `rank` on the star around rank 0."""
    _check_rank(rank, n_ranks)
    return tuple(range(1, n_ranks)) if rank == 0 else (0,)


# Graphs: each is defined for every number of ranks from 1 on.


def ring(rank: int, n_ranks: int) -> Neighbours:
    """Read the rank on either side."""
    _check_rank(rank, n_ranks)
    return _both_ways({(rank - 1) % n_ranks, (rank + 1) % n_ranks} - {rank})


def torus(rank: int, n_ranks: int) -> Neighbours:
    """Read the ranks on either side, above and below, on a grid with its opposite edges joined.

    The ranks fill the grid row by row. Of all grids that they fill, it is the squarest, with no more rows than
    columns. A prime number of ranks leaves a single row: the ring.
    """
    _check_rank(rank, n_ranks)
    n_rows = max(count for count in range(1, math.isqrt(n_ranks) + 1) if n_ranks % count == 0)
    n_columns = n_ranks // n_rows
    row, column = divmod(rank, n_columns)
    beside = {row * n_columns + (column + step) % n_columns for step in (-1, 1)}
    above_and_below = {(row + step) % n_rows * n_columns + column for step in (-1, 1)}
    return _both_ways((beside | above_and_below) - {rank})


def exponential(rank: int, n_ranks: int) -> Neighbours:
    """Read the ranks 1, 2, 4, 8, ... before, counted around the ring: about as many as the binary logarithm."""
    _check_rank(rank, n_ranks)
    distances = [1 << k for k in range((n_ranks - 1).bit_length())]  # all powers of 2 below n_ranks
    return Neighbours(
        sources=tuple(sorted((rank - distance) % n_ranks for distance in distances)),
        targets=tuple(sorted((rank + distance) % n_ranks for distance in distances)),
    )


def random_regular(rank: int, n_ranks: int, degree: int = 4, seed: int = 0) -> Neighbours:
    """Read `degree` ranks drawn at random, and be read by as many; every other rank where there are no more.

    From the directed graph on which each rank is read by the `degree` that follow it, ``10 * degree * n_ranks``
    times two edges a -> b and c -> d are drawn and become a -> d and c -> b, unless one of these is a loop or
    there already. Should that leave a graph of several parts, edges of two parts are switched until one remains.

    For 4 ranks or more, switching for ever would draw every graph of the degree equally often; how long that takes
    is bounded by a polynomial far above the switchings made here (C. Greenhill, A polynomial bound on the mixing
    time of a Markov chain for sampling regular directed graphs, Electron. J. Combin. 18 (2011), P234). On large
    graphs drawn uniformly, the eigenvalues of the adjacency matrix other than `degree` are hardly above
    ``sqrt(degree)`` in modulus (S. Coste, The spectral gap of sparse random digraphs, arXiv 1708.00530). Neither
    is a proof for the graphs returned here.

    Parameters
    ----------
    rank : int
        ``0 <= rank < n_ranks``.
    n_ranks : int
    degree : int
        At least 1.
    seed : int
        The same on every rank. The same seed gives the same graph on every platform.
    """
    _check_rank(rank, n_ranks)
    _check_at_least_one("degree", degree)
    if degree >= n_ranks - 1:
        return _both_ways(complete(rank, n_ranks))
    targets = _random_targets(n_ranks, degree, seed)
    return Neighbours(
        sources=tuple(other for other in range(n_ranks) if rank in targets[other]),
        targets=tuple(sorted(targets[rank])),
    )


def push_sum_share(n_targets: int) -> float:
    """Share of its parameters and weight that a rank keeps, and that it gives to each target, in push-sum."""
    return 1 / (n_targets + 1)


# By the names that settings use. The ring is a tree once it is cut open.
TREES = {
    "tree": lambda rank, nodes, fan_out: tree(rank, nodes, fan_out),
    "ring": lambda rank, nodes, fan_out: chain(rank, nodes),
    "star": lambda rank, nodes, fan_out: star(rank, len(nodes)),
}
GRAPHS = {
    "ring": lambda rank, n_ranks, degree, seed: ring(rank, n_ranks),
    "torus": lambda rank, n_ranks, degree, seed: torus(rank, n_ranks),
    "exponential": lambda rank, n_ranks, degree, seed: exponential(rank, n_ranks),
    "random-regular": lambda rank, n_ranks, degree, seed: random_regular(rank, n_ranks, degree, seed),
    "complete": lambda rank, n_ranks, degree, seed: _both_ways(complete(rank, n_ranks)),
}


def tree_neighbours(topology: str, rank: int, nodes: Sequence[int], *, fan_out: int) -> tuple[int, ...]:
    """Neighbours of `rank` on the tree of that name in `TREES`; `fan_out` matters to "tree" alone."""
    _check_topology(topology, TREES)
    return TREES[topology](rank, nodes, fan_out)


def all_tree_neighbours(topology: str, nodes: Sequence[int], *, fan_out: int) -> list[tuple[int, ...]]:
    """`tree_neighbours` of every rank, in time that grows as the number of ranks, not as its square."""
    _check_topology(topology, TREES)
    _check_at_least_one("fan_out", fan_out)
    members = {}
    for rank, node in enumerate(nodes):
        members.setdefault(node, []).append(rank)
    # A line is a heap of fan-out 1, a star one of fan-out n.
    heaps, fan_out = {
        "tree": ([[ranks[0] for ranks in members.values()], *members.values()], fan_out),
        "ring": ([[rank for ranks in members.values() for rank in ranks]], 1),
        "star": ([range(len(nodes))], len(nodes)),
    }[topology]
    neighbours = [[] for _ in nodes]
    for heap in heaps:
        for k in range(1, len(heap)):
            parent = heap[(k - 1) // fan_out]
            neighbours[parent].append(heap[k])
            neighbours[heap[k]].append(parent)
    return [tuple(sorted(others)) for others in neighbours]


def graph_neighbours(topology: str, rank: int, n_ranks: int, *, degree: int, seed: int) -> Neighbours:
    """Neighbours of `rank` on the graph of that name in `GRAPHS`; `degree` and `seed` matter to "random-regular"."""
    _check_topology(topology, GRAPHS)
    return GRAPHS[topology](rank, n_ranks, degree, seed)


def _leaders(nodes: Sequence[int]) -> dict[int, int]:
    """The lowest rank of each node, by node; ascending."""
    leaders = {}
    for rank, node in enumerate(nodes):
        leaders.setdefault(node, rank)
    return leaders


def _heap_neighbours(rank: int, ranks: list[int], fan_out: int) -> list[int]:
    """Parent, if any, and children of `rank` in the heap of `ranks`."""
    position = ranks.index(rank)
    parent = [ranks[(position - 1) // fan_out]] if position else []
    return parent + ranks[fan_out * position + 1 : fan_out * position + fan_out + 1]


def _both_ways(others: Iterable[int]) -> Neighbours:
    neighbours = tuple(sorted(others))
    return Neighbours(neighbours, neighbours)


@lru_cache(maxsize=1)  # whoever asks for all ranks asks for one graph; 1,000 ranks of degree 4 take 40 ms
def _random_targets(n_ranks: int, degree: int, seed: int) -> tuple[set[int], ...]:
    """Targets of every rank; see `random_regular`. Needs ``degree < n_ranks - 1``."""
    n_edges = n_ranks * degree
    # Edge k leads from rank k // degree to heads[k].
    heads = [(k // degree + k % degree + 1) % n_ranks for k in range(n_edges)]
    targets = tuple(set(heads[first : first + degree]) for first in range(0, n_edges, degree))
    draw = Random(seed).random  # of all methods, the one whose sequence Python promises to keep

    def switch(i: int, j: int) -> None:
        a, b, c, d = i // degree, heads[i], j // degree, heads[j]
        # Edges with an end in common, or drawn twice, fail this too: what they would become is there already.
        if a != d and c != b and d not in targets[a] and b not in targets[c]:
            targets[a].remove(b)
            targets[a].add(d)
            targets[c].remove(d)
            targets[c].add(b)
            heads[i], heads[j] = d, b

    for _ in range(10 * n_edges):
        switch(int(n_edges * draw()), int(n_edges * draw()))
    # A part has a closed trail over all its edges. Open at a -> b and at c -> d, two such trails join into one.
    part = _reached(targets)
    while len(part) < n_ranks:
        i, j = int(n_edges * draw()), int(n_edges * draw())
        if (i // degree in part) != (j // degree in part):
            switch(i, j)
            part = _reached(targets)
    return targets


def _reached(targets: Sequence[set[int]]) -> set[int]:
    """Ranks to which a path leads from rank 0: on a regular graph also those from which one leads back.

    No edge leaves this set. As many enter it as leave it, so none enters it either.
    """
    reached, ahead = {0}, [0]
    while ahead:
        new = targets[ahead.pop()] - reached
        reached |= new
        ahead.extend(new)
    return reached


def _check_rank(rank: int, n_ranks: int) -> None:
    if not 0 <= rank < n_ranks:
        raise ValueError(f"`rank` must be in [0, {n_ranks}), got {rank}")


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")


def _check_topology(topology: str, known: dict) -> None:
    if topology not in known:
        raise ValueError(f"`topology` must be one of {', '.join(known)}, got {topology!r}")
