"""Partial sums over the edges of a tree, held against a model that remembers every single update.

The model's replicas are sets of updates. A rank takes what a neighbour shows whenever a random schedule says so, also
several times and long after it was shown; whatever comes twice, or is missing, shows as a difference between the sums
and the sets. Updates are powers of two in integers of any size, so that a sum tells which updates are in it, and how
often.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dasgd.overlay.partial_sums import merge_versions, sum_edges, sum_replica


@st.composite
def trees(draw, max_ranks=9):
    """Neighbours of each rank on a random tree, in random order of ranks along it."""
    n_ranks = draw(st.integers(1, max_ranks))
    parents = [draw(st.integers(0, rank - 1)) for rank in range(1, n_ranks)]
    names = draw(st.permutations(range(n_ranks)))
    neighbours = [set() for _ in range(n_ranks)]
    for child, parent in enumerate(parents, start=1):
        neighbours[names[child]].add(names[parent])
        neighbours[names[parent]].add(names[child])
    return [sorted(found) for found in neighbours]


class Rank:
    """What a rank holds and shows, by the code under test, and as sets of (rank, update) by the model."""

    def __init__(self, rank, neighbours, n_ranks, weights):
        self.rank, self.neighbours, self.n_ranks, self.weights = rank, neighbours, n_ranks, weights
        self.own = np.array([0], object)
        self.version = 0
        self.seen = [np.array([0], object) for _ in neighbours]
        self.seen_versions = [np.zeros(n_ranks, np.int64) for _ in neighbours]
        self.own_set = frozenset()
        self.seen_sets = [frozenset() for _ in neighbours]
        self.shown = [[] for _ in neighbours]  # by edge all publications: sum, versions, set

    def make_update(self):
        update = (self.rank, self.version)
        self.own = self.own + (1 << self.weights[update])
        self.own_set |= {update}
        self.version += 1

    def show(self, edges):
        places = [np.array([-1], object) if wanted else None for wanted in edges]
        replica = np.array([-1], object)
        if self.neighbours:
            sum_edges(self.own, self.seen, places, replica)
        for j, place in enumerate(places):
            if place is not None:
                versions = np.full(self.n_ranks, -1, np.int64)
                others = self.seen_versions[:j] + self.seen_versions[j + 1 :]
                merge_versions(self.rank, self.version, others, versions)
                held = self.own_set.union(*(s for k, s in enumerate(self.seen_sets) if k != j))
                self.shown[j].append((place, versions, held))
        return replica

    def take(self, j, publication):
        self.seen[j], self.seen_versions[j], self.seen_sets[j] = publication

    def check(self, value, versions, held):
        """The sum holds each update of the set once, and the vector counts them, without gaps."""
        assert value[0] == sum(1 << self.weights[update] for update in held)
        for rank in range(self.n_ranks):
            assert {k for r, k in held if r == rank} == set(range(versions[rank]))


@given(st.data())
def test_every_update_comes_once_whatever_the_tree_and_the_schedule(data):
    tree = data.draw(trees())
    n_ranks = len(tree)
    weights = {(rank, k): rank * 50 + k for rank in range(n_ranks) for k in range(50)}
    ranks = [Rank(rank, tree[rank], n_ranks, weights) for rank in range(n_ranks)]
    for _ in range(data.draw(st.integers(0, 40))):
        rank = ranks[data.draw(st.integers(0, n_ranks - 1))]
        if data.draw(st.booleans()):
            rank.make_update()
            rank.show([data.draw(st.booleans()) for _ in rank.neighbours])
        elif rank.neighbours:
            j = data.draw(st.integers(0, len(rank.neighbours) - 1))
            other = ranks[rank.neighbours[j]]
            shown = other.shown[other.neighbours.index(rank.rank)]
            if shown:  # the newest, or an older one that a slow read brings
                rank.take(j, shown[-1 if data.draw(st.booleans()) else data.draw(st.integers(0, len(shown) - 1))])
        rank_holds(rank)
    settle(ranks)
    everything = frozenset().union(*(rank.own_set for rank in ranks))
    for rank in ranks:
        assert rank_holds(rank) == everything


def rank_holds(rank):
    """Check the replica; return the set of updates in it."""
    replica, versions = np.array([-1], object), np.full(rank.n_ranks, -1, np.int64)
    sum_replica(rank.own, rank.seen, replica)
    merge_versions(rank.rank, rank.version, rank.seen_versions, versions)
    held = rank.own_set.union(*rank.seen_sets)
    rank.check(replica, versions, held)
    if rank.neighbours:
        assert rank.show([True] * len(rank.neighbours))[0] == replica[0]
        for shown in rank.shown:
            rank.check(*shown.pop())
    return held


def settle(ranks):
    """Show and take in rank order until nothing is new; at most as many rounds as the tree is long."""
    for _ in ranks:
        for rank in ranks:
            rank.show([True] * len(rank.neighbours))
        for rank in ranks:
            for j, other in enumerate(rank.neighbours):
                rank.take(j, ranks[other].shown[ranks[other].neighbours.index(rank.rank)][-1])


@given(st.integers(1, 7), st.data())
def test_sums_of_floats_are_taken_in_one_order(n_edges, data):
    """Which edges are wanted makes no difference to the bits of the others, nor to the replica's."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    own, *seen = rng.normal(size=(1 + n_edges, 8)).astype(np.float32)
    wanted = [data.draw(st.booleans()) for _ in range(n_edges)]
    edges = [np.full(8, np.nan, np.float32) if w else None for w in wanted]
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
def test_arguments_are_left_as_they_are(n_edges):
    own, *seen = np.random.default_rng(0).normal(size=(1 + n_edges, 8))
    copies = [values.copy() for values in (own, *seen)]
    sum_edges(own, seen, [np.empty(8) for _ in seen], np.empty(8))
    sum_replica(own, seen, np.empty(8))
    np.testing.assert_array_equal([own, *seen], copies)
