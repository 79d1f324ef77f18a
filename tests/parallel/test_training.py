"""`hpc_dasgd.train` on ranks: what it computes, when it ends, what it writes, what it refuses."""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

import hpc_dasgd
from hpc_dasgd.data.dataset import open_dataset

DIGITS = Path(__file__).parents[2] / "jobs" / "digits.toml"
EXCHANGES = {
    "snapshot": {"kind": "read"},
    "elementwise": {"kind": "read", "consistency": "elementwise"},
    "every-3": {"kind": "read", "every": 3},
    "elementwise-every-3": {"kind": "read", "consistency": "elementwise", "every": 3},
    "auto": {"kind": "read", "every": "auto"},
    "tree": {"kind": "read", "topology": "tree"},
    "ring": {"kind": "read", "topology": "ring", "every": 2},
    "star": {"kind": "read", "topology": "star"},
    "accumulate": {"kind": "accumulate"},
    "accumulate-auto": {"kind": "accumulate", "every": "auto"},
    "server": {"kind": "server"},
    "server-every-3": {"kind": "server", "every": 3},
    "average": {"kind": "gossip", "topology": "ring"},
    "push-sum": {"kind": "gossip", "topology": "exponential", "mixing": "push-sum"},
    "allreduce": {"kind": "allreduce"},
    "none": {"kind": "none"},
}
KINDS = ["read", "accumulate", "gossip", "server", "allreduce", "none"]
SPECTRUM = np.geomspace(1.0, 0.1, 5)  # of the quadratic below
START_LOSS = 0.5 * SPECTRUM.sum()


@pytest.fixture
def train(comm, tmp_path):
    """Train a small quadratic, with changes by section; `options` go to `hpc_dasgd.train`."""

    def run(options=None, **sections):
        config = {
            "objective": {"kind": "quadratic", "dimension": 5, "mu": 0.1, "noise": 0.0},
            "optimizer": {"stepsize": 0.3},
            "device": {"dtype": "float64"},
        }
        for name, value in sections.items():
            config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
        options = {"comm": comm, "run": tmp_path / "run", "progress": False} | (options or {})
        return hpc_dasgd.train(config, **options)

    return run


class Recorder:
    """An objective that keeps the sum of the gradients it returned, each of them random."""

    def __init__(self, n_params=300):
        self.n_gradients, self.sum = 0, np.zeros(n_params)

    def initial(self, rng):
        return rng.normal(size=self.sum.size)

    def loss_and_gradient(self, parameters, batch, out):
        out[:] = batch.rng.normal(size=out.size)
        self.sum += out
        self.n_gradients += 1
        return float(out @ parameters)


class Failing(Recorder):
    """Returns `loss` and a gradient whose last element is `last` at the fourth gradient."""

    def __init__(self, loss=1.0, last=0.0, n_params=300):
        super().__init__(n_params)
        self._wrong = loss, last

    def loss_and_gradient(self, parameters, batch, out):
        out[:] = 0.0
        loss, last = self._wrong if batch.source[2] == 3 else (1.0, 0.0)
        out[-1] = last
        return loss


def ended_before(run, rank, versions, moment_s):
    """Return whether the gradients of `rank` up to each of `versions` had ended at each of `moment_s`."""
    ends = run.gradients["t_end_s"][run.gradients["rank"] == rank]
    return all(ends[versions[versions > 0] - 1] <= moment_s[versions > 0])


# What is written.


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_log_is_consistent(comm, train, exchange):
    result = train(exchange=EXCHANGES[exchange], budget={"seconds": 0.3})
    run = hpc_dasgd.open_run(result.run)
    assert run.status == "complete" and run.n_ranks == comm.size
    assert run.counts.sum() == len(run.gradients) == result.gradients
    foreign = 0
    for rank, vectors in enumerate(run.versions):
        rows = run.gradients[run.gradients["rank"] == rank]
        vectors = vectors.astype(np.int64)
        assert rows["version"].tolist() == list(range(len(rows)))
        # A server's model may lack updates that are on their way to it, the rank's own too.
        assert np.all(vectors[:, rank] <= rows["version"])
        assert vectors[:, rank].tolist() == rows["version"].tolist() or exchange.startswith("server")
        assert np.all(rows["t_start_s"] <= rows["t_end_s"])
        assert np.all(rows["t_end_s"][:-1] <= rows["t_start_s"][1:])
        assert np.all(np.diff(vectors, axis=0) >= 0)
        assert np.all(vectors <= run.counts)
        for other in range(comm.size):
            assert ended_before(run, other, vectors[:, other], rows["t_start_s"])
        foreign += vectors[-1].sum() - vectors[-1, rank]
        if exchange == "allreduce":
            assert np.all(vectors == rows["version"][:, None])
    assert (foreign > 0) == (comm.size > 1 and exchange != "none")


@pytest.mark.parallel([1, 4])
def test_version_vectors_are_logged_at_the_interval_of_the_settings(comm, train, tmp_path):
    for versions, every in (("every 10", 10), ("none", 0)):
        options = {"run": tmp_path / f"run-{every}"}
        result = train(options, log={"versions": versions}, budget={"gradients": 500})
        run = hpc_dasgd.open_run(result.run)
        assert run.versions_every == every
        assert len(run.gradients) == result.gradients
        if every:
            own = [vectors[:, rank].tolist() for rank, vectors in enumerate(run.versions)]
            assert own == [list(range(0, count, 10)) for count in run.counts]
        else:
            assert run.versions is None


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_final_parameters_hold_every_gradient_of_every_rank(comm, train, exchange):
    recorder = Recorder()
    result = train({"objective": recorder}, exchange=EXCHANGES[exchange], budget={"gradients": 400}, seed=3)
    run = hpc_dasgd.open_run(result.run)
    assert result.gradients == comm.allreduce(recorder.n_gradients)
    assert run.counts.tolist() == comm.allgather(recorder.n_gradients)
    assert run.x0.tolist() == np.random.default_rng(3).normal(size=300).tolist()
    total = sum(comm.allgather(recorder.sum))
    if exchange == "none":
        total = recorder.sum
    elif exchange == "allreduce":
        total = total / comm.size
    if exchange not in ("average", "push-sum"):  # where an update's weight depends on who mixes when
        np.testing.assert_allclose(result.parameters, run.x0 - 0.3 * total, rtol=0, atol=1e-10)
        assert 0.0 <= result.drift < 1e-10
    if exchange != "none":
        assert result.parameters.tobytes() == run.final.tobytes()  # on every rank
    assert comm.bcast(result.parameters, root=0).tolist() == run.final.tolist()
    assert math.isnan(result.loss) and math.isnan(result.accuracy)
    assert run.evaluation.size == 0


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_agrees_with_the_files(comm, train, tmp_path, kind):
    result = train(exchange={"kind": kind}, budget={"gradients": 500}, name="some name", seed=7)
    run = hpc_dasgd.open_run(result.run)
    assert comm.bcast(tmp_path / "run", root=0) == result.run
    assert result.loss == pytest.approx(0.5 * SPECTRUM @ np.square(run.final), rel=1e-12)
    assert result.loss == run.evaluation["loss"][-1] < START_LOSS
    assert run.evaluation["loss"][0] == pytest.approx(START_LOSS)
    assert math.isnan(result.accuracy)
    assert 0 < result.seconds < run.evaluation["t_s"][-1] + 1e-9 or comm.rank > 0
    assert run.attributes["gradients"] == result.gradients
    assert run.attributes["drift"] == result.drift
    assert run.config.name == "some name" and run.config.seed == run.attributes["seed"] == 7
    assert len(run.attributes["hosts"]) == comm.size
    assert run.attributes["mpi_library"]


@pytest.mark.parallel([2])
def test_runs_that_start_in_the_same_second_get_different_directories(comm, train, tmp_path, monkeypatch):
    monkeypatch.chdir(comm.bcast(tmp_path, root=0))
    comm.Barrier()
    runs = [train({"run": None}, name="two", budget={"gradients": 10}).run for _ in range(4)]
    assert len(set(runs)) == 4
    assert all(run.match("runs/two-????????-??????*") for run in runs)
    assert comm.bcast(runs, root=0) == runs
    assert all(hpc_dasgd.open_run(run).status == "complete" for run in runs)


# What is computed.


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_descent_on_a_quadratic_decays_geometrically(comm, train, kind):
    if kind not in ("allreduce", "none") and comm.size > 1:
        pytest.skip("asynchronous: no closed form")
    result = train(exchange={"kind": kind}, budget={"gradients": 200 * comm.size})
    steps = result.gradients // comm.size
    assert steps in (200, 201)
    np.testing.assert_allclose(result.parameters, (1 - 0.3 * SPECTRUM) ** steps, rtol=0, atol=1e-14)
    losses = hpc_dasgd.open_run(result.run).gradients["loss"][:steps]
    powers = (1 - 0.3 * SPECTRUM) ** (2 * np.arange(steps)[:, None])
    np.testing.assert_allclose(losses, 0.5 * powers @ SPECTRUM, rtol=1e-10)


@pytest.mark.parallel([1])
def test_the_schedule_of_the_settings_is_used(train, tmp_path):
    stepsizes = {
        "cosine": [0.15 * (1 + math.cos(math.pi * k / 60)) for k in range(60)],
        "step": [0.3] * 20 + [0.03] * 20 + [0.003] * 20,
    }
    for schedule, steps in stepsizes.items():
        options = {"run": tmp_path / schedule}
        result = train(options, optimizer={"schedule": schedule}, budget={"gradients": 60})
        expected = np.prod([1 - stepsize * SPECTRUM for stepsize in steps], axis=0)
        np.testing.assert_allclose(result.parameters, expected, rtol=0, atol=1e-14)


@pytest.mark.parallel([4])
def test_the_schedule_counts_the_gradients_of_all_ranks(comm, train):
    """With allreduce on 4 ranks the number of gradients grows by 4 at each step."""
    result = train(exchange={"kind": "allreduce"}, optimizer={"schedule": "cosine"}, budget={"gradients": 240})
    known = 4 * np.arange(result.gradients // 4)
    stepsizes = 0.15 * (1 + np.cos(np.pi * np.minimum(known / 240, 1)))
    np.testing.assert_allclose(result.parameters, np.prod(1 - stepsizes[:, None] * SPECTRUM, axis=0), rtol=1e-11)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("optimizer", "stepsize"), [("sgd", 0.1), ("momentum", 0.01), ("adam", 0.01)])
def test_every_optimizer_descends_with_every_exchange(train, kind, optimizer, stepsize):
    result = train(
        exchange={"kind": kind},
        optimizer={"kind": optimizer, "stepsize": stepsize},
        objective={"noise": 0.01},
        device={"dtype": "float32"},
        budget={"gradients": 2000},
    )
    assert result.parameters.dtype == np.float32
    assert result.loss < 0.1 * START_LOSS


@pytest.mark.parallel([1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_one_rank_is_reproducible_bit_by_bit(train, tmp_path, kind):
    finals = []
    for number, seed in enumerate((5, 5, 6)):
        result = train(
            {"run": tmp_path / f"run-{number}"},
            objective={"noise": 1.0},
            exchange={"kind": kind},
            budget={"gradients": 300},
            seed=seed,
        )
        finals.append(result.parameters.tobytes())
    assert finals[0] == finals[1] != finals[2]


@pytest.mark.parallel([2, 4])
def test_ranks_draw_different_batches(comm, train):
    result = train(exchange={"kind": "none"}, objective={"noise": 1.0}, budget={"gradients": 100})
    assert len(set(comm.allgather(result.parameters.tobytes()))) == comm.size


@pytest.mark.parallel([4])
def test_digits_are_learned(comm, tmp_path):
    result = hpc_dasgd.train(DIGITS, comm=comm, run=tmp_path / "run", progress=False)
    assert 20_000 <= result.gradients < 20_000 + 100 * comm.size
    assert result.accuracy >= 0.97
    assert result.drift < 1e-3


@pytest.mark.parallel([2, 8])
def test_a_server_may_compute_no_gradients(comm, train):
    server = comm.size - 1
    recorder = Recorder()
    result = train(
        {"objective": recorder},
        exchange={"kind": "server", "server_rank": server, "server_computes": False},
        budget={"gradients": 300},
    )
    run = hpc_dasgd.open_run(result.run)
    assert run.counts[server] == 0 == (recorder.n_gradients if comm.rank == server else 0)
    assert np.delete(run.counts, server).sum() == result.gradients >= 300
    total = sum(comm.allgather(recorder.sum))
    np.testing.assert_allclose(result.parameters, run.x0 - 0.3 * total, rtol=0, atol=1e-10)
    assert run.staleness().counts.tolist() == run.counts.tolist()


@pytest.mark.parallel([1, 2])
def test_the_server_must_be_one_of_the_ranks_and_at_least_one_rank_must_compute(comm, train):
    with pytest.raises(hpc_dasgd.ConfigError, match=r"`exchange\.server_rank` must be below .*, got 2"):
        train(exchange={"kind": "server", "server_rank": 2}, budget={"gradients": 1})
    if comm.size == 1:
        with pytest.raises(hpc_dasgd.ConfigError, match=r"`exchange\.server_computes` must be true"):
            train(exchange={"kind": "server", "server_computes": False}, budget={"gradients": 1})


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("mixing", ["average", "push-sum"])
def test_the_consensus_distance_of_gossip_is_logged(comm, train, mixing):
    result = train(
        exchange={"kind": "gossip", "topology": "ring", "mixing": mixing},
        budget={"gradients": 4000},
        log={"evaluate_every_s": 1e-3},
    )
    run = hpc_dasgd.open_run(result.run)
    distance = run.evaluation["consensus_distance"]
    assert distance[-1] == run.attributes["consensus_distance"]
    assert np.all((distance >= 0) | np.isnan(distance))
    assert (np.nanmax(distance) > 0) == (comm.size > 1)
    assert comm.size > 1 or distance[-1] == 0


@pytest.mark.parallel([2])
def test_transferred_bytes_are_recorded(comm, train):
    result = train(exchange={"kind": "read"}, objective={"dimension": 1000}, budget={"gradients": 400})
    transferred = hpc_dasgd.open_run(result.run).attributes["transferred_bytes"]
    assert len(transferred) == 2
    assert min(transferred) > 10 * 8000


# How often ranks exchange.


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("kind", ["read", "accumulate", "server"])
def test_the_automatic_interval_follows_the_cost_of_exchanges(comm, train, tmp_path, kind):
    """With a tiny allowed overhead exchanges are rare, with a large one every step exchanges."""
    transferred, every = [], []
    for max_overhead in (1e-6, 0.9999):
        result = train(
            {"objective": Recorder(100_000), "run": tmp_path / f"run-{max_overhead}"},
            exchange={"kind": kind, "every": "auto", "max_overhead": max_overhead},
            log={"versions": "none"},
            budget={"gradients": 600 * comm.size},
        )
        run = hpc_dasgd.open_run(result.run)
        every.append({rank: changes["every"].max(initial=1) for rank, changes in by_rank(run.exchange_intervals)})
        transferred.append(sum(run.attributes["transferred_bytes"]) / result.gradients)
        assert all(np.all(np.diff(changes["t_s"]) > 0) for _, changes in by_rank(run.exchange_intervals))
    assert set(every[1].values()) <= {1}
    if comm.size > 1:
        assert min(every[0].values()) > 10
        assert transferred[0] < 0.5 * transferred[1]


def by_rank(rows):
    return [(rank, rows[rows["rank"] == rank]) for rank in np.unique(rows["rank"])]


# When it ends.


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_budget_of_gradients_counts_all_ranks_together(comm, train, kind):
    result = train(exchange={"kind": kind}, budget={"gradients": 600})
    assert 600 <= result.gradients < 600 + 50 * comm.size


@pytest.mark.parallel([1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_of_one_gradient_ends_the_run_at_once(train, kind):
    """A rank may end without a gradient of its own."""
    result = train(exchange={"kind": kind}, budget={"gradients": 1})
    run = hpc_dasgd.open_run(result.run)
    assert result.gradients == run.counts.sum() >= 1
    assert run.staleness().counts.tolist() == run.counts.tolist()


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_budget_of_seconds_ends_the_run(train, kind):
    result = train(exchange={"kind": kind}, budget={"seconds": 0.2, "gradients": 10**12})
    run = hpc_dasgd.open_run(result.run)
    assert run.evaluation["t_s"][-1] >= 0.2
    assert run.gradients["t_start_s"].max() > 0.1
    assert run.counts.min() > 0


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_target_loss_ends_all_ranks(comm, train, kind):
    target = 0.25 * START_LOSS
    result = train(
        exchange={"kind": kind},
        optimizer={"stepsize": 0.01},
        budget={"target_loss": target},
        log={"evaluate_every_s": 1e-3},
    )
    losses = hpc_dasgd.open_run(result.run).evaluation["loss"]
    # One more comes at the end, and with allreduce one in the step that tells the others.
    assert np.flatnonzero(losses <= target)[0] >= len(losses) - 3
    own_loss = 0.5 * SPECTRUM @ np.square(result.parameters)
    assert own_loss <= target * 1.01


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_loss_that_is_reached_at_the_start_ends_the_run_at_once(comm, train, kind):
    result = train(exchange={"kind": kind}, budget={"target_loss": 1e9})
    run = hpc_dasgd.open_run(result.run)
    assert run.status == "complete"
    assert result.gradients == run.counts.sum()
    assert result.gradients == (1 if kind == "allreduce" else 0) or comm.size > 1


# Ranks slowed down.


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_straggler_delays_other_ranks_only_with_synchronous_exchanges(comm, train, kind):
    slow = comm.size - 1
    result = train(
        exchange={"kind": kind},
        straggler={"ranks": [slow], "delay_ms": 50.0},
        budget={"seconds": 1.0},
    )
    counts = hpc_dasgd.open_run(result.run).counts
    assert 1 <= counts[slow] <= 22
    if kind == "allreduce":
        assert set(counts) == {counts[slow]}
    else:
        assert min(np.delete(counts, slow)) > 10 * counts[slow]


@pytest.mark.parallel([2])
def test_random_delays_are_drawn_for_each_rank(comm, train):
    straggler = {"ranks": [0, 1], "delay_ms": 2.0, "distribution": "exponential"}
    result = train(exchange={"kind": "none"}, straggler=straggler, budget={"seconds": 1.0})
    gradients = hpc_dasgd.open_run(result.run).gradients
    lasted_s = [own["t_end_s"] - own["t_start_s"] for _, own in by_rank(gradients)]
    for rank, own_s in enumerate(lasted_s):
        drawn_s = np.random.default_rng([0, rank]).exponential(2e-3, own_s.size)
        assert np.all(own_s >= drawn_s)
        assert own_s.min() < 1e-3


@pytest.mark.parallel([2])
@pytest.mark.parametrize("kind", ["read", "accumulate", "server"])
def test_a_staleness_adaptive_stepsize_is_smaller_for_stale_gradients(comm, train, kind):
    result = train(
        exchange={"kind": kind},
        optimizer={"stepsize": 0.01, "schedule": "staleness-adaptive"},
        straggler={"ranks": [1], "delay_ms": 20.0},
        budget={"seconds": 1.0},
    )
    if comm.rank == 0:
        gradients = hpc_dasgd.open_run(result.run).gradients
        stepsizes = [gradients["stepsize"][gradients["rank"] == rank] for rank in range(2)]
        assert all((own > 0).all() and (own <= 0.01).all() for own in stepsizes)
        # In 20 ms the other rank takes many gradients; the slow one's are stale.
        assert np.median(stepsizes[1]) < 0.003 < np.median(stepsizes[0])


@pytest.mark.parallel([2])
def test_a_straggler_must_be_one_of_the_ranks(comm, train):
    with pytest.raises(hpc_dasgd.ConfigError, match=r"`straggler\.ranks` must be below .* 2, got 2"):
        train(straggler={"ranks": [0, 2], "delay_ms": 1.0}, budget={"gradients": 1})
    assert train(straggler={"ranks": [2], "delay_ms": 0.0}, budget={"gradients": 1}).gradients


# What users bring along.


class LeastSquares:
    """``mean((x @ p - y)**2) / 2`` over the rows of a batch."""

    def initial(self, rng):
        return np.zeros(3)

    def loss_and_gradient(self, parameters, batch, out):
        residual = batch.x @ parameters - batch.y[:, 0]
        out[:] = residual @ batch.x / len(residual)
        return 0.5 * float(np.mean(residual**2))

    def evaluate(self, parameters, data):
        return {"loss": 0.5 * float(np.mean((data.x @ parameters - data.y[:, 0]) ** 2))}


TRUTH = np.array([1.0, -2.0, 0.5])


def write_data(path, n_test=5000):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split, n_rows in (("train", 200), ("test", n_test)):
            x = rng.normal(size=(n_rows, 3))
            file[f"{split}/x"], file[f"{split}/y"] = x, (x @ TRUTH)[:, None]
    return path


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("as_dataset", [False, True], ids=["path", "dataset"])
def test_the_user_can_pass_an_objective_and_a_data_set(comm, tmp_path, as_dataset):
    data = write_data(tmp_path / "data.h5")
    data = open_dataset(data, "float64") if as_dataset else data
    config = {"device": {"dtype": "float64"}, "budget": {"gradients": 1000}}
    options = {"comm": comm, "run": tmp_path / "run", "progress": False}
    result = hpc_dasgd.train(config, LeastSquares(), data, **options)
    np.testing.assert_allclose(result.parameters, TRUTH, atol=1e-6)
    assert result.loss == pytest.approx(0.0, abs=1e-12)
    assert hpc_dasgd.open_run(result.run).evaluation["loss"][0] == pytest.approx(2.6, abs=0.3)


@pytest.mark.parallel([2])
def test_settings_can_be_a_file_a_mapping_or_a_config(comm, tmp_path):
    settings = {"objective": {"kind": "quadratic", "dimension": 7}, "budget": {"gradients": 10}}
    path = tmp_path / "settings.toml"
    path.write_text('[objective]\nkind = "quadratic"\ndimension = 7\n[budget]\ngradients = 10\n')
    sources = (path, str(path), settings, hpc_dasgd.load_config(settings))
    for number, source in enumerate(sources):
        options = {"comm": comm, "run": tmp_path / f"run-{number}", "progress": False}
        result = hpc_dasgd.train(source, overrides=["objective.dimension=9", "name=x"], **options)
        run = hpc_dasgd.open_run(result.run)
        assert run.config == hpc_dasgd.load_config(settings, ["objective.dimension=9", "name=x"])
        assert result.parameters.shape == (9,)


@pytest.mark.parallel([4])
def test_two_groups_of_ranks_can_train_at_the_same_time(comm, train, tmp_path):
    half = comm.Split(comm.rank % 2)
    n_gradients = 500 * (1 + comm.rank % 2)
    result = train({"comm": half, "run": tmp_path / "run"}, budget={"gradients": n_gradients})
    run = hpc_dasgd.open_run(result.run)
    assert run.n_ranks == 2
    assert n_gradients <= result.gradients == run.counts.sum() < n_gradients + 200
    assert len(set(comm.allgather(result.run))) == 2
    half.Free()


# What is refused, and what goes wrong.


@pytest.mark.parallel([1, 4])
def test_an_error_in_the_settings_of_one_rank_is_raised_on_all_ranks(comm, train):
    class Refusing(Recorder):
        def initial(self, rng):
            if comm.rank == comm.size - 1:
                raise hpc_dasgd.ConfigError("not on the last rank")
            return super().initial(rng)

    with pytest.raises(hpc_dasgd.ConfigError, match="not on the last rank"):
        train({"objective": Refusing()}, budget={"gradients": 10})


@pytest.mark.parallel([2])
@pytest.mark.parametrize(
    ("initial", "message"),
    [(np.ones((2, 2)), r"vector, got shape \(2, 2\)"), ([], "non-empty"), ([1.0, math.inf], "finite")],
)
def test_first_parameters_are_checked(train, initial, message):
    class Wrong(Recorder):
        def initial(self, rng):
            return initial

    with pytest.raises(hpc_dasgd.ConfigError, match=message):
        train({"objective": Wrong()}, budget={"gradients": 10})


@pytest.mark.parallel([2])
def test_a_target_loss_that_is_never_measured_is_refused(train, tmp_path):
    """The run might never end."""
    with pytest.raises(hpc_dasgd.ConfigError, match=r"`budget\.target_loss` needs an objective with `evaluate`"):
        train({"objective": Recorder()}, budget={"target_loss": 1.0})
    data = write_data(tmp_path / "data.h5", n_test=0)
    with pytest.raises(hpc_dasgd.ConfigError, match=r"no rows in `/test/x` of .*data\.h5"):
        train({"objective": LeastSquares(), "data": data}, budget={"target_loss": 1.0})
    assert math.isnan(train({"objective": LeastSquares(), "data": data}, budget={"gradients": 10}).loss)


@pytest.mark.parallel([1])
def test_a_target_loss_without_a_measured_loss_is_an_error(train):
    class WithoutLoss(Recorder):
        def evaluate(self, parameters, data):
            return {"accuracy": 1.0}

    with pytest.raises(hpc_dasgd.TrainingError, match=r"needs a loss from `evaluate`, got \['accuracy'\]"):
        train({"objective": WithoutLoss()}, budget={"target_loss": 1.0})


@pytest.mark.parallel([1])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(train, tmp_path, exchange, loss):
    with pytest.raises(hpc_dasgd.TrainingError, match=f"loss is {loss} at gradient 3 of rank 0 .*than 0.3 may"):
        train({"objective": Failing(loss=loss)}, exchange=EXCHANGES[exchange], budget={"gradients": 10})
    run = hpc_dasgd.open_run(tmp_path / "run")
    assert run.status == "running" and run.counts.tolist() == [3]


@pytest.mark.parallel([1])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("last", [math.nan, -math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run(train, tmp_path, exchange, last):
    """The last of many elements, in the last of several blocks."""
    objective = Failing(last=last, n_params=50_001)
    with pytest.raises(hpc_dasgd.TrainingError, match="norm is not finite at gradient 3 of rank 0"):
        train({"objective": objective}, exchange=EXCHANGES[exchange], budget={"gradients": 10})
    assert hpc_dasgd.open_run(tmp_path / "run").counts.tolist() == [3]


@pytest.mark.parallel([2])
def test_the_error_names_the_rank_that_failed(comm, train):
    with pytest.raises(hpc_dasgd.TrainingError, match=f"at gradient 3 of rank {comm.rank} "):
        train({"objective": Failing(loss=math.nan)}, exchange={"kind": "none"}, budget={"gradients": 100})


@pytest.mark.parallel([1])
def test_a_stepsize_far_too_large_is_an_error_without_warnings(train):
    """Warnings are errors here."""
    with pytest.raises(hpc_dasgd.TrainingError, match=r"(not finite|loss is inf) at gradient .*than 1000 may"):
        train(optimizer={"stepsize": 1000.0}, device={"dtype": "float32"}, budget={"gradients": 1000})


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("exchange", [{"kind": "read", "topology": "tree"}, {"kind": "accumulate"}, {"kind": "server"}])
def test_a_stepsize_from_theory_is_the_best_of_its_bound(comm, train, exchange):
    result = train(
        objective={"noise": 0.5},
        exchange=exchange,
        optimizer={"stepsize": "bound"},
        straggler={"ranks": [comm.size - 1], "delay_ms": 2.0},
        budget={"gradients": 400},
        log={"evaluate_every_s": 0.01},
    )
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        chosen = json.loads(run.attributes["stepsize_chosen"])
        constants, delays, stepsize = chosen["constants"], chosen["delays"], chosen["stepsize"]
        assert constants["L"] == SPECTRUM.max()
        assert (constants["sigma"], constants["F_0"]) == (0.5, pytest.approx(START_LOSS))
        assert chosen["n_gradients"] == 400
        assert delays["S_avg"] <= delays["S_rms"] <= delays["S_max"]
        assert (comm.size == 1) == (delays["S_max"] == 0)
        assert set(run.gradients["stepsize"]) == {stepsize} == {run.config.optimizer.stepsize}

        def value(gamma):  # of the bound that was chosen, by theory.md
            L, sigma, S = constants["L"], constants["sigma"], delays
            start_and_noise = 4 * constants["F_0"] / (gamma * 400) + 2 * L * gamma * sigma**2
            if chosen["bound"] == "A":
                return start_and_noise + 2 * (L * gamma * constants["Q"] * S["S_rms"]) ** 2
            return start_and_noise + (2 * L * gamma * sigma) ** 2 * S["S_avg"]

        limit = 0.5 if chosen["bound"] == "A" else 0.25
        if chosen["bound"] == "B" and delays["W_max"]:
            limit = min(limit, 1 / (2 * math.sqrt(2 * 4 * delays["W_max"])))
        assert stepsize <= limit * (1 + 1e-9)
        others = [other for other in stepsize * np.geomspace(0.5, 2, 21) if other <= limit]
        assert value(stepsize) <= min(map(value, others)) * (1 + 1e-6)
        assert run.evaluation["loss"][-1] < run.evaluation["loss"][0]
