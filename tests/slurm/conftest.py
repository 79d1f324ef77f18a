"""Fixtures that start a SLURM cluster of two nodes."""

import pytest

from jobs.benchmarks.mpiexec import mpi_library
from tests.slurm.cluster import Cluster, reason_to_skip

MPIS = {"Open MPI": "openmpi", "Intel": "intel", "MPICH": "mpich"}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    reason = reason_to_skip()
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
    """The MPI of this environment, by its name in ``hpc-dasgd slurm --mpi``."""
    version = mpi_library()
    return next(name for library, name in MPIS.items() if library in version)
