"""Overlays."""

import pytest

from hpc_dasgd import topology


@pytest.mark.parametrize(
    ("rank", "n_ranks", "neighbours"),
    [(0, 1, ()), (0, 2, (1,)), (1, 2, (0,)), (0, 4, (1, 2, 3)), (2, 4, (0, 1, 3)), (3, 4, (0, 1, 2))],
)
def test_everyone_else_is_a_neighbour_on_the_complete_overlay(rank, n_ranks, neighbours):
    assert topology.complete(rank, n_ranks) == neighbours


@pytest.mark.parametrize(("rank", "n_ranks"), [(-1, 3), (3, 3), (0, 0)])
def test_a_rank_outside_the_launch_is_refused(rank, n_ranks):
    with pytest.raises(ValueError, match=rf"`rank` must be in \[0, {n_ranks}\), got {rank}"):
        topology.complete(rank, n_ranks)
