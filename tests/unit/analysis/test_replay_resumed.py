"""Runs of several generations, written gradient by gradient, and recomputed from their files."""

import copy

import h5py
import numpy as np
import pytest

from hpc_dasgd.analysis import replay
from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.config.settings import load_config
from hpc_dasgd.data.batches import Sampler
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.optim import optimizers
from hpc_dasgd.storage.layout import generation_directory
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import complete_run, create_run

N_PARAMS, STEPSIZE = 7, 0.05


class Objective:
    def initial(self, rng):
        return rng.normal(size=N_PARAMS).astype(np.float32)

    def loss_and_gradient(self, parameters, batch, out):
        out[:] = np.sin(3 * parameters) + batch.rng.normal(size=N_PARAMS)
        return float(parameters @ parameters)


def write(directory, n_ranks, kind="momentum", n_steps=40, lost=0):
    """Train sequentially, with ranks in random order; each generation but the last loses its last `lost` gradients.

    Replicas are ``x_0 + C_0 + C_1 + ...``; exchange `read` on a complete overlay adds the rank's own contribution
    first.
    """
    rng = np.random.default_rng(5)
    x0 = Objective().initial(rng)
    before, begun_s, states = np.zeros(max(n_ranks), int), 0.0, []
    for number, n in enumerate(n_ranks):
        config = load_config({"objective": {"kind": "quadratic"}, "optimizer": {"kind": kind, "stepsize": STEPSIZE},
                              "budget": {"gradients": 10}, "seed": 4 + number})  # fmt: skip
        n_streams = max(n_ranks[: number + 1])
        folder = generation_directory(directory, number)
        attributes = {"n_ranks": n, "nodes": [0] * n, "parent": number - 1, "generation": number}
        attributes |= {"versions_before": before[:n_streams], "begun_s": begun_s, "objective_given": True}
        create_run(folder, config_toml=config.to_toml(), attributes=attributes, x0=x0)
        own = [optimizers.from_settings(config.optimizer, N_PARAMS, np.float32, np) for _ in range(n)]
        for rank, optimizer in enumerate(own if states else ()):
            optimizer.load_state(copy.deepcopy(states[rank % len(states)]))
        contributions = [[np.zeros_like(x0)] for _ in range(n)]
        contributions[0][0] = x0
        seen = np.zeros((n, n), int)
        logs = [RankLog(folder, LogSettings(rank, n, 1), versions_before=before[:n_streams]) for rank in range(n)]
        samplers = [Sampler(config.seed, rank, None, 32) for rank in range(n)]
        for step in range(n_steps):
            rank = int(rng.integers(n))
            made = [len(kept) - 1 for kept in contributions]
            read = rng.random(n) < 0.5
            seen[rank, read] = np.array(made)[read]
            seen[rank, rank] = made[rank]
            parameters = contributions[rank][seen[rank, rank]]
            for other in range(n):
                if other != rank:
                    parameters = parameters + contributions[other][seen[rank, other]]
            gradient, update = np.empty_like(x0), np.empty_like(x0)
            batch = samplers[rank].batch(before[rank] + made[rank])
            loss = Objective().loss_and_gradient(parameters, batch, gradient)
            own[rank].update(gradient, STEPSIZE)(0, N_PARAMS, update)
            times = begun_s + step, begun_s + step + 0.5
            logs[rank].append(*times, loss, 1.0, made[rank], seen[rank], STEPSIZE)
            contributions[rank].append(contributions[rank][-1] + update)
            if step < n_steps - lost or number == len(n_ranks) - 1:
                states = copy.deepcopy([optimizer.state for optimizer in own])
                counts = np.array([len(kept) - 1 for kept in contributions])
        for log in logs:
            log.__exit__()
        x0 = contributions[0][counts[0]].copy()
        for kept, count in zip(contributions[1:], counts[1:], strict=True):
            x0 += kept[count]
        before = before + np.pad(counts, (0, before.size - n))
        begun_s += n_steps - lost
    complete_run(directory, final=x0, attributes={"seconds": begun_s})
    return open_run(directory)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("n_ranks", [(3, 3), (4, 2), (1, 3), (2, 4, 1, 3)], ids=str)
@pytest.mark.parametrize("lost", [0, 6])
def test_a_resumed_run_is_recomputed_bit_for_bit(tmp_path, n_ranks, kind, lost):
    run = write(tmp_path, n_ranks, kind, lost=lost)
    assert run.counts.sum() == len(n_ranks) * 40 - lost * (len(n_ranks) - 1)
    replayed = replay.replay(run, objective=Objective())
    assert (replayed.differences, replayed.agrees) == ([], True)
    assert replayed.parameters.tobytes() == run.final.tobytes()
    assert replayed.max_contributions < 40


def test_states_of_a_later_generation_are_recomputed(tmp_path):
    run = write(tmp_path, (3, 2))
    rank, version = 1, int(run.counts[1]) - 1
    state = replay.state_at_gradient(run, rank, version, objective=Objective())
    assert state.versions.tolist() == run.versions[rank][version].tolist()
    assert state.loss == run.gradients["loss"][run.rows(rank)][version]
    between = replay.state_after(run, 40, objective=Objective())
    assert between.versions.tolist() == run.generations[1].versions_before.tolist()
    assert replay.state_after(run, 80, objective=Objective()).parameters.tobytes() == run.final.tobytes()


def test_a_replay_compares_the_initial_parameters_of_generations_without_gradients(tmp_path):
    run = write(tmp_path / "a", (2,))
    attributes = {"n_ranks": 2, "nodes": [0, 0], "parent": 0, "versions_before": run.counts, "begun_s": 100.0}
    attributes["objective_given"] = True
    x0 = run.final
    create_run(tmp_path / "a" / "generation_00001", config_toml=run.config.to_toml(), attributes=attributes, x0=x0)
    complete_run(tmp_path / "a", final=x0, attributes={})
    assert replay.replay(open_run(tmp_path / "a"), objective=Objective()).agrees
    create_run(tmp_path / "a" / "generation_00002", config_toml=run.config.to_toml(), attributes=attributes, x0=x0 + 1)
    complete_run(tmp_path / "a", final=x0 + 1, attributes={})
    replayed = replay.replay(open_run(tmp_path / "a"), objective=Objective())
    assert "generation 2 began with other parameters: largest difference 1" in replayed.differences


def test_a_run_whose_replicas_contained_lost_updates_cannot_be_replayed(tmp_path):
    """Before its own checkpoint, rank 1 read updates of rank 0 that are not in the checkpoint of rank 0."""
    run = write(tmp_path, (2, 2))
    folder, limits = tmp_path / "generation_00001", run.generations[1].versions_before.copy()
    limits[0] = run.versions[1][: limits[1], 0].max() - 1
    with h5py.File(folder / "run.h5", "r+") as file, h5py.File(folder / "rank_00000.h5", "r+") as log:
        file.attrs["versions_before"], log.attrs["first_version"] = limits, limits[0]
    n_holding = int((run.versions[1][: limits[1], 0] > limits[0]).sum())
    opened = open_run(tmp_path)
    assert opened.n_holding_lost_work() == n_holding > 0
    with pytest.raises(ConfigError, match=f"cannot be replayed: {n_holding} replicas contained updates that were lost"):
        replay.replay(opened, objective=Objective())
