"""Replicas from contributions, summed in the order in which the ranks of exchange `read` summed them.

Floating-point addition is not associative: only the same order gives the same bits.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from hpc_dasgd.arrays.types import Floats
from hpc_dasgd.overlay import topology
from hpc_dasgd.overlay.partial_sums import sum_edges, sum_replica
from hpc_dasgd.storage.generations import Generation

ReplicaSum: TypeAlias = Callable[[int, Sequence[Floats]], Floats]
"""``replica_sum(rank, contributions)`` returns the replica of a rank from one contribution per rank."""


def sum_in_rank_order(contributions: Sequence[Floats]) -> Floats:
    """Return the sum of one contribution per rank, added in the order of ranks."""
    total = contributions[0].copy()
    for contribution in contributions[1:]:
        total += contribution
    return total


def replica_sum(generation: Generation) -> ReplicaSum:
    """Return the function that sums replicas as the ranks of a generation did.

    On a tree it needs the attribute ``nodes`` of the generation, which names the node of each rank.
    """
    exchange, n_ranks = generation.config.exchange, generation.n_ranks
    on_tree = exchange.topology != "complete"
    if on_tree:
        nodes = generation.attributes["nodes"]
        neighbours = topology.all_tree_neighbours(exchange.topology, nodes, fan_out=exchange.fan_out)
    else:
        neighbours = [topology.complete(rank, n_ranks) for rank in range(n_ranks)]

    def replica(rank: int, contributions: Sequence[Floats]) -> Floats:
        published = [
            _edge_sum(neighbours, other, rank, contributions) if on_tree else contributions[other]
            for other in neighbours[rank]
        ]
        out = np.empty_like(contributions[rank])
        sum_replica(contributions[rank], published, out)
        return out

    return replica


def _edge_sum(neighbours: Sequence[tuple[int, ...]], rank: int, reader: int, contributions: Sequence[Floats]) -> Floats:
    """Return the partial sum that `rank` publishes for its neighbour `reader`.

    It contains the contributions of all ranks on the side of `rank` of the edge between the two, each partial sum
    added in the order of the rank that published it.
    """
    own, others = contributions[rank], neighbours[rank]
    if len(others) == 1:
        return own
    # What `reader` publishes is not part of the sum for `reader`: `own` only fills its position.
    published = [own if other == reader else _edge_sum(neighbours, other, rank, contributions) for other in others]
    out = np.empty_like(own)
    edges = [out if other == reader else None for other in others]
    sum_edges(own, published, edges, np.empty_like(own))
    return out
