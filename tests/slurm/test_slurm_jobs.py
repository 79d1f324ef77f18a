"""Batch scripts of ``hpc-dasgd slurm``, submitted unchanged to a SLURM cluster of two nodes."""

import subprocess
import sys
from pathlib import Path

import pytest

import hpc_dasgd
from hpc_dasgd.errors import ConfigError
from tests.slurm.cluster import OVER

pytestmark = pytest.mark.timeout(300)
N_RANKS = 4
SETTINGS = """
name = "quadratic"
[objective]
kind = "quadratic"
dimension = 10
[budget]
gradients = 400
[straggler]  # all ranks are slowed down, so that a run takes seconds on any machine
ranks = [0, 1, 2, 3]
delay_ms = 10.0
"""


class Jobs:
    """Submits jobs in a folder of its own for each test."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        (folder / "quadratic.toml").write_text(SETTINGS)

    def submit(self, *options):
        """Write a script of ``hpc-dasgd slurm`` and submit it; return the id of the job."""
        command = [
            sys.executable,
            "-m",
            "hpc_dasgd",
            "slurm",
            "quadratic.toml",
            "--nodes",
            "2",
            "--ranks-per-node",
            "2",
        ]
        command += ["--environment", sys.prefix, "--time", "10", *options]
        script = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout
        (self.folder / "job.sbatch").write_text(script)
        return self.cluster.submit(self.folder / "job.sbatch")

    def finished(self, job_id, n_restarts=0):
        """Wait for a job and assert that it completed with exit status 0."""
        job = self.cluster.wait_for(job_id)
        ended = {name: job[name] for name in ("JobState", "ExitCode", "Restarts")}
        assert ended == {"JobState": "COMPLETED", "ExitCode": "0:0", "Restarts": str(n_restarts)}, self.output(job)

    def wait_for_gradients(self, job_id, name):
        """Wait until the log of a run contains gradients; fail if the job ends before."""

        def has_gradients():
            job = self.cluster.job(job_id)
            assert job["JobState"] not in OVER, self.output(job)
            try:
                return self.run(name).counts.any()
            except ConfigError:  # its files do not exist yet
                return False

        self.cluster.wait(has_gradients)

    def output(self, job):
        return Path(job["StdOut"]).read_text()

    def runs(self):
        return sorted(path.name for path in self.folder.glob("runs/*"))

    def run(self, name):
        return hpc_dasgd.open_run(self.folder / "runs" / name)


@pytest.fixture
def jobs(cluster, tmp_path):
    return Jobs(cluster, tmp_path)


def test_ranks_on_two_nodes_train_one_model(jobs, mpi):
    job_id = jobs.submit("--mpi", mpi)
    jobs.finished(job_id)
    assert jobs.runs() == [f"quadratic-{job_id}"]
    run = jobs.run(f"quadratic-{job_id}")
    assert run.status == "complete"
    assert list(run.attributes["hosts"]) == ["node1", "node1", "node2", "node2"]
    assert run.counts.sum() >= 400
    # Each replica contains updates of every rank only if the ranks read from each other.
    assert all(versions[-1].all() for versions in run.versions)


def test_ranks_that_are_started_as_separate_runs_are_refused(jobs, mpi):
    """If SLURM provides no PMI, or not the one of the MPI library, four runs of one rank would start."""
    for wrong in ("site", "mpich") if mpi == "openmpi" else ("site",):
        job = jobs.cluster.wait_for(jobs.submit("--mpi", wrong))
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
        messages = [line for line in jobs.output(job).splitlines() if line.startswith("hpc-dasgd:")]
        assert len(messages) == 1
        assert f"the launcher started {N_RANKS} processes" in messages[0]
        assert "srun --mpi=pmi2 (MPICH, Intel MPI) or --mpi=pmix (Open MPI)" in messages[0]
        assert jobs.runs() == []


def test_signalled_job_is_requeued_and_resumes_its_run(jobs, mpi):
    """SLURM sends this signal before the time limit: checkpoints, status 75, requeue, resume to the end."""
    job_id = jobs.submit("--mpi", mpi, "--set", "budget.gradients=2400")
    name = f"quadratic-{job_id}"
    jobs.wait_for_gradients(job_id, name)
    jobs.cluster.signal(job_id, "USR1")
    jobs.finished(job_id, n_restarts=1)
    assert jobs.runs() == [name]
    run = jobs.run(name)
    assert (run.status, len(run.generations)) == ("complete", 2)
    assert run.counts.sum() >= 2400


def test_signalled_job_of_an_array_is_requeued_without_the_other_jobs(jobs, mpi):
    """The signal goes to the job whose id is also that of the array: requeueing it must not requeue the others."""
    job_id = jobs.submit("--mpi", mpi, "--array", "3,5", "--set", "budget.gradients=2400")
    for seed in (3, 5):  # a job of an array gets its own id when it starts
        jobs.wait_for_gradients(f"{job_id}_{seed}", f"quadratic-{job_id}-seed{seed}")
    stopped = next(seed for seed in (3, 5) if jobs.cluster.job(f"{job_id}_{seed}")["JobId"] == job_id)
    jobs.cluster.signal(f"{job_id}_{stopped}", "USR1")
    for seed in (3, 5):
        jobs.finished(f"{job_id}_{seed}", n_restarts=int(seed == stopped))
        run = jobs.run(f"quadratic-{job_id}-seed{seed}")
        assert (run.config.seed, len(run.generations)) == (seed, 1 + (seed == stopped))
    assert len(jobs.runs()) == 2
