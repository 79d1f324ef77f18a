"""Partial sums along the edges of a tree, compared with a model that keeps sets of updates.

A random schedule decides when a rank reads which publication of a neighbour: the same one several times, or an old
one. An update that is missing or contained twice shows as a difference between the sums and the sets. Updates are
powers of two in integers of arbitrary size, so that a sum tells which updates it contains, and how often.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dasgd.overlay.partial_sums import merge_versions, sum_edges, sum_replica


@st.composite
def trees(draw, max_ranks=9):
    """Draw the neighbours of each rank on a random tree whose ranks are numbered at random."""
    n_ranks = draw(st.integers(1, max_ranks))
    parents = [draw(st.integers(0, rank - 1)) for rank in range(1, n_ranks)]
    names = draw(st.permutations(range(n_ranks)))
    neighbours = [set() for _ in range(n_ranks)]
    for child, parent in enumerate(parents, start=1):
        neighbours[names[child]].add(names[parent])
        neighbours[names[parent]].add(names[child])
    return [sorted(others) for others in neighbours]


class Rank:
    """Sums and publications of a rank, by the code under test, and the sets of (rank, update) of the model."""

    def __init__(self, rank, neighbours, n_ranks, weights):
        self.rank, self.neighbours, self.n_ranks, self.weights = rank, neighbours, n_ranks, weights
        self.own = np.array([0], object)
        self.version = 0
        self.seen = [np.array([0], object) for _ in neighbours]
        self.seen_versions = [np.zeros(n_ranks, np.int64) for _ in neighbours]
        self.own_set = frozenset()
        self.seen_sets = [frozenset() for _ in neighbours]
        self.published = [[] for _ in neighbours]  # all publications of each edge: sum, versions, set

    def make_update(self):
        update = (self.rank, self.version)
        self.own = self.own + (1 << self.weights[update])
        self.own_set |= {update}
        self.version += 1

    def publish(self, edges):
        sums = [np.array([-1], object) if needed else None for needed in edges]
        replica = np.array([-1], object)
        if self.neighbours:
            sum_edges(self.own, self.seen, sums, replica)
        for j, partial_sum in enumerate(sums):
            if partial_sum is not None:
                versions = np.full(self.n_ranks, -1, np.int64)
                others = self.seen_versions[:j] + self.seen_versions[j + 1 :]
                merge_versions(self.rank, self.version, others, versions)
                contained = self.own_set.union(*(s for k, s in enumerate(self.seen_sets) if k != j))
                self.published[j].append((partial_sum, versions, contained))
        return replica

    def read(self, j, publication):
        self.seen[j], self.seen_versions[j], self.seen_sets[j] = publication

    def check(self, value, versions, contained):
        """Check that the sum contains each update of the set once, and that the vector counts them without gaps."""
        assert value[0] == sum(1 << self.weights[update] for update in contained)
        for rank in range(self.n_ranks):
            assert {k for r, k in contained if r == rank} == set(range(versions[rank]))


@given(st.data())
def test_sums_contain_every_update_once_on_any_tree_with_any_schedule(data):
    tree = data.draw(trees())
    n_ranks = len(tree)
    weights = {(rank, k): rank * 50 + k for rank in range(n_ranks) for k in range(50)}
    ranks = [Rank(rank, tree[rank], n_ranks, weights) for rank in range(n_ranks)]
    for _ in range(data.draw(st.integers(0, 40))):
        rank = ranks[data.draw(st.integers(0, n_ranks - 1))]
        if data.draw(st.booleans()):
            rank.make_update()
            rank.publish([data.draw(st.booleans()) for _ in rank.neighbours])
        elif rank.neighbours:
            j = data.draw(st.integers(0, len(rank.neighbours) - 1))
            other = ranks[rank.neighbours[j]]
            publications = other.published[other.neighbours.index(rank.rank)]
            if publications:  # the newest, or an older one, as after a slow read
                newest = len(publications) - 1
                rank.read(j, publications[newest if data.draw(st.booleans()) else data.draw(st.integers(0, newest))])
        check_replica(rank)
    read_everything(ranks)
    everything = frozenset().union(*(rank.own_set for rank in ranks))
    for rank in ranks:
        assert check_replica(rank) == everything


def check_replica(rank):
    """Check the replica and the publications of a rank; return the set of updates in the replica."""
    replica, versions = np.array([-1], object), np.full(rank.n_ranks, -1, np.int64)
    sum_replica(rank.own, rank.seen, replica)
    merge_versions(rank.rank, rank.version, rank.seen_versions, versions)
    contained = rank.own_set.union(*rank.seen_sets)
    rank.check(replica, versions, contained)
    if rank.neighbours:
        assert rank.publish([True] * len(rank.neighbours))[0] == replica[0]
        for publications in rank.published:
            rank.check(*publications.pop())
    return contained


def read_everything(ranks):
    """Let all ranks publish and read in rounds until every rank has read everything."""
    for _ in ranks:
        for rank in ranks:
            rank.publish([True] * len(rank.neighbours))
        for rank in ranks:
            for j, other in enumerate(rank.neighbours):
                rank.read(j, ranks[other].published[ranks[other].neighbours.index(rank.rank)][-1])


@given(st.integers(1, 7), st.data())
def test_sums_of_floats_do_not_depend_on_which_edges_are_needed(n_edges, data):
    """All sums are taken in one order: the bits of the other edges and of the replica stay the same."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    own, *seen = rng.normal(size=(1 + n_edges, 8)).astype(np.float32)
    needed = [data.draw(st.booleans()) for _ in range(n_edges)]
    edges = [np.full(8, np.nan, np.float32) if w else None for w in needed]
    replica = np.full(8, np.nan, np.float32)
    sum_edges(own, seen, edges, replica)
    total = own.copy()
    for values in seen:
        total = total + values
    np.testing.assert_array_equal(replica, total)
    for j, edge in enumerate(edges):
        if edge is None:
            continue
        before = own.copy()
        for values in seen[:j]:
            before = before + values
        expected = before
        if j < n_edges - 1:
            after = seen[-1]
            for values in reversed(seen[j + 1 : -1]):
                after = values + after
            expected = before + after
        np.testing.assert_array_equal(edge, expected)


@pytest.mark.parametrize("n_edges", [1, 2, 5])
def test_contribution_and_partial_sums_read_are_not_changed(n_edges):
    own, *seen = np.random.default_rng(0).normal(size=(1 + n_edges, 8))
    copies = [values.copy() for values in (own, *seen)]
    sum_edges(own, seen, [np.empty(8) for _ in seen], np.empty(8))
    sum_replica(own, seen, np.empty(8))
    np.testing.assert_array_equal([own, *seen], copies)
