"""Run directories of an earlier version, see ``tests/data/README.md``: every command still works on them."""

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import hpc_dasgd
from jobs.benchmarks.mpiexec import ENVIRONMENT

DATA = Path(__file__).parents[1] / "data"
EXPECTED = json.loads((DATA / "earlier_runs.json").read_text())
RUNS = ("tree", "server")
OVERRIDES = {"tree": [], "server": ["exchange.kind=server", "exchange.topology=complete", "device.dtype=float64"]}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(DATA / "earlier_runs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def command(folder):
    """A function that runs ``hpc-dasgd`` in the folder of the runs and returns the completed process."""

    def run(*arguments, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "hpc_dasgd", *map(str, arguments)],
            cwd=folder,
            env=ENVIRONMENT | ONE_THREAD,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return done

    return run


def arithmetic():
    """Return a hash of the results of the operations that a gradient of softmax regression consists of.

    Processors and BLAS libraries round matrix products and exponentials differently. If this hash is the recorded one,
    a replay must agree bit for bit; otherwise it can agree only up to rounding.
    """
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.random(shape, np.float32) for shape in ((16, 64), (64, 10), (10,)))
    outputs = x @ weight + bias
    exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    total = exponentials.sum(axis=1, keepdims=True)
    shares = exponentials / total
    results = [outputs, exponentials, total, np.log(total), np.log(total).mean(), x.T @ shares, shares.sum(axis=0)]
    return hashlib.sha256(b"".join(result.tobytes() for result in results)).hexdigest()


def numbers(value, name=""):
    """Return all numbers in nested dictionaries and lists, by where they are."""
    if isinstance(value, dict):
        return {key: number for part in value for key, number in numbers(value[part], f"{name}/{part}").items()}
    if isinstance(value, list):
        return {key: number for i, part in enumerate(value) for key, number in numbers(part, f"{name}/{i}").items()}
    return {name: value} if isinstance(value, (int, float)) else {}


def assert_replay_agrees(command, folder, run):
    """The recomputed parameters are the final ones: up to rounding, and bit for bit if the arithmetic is the same."""
    final = hpc_dasgd.open_run(folder / run).final
    n_gradients = int(hpc_dasgd.open_run(folder / run).counts.sum())
    command("replay", run, "--until", n_gradients, "--output", "moment.npz")
    with np.load(folder / "moment.npz") as moment:
        np.testing.assert_allclose(moment["parameters"], final, rtol=1e-4, atol=1e-5)
    replayed = command("replay", run, status=None)
    same_arithmetic = arithmetic() == EXPECTED["arithmetic"]
    assert replayed.returncode in ((0,) if same_arithmetic else (0, 1)), replayed.stdout + replayed.stderr
    assert str(n_gradients) in replayed.stdout


@pytest.mark.parametrize("run", RUNS)
def test_an_earlier_run_opens_with_its_rows_and_parameters(folder, run):
    opened = hpc_dasgd.open_run(folder / run)
    staleness = EXPECTED[run]["staleness"]
    assert opened.status == "complete"
    assert len(opened.generations) == {"tree": 2, "server": 1}[run]
    assert opened.n_ranks == staleness["n_ranks"]
    assert list(opened.counts) == [row["gradients"] for row in staleness["per_rank"]]
    assert len(opened.gradients) == staleness["gradients"]
    assert opened.config.objective.kind == "softmax"
    assert opened.x0.shape == opened.final.shape == (64 * 10 + 10,)


@pytest.mark.parametrize("run", RUNS)
def test_staleness_of_an_earlier_run_is_what_it_was(command, run):
    found = json.loads(command("staleness", run, "--json").stdout)
    assert numbers(found) == pytest.approx(numbers(EXPECTED[run]["staleness"]), rel=1e-12)


@pytest.mark.parametrize("run", RUNS)
def test_bound_of_an_earlier_run_is_what_it_was(command, run):
    """Up to rounding: the variance of gradients is measured anew."""
    found = json.loads(command("bound", run, "--json").stdout)
    assert numbers(found) == pytest.approx(numbers(EXPECTED[run]["bound"]), rel=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_report_of_an_earlier_run_shows_its_numbers(command, folder, run):
    summary = command("report", run).stdout.replace(",", "")
    assert [number for number in EXPECTED[run]["summary"] if number not in summary] == []
    assert "</html>" in (folder / run / "report" / "report.html").read_text()


@pytest.mark.parametrize("run", RUNS)
def test_export_of_an_earlier_run_writes_the_same_arrays(command, folder, run):
    command("export", run, "parameters.npz")
    with np.load(folder / "parameters.npz") as arrays:
        found = {
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
            }
            for name, array in arrays.items()
        }
    assert found == EXPECTED[run]["export"]


def test_comparison_of_earlier_runs_is_what_it_was(command):
    found = json.loads(command("compare", "tree", "server", "--json", "--output", "comparison").stdout)
    assert numbers(found) == pytest.approx(numbers(EXPECTED["compare"]), rel=1e-12)


@pytest.mark.parametrize("run", RUNS)
def test_watch_of_an_earlier_run_shows_its_end_and_returns(command, run):
    shown = command("watch", run).stdout
    assert "complete" in shown and str(EXPECTED[run]["staleness"]["gradients"]) in shown


def test_replay_of_an_earlier_run_agrees(command, folder):
    assert_replay_agrees(command, folder, "tree")


def test_replay_of_an_earlier_run_with_a_server_is_refused(command):
    assert "`exchange.kind` is server" in command("replay", "server", status=2).stderr


@pytest.mark.parametrize("run", RUNS)
def test_an_earlier_run_is_resumed(mpiexec, command, folder, run):
    before = hpc_dasgd.open_run(folder / run)
    n_generations, n_gradients = len(before.generations), int(before.counts.sum())
    arguments = ["-m", "hpc_dasgd", "train", "softmax.toml", "--run", run, "--resume"]
    for setting in (*OVERRIDES[run], f"budget.gradients={n_gradients + 100}"):
        arguments += ["--set", setting]
    done = mpiexec(2, *arguments, cwd=folder, environment=ONE_THREAD, timeout_s=100)
    assert done.returncode == 0, done.stdout + done.stderr
    after = hpc_dasgd.open_run(folder / run)
    assert after.status == "complete"
    assert len(after.generations) == n_generations + 1
    assert after.counts.sum() >= n_gradients + 100
    assert (after.counts[: before.n_ranks] >= before.counts).all()
    if run == "tree":
        assert_replay_agrees(command, folder, run)
