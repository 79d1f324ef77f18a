"""Staleness of schedules against sets of gradients."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from tests.unit import synthetic


def reference(run, every=1):
    """Return staleness by rank and largest reach, computed with sets from the definitions."""
    sequence = [(i, k) for i in range(run.n_ranks) for k in range(len(run.end[i]))]
    sequence.sort(key=lambda gradient: run.end[gradient[0]][gradient[1]])
    staleness = [[] for _ in range(run.n_ranks)]
    reach = dict.fromkeys(sequence, 0)
    for t, (rank, index) in enumerate(sequence):
        if index % every == 0:
            missed = set(sequence[:t]) - run.held[rank][index]
            staleness[rank].append(len(missed))
            for gradient in missed:
                reach[gradient] += every * len(missed)
    return staleness, max(reach.values())


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("n_ranks", [1, 2, 5])
def test_staleness_agrees_with_sets(n_ranks, every):
    run = synthetic.schedule(n_ranks, 150, seed=n_ranks)
    by_rank, w_max = reference(run, every)
    everything = np.concatenate(by_rank)
    found = json.loads(json.dumps(synthetic.measured(run, every).as_dict()))
    assert found["S_avg"] == pytest.approx(everything.mean())
    assert found["S_rms"] == pytest.approx(math.sqrt((everything**2).mean()))
    assert (found["S_max"], found["W_max"]) == (everything.max(), w_max)
    assert (found["gradients"], found["measured"], found["n_ranks"]) == (150, everything.size, n_ranks)
    assert found["percentiles"]["50"] == np.median(everything)
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    assert counts == [int(((a <= everything) & (everything < b)).sum()) for a, b in pairwise(edges)]
    assert len(counts) <= 20
    assert sum(counts) == everything.size
    for row, expected, times in zip(found["per_rank"], by_rank, run.end, strict=True):
        assert row["gradients"] == len(times)
        assert row["S_avg"] == pytest.approx(np.mean(expected))
        assert row["S_max"] == max(expected)
    assert sum(row["missed_by_others"] for row in found["per_rank"]) == everything.sum()


def test_models_are_compared_at_evenly_spaced_moments():
    """Rank 1 never reads, so that the models differ by all updates of rank 0."""
    n, starts = 50, np.arange(50.0)
    versions = [np.stack([np.arange(n), np.arange(n)], 1), np.stack([np.zeros(n, int), np.arange(n)], 1)]
    run = SimpleNamespace(start=[starts] * 2, end=[starts + 0.9] * 2, versions=versions)
    found = synthetic.measured(run).as_dict()["between_models"]
    moments = [(n - 1) * m / 101 for m in range(1, 101)]
    assert found["max"] == max(map(math.floor, moments))
    assert found["mean"] == pytest.approx(np.mean([math.floor(moment) for moment in moments]))


@pytest.mark.parametrize("idle", [0, 1, 2])
def test_the_model_of_a_rank_without_gradients_is_not_compared(idle):
    """The run of the previous test, with a third rank that computes no gradients."""
    n, starts = 50, np.arange(50.0)
    zero, counts = np.zeros(n, int), np.arange(n)
    columns = [[counts, counts], [zero, counts]]
    for vectors in columns:
        vectors.insert(idle, zero)
    versions = [np.stack(vectors, 1) for vectors in columns]
    times = [starts, starts]
    for lists, empty in ((versions, np.zeros((0, 3), int)), (times, np.zeros(0))):
        lists.insert(idle, empty)
    run = SimpleNamespace(start=times, end=[own + 0.9 for own in times], versions=versions)
    assert synthetic.measured(run).as_dict()["between_models"]["max"] == 48
