"""Staleness, reach and causal order, compared with sets of gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dasgd.theory.version_vectors import between_models, causal_order, missed_gradients, replicas_at
from tests.unit import synthetic

SCHEDULES = st.builds(
    synthetic.schedule,
    n_ranks=st.integers(1, 5),
    n_steps=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    read_chance=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


def gradients_in(order):
    return list(zip(order.rank.tolist(), order.index.tolist(), strict=True))


def brute_force(run, sequence, every):
    """Return staleness, missed gradients per pair and reach, computed with sets from the definitions."""
    staleness, per_pair = [], np.zeros((run.n_ranks, run.n_ranks), dtype=int)
    reach = dict.fromkeys(sequence, 0)
    for t, (rank, index) in enumerate(sequence):
        if index % every:
            continue
        missed = set(sequence[:t]) - run.held[rank][index]
        staleness.append(len(missed))
        for gradient in missed:
            per_pair[rank, gradient[0]] += 1
            reach[gradient] += every * len(missed)
    return staleness, per_pair, [reach[s] for s in sequence]


@settings(max_examples=150)
@given(SCHEDULES, st.sampled_from([1, 2, 7]))
def test_staleness_and_reach_agree_with_sets(run, every):
    versions = [v[::every] for v in run.versions]
    order = causal_order(run.end, versions, every)
    missed = missed_gradients(order, versions, every)
    staleness, per_pair, reach = brute_force(run, gradients_in(order), every)
    np.testing.assert_array_equal(missed.staleness, staleness)
    np.testing.assert_array_equal(missed.per_pair, per_pair)
    np.testing.assert_array_equal(missed.reach, reach)


@settings(max_examples=150)
@given(SCHEDULES)
def test_exact_completion_times_are_not_reordered(run):
    gradients = [(i, k) for i in range(run.n_ranks) for k in range(len(run.end[i]))]
    expected = sorted(gradients, key=lambda g: run.end[g[0]][g[1]])
    assert gradients_in(causal_order(run.end, run.versions)) == expected


@settings(max_examples=150)
@given(SCHEDULES, st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 100.0]))
def test_inexact_completion_times_give_a_causal_order(run, seed, error_s):
    rng = np.random.default_rng(seed)
    times = [e + rng.uniform(0, error_s, e.shape).round(1) for e in run.end]
    sequence = gradients_in(causal_order(times, run.versions))
    position = {gradient: t for t, gradient in enumerate(sequence)}
    assert len(position) == len(sequence) == sum(map(len, run.end))
    for (rank, index), t in position.items():
        assert index == 0 or position[rank, index - 1] < t
        assert all(position[gradient] < t for gradient in run.held[rank][index])


def test_only_a_time_that_was_logged_too_late_is_lowered():
    """Rank 0 logs 9 s for an update that the replica of rank 1 contained at 2 s."""
    versions = [np.array([[0, 0], [1, 1]], np.uint32), np.array([[0, 0], [1, 1], [1, 2]], np.uint32)]
    order = causal_order([np.array([9.0, 10.0]), np.array([1.0, 2.0, 3.0])], versions)
    assert gradients_in(order) == [(1, 0), (0, 0), (1, 1), (1, 2), (0, 1)]
    missed = missed_gradients(order, versions)
    assert missed.staleness.tolist() == [0, 1, 0, 0, 2]
    assert missed.rank.tolist() == [1, 0, 1, 1, 0]
    assert missed.reach.tolist() == [1, 0, 2, 2, 0]


def test_the_result_does_not_depend_on_the_block_size(monkeypatch):
    run = synthetic.schedule(4, 200, seed=3)
    late = [e + np.where(np.arange(e.size) % 9 == 0, 2.0, 0.0) for e in run.end]
    one = causal_order(late, run.versions)
    missed = missed_gradients(one, run.versions)
    monkeypatch.setattr("hpc_dasgd.theory.version_vectors._BLOCK_ENTRIES", 4 * 7)
    many = causal_order(late, run.versions)
    assert gradients_in(many) == gradients_in(one)
    np.testing.assert_array_equal(missed_gradients(many, run.versions).reach, missed.reach)


def test_vector_entries_beyond_a_log_are_limited_to_its_gradients():
    """The log of rank 1 is lost, so that its updates in other replicas do not count."""
    versions = [np.array([[0, 0], [1, 3]], np.uint32), np.empty((0, 2), np.uint32)]
    order = causal_order([np.array([1.0, 2.0]), np.empty(0)], versions)
    assert missed_gradients(order, versions).staleness.tolist() == [0, 0]


def test_replicas_that_contain_each_others_updates_have_no_order():
    versions = [np.array([[0, 1]], np.uint32), np.array([[1, 0]], np.uint32)]
    with pytest.raises(ValueError, match="contained each other's later updates"):
        causal_order([np.array([1.0]), np.array([2.0])], versions)


def test_a_replica_that_contains_the_update_of_its_own_gradient_is_refused():
    with pytest.raises(ValueError, match="the replica of gradient 0 of rank 0 contained 1 updates of its own rank"):
        causal_order([np.array([1.0])], [np.array([[1]], np.uint32)])


def test_version_vectors_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"`versions\[0\]` must have shape \(2, 1\) for 3 gradients"):
        causal_order([np.arange(3.0)], [np.zeros((3, 1), np.uint32)], every=2)


def test_replicas_at_moments_and_staleness_between_models():
    starts = [np.array([1.0, 2.0]), np.array([1.5])]
    versions = [np.array([[0, 0], [1, 1]], np.uint32), np.array([[1, 0]], np.uint32)]
    replicas = replicas_at(np.array([0.0, 1.0, 1.7, 2.0]), starts, versions)
    expected = [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [1, 0]], [[1, 1], [1, 0]]]
    assert replicas.tolist() == expected
    assert between_models(np.array([[1, 1], [4, 0]])).tolist() == [[0, 4], [4, 0]]
