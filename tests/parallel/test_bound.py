"""Runs of a function with known constants, compared with the convergence bounds."""

import json
import math

import pytest

import hpc_dasgd
from hpc_dasgd.analysis import bound_report
from hpc_dasgd.cli import main as cli
from hpc_dasgd.report.bound_table import bound_table

L, SIGMA, DIMENSION = 2.0, 0.5, 20
TERMS = ("start", "noise", "staleness")


@pytest.fixture
def train(comm, tmp_path):
    def run(stepsize=0.01, **sections):
        config = {
            "objective": {"kind": "quadratic", "dimension": DIMENSION, "L": L, "mu": 0.1, "noise": SIGMA},
            "optimizer": {"stepsize": stepsize},
            "budget": {"gradients": 2000},
        } | sections
        return hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False).run

    return run


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("topology", ["complete", "tree"])
def test_the_bounds_equal_the_formulas_and_exceed_the_measured_norm(comm, train, topology, capsys):
    directory = train(exchange={"topology": topology})
    if comm.rank:
        return
    assert cli.main(["bound", str(directory), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    staleness = hpc_dasgd.open_run(directory).staleness().as_dict()
    T, gamma = numbers["gradients"], numbers["stepsize"]
    constants = {name: constant["value"] for name, constant in numbers["constants"].items()}
    assert (constants["L"], constants["sigma"], gamma, T) == (L, SIGMA, 0.01, staleness["gradients"])
    assert constants["Q"] == hpc_dasgd.open_run(directory).gradients["gradient_norm"].max()
    start, noise = 4 * constants["F_0"] / (gamma * T), 2 * L * gamma * SIGMA**2
    a = 2 * (L * gamma * constants["Q"] * staleness["S_rms"]) ** 2
    b = 4 * (L * gamma * SIGMA) ** 2 * staleness["S_avg"]
    assert [numbers["A"]["terms"][term] for term in TERMS] == pytest.approx([start, noise, a])
    assert [numbers["B"]["terms"][term] for term in TERMS] == pytest.approx([start, noise, b])
    assert numbers["A"]["condition_met"]
    limit = 1 / (2 * math.sqrt(2 * staleness["W_max"]) * L) if staleness["W_max"] else math.inf
    assert numbers["B"]["condition_met"] == (gamma <= min(1 / (4 * L), limit))
    assert numbers["best_stepsize"] > 0
    assert numbers["measured_by"] == "log"
    for name in ("A", "B"):
        assert (
            numbers["measured"] - 5 * numbers["measured_error"] < numbers[name]["value"]
            or not numbers[name]["condition_met"]
        )
    assert set(numbers["paper"]["bounded_gradients"]) == {"noise", "staleness_bounded", "staleness"}


@pytest.mark.parallel([2])
def test_gradients_at_recomputed_replicas_agree_with_the_logged_norms(comm, train):
    directory = train()
    if comm.rank == 0:
        run = hpc_dasgd.open_run(directory)
        logged = bound_report.compare_with_bounds(run)
        replayed = bound_report.compare_with_bounds(run, with_replay=True)
        assert (logged.measured_by, replayed.measured_by) == ("log", "replay")
        error = math.hypot(logged.measured_error, replayed.measured_error)
        assert abs(logged.measured - replayed.measured) < 5 * error
        assert replayed.measured > 0


@pytest.mark.parallel([2])
def test_given_constants_replace_estimated_ones(comm, train, capsys):
    directory = train(optimizer={"stepsize": 0.05, "kind": "momentum"})
    if comm.rank == 0:
        constants = [part for name in ("L=8", "sigma=3", "Q=4", "F_0=5") for part in ("--set", name)]
        assert cli.main(["bound", str(directory), "--json", *constants]) == 0
        numbers = json.loads(capsys.readouterr().out)
        assert {name: constant["value"] for name, constant in numbers["constants"].items()} == {
            "L": 8, "sigma": 3, "Q": 4, "F_0": 5,
        }  # fmt: skip
        assert numbers["A"]["terms"]["noise"] == pytest.approx(2 * 8 * 0.05 * 9)
        assert any("`optimizer.kind` is momentum" in warning for warning in numbers["warnings"])
        assert cli.main(["bound", str(directory)]) == 0
        assert "warning: the bounds are for sgd" in capsys.readouterr().out


@pytest.mark.parallel([1])
@pytest.mark.parametrize("given", ["F_0=0", "L=0", "L=1e200"])
def test_constants_out_of_range_exit_with_a_one_line_message(comm, train, capsys, given):
    assert cli.main(["bound", str(train()), "--set", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"`{given.partition('=')[0]}` must be positive and below 1e+30" in line


@pytest.mark.parallel([2])
def test_a_given_variance_is_not_subtracted_from_the_logged_norms(comm, train):
    directory = train()
    if comm.rank == 0:
        report = bound_report.compare_with_bounds(hpc_dasgd.open_run(directory), {"sigma": 30.0})
        assert report.measured_by == "upper"
        assert report.measured > 0


@pytest.mark.parallel([2])
def test_constants_of_real_data_are_estimated(comm, train):
    mlp = {"kind": "mlp", "hidden": [8]}
    directory = train(objective=mlp, data={"path": "digits"}, log={"versions": "every 10"})
    if comm.rank == 0:
        report = bound_report.compare_with_bounds(hpc_dasgd.open_run(directory))
        assert report.measured_by == "upper"
        assert all(constant.value > 0 for constant in report.constants.values())
        assert report.constants["sigma"].error > 0
        assert "which --replay removes" in bound_table(report)


@pytest.mark.parallel([1])
@pytest.mark.parametrize("text", ["sigma=-1", "mu=1", "L", "Q=nan"])
def test_an_invalid_setting_of_a_constant_exits_with_a_message(comm, tmp_path, capsys, text):
    assert cli.main(["bound", str(tmp_path), "--set", text]) == 2
    assert f"must be L, sigma, Q or F_0 and a number of at least 0, got '{text}'" in capsys.readouterr().err
