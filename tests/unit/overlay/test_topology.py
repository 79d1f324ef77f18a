"""Topologies, compared with neighbours written out by hand and with the properties that exchanges rely on."""

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dasgd.overlay import topology
from hpc_dasgd.overlay.topology import Neighbours


def _node_map(n_ranks, n_nodes, kind, seed):
    labels = random.Random(seed).sample(range(-1000, 1000), n_nodes)
    node_of = {
        "contiguous": lambda rank: rank * n_nodes // n_ranks,
        "round robin": lambda rank: rank % n_nodes,
        "random": lambda rank: random.Random(f"{seed} {rank}").randrange(n_nodes),
    }[kind]
    return [labels[node_of(rank)] for rank in range(n_ranks)]


N_RANKS = st.integers(1, 200)
NODES = st.builds(
    _node_map,
    N_RANKS,
    st.integers(1, 20),
    st.sampled_from(["contiguous", "round robin", "random"]),
    st.integers(0, 99),
)
FAN_OUT = st.integers(1, 8)
few = settings(max_examples=40)


def edges_of(neighbours):
    """Return the edges of a tree, given the neighbours of each rank; check that the relation is symmetric."""
    directed = {(rank, other) for rank, others in enumerate(neighbours) for other in others}
    assert directed == {(b, a) for a, b in directed}
    assert all(list(others) == sorted(set(others)) for others in neighbours)
    return {frozenset(edge) for edge in directed}


def reached(neighbours):
    """Return the ranks to which a path leads from rank 0."""
    visited, ahead = {0}, [0]
    while ahead:
        for other in neighbours[ahead.pop()]:
            if other not in visited:
                visited.add(other)
                ahead.append(other)
    return visited


def assert_tree(neighbours):
    edges = edges_of(neighbours)
    assert all(len(edge) == 2 for edge in edges)
    assert len(edges) == len(neighbours) - 1
    assert reached(neighbours) == set(range(len(neighbours)))
    return edges


def n_crossing(edges, nodes):
    return sum(len({nodes[rank] for rank in edge}) == 2 for edge in edges)


def ranks_by_node(nodes):
    """Return the ranks of each node, ascending, with the nodes in the order of their lowest ranks."""
    return sorted([rank for rank, node in enumerate(nodes) if node == label] for label in set(nodes))


# Trees


TREES_BY_HAND = {
    "heap on one node": (
        (8,) * 7,
        2,
        [(1, 2), (0, 3, 4), (0, 5, 6), (1,), (1,), (2,), (2,)],
    ),
    "three children": ((8,) * 6, 3, [(1, 2, 3), (0, 4, 5), (0,), (0,), (1,), (1,)]),
    "a line": ((8,) * 4, 1, [(1,), (0, 2), (1, 3), (2,)]),
    "three nodes with unordered labels": (
        (5, 5, 5, 5, 2, 2, 2, 9, 9),
        2,
        [(1, 2, 4, 7), (0, 3), (0,), (1,), (0, 5, 6), (4,), (4,), (0, 8), (7,)],
    ),
    "round robin": ((7, 3, 7, 3, 7, 3), 2, [(1, 2, 4), (0, 3, 5), (0,), (1,), (0,), (1,)]),
    "a rank per node": (range(5), 2, [(1, 2), (0, 3, 4), (0,), (1,), (1,)]),
    "single rank": ((4,), 2, [()]),
}


@pytest.mark.parametrize(("nodes", "fan_out", "neighbours"), TREES_BY_HAND.values(), ids=TREES_BY_HAND)
def test_trees_agree_with_neighbours_written_out(nodes, fan_out, neighbours):
    assert [topology.tree(rank, nodes, fan_out) for rank in range(len(nodes))] == neighbours


def test_the_default_fan_out_of_a_tree_is_two():
    assert topology.tree(0, [0] * 9) == (1, 2)


@pytest.mark.parametrize(
    ("nodes", "neighbours"),
    [
        ((6,), [()]),
        ((6, 6, 6, 6), [(1,), (0, 2), (1, 3), (2,)]),
        ((9, 1, 9, 1, 9), [(2,), (3, 4), (0, 4), (1,), (1, 2)]),  # 0 2 4 1 3
    ],
)
def test_chains_agree_with_neighbours_written_out(nodes, neighbours):
    assert [topology.chain(rank, nodes) for rank in range(len(nodes))] == neighbours


@pytest.mark.parametrize(("n_ranks", "neighbours"), [(1, [()]), (2, [(1,), (0,)]), (4, [(1, 2, 3), (0,), (0,), (0,)])])
def test_stars_agree_with_neighbours_written_out(n_ranks, neighbours):
    assert [topology.star(rank, n_ranks) for rank in range(n_ranks)] == neighbours


@few
@given(NODES, FAN_OUT)
def test_a_tree_is_heaps_of_ranks_below_a_heap_of_leaders(nodes, fan_out):
    neighbours = [topology.tree(rank, nodes, fan_out) for rank in range(len(nodes))]
    members = ranks_by_node(nodes)
    expected = set()
    for heap in [[ranks[0] for ranks in members], *members]:
        expected |= {frozenset((heap[k], heap[(k - 1) // fan_out])) for k in range(1, len(heap))}
    edges = assert_tree(neighbours)
    assert edges == expected
    assert n_crossing(edges, nodes) == len(members) - 1
    assert max(map(len, neighbours)) <= 2 * fan_out + 1


@few
@given(NODES, FAN_OUT, st.sampled_from(list(topology.TREES)))
def test_neighbours_of_all_ranks_together_equal_those_of_each_rank(nodes, fan_out, name):
    each = [topology.tree_neighbours(name, rank, nodes, fan_out=fan_out) for rank in range(len(nodes))]
    assert topology.all_tree_neighbours(name, nodes, fan_out=fan_out) == each


@few
@given(NODES)
def test_a_chain_enters_each_node_once(nodes):
    neighbours = [topology.chain(rank, nodes) for rank in range(len(nodes))]
    members = ranks_by_node(nodes)
    edges = assert_tree(neighbours)
    assert edges == {frozenset(pair) for pair in pairwise(rank for ranks in members for rank in ranks)}
    assert n_crossing(edges, nodes) == len(members) - 1
    assert max(map(len, neighbours)) <= 2


@few
@given(N_RANKS)
def test_a_star_is_a_tree(n_ranks):
    edges = assert_tree([topology.star(rank, n_ranks) for rank in range(n_ranks)])
    assert all(0 in edge for edge in edges)


# Graphs


@pytest.mark.parametrize(
    ("rank", "n_ranks", "neighbours"),
    [(0, 1, ()), (0, 2, (1,)), (1, 2, (0,)), (0, 4, (1, 2, 3)), (2, 4, (0, 1, 3)), (3, 4, (0, 1, 2))],
)
def test_every_other_rank_is_a_neighbour_on_the_complete_overlay(rank, n_ranks, neighbours):
    assert topology.complete(rank, n_ranks) == neighbours


@pytest.mark.parametrize(
    ("rank", "n_ranks", "both"),
    [(0, 1, ()), (0, 2, (1,)), (1, 2, (0,)), (0, 3, (1, 2)), (0, 6, (1, 5)), (3, 6, (2, 4)), (5, 6, (0, 4))],
)
def test_rings_agree_with_neighbours_written_out(rank, n_ranks, both):
    assert topology.ring(rank, n_ranks) == Neighbours(both, both)


@pytest.mark.parametrize(
    ("rank", "n_ranks", "both"),
    [
        (0, 1, ()),
        (1, 2, (0,)),
        (3, 7, (2, 4)),
        (0, 4, (1, 2)),  # 2 x 2: one neighbour in each direction
        (4, 6, (1, 3, 5)),  # 2 x 3
        (0, 12, (1, 3, 4, 8)),  # 3 x 4
        (5, 12, (1, 4, 6, 9)),
        (11, 12, (3, 7, 8, 10)),
        (8, 16, (4, 9, 11, 12)),  # 4 x 4, not 2 x 8
    ],
)
def test_tori_agree_with_neighbours_written_out(rank, n_ranks, both):
    assert topology.torus(rank, n_ranks) == Neighbours(both, both)


@pytest.mark.parametrize(
    ("rank", "n_ranks", "sources", "targets"),
    [
        (0, 1, (), ()),
        (0, 2, (1,), (1,)),
        (2, 3, (0, 1), (0, 1)),
        (0, 5, (1, 3, 4), (1, 2, 4)),
        (3, 8, (1, 2, 7), (4, 5, 7)),
        (0, 9, (1, 5, 7, 8), (1, 2, 4, 8)),
    ],
)
def test_exponential_graphs_agree_with_neighbours_written_out(rank, n_ranks, sources, targets):
    assert topology.exponential(rank, n_ranks) == Neighbours(sources, targets)


NAMES = ["ring", "torus", "exponential", "random-regular", "complete"]


def n_neighbours(name, n_ranks, degree):
    """Return the number of sources of a rank, which is the number of its targets."""
    n_rows = max(count for count in range(1, n_ranks + 1) if n_ranks % count == 0 and count**2 <= n_ranks)
    return {
        "ring": min(2, n_ranks - 1),
        "torus": min(2, n_rows - 1) + min(2, n_ranks // n_rows - 1),
        "exponential": math.ceil(math.log2(n_ranks)),
        "random-regular": min(degree, n_ranks - 1),
        "complete": n_ranks - 1,
    }[name]


def graph(name, n_ranks, degree=4, seed=0):
    return [topology.graph_neighbours(name, rank, n_ranks, degree=degree, seed=seed) for rank in range(n_ranks)]


@pytest.mark.parametrize("name", NAMES)
@few
@given(N_RANKS, st.integers(1, 8), st.integers(0, 2**32))
def test_graphs_are_regular_and_strongly_connected(name, n_ranks, degree, seed):
    neighbours = graph(name, n_ranks, degree, seed)
    sources, targets = zip(*neighbours, strict=True)
    degrees = {len(ranks) for ranks in (*sources, *targets)}
    assert degrees == {n_neighbours(name, n_ranks, degree)}
    for rank, both in enumerate(neighbours):
        assert all(list(ranks) == sorted(set(ranks) - {rank}) for ranks in both)
    read = {(rank, source) for rank in range(n_ranks) for source in sources[rank]}
    assert read == {(target, rank) for rank in range(n_ranks) for target in targets[rank]}
    assert reached(sources) == reached(targets) == set(range(n_ranks))


@pytest.mark.parametrize("name", NAMES)
@few
@given(N_RANKS, st.integers(1, 8))
def test_mixing_matrices_of_average_are_doubly_and_of_push_sum_column_stochastic(name, n_ranks, degree):
    average, push_sum = np.zeros((2, n_ranks, n_ranks))
    for rank, (sources, targets) in enumerate(graph(name, n_ranks, degree)):
        average[rank, rank] = 1 / 2 if sources else 1
        average[rank, list(sources)] = 1 / (2 * max(len(sources), 1))
        push_sum[[rank, *targets], rank] = topology.push_sum_share(len(targets))
    for sums in (average.sum(axis=0), average.sum(axis=1), push_sum.sum(axis=0)):
        np.testing.assert_allclose(sums, 1, rtol=1e-12)


@pytest.mark.parametrize(("n_targets", "share"), [(0, 1), (1, 0.5), (3, 0.25), (4, 0.2)])
def test_push_sum_splits_into_equal_shares_for_the_targets_and_the_rank_itself(n_targets, share):
    assert topology.push_sum_share(n_targets) == share


@pytest.mark.parametrize(("n_ranks", "degree"), [(30, 1), (30, 4), (200, 3)])
def test_a_random_graph_is_determined_by_its_seed(n_ranks, degree):
    first, other, again = (graph("random-regular", n_ranks, degree, seed) for seed in (5, 6, 5))
    assert first == again
    assert first != other


def test_the_defaults_of_a_random_graph_are_degree_4_and_seed_0():
    assert topology.random_regular(3, 20) == graph("random-regular", 20, degree=4, seed=0)[3]


@pytest.mark.parametrize("degree", [5, 6, 100])
def test_a_random_graph_with_the_degree_of_the_complete_graph_or_more_is_complete(degree):
    assert topology.random_regular(1, 6, degree) == Neighbours((0, 2, 3, 4, 5), (0, 2, 3, 4, 5))


def test_random_graphs_keep_few_edges_of_the_graph_they_were_made_from():
    neighbours = graph("random-regular", 200)
    steps = Counter((target - rank) % 200 for rank in range(200) for target in neighbours[rank].targets)
    assert sum(steps[step] for step in range(1, 5)) < 40  # of 800; the expected number is 16


def test_all_random_graphs_are_drawn_with_equal_frequency():
    # There are six cycles through four ranks; the expected count of each is 100, with a standard deviation of 9.
    counts = Counter(tuple(targets for _, targets in graph("random-regular", 4, 1, seed)) for seed in range(600))
    assert len(counts) == 6
    assert all(60 < count < 140 for count in counts.values())


# Lookup and errors


def test_topologies_are_found_by_the_names_of_the_settings():
    nodes = (3, 3, 1, 3)
    assert list(topology.TREES) == ["tree", "ring", "star"]
    assert list(topology.GRAPHS) == NAMES
    assert topology.tree_neighbours("tree", 0, nodes, fan_out=1) == (1, 2)
    assert topology.tree_neighbours("tree", 0, nodes, fan_out=2) == (1, 2, 3)
    assert topology.tree_neighbours("ring", 3, nodes, fan_out=2) == (1, 2)
    assert topology.tree_neighbours("star", 3, nodes, fan_out=2) == (0,)
    for name, sources in [
        ("ring", (1, 8)),
        ("torus", (1, 2, 3, 6)),
        ("exponential", (1, 5, 7, 8)),
        ("complete", tuple(range(1, 9))),
    ]:
        assert topology.graph_neighbours(name, 0, 9, degree=2, seed=1).sources == sources
    assert topology.graph_neighbours("random-regular", 0, 9, degree=2, seed=1) == topology.random_regular(0, 9, 2, 1)


OVERLAYS = {
    "tree": lambda rank, n_ranks: topology.tree(rank, [7] * n_ranks),
    "chain": lambda rank, n_ranks: topology.chain(rank, [7] * n_ranks),
    "star": topology.star,
    "complete": topology.complete,
    "ring": topology.ring,
    "torus": topology.torus,
    "exponential": topology.exponential,
    "random-regular": topology.random_regular,
}


@pytest.mark.parametrize(("rank", "n_ranks"), [(-1, 3), (3, 3), (0, 0)])
@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)
def test_a_rank_out_of_range_is_refused(overlay, rank, n_ranks):
    with pytest.raises(ValueError, match=rf"`rank` must be in \[0, {n_ranks}\), got {rank}"):
        overlay(rank, n_ranks)


@pytest.mark.parametrize("number", [0, -2])
def test_a_fan_out_or_degree_below_one_is_refused(number):
    with pytest.raises(ValueError, match=rf"`fan_out` must be at least 1, got {number}"):
        topology.tree(0, [0, 0], number)
    with pytest.raises(ValueError, match=rf"`degree` must be at least 1, got {number}"):
        topology.random_regular(0, 5, number)


def test_unknown_topologies_are_refused():
    with pytest.raises(ValueError, match=r"`topology` must be one of tree, ring, star, got 'torus'"):
        topology.tree_neighbours("torus", 0, [0], fan_out=2)
    known = "ring, torus, exponential, random-regular, complete"
    with pytest.raises(ValueError, match=rf"`topology` must be one of {known}, got 'tree'"):
        topology.graph_neighbours("tree", 0, 1, degree=4, seed=0)
