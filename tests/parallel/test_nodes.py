"""What ranks know of where they run."""

import os

import pytest

from hpc_dasgd.runtime import collective


@pytest.mark.parallel([1, 2, 4])
def test_a_node_is_named_by_its_lowest_rank(comm):
    nodes = collective.node_of_each_rank(comm)
    assert len(set(comm.allgather(nodes))) == 1
    assert all(node <= rank and nodes[node] == node for rank, node in enumerate(nodes))


@pytest.mark.parallel([1, 2, 4])
def test_ranks_know_whether_they_are_more_than_their_cores(comm):
    nodes, cores = collective.node_of_each_rank(comm), comm.allgather(os.sched_getaffinity(0))
    there = {node: [rank for rank in range(comm.size) if nodes[rank] == node] for node in nodes}
    short = [len(ranks) > len(set().union(*(cores[rank] for rank in ranks))) for ranks in there.values()]
    assert collective.is_oversubscribed(comm) == any(short)
