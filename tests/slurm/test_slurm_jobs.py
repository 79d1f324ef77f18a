"""Printed batch scripts, submitted as they are to a real SLURM of two nodes, under the MPI of this environment."""

import subprocess
import sys
from pathlib import Path

import pytest

import hpc_dasgd

N_RANKS = 4
SETTINGS = """
name = "quadratic"
[objective]
kind = "quadratic"
dimension = 10
[budget]
gradients = 2000
[straggler]  # all ranks, so that a run takes seconds, on any machine
ranks = [0, 1, 2, 3]
delay_ms = 2.0
"""


class Jobs:
    """Submits jobs of this test in a folder of its own."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        (folder / "quadratic.toml").write_text(SETTINGS)

    def submit(self, *options):
        """Print the script, submit it; returns the number of the job."""
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
        """Wait for a job that must come to a good end."""
        job = self.cluster.wait_for(job_id)
        ended = {name: job[name] for name in ("JobState", "ExitCode", "Restarts")}
        assert ended == {"JobState": "COMPLETED", "ExitCode": "0:0", "Restarts": str(n_restarts)}, self.output(job)

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
    assert run.counts.sum() >= 2000
    # Without reading each other no rank would know of another's updates.
    assert all(versions[-1].all() for versions in run.versions)


def test_ranks_that_do_not_know_of_each_other_are_refused(jobs, mpi):
    """As they are where SLURM speaks no PMI, or another one than the MPI: four runs of one rank."""
    for wrong in ("site", "mpich") if mpi == "openmpi" else ("site",):
        job = jobs.cluster.wait_for(jobs.submit("--mpi", wrong))
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
        said = [line for line in jobs.output(job).splitlines() if line.startswith("hpc-dasgd:")]
        assert len(said) == 1
        assert f"the launcher started {N_RANKS} processes" in said[0]
        assert "srun --mpi=pmi2 (MPICH, Intel MPI) or --mpi=pmix (Open MPI)" in said[0]
        assert jobs.runs() == []


def test_an_array_trains_with_each_seed(jobs, mpi):
    job_id = jobs.submit("--mpi", mpi, "--array", "3,5")
    for seed in (3, 5):
        jobs.finished(f"{job_id}_{seed}")
    assert jobs.runs() == [f"quadratic-{job_id}-seed{seed}" for seed in (3, 5)]
    assert [jobs.run(name).config.seed for name in jobs.runs()] == [3, 5]
