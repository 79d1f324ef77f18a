"""Runs made live and recomputed from their logs alone."""

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


class Witness:
    """Least squares with noise; remembers every replica that it was given, by version."""

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
        assert replayed.n_kept <= comm.size * (2 + staleness["S_max"])


@pytest.mark.parallel([3])
@pytest.mark.parametrize("topology", ["complete", "tree"])
def test_a_moment_is_what_the_rank_saw(comm, train, topology):
    own = Witness()
    result = train(options={"objective": own}, exchange={"topology": topology})
    seen = {key: value for part in comm.allgather(own.seen) for key, value in part.items()}
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        with pytest.raises(ConfigError, match="its objective was passed in Python"):
            replay.replay(run)
        assert replay.replay(run, objective=Witness()).agrees
        for rank in range(3):
            version = int(run.counts[rank]) // 2
            moment = replay.inspect(run, rank, version, objective=Witness())
            assert moment.parameters.tobytes() == seen[rank, version].tobytes()
            assert moment.versions.tolist() == run.versions[rank][version].tolist()
            assert moment.loss == float(moment.parameters @ moment.parameters)
        last = replay.until(run, int(run.counts.sum()), objective=Witness())
        assert last.parameters.tobytes() == result.parameters.tobytes()
        first = replay.until(run, 0, objective=Witness())
        assert first.parameters.tobytes() == run.x0.tobytes()


@pytest.mark.parallel([2])
def test_what_is_held_does_not_grow_with_the_run(comm, train):
    result = train(gradients=6000, objective={"hidden": [4]})
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        assert replay.replay(run).n_kept < 6000 / 10


@pytest.mark.parallel([2])
@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("source", ["other", "own"])
def test_a_version_that_was_tampered_with_is_found(comm, train, change, source):
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
        ({"exchange": {"consistency": "elementwise"}}, "a read may have mixed versions"),
        ({"log": {"versions": "every 10"}}, "version vectors are missing"),
        ({"log": {"versions": "none"}}, "version vectors are missing"),
    ],
)
def test_a_run_that_cannot_be_replayed_says_why(comm, train, sections, reason):
    result = train(gradients=100, **sections)
    if comm.rank == 0:
        with pytest.raises(ConfigError, match=reason):
            replay.replay(hpc_dasgd.open_run(result.run))
