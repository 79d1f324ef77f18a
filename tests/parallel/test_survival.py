"""Deaths of ranks: the others continue, hold every update that the dead rank had published once, and end normally.

The launchers are started as in README. With MPICH and Intel MPI a shell is started for each rank, which MPICH needs,
and which prints the exit status of the rank. Open MPI would end the job when that shell fails.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hpc_dasgd
from hpc_dasgd.exchange.read.process import Process
from hpc_dasgd.runtime.processes import started_ticks
from hpc_dasgd.window.board import Board
from tests.parallel.integer_updates import N_PARAMS, Updates

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "jobs" / "digits.toml"
SHELL = ["sh", "-c", 'trap "" USR1; "$@"; status=$?; echo "ended: $status"; exit $status', "sh"]
LAUNCHERS = {
    "MPICH": {"launcher": ["-disable-auto-cleanup"], "before": SHELL},
    "Intel(R) MPI": {"launcher": ["-disable-auto-cleanup"], "before": SHELL},
    "Open MPI": {"launcher": ["--enable-recovery"]},
}
KILLED = 128 + 9


@pytest.fixture(scope="session")
def launcher():
    """Return the options with which the launcher of this MPI does not end the job when a rank dies."""
    script = "import mpi4py; mpi4py.rc.initialize = False\nfrom mpi4py import MPI; print(MPI.Get_library_version())"
    version = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    options = next((LAUNCHERS[name] for name in LAUNCHERS if version.startswith(name)), None)
    if options is None:
        pytest.skip(f"no options are known for the launcher of {version[:40]!r}")
    return options


@pytest.fixture
def run_ranks(mpiexec, launcher, tmp_path):
    """Return a function that runs `mortal_ranks`; it returns outcomes by rank, exit statuses and standard error."""

    def run(n_ranks, **scenario):
        arguments = ["-m", "tests.parallel.mortal_ranks", tmp_path, json.dumps(scenario)]
        done = mpiexec(n_ranks, *arguments, **launcher, timeout_s=90)
        outcomes = {int(path.stem[5:]): json.loads(path.read_text()) for path in tmp_path.glob("rank_*.json")}
        return outcomes, statuses(done), done.stderr

    return run


def statuses(done):
    """Return the statuses of the ranks, ascending; without a shell that of the launcher.

    Open MPI's launcher returns 0 if a rank was killed.
    """
    said = sorted(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("ended: "))
    return said or done.returncode


def expected(done_statuses, *wanted):
    """Return what `statuses` must return if the ranks ended with the statuses `wanted`."""
    return sorted(wanted) if isinstance(done_statuses, list) else max(set(wanted) - {KILLED})


def held_by(versions):
    return np.arange(N_PARAMS) + sum(Updates(rank).sum_to(version) for rank, version in enumerate(versions))


@pytest.mark.parametrize(
    ("overlay", "n_ranks", "kills"),
    [
        ("complete", 4, {"0": 37}),
        ("complete", 4, {"1": 60, "3": 61}),
        ("tree", 4, {"0": 50}),  # the root, whose contribution contains x0
        ("chain", 5, {"2": 50}),  # the middle rank, without which no update passes from one half to the other
        ("chain", 5, {"1": 40, "3": 70}),
        ("chain", 4, {"3": 0}),  # an end, before it has published anything
    ],
)
def test_survivors_hold_what_dead_ranks_had_published_and_continue(run_ranks, overlay, n_ranks, kills):
    outcomes, ended, errors = run_ranks(n_ranks, overlay=overlay, kills=kills, target=400)
    died = sorted(map(int, kills))
    survivors = [rank for rank in range(n_ranks) if rank not in died]
    assert sorted(outcomes) == survivors, errors
    assert ended == expected(ended, *[0] * len(survivors), *[KILLED] * len(died))
    versions = outcomes[survivors[0]]["versions"]
    for rank in survivors:
        each = outcomes[rank]
        assert each["died"] == died
        assert each["n_wrong"] == 0 and each["n_checked"] >= 400
        assert each["versions"] == versions and each["versions"][rank] == each["made"]
        np.testing.assert_array_equal(each["parameters"], held_by(versions))
        assert each["gathered"] == [None if other in died else other for other in range(n_ranks)]
    for rank, killed_at in kills.items():
        assert versions[int(rank)] == killed_at
        lines = [line for line in errors.splitlines() if f"rank {rank} of " in line]
        assert len(lines) == 1 and "died" in lines[0]


@pytest.mark.parametrize("overlay", ["complete", "chain"])
def test_survivors_continue_with_elementwise_reads(run_ranks, overlay):
    outcomes, ended, errors = run_ranks(4, overlay=overlay, kills={"1": 50}, target=300, consistency="elementwise")
    assert sorted(outcomes) == [0, 2, 3], errors
    assert ended == expected(ended, 0, 0, 0, KILLED)
    for each in outcomes.values():
        assert each["versions"] == outcomes[0]["versions"] and each["versions"][1] == 50
        np.testing.assert_array_equal(each["parameters"], held_by(outcomes[0]["versions"]))


@pytest.mark.parametrize("overlay", ["complete", "chain"])
def test_survivors_continue_with_replicas_on_a_device(run_ranks, overlay):
    outcomes, ended, errors = run_ranks(4, overlay=overlay, kills={"1": 50}, target=300, device="late")
    assert sorted(outcomes) == [0, 2, 3], errors
    assert ended == expected(ended, 0, 0, 0, KILLED)
    for each in outcomes.values():
        # An update that was being copied to the window is lost with the rank.
        assert each["versions"] == outcomes[0]["versions"] and 0 < each["versions"][1] <= 50
        assert each["n_wrong"] == 0
        np.testing.assert_array_equal(each["parameters"], held_by(outcomes[0]["versions"]))


@pytest.mark.parametrize("overlay", ["complete", "chain"])
def test_a_rank_that_was_suspended_takes_part_again(run_ranks, overlay):
    outcomes, ended, errors = run_ranks(4, overlay=overlay, stops={"1": 50}, target=400)
    assert ended == expected(ended, 0, 0, 0, 0), errors
    assert "rank 1 of" in errors and "is alive after all" in errors
    for rank, each in outcomes.items():
        assert each["died"] == [] and each["n_wrong"] == 0
        assert each["versions"] == outcomes[0]["versions"] and each["versions"][rank] >= 400
        np.testing.assert_array_equal(each["parameters"], held_by(outcomes[0]["versions"]))


def test_a_rank_that_continues_after_the_others_have_ended_leaves_without_them(run_ranks):
    outcomes, ended, errors = run_ranks(4, overlay="complete", stops={"0": "settle"}, target=300)
    assert ended == expected(ended, 0, 0, 0, 1), errors
    assert "counted this rank as dead" in outcomes[0]["left_behind"]
    for rank in (1, 2, 3):
        assert outcomes[rank]["died"] == [0]
        np.testing.assert_array_equal(outcomes[rank]["parameters"], held_by(outcomes[1]["versions"]))


@pytest.mark.parametrize("topology", ["complete", "tree"])
def test_a_training_run_ends_normally_after_the_death_of_rank_0(mpiexec, launcher, tmp_path, topology):
    """Rank 0, which evaluates and writes ``run.h5``, is killed during the twentieth gradient of the run or later."""
    (tmp_path / "mortal.py").write_text(MORTAL)
    command = ["-m", "hpc_dasgd", "train", DIGITS, "--run", tmp_path / "run"]
    changes = {"survive": "true", "topology": topology}
    command += [f"--set=exchange.{name}={value}" for name, value in changes.items()]
    command += ["--set=objective.kind=mortal:make", "--set=budget.target_loss=0.1", "--set=budget.seconds=60"]
    done = mpiexec(
        4,
        *command,
        **launcher,
        environment={"PYTHONPATH": f"{tmp_path}:{Path(hpc_dasgd.__file__).parents[1]}"},
        timeout_s=100,
    )
    ended = statuses(done)
    assert ended == expected(ended, 0, 0, 0, KILLED), done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("died: ")] == [
        "died: rank 0; the others continued"
    ]
    run = hpc_dasgd.open_run(tmp_path / "run")
    assert run.status == "complete" and run.attributes["died"] == [0]
    assert any("died" in warning for warning in run.warnings)
    assert run.evaluation["loss"].min() <= 0.1  # another rank has evaluated
    assert run.final is not None and np.all(np.isfinite(run.final))


MORTAL = """
import os, signal
from hpc_dasgd.runtime import mpi
from hpc_dasgd.objectives.mlp import mlp


def make(data, hidden):
    objective, versions = mlp(data, hidden=hidden), iter(range(20))
    loss_and_gradient = objective.loss_and_gradient

    def mortal(parameters, batch, out):
        if next(versions, None) is None and mpi.process_rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_and_gradient(parameters, batch, out)

    objective.loss_and_gradient = mortal
    return objective
"""


def test_a_process_has_exited_if_it_ended_or_is_a_zombie():
    assert not Process.own().has_exited()
    with subprocess.Popen(["sleep", "60"]) as child:
        there = Process.own()._replace(pid=child.pid, started=started_ticks(child.pid))
        assert not there.has_exited()
        child.kill()
        while not there.has_exited():  # it is a zombie until it is waited for
            pass
        child.wait()
    assert there.has_exited()
    assert Process.own()._replace(started=1).has_exited()  # another process of the same number


@pytest.mark.parallel([1, 4])
def test_a_board_shows_one_value_of_each_rank_in_each_round(comm):
    board = Board(comm, 1000)
    for turn in range(50):
        board.post((turn, comm.rank))
        for other in range(comm.size):
            found = None
            while not found:
                found = next(board.read(other))
            assert found == [(turn, other)]
    with pytest.raises(ValueError, match="`value` must have at most 1000 bytes pickled, got 1"):
        board.post(bytes(1000))
    comm.Barrier()
    board.free()
