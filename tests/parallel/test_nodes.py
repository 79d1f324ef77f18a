"""Nodes and cores of the ranks of a launch."""

import os

import pytest

from hpc_dasgd.runtime import collective


@pytest.mark.parallel([1, 2, 4])
def test_a_node_is_identified_by_its_lowest_rank(comm):
    nodes = collective.node_of_each_rank(comm)
    assert len(set(comm.allgather(nodes))) == 1
    assert all(node <= rank and nodes[node] == node for rank, node in enumerate(nodes))


@pytest.mark.parallel([1, 2, 4])
def test_oversubscription_means_more_ranks_than_cores_on_some_node(comm):
    nodes, cores = collective.node_of_each_rank(comm), comm.allgather(os.sched_getaffinity(0))
    ranks_of = {node: [rank for rank in range(comm.size) if nodes[rank] == node] for node in nodes}
    short = [len(ranks) > len(set().union(*(cores[rank] for rank in ranks))) for ranks in ranks_of.values()]
    assert collective.is_oversubscribed(comm) == any(short)
