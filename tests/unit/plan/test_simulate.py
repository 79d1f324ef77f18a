"""Tests of ``plan``: simulations against formulas and against a simulation with sets, and the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.cli.main import main
from hpc_dasgd.config.settings import StragglerConfig, load_config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.overlay.topology import all_tree_neighbours
from hpc_dasgd.plan import planning
from hpc_dasgd.plan.simulate import SimulationSetup, simulate
from hpc_dasgd.plan.times import POLL_S, times_from_run
from tests.unit import synthetic

SETTINGS = {"budget": {"gradients": 1000}, "objective": {"kind": "quadratic", "dimension": 10}}
TREES = {
    "tree": all_tree_neighbours("tree", [0, 0, 0, 1, 1, 2, 2], fan_out=2),
    "chain": all_tree_neighbours("ring", [0] * 5, fan_out=2),
    "star": all_tree_neighbours("star", [0] * 6, fan_out=2),
}


def setup(n_ranks, neighbours=None, compute_s=([0.01],), **options):
    return SimulationSetup([0] * n_ranks, neighbours, compute_s, **options)


def with_sets(neighbours, starts_s, compute_s, n_gradients):
    """Return staleness and largest reach on a tree whose exchanges take no time, from sets of (rank, index)."""
    n_ranks = len(neighbours)
    holds, shows = ([set() for _ in range(n_ranks)] for _ in range(2))
    held = [set() for _ in range(n_ranks)]
    events = [
        (starts_s[rank] + k * compute_s[rank], rank, k) for rank in range(n_ranks) for k in range(n_gradients + 1)
    ]
    completed, staleness, missed = set(), [], []
    for _, rank, k in sorted(events):
        if k:
            missed.append(completed - held[rank])
            staleness.append(len(missed[-1]))
            completed.add((rank, k - 1))
        for other in neighbours[rank]:
            holds[rank] |= shows[other]
        if k:
            holds[rank].add((rank, k - 1))
            shows[rank] = set(holds[rank])
        held[rank] = set(holds[rank])
        if len(staleness) == n_gradients:
            break
    reach = {gradient: 0 for gradient in completed}
    for gradients in missed:
        for gradient in gradients:
            reach[gradient] += len(gradients)
    return staleness, max(reach.values())


def test_equal_seeds_give_equal_results():
    times = {"compute_s": ([0.01, 0.02, 0.05],), "overhead_s": ([0.0001, 0.001],)}
    first, second, other = (simulate(setup(4, **times), 500, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.staleness, second.staleness)
    assert first.seconds == second.seconds != other.seconds


@pytest.mark.parametrize("n_ranks", [1, 2, 5, 40])
def test_equal_ranks_miss_one_gradient_of_each_other_rank(n_ranks):
    result = simulate(setup(n_ranks), 100 * n_ranks)
    assert result.n_warm_up > 0
    assert set(result.staleness) == {n_ranks - 1}
    assert result.W_max == (n_ranks - 1) ** 2
    assert result.staleness.size / result.seconds == pytest.approx(n_ranks / 0.01, rel=0.02)


def test_without_exchange_staleness_grows():
    result = simulate(setup(3, [()] * 3), 300)
    # Each gradient misses all gradients so far of the other ranks.
    np.testing.assert_array_equal(result.staleness, 2 * (np.arange(300) // 3) + np.arange(300) % 3)
    assert result.read_bytes == 0


@pytest.mark.parametrize("neighbours", TREES.values(), ids=TREES)
@pytest.mark.parametrize("seed", [0, 1])
def test_staleness_and_reach_on_trees_equal_those_of_a_simulation_with_sets(neighbours, seed):
    rng = np.random.default_rng(seed)
    compute_s = rng.uniform(0.01, 0.03, len(neighbours))
    starts_s = rng.uniform(0, 0.01, len(neighbours))
    n_gradients = 150
    staleness, reach = with_sets(neighbours, starts_s, compute_s, n_gradients)
    times = [[seconds] for seconds in compute_s]
    result = simulate(setup(len(neighbours), neighbours, times), n_gradients, starts_s=starts_s)
    np.testing.assert_array_equal(result.staleness, staleness[result.n_warm_up :])
    assert result.W_max == reach


@pytest.mark.parametrize("neighbours", [None, all_tree_neighbours("tree", [0] * 200, fan_out=2)], ids=["all", "tree"])
def test_sampled_sources_agree_with_all(neighbours):
    made = setup(200, neighbours, ([0.01, 0.02],), pass_s=1e-6)
    exact, sampled = (simulate(made, 20_000, n_sources=n_sources) for n_sources in (200, 50))
    assert (exact.n_sources, sampled.n_sources) == (200, 50)
    assert sampled.staleness.mean() == pytest.approx(exact.staleness.mean(), rel=0.05)


@pytest.mark.parametrize("distribution", ["constant", "exponential"])
def test_throughput_and_staleness_with_a_straggler_follow_their_formulas(distribution):
    n_ranks, compute, delay = 4, 0.01, 0.05
    straggler = StragglerConfig(ranks=(1,), delay_ms=1e3 * delay, distribution=distribution)
    result = simulate(setup(n_ranks, straggler=straggler), 30_000)
    fast, slow = (n_ranks - 1) / compute, 1 / (compute + delay)
    missed = fast * (n_ranks - 2 + compute / (compute + delay)) + slow * (n_ranks - 1) * (compute + delay) / compute
    assert result.staleness.mean() == pytest.approx(missed / (fast + slow), rel=0.02)
    assert result.staleness.size / result.seconds == pytest.approx(fast + slow, rel=0.02)


def test_the_time_of_an_exchange_is_that_of_its_passes_over_memory():
    result = simulate(setup(2, compute_s=([0.009, 0.011],), pass_s=1e-3), 20_000)
    # 5 passes to store, 2 to read a new publication, and 3 to sum if that was read in `pull`.
    assert 0.017 < 2 * result.seconds / result.staleness.size < 0.020
    # A rank reads as long after completing a gradient as it takes to publish one: the gradients that it misses were
    # completed in a span as long as a step.
    assert result.staleness.mean() == pytest.approx(1, rel=0.02)


def test_rare_exchanges_increase_the_staleness():
    often, rarely = (simulate(setup(4, every=every), 10_000).staleness.mean() for every in (1, 5))
    assert often == 3
    # What a rank has read and what the other has published are each up to 4 steps older, 2 on average.
    assert rarely == pytest.approx(3 * 5, rel=0.1)


def test_the_warm_up_of_rare_exchanges_is_long_enough():
    result = simulate(setup(50, every=100))
    assert result.n_warm_up > 0
    assert result.staleness.mean() == pytest.approx(49 * 100, rel=0.1)


def test_more_ranks_than_cores_share_the_cores():
    alone, shared = (simulate(setup(8, cores=cores), 8000) for cores in (8, 2))
    assert shared.seconds == pytest.approx(4 * alone.seconds, rel=0.02)
    assert shared.staleness.mean() == pytest.approx(7, rel=0.02)


def test_a_delayed_straggler_does_not_use_its_core():
    straggler = StragglerConfig(ranks=(0,), delay_ms=1000.0)
    result = simulate(setup(2, cores=1, straggler=straggler), 10_000)
    assert result.staleness.size / result.seconds == pytest.approx(100, rel=0.05)


def test_reads_across_nodes_take_time_and_are_counted():
    made = SimulationSetup([0, 0, 1], None, ([0.01],), payload_bytes=10**6, latency_s=1e-3, bytes_per_s=1e9)
    result = simulate(made, 3000)
    # Rank 2 reads two models across nodes, the others one.
    assert result.read_bytes_across == pytest.approx(result.read_bytes * 2 / 3, rel=0.1)
    step_s = 3 * result.seconds / result.staleness.size
    assert 0.013 < step_s < 0.021


@pytest.fixture
def run(tmp_path):
    config = load_config({**SETTINGS, "straggler": {"ranks": [1], "delay_ms": 5.0}})
    n_steps = 50
    starts = [np.arange(n_steps) * 0.01, np.arange(n_steps) * 0.015]
    made = synthetic.SimpleNamespace(
        n_ranks=2,
        start=starts,
        end=[starts[0] + 0.008, starts[1] + 0.013],
        versions=[np.zeros((n_steps, 2), np.uint32)] * 2,
    )
    attributes = {"hosts": ["node"] * 2}
    return open_run(synthetic.write_run(tmp_path / "run", made, config=config.to_toml(), attributes=attributes))


def test_times_of_a_run_do_not_contain_the_delays_of_its_stragglers(run):
    times = times_from_run(run, 2, cores=2)
    np.testing.assert_allclose([np.mean(values) for values in times.compute_s], [0.008, 0.008])
    for values in times.overhead_s:
        # The time between gradients without two polls, and at most 10 passes over 24 bytes.
        assert 0.002 - 2 * POLL_S - 1e-4 <= np.mean(values) <= 0.002 - 2 * POLL_S
    assert times.n_params == 6
    assert len(times_from_run(run, 7, cores=2).compute_s) == 1
    config = load_config(SETTINGS)
    found = planning.plan(config, planning.Machine(n_ranks=2, cores=2, ranks_per_node=2), times)
    assert found["gradients_per_s"] == pytest.approx(200, rel=0.05)
    assert found["seconds"] == pytest.approx(5, rel=0.05)


def test_times_of_a_run_that_shared_a_core_are_converted_to_one_core_per_rank(run):
    alone, shared = (np.mean(times_from_run(run, 3, cores).compute_s[0]) for cores in (2, 1))
    assert shared == pytest.approx(alone / (2 - 0.005 / 0.015), rel=0.02)


def test_the_number_of_cores_of_a_run_is_read_from_its_files(tmp_path):
    config = load_config(SETTINGS)
    starts = [np.arange(0, 2, 0.01)] * 4
    made = SimpleNamespace(
        n_ranks=4, start=starts, end=[own + 0.008 for own in starts], versions=[np.zeros((200, 4), np.uint32)] * 4
    )
    attributes = {"hosts": ["node"] * 4, "cores": [2] * 4}
    directory = synthetic.write_run(tmp_path / "run", made, config=config.to_toml(), attributes=attributes)
    times = times_from_run(open_run(directory), 4, cores=64)
    # Four ranks shared two cores: with cores of their own they would have been twice as fast.
    np.testing.assert_allclose([np.mean(values) for values in times.compute_s], 0.004, rtol=0.02)


def write_config(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(load_config(SETTINGS).to_toml())
    return str(path)


def test_plan_prints_json(tmp_path, capsys):
    options = ["--compute-ms", "2", "--cores", "4", "--json"]
    assert main(["plan", write_config(tmp_path), "--ranks", "4", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_ranks"] == found["n_sources"] == 4
    assert found["n_params"] == 10
    assert found["S_avg"] == pytest.approx(3, rel=0.1)
    assert found["S_max"] >= found["S_rms"] >= found["S_avg"]
    assert 1000 < found["gradients_per_s"] <= 2010
    assert found["seconds"] == pytest.approx(1000 / found["gradients_per_s"])


def test_plan_prints_a_table_from_a_run(tmp_path, run, capsys):
    set_ = ["--set", "exchange.topology=tree", "--set", "budget.gradients=5000"]
    assert main(["plan", write_config(tmp_path), "--ranks", "5", "--from", str(run.directory), *set_]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"5 ranks, times from run {run.directory}"
    assert any(line.startswith("S_avg ") for line in lines)
    assert lines[-2].split()[:4] == ["time", "of", "the", "budget"] and lines[-2].endswith(" s")
    assert lines[-1].startswith("safe stepsize ")


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--set", "exchange.kind=gossip", "--set", "exchange.topology=ring"], "`exchange.kind` must be read or none"),
        (["--set", "exchange.kind=none"], "`exchange.kind` must be read to plan with, got 'none'"),
        (["--set", "exchange.every=auto"], "`exchange.every` must be a number"),
        (["--seed", "-1"], "must be an integer of at least 0"),
        (["--set", "straggler.ranks=[9]", "--set", "straggler.delay_ms=1"], "below the number of ranks, 2, got 9"),
        (["--cores", "0"], "--cores"),
    ],
)
def test_settings_that_cannot_be_planned_are_refused(tmp_path, capsys, options, fragment):
    assert main(["plan", write_config(tmp_path), "--ranks", "2", "--compute-ms", "1", *options]) == 2
    assert fragment in capsys.readouterr().err


def test_a_run_of_another_exchange_cannot_be_planned_from(tmp_path):
    made = synthetic.schedule(2, 50)
    config = load_config({**SETTINGS, "exchange": {"kind": "server"}})
    other = open_run(synthetic.write_run(tmp_path, made, config=config.to_toml()))
    with pytest.raises(ConfigError, match="must be read or none to plan with, got 'server'"):
        times_from_run(other, 2, cores=2)
