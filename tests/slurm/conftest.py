"""Jobs on a SLURM of two nodes, started for these tests."""

import subprocess
import sys

import pytest

from tests.slurm.cluster import Cluster, why_not

MPIS = {"Open MPI": "openmpi", "Intel": "intel", "MPICH": "mpich"}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def mpi():
    """The MPI of this environment, as ``hpc-dasgd slurm --mpi`` calls it."""
    command = "from mpi4py import MPI; print(MPI.Get_library_version())"
    version = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    return next(name for library, name in MPIS.items() if library in version)
