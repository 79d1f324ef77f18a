"""Channels of exchange `read`: every rank reads the channel that its neighbour publishes for it."""

import pytest

from hpc_dasgd.exchange.read.channels import complete_channels, tree_channels
from hpc_dasgd.overlay import topology

N_RANKS = 7
TREES = {
    "chain": lambda rank: topology.chain(rank, [0] * N_RANKS),
    "star": lambda rank: topology.star(rank, N_RANKS),
    "tree": lambda rank: topology.tree(rank, [0] * N_RANKS),
}


def test_on_the_complete_overlay_a_rank_publishes_its_contribution_and_reads_that_of_all_others():
    channels = complete_channels(2, 4)
    assert channels.ranks == (0, 1, 3) and channels.channels_read == (0, 0, 0)
    assert channels.publishes_own and channels.n_channels == 1
    assert (channels.n_versions, channels.own_entry) == (1, 0)


@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_on_a_tree_each_neighbour_reads_a_channel_of_its_own(tree, survives):
    by_rank = [tree_channels(rank, N_RANKS, tree, survives) for rank in range(N_RANKS)]
    for rank, channels in enumerate(by_rank):
        assert channels.on_tree and channels.ranks == tree(rank)
        assert (channels.n_versions, channels.own_entry) == (N_RANKS, rank)
        readers = [by_rank[other].channels_read[by_rank[other].ranks.index(rank)] for other in channels.ranks]
        if len(channels.ranks) == 1:  # the partial sum of a leaf is its contribution
            assert readers == [0] and channels.n_channels == 1 and channels.publishes_own
        else:
            assert readers == [survives + edge for edge in range(len(channels.ranks))]
            assert channels.publishes_own == survives and channels.n_channels == survives + len(channels.ranks)
