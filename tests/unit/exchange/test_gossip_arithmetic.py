"""Gossip without MPI: the arithmetic of push-sum under random schedules, and the spread of replicas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dasgd.exchange.gossip import running_sums
from hpc_dasgd.exchange.gossip.consensus import MAX_RANKS, Spread, ranks_to_sample
from hpc_dasgd.overlay import topology

N_PARAMS = 5
graphs = st.tuples(st.sampled_from(sorted(topology.GRAPHS)), st.integers(1, 8), st.integers(0, 99))


class Ranks:
    """Ranks on a graph, each with its mass, its running sum, and the running sums of its sources that it has taken."""

    def __init__(self, graph, starts):
        name, n_ranks, seed = graph
        self.neighbours = [topology.graph_neighbours(name, r, n_ranks, degree=3, seed=seed) for r in range(n_ranks)]
        self.mass = np.hstack([starts, np.ones((n_ranks, 1))])
        self.shown = np.zeros_like(self.mass)
        self.seen = {(r, s): np.zeros(N_PARAMS + 1) for r in range(n_ranks) for s in self.neighbours[r].sources}

    def give(self, rank):
        n_targets = len(self.neighbours[rank].targets)
        if running_sums.may_give(self.mass[rank, -1]) and n_targets:
            shown = np.empty(N_PARAMS + 1)
            share = topology.push_sum_share(n_targets)
            running_sums.give(self.mass[rank], share, n_targets, self.shown[rank], shown, np.empty(N_PARAMS + 1))
            self.shown[rank] = shown

    def take(self, rank, source):
        running_sums.take(self.mass[rank], self.shown[source], self.seen[rank, source], np.empty(N_PARAMS + 1))
        self.seen[rank, source] = self.shown[source].copy()

    def take_any(self, rank, which):
        sources = self.neighbours[rank].sources
        if sources:
            self.take(rank, sources[which % len(sources)])

    @property
    def total(self):
        """All mass, held by ranks and in transit."""
        in_transit = sum((self.shown[s] - seen for (_, s), seen in self.seen.items()), np.zeros(N_PARAMS + 1))
        return self.mass.sum(axis=0) + in_transit

    @property
    def replicas(self):
        return self.mass[:, :-1] / self.mass[:, -1:]


schedules = st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 7)), max_size=300)


@given(graphs, schedules, st.integers(0, 99))
def test_mass_is_conserved_and_weights_stay_positive(graph, schedule, seed):
    n_ranks = graph[1]
    ranks = Ranks(graph, np.random.default_rng(seed).normal(size=(n_ranks, N_PARAMS)))
    total = ranks.total
    assert total[-1] == n_ranks
    for gives, rank, which in schedule:
        if gives:
            ranks.give(rank % n_ranks)
        else:
            ranks.take_any(rank % n_ranks, which)
        assert np.all(ranks.mass[:, -1] >= running_sums.MIN_WEIGHT / 8 * (1 - 1e-12))
    np.testing.assert_allclose(ranks.total, total, rtol=0, atol=1e-13 * n_ranks)


@settings(max_examples=25)
@given(graphs, st.integers(0, 99))
def test_replicas_converge_to_the_mean_for_any_order_of_steps(graph, seed):
    n_ranks, rng = graph[1], np.random.default_rng(seed)
    ranks = Ranks(graph, rng.normal(size=(n_ranks, N_PARAMS)))
    mean = ranks.mass[:, :-1].mean(axis=0)
    speeds = rng.exponential(size=n_ranks) + 0.05
    for rank in rng.choice(n_ranks, 100 * n_ranks, p=speeds / speeds.sum()):
        ranks.take_any(rank, int(rng.integers(8)))
        ranks.give(rank)
    for _ in range(40):
        for rank in rng.permutation(n_ranks):
            for source in ranks.neighbours[rank].sources:
                ranks.take(rank, source)
            ranks.give(rank)
    np.testing.assert_allclose(ranks.replicas, np.broadcast_to(mean, (n_ranks, N_PARAMS)), atol=1e-4)


def test_a_rank_that_receives_nothing_stops_giving_until_it_receives_again():
    ranks = Ranks(("ring", 4, 0), np.ones((4, N_PARAMS)))
    weights = []
    for _ in range(1000):
        ranks.give(0)
        weights.append(ranks.mass[0, -1])
    assert (
        min(weights) == weights[-1] == pytest.approx(1 / 27)
    )  # its last gift was at weight 1/9; now the weight is below the limit
    np.testing.assert_allclose(ranks.replicas[0], 1.0, rtol=1e-14)
    ranks.give(1)
    ranks.take(0, 1)
    before = ranks.shown[0, -1]
    ranks.give(0)
    assert ranks.shown[0, -1] > before
    assert ranks.total[-1] == pytest.approx(4, abs=1e-14)


def test_not_all_ranks_can_wait_for_weight():
    """Ranks that give and never take stop giving; when they take again, at least one has enough weight to give."""
    ranks = Ranks(("exponential", 8, 0), np.ones((8, N_PARAMS)))
    for _ in range(10):
        for rank in range(8):
            ranks.give(rank)
    assert not any(running_sums.may_give(weight) for weight in ranks.mass[:, -1])
    for rank in range(8):
        for source in ranks.neighbours[rank].sources:
            ranks.take(rank, source)
    assert any(running_sums.may_give(weight) for weight in ranks.mass[:, -1])


def test_fifty_thousand_gifts_lose_no_mass():
    """With float32 running sums each of the last gifts would be rounded by a thousandth."""
    rng = np.random.default_rng(0)
    ranks = Ranks(("ring", 3, 0), rng.normal(size=(3, N_PARAMS)).astype(np.float32))
    total = ranks.total
    for step in range(50_000):
        for rank in range(3):
            ranks.take_any(rank, step + rank)
            if step % 2:
                ranks.give(rank)
    assert ranks.shown[:, -1].min() > 5_000
    np.testing.assert_allclose(ranks.total, total, rtol=0, atol=1e-11)
    np.testing.assert_allclose(ranks.replicas, np.broadcast_to(total[:-1] / 3, (3, N_PARAMS)), rtol=0, atol=1e-10)


def test_large_running_sums_lose_no_mass():
    """The last bit of the running sum is 2e-4, far more than what is given; what is given is still what is taken."""
    rng = np.random.default_rng(0)
    mass, other, scratch = rng.normal(size=20), np.zeros(20), np.empty(20)
    total, shown = mass.copy(), 1e12 * (1 + rng.random(20))
    for _ in range(100):
        now = np.empty(20)
        running_sums.give(mass, 1 / 4, 3, shown, now, scratch)
        for _ in range(3):
            running_sums.take(other, now, shown, scratch)
        shown = now
    np.testing.assert_allclose(mass + other, total, rtol=0, atol=1e-13)
    assert np.abs(mass).max() < 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_update_moves_the_replica_by_itself_for_any_weight(dtype):
    rng = np.random.default_rng(0)
    replica, update = rng.normal(size=20).astype(dtype), rng.normal(size=20).astype(dtype)
    for weight in (1.0, 0.01, 3.7):
        mass, moved = replica * np.float64(weight), np.empty(20, dtype)
        running_sums.add_update(mass, weight, update, moved, np.empty(20))
        np.testing.assert_allclose(moved, replica + update, rtol=0, atol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(mass, weight * (replica.astype(float) + update), rtol=1e-13, atol=1e-15)


@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 99))
def test_spread_is_the_root_mean_square_distance_from_the_mean(n_replicas, n_params, seed):
    replicas = np.random.default_rng(seed).normal(size=(n_replicas, n_params))
    blocks = [(lo, min(lo + 7, n_params)) for lo in range(0, n_params, 7)]
    spread = Spread(replicas[0], blocks)
    for replica in replicas[1:]:
        spread.add(lambda lo, hi, replica=replica: replica[lo:hi])
    expected = math.sqrt(((replicas - replicas.mean(axis=0)) ** 2).sum() / n_replicas)
    assert spread.distance == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert spread.n_replicas == n_replicas


def test_spread_of_replicas_that_hardly_differ_is_exact():
    first = np.full(1000, 1000.0, np.float32)
    spread = Spread(first, [(0, 1000)])
    spread.add(lambda lo, hi: first[lo:hi] + np.float64(2e-9))
    assert spread.distance == pytest.approx(1e-9 * math.sqrt(1000), rel=1e-3)


@given(st.integers(1, 5000), st.data())
def test_sampled_ranks_are_few_and_evenly_spaced(n_ranks, data):
    rank = data.draw(st.integers(0, n_ranks - 1))
    others = ranks_to_sample(rank, n_ranks)
    assert len(others) == min(MAX_RANKS, n_ranks - 1)
    assert rank not in others
    gaps = np.diff(others)
    assert np.all(gaps >= 1)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 2
