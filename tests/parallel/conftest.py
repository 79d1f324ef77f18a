"""Parallel tests: ``pytest`` starts ``mpiexec`` itself.

A test marked ``@pytest.mark.parallel([1, 2, 4])`` runs on that many ranks, on all of them, with the fixture
`comm`. The pytest that the user started runs none of them. It starts ``mpiexec -n N python -m pytest`` once
for all tests of a file on N ranks, and reports what each rank wrote about each test. Tests without the mark
run as usual; the fixture `mpiexec` starts commands on ranks for them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc_dasgd.runtime import launcher, mpi
from jobs.benchmarks.mpiexec import ENVIRONMENT, MPIEXEC

OUTCOMES = "HPC_DASGD_TEST_OUTCOMES"  # folder of the ranks' outcomes; set in the pytest of a rank alone
LAUNCH_TIMEOUT_S = 600
PATIENCE_S = 10  # for the other ranks, after a failure on one

launcher.set_environment_defaults()


class Ranks:
    """Starts programs under the ``mpiexec`` that belongs to this Python's environment."""

    def __init__(self):
        self.command, self.environment = MPIEXEC, ENVIRONMENT

    def __call__(
        self, n_ranks, *arguments, timeout_s=LAUNCH_TIMEOUT_S, environment=None, launcher=(), before=(), **options
    ):
        """Run ``python *arguments`` on `n_ranks` ranks; returns `subprocess.CompletedProcess` with text outputs.

        `launcher` are options of ``mpiexec``, `before` stands in front of ``python``.
        """
        if self.command is None:
            pytest.fail("no mpiexec: install the extra mpich or openmpi, or load an MPI module")
        return subprocess.run(
            [self.command, *launcher, "-n", str(n_ranks), *before, sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            env=self.environment | (environment or {}),
            **options,
        )


RANKS = Ranks()


@pytest.fixture(scope="session")
def mpiexec():
    return RANKS


@pytest.fixture
def comm():
    """The ranks of this test, on a communicator of its own."""
    if OUTCOMES not in os.environ:
        yield None
        return
    own = mpi.comm_world().Dup()
    yield own
    own.Free()


@pytest.hookimpl(tryfirst=True)  # in a fixed place among those that make names of tests, here and on the ranks
def pytest_generate_tests(metafunc):
    mark = metafunc.definition.get_closest_marker("parallel")
    if mark is not None:
        metafunc.fixturenames.append("_n_ranks")
        metafunc.parametrize("_n_ranks", mark.args[0], ids="{}-ranks".format, indirect=True)


@pytest.fixture
def _n_ranks(request):
    return request.param


@pytest.hookimpl(trylast=True)  # after -k and the like
def pytest_collection_modifyitems(session, config, items):
    here = [item for item in items if item.get_closest_marker("parallel")]
    if OUTCOMES in os.environ:
        wanted = json.loads(Path(os.environ[OUTCOMES], "wanted.json").read_text())
        items[:] = [item for item in here if item.nodeid in wanted]
    else:
        config.stash[LAUNCHES] = Launches(here, config)
        for item in here:  # the ranks' own limits are enough: here the first test waits for all of its launch
            item.add_marker(pytest.mark.timeout(0), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Say what became of the test on the ranks, in place of calling it."""
    if OUTCOMES in os.environ or not pyfuncitem.get_closest_marker("parallel"):
        return None
    outcome, text = pyfuncitem.config.stash[LAUNCHES].outcome(pyfuncitem)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)
    if outcome == "skipped":
        pytest.skip(text)
    return True


def _launch_of(item):
    return item.path, item.callspec.params["_n_ranks"]


class Launches:
    """What became of the parallel tests, each found out by starting ranks when first asked for."""

    def __init__(self, items, config):
        self._config = config
        self._waiting = {}
        self._outcomes = {}
        for item in items:
            self._waiting.setdefault(_launch_of(item), []).append(item.nodeid)

    def outcome(self, item):
        while item.nodeid not in self._outcomes:
            self._start(*_launch_of(item))
        return self._outcomes[item.nodeid]

    def _start(self, path, n_ranks):
        """Start ranks for all tests still waiting; those behind one that ended the launch wait for the next."""
        waiting = self._waiting[path, n_ranks]
        wanted = list(waiting)
        folder = Path(self._config._tmp_path_factory.mktemp("ranks"))
        (folder / "wanted.json").write_text(json.dumps(wanted))
        arguments = ["-m", "pytest", str(path), "-p", "no:cacheprovider", "--rootdir", self._config.rootpath]
        try:
            done = RANKS(
                n_ranks,
                *arguments,
                environment={OUTCOMES: str(folder)},
                cwd=self._config.invocation_params.dir,
            )
            printed, code = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            printed, code = f"{late}\n{(late.stdout or b'').decode()}{(late.stderr or b'').decode()}", None
        by_rank = [_read_outcomes(folder / f"rank_{rank}.jsonl") for rank in range(n_ranks)]
        while waiting:
            nodeid = waiting.pop(0)
            outcomes = [found[nodeid] for found in by_rank if nodeid in found]
            self._outcomes[nodeid] = _joined(outcomes, n_ranks, printed)
            if len(outcomes) < n_ranks:
                break
        else:
            if code != 0 and all(self._outcomes[nodeid][0] != "failed" for nodeid in wanted):
                self._outcomes[nodeid] = ("failed", f"the ranks ended with status {code}\n{printed}")


def _joined(outcomes, n_ranks, printed):
    """Outcome and text of a test from those of its ranks; one without an outcome ended in the test."""
    texts = {outcome["outcome"]: outcome["text"] for outcome in outcomes}
    if "failed" in texts:
        return "failed", "\n".join(outcome["text"] for outcome in outcomes if outcome["outcome"] == "failed")
    if len(outcomes) < n_ranks:
        return "failed", f"ranks ended in this test\n{printed}"
    return ("skipped", texts["skipped"]) if "skipped" in texts else ("passed", None)


LAUNCHES = pytest.StashKey[Launches]()


def _read_outcomes(path):
    if not path.exists():
        return {}
    return {line["test"]: line for line in map(json.loads, path.read_text().splitlines())}


# What follows runs on the ranks.


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Give each rank temporary files of its own: in one folder ranks trip over each other's clearing up."""
    if OUTCOMES in os.environ:
        config.option.basetemp = Path(os.environ[OUTCOMES], f"files_{mpi.process_rank()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if OUTCOMES in os.environ:
        reports = item.stash.setdefault(REPORTS, [])
        reports.append(report)
        if call.when == "teardown":
            _write_outcome(item, reports)
    return report


REPORTS = pytest.StashKey[list]()


def _write_outcome(item, reports):
    """Write what this rank made of a test; where ranks differ so that others hang, end them all."""
    comm = mpi.comm_world()
    worst = next((report for report in reports if report.outcome != "passed"), reports[0])
    text = f"[rank {comm.rank}/{comm.size}] {worst.longreprtext}"
    if worst.outcome == "skipped":
        text = worst.longrepr[2]
    line = {"test": item.nodeid, "outcome": worst.outcome, "text": text}
    with Path(os.environ[OUTCOMES], f"rank_{comm.rank}.jsonl").open("a") as file:
        print(json.dumps(line), file=file, flush=True)
    arrived = comm.Ibarrier()
    end_s = time.monotonic() + (PATIENCE_S if worst.outcome == "failed" else LAUNCH_TIMEOUT_S)
    while not arrived.Test():
        if time.monotonic() > end_s:
            mpi.abort(1)
        time.sleep(0.001)
