"""Runs that are trained and then recomputed from their logs."""

import h5py
import pytest

import hpc_dasgd
from hpc_dasgd.analysis import replay
from hpc_dasgd.errors import ConfigError

VARIANTS = {
    "complete": {},
    "tree": {"exchange": {"topology": "tree"}},
    "ring-every-3": {"exchange": {"topology": "ring", "every": 3}},
    "star-momentum": {"exchange": {"topology": "star"}, "optimizer": {"kind": "momentum", "stepsize": 0.005}},
    "adam-cosine": {"optimizer": {"kind": "adam", "stepsize": 1e-3, "schedule": "cosine"}},
    "tree-auto-adaptive": {
        "exchange": {"topology": "tree", "every": "auto", "fan_out": 3},
        "optimizer": {"schedule": "staleness-adaptive"},
        "straggler": {"delay_ms": 3.0},
    },
    "float64": {"device": {"dtype": "float64"}},
}


class RecordingObjective:
    """Least squares with noise; keeps a copy of every replica at which a gradient was computed, by rank and version."""

    def __init__(self):
        self.seen = {}

    def initial(self, rng):
        return rng.normal(size=50)

    def loss_and_gradient(self, parameters, batch, out):
        self.seen[batch.source[1:]] = parameters.copy()
        out[:] = parameters + batch.rng.normal(size=out.size)
        return float(parameters @ parameters)


@pytest.fixture
def train(comm, tmp_path):
    def run(gradients=600, options=None, **sections):
        config = {
            "seed": 3,
            "data": {"path": "digits"},
            "objective": {"kind": "mlp", "hidden": [32]},
            "optimizer": {"stepsize": 0.02},
            "budget": {"gradients": gradients},
        }
        for name, value in sections.items():
            config[name] = config.get(name, {}) | value
        return hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False, **(options or {}))

    return run


@pytest.mark.parallel([1, 2, 4, 8])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_run_is_recomputed_bit_for_bit(comm, train, variant):
    result = train(**variant)
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        replayed = replay.replay(run)
        assert replayed.differences == []
        assert replayed.agrees
        assert replayed.parameters.tobytes() == result.parameters.tobytes()
        assert replayed.n_gradients == result.gradients
        staleness = run.staleness().as_dict()
        assert replayed.max_contributions <= comm.size * (2 + staleness["S_max"])


@pytest.mark.parallel([3])
@pytest.mark.parametrize("topology", ["complete", "tree"])
def test_a_recomputed_state_equals_the_replica_of_the_rank(comm, train, topology):
    own = RecordingObjective()
    result = train(options={"objective": own}, exchange={"topology": topology})
    seen = {key: value for part in comm.allgather(own.seen) for key, value in part.items()}
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        with pytest.raises(ConfigError, match="its objective was passed in Python"):
            replay.replay(run)
        assert replay.replay(run, objective=RecordingObjective()).agrees
        for rank in range(3):
            version = int(run.counts[rank]) // 2
            state = replay.state_at_gradient(run, rank, version, objective=RecordingObjective())
            assert state.parameters.tobytes() == seen[rank, version].tobytes()
            assert state.versions.tolist() == run.versions[rank][version].tolist()
            assert state.loss == float(state.parameters @ state.parameters)
        last = replay.state_after(run, int(run.counts.sum()), objective=RecordingObjective())
        assert last.parameters.tobytes() == result.parameters.tobytes()
        first = replay.state_after(run, 0, objective=RecordingObjective())
        assert first.parameters.tobytes() == run.x0.tobytes()


@pytest.mark.parallel([2])
def test_the_number_of_contributions_in_memory_does_not_grow_with_the_run(comm, train):
    result = train(gradients=6000, objective={"hidden": [4]})
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        assert replay.replay(run).max_contributions < 6000 / 10


@pytest.mark.parallel([2])
@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("source", ["other", "own"])
def test_a_changed_version_vector_makes_the_replay_differ(comm, train, change, source):
    result = train()
    if comm.rank == 0:
        with h5py.File(result.run / "rank_00001.h5", "r+") as file:
            versions = file["gradient/versions"]
            row = len(versions) // 2
            column = 1 if source == "own" else 0
            versions[row, column] = int(versions[row, column]) + change
        run = hpc_dasgd.open_run(result.run)
        try:
            replayed = replay.replay(run)
        except ConfigError as error:
            assert "cannot be ordered" in str(error) or "updates of its own" in str(error)
        else:
            assert not replayed.agrees
            assert f"gradient {row} of rank 1" in replayed.differences[0]


@pytest.mark.parallel([2])
@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"exchange": {"kind": "gossip"}}, "`exchange.kind` is gossip"),
        (
            {"exchange": {"consistency": "elementwise"}},
            "`exchange.consistency` is elementwise, and a replay needs snapshot",
        ),
        ({"log": {"versions": "every 10"}}, "version vectors are missing"),
        ({"log": {"versions": "none"}}, "version vectors are missing"),
    ],
)
def test_a_run_that_cannot_be_replayed_raises_with_the_reason(comm, train, sections, reason):
    result = train(gradients=100, **sections)
    if comm.rank == 0:
        with pytest.raises(ConfigError, match=reason):
            replay.replay(hpc_dasgd.open_run(result.run))
