"""Results of a replay as text."""

import numpy as np

from hpc_dasgd.analysis.replay import ReplayResult, ReplicaState
from hpc_dasgd.report.replay_text import result_text, state_text


def test_a_replay_that_agrees_is_one_sentence():
    result = ReplayResult(40, np.zeros(2), True, 0.0, [], 3)
    assert result_text(result).splitlines() == [
        "agrees: 40 gradients recomputed, every loss and the final parameters the same bit for bit",
        "contributions in memory at the same time: at most 3",
    ]


def test_a_replay_that_differs_lists_the_differences():
    result = ReplayResult(40, np.zeros(2), False, 0.25, ["the final parameters differ"], 3)
    assert result_text(result).splitlines()[:3] == [
        "DIFFERS: 40 gradients recomputed",
        "final parameters: largest difference 0.25",
        "the final parameters differ",
    ]


def test_the_version_vector_of_many_ranks_is_cut():
    state = ReplicaState(np.array([3.0, 4.0]), np.arange(40), np.array([0.0, 2.0]), 0.5)
    parameters, versions, gradient = state_text(state).splitlines()
    assert parameters == "parameters: norm 5"
    assert versions == f"holds 780 updates, by rank: {' '.join(map(str, range(32)))} ... (40 ranks)"
    assert gradient == "gradient: norm 2, loss 0.5"
