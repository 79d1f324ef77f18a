"""Checks of a launch that need no measurement: ranks and nodes, MPI library, cores, GPUs."""

import os
import platform
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hpc_dasgd.arrays import devices
from hpc_dasgd.console.formats import count_text
from hpc_dasgd.runtime import collective, hardware, mpi

if TYPE_CHECKING:
    from mpi4py import MPI

OK, SLOW, WRONG = "ok", "slow", "wrong"
SHARED_MEMORY_REMEDY = "find out why the MPI library does not use shared memory within a node"
_MOST_HOSTS = 8  # largest number of hosts named in a message


class Check(NamedTuple):
    """Result of one check.

    Attributes
    ----------
    check : str
        Name of the check.
    status : {"ok", "slow", "wrong"}
    detail, remedy : str
        The finding, and what to do about it; `remedy` is empty if nothing needs to be done.
    """

    check: str
    status: str
    detail: str
    remedy: str = ""


class GpuSurvey(NamedTuple):
    """GPUs of a node as one rank sees them.

    Attributes
    ----------
    n_devices : int
        Number of GPUs for which the driver has device files.
    names : list of str or None
        Names of the GPUs that CuPy can use; None if CuPy is not installed.
    buses : tuple of str
        PCI buses of the same GPUs. Ranks of one node may see different GPUs.
    """

    n_devices: int
    names: list[str] | None
    buses: tuple[str, ...]


@dataclass(frozen=True)
class LaunchSurvey:
    """Facts about a launch that are known without measuring.

    Attributes
    ----------
    nodes : tuple of int
        Node of each rank, identified by the lowest rank on it.
    hosts : list of str
        Host name of each rank.
    cores : list of int
        Number of cores that each rank may run on.
    cores_of_nodes : dict of int to int
        Number of different cores that the ranks of each node may run on.
    blas_threads : list of str
        Number of BLAS threads that the environment of each rank sets, or ``"all cores"``.
    gpus : list of GpuSurvey
        GPUs that each rank sees.
    """

    nodes: tuple[int, ...]
    hosts: list[str]
    cores: list[int]
    cores_of_nodes: dict[int, int]
    blas_threads: list[str]
    gpus: list[GpuSurvey]

    def ranks_on(self, node: int) -> list[int]:
        """Return the ranks of a node."""
        return [rank for rank, other in enumerate(self.nodes) if other == node]

    def threads_of(self, rank: int) -> int:
        """Return the number of BLAS threads of a rank; by default a BLAS library starts one per core."""
        threads = self.blas_threads[rank]
        return int(threads) if threads.isdigit() else self.cores[rank]


def check_placement(survey: LaunchSurvey) -> Check:
    """Check how many ranks there are and on which hosts. Not collective."""
    counts = Counter(survey.hosts)
    hosts = ", ".join(f"{host} ({count})" for host, count in list(counts.items())[:_MOST_HOSTS])
    n_nodes, n_ranks = len(set(survey.nodes)), len(survey.nodes)
    more = " ..." if len(counts) > _MOST_HOSTS else ""
    detail = f"{count_text(n_ranks, 'rank')} on {count_text(n_nodes, 'node')}: {hosts}{more}"
    if n_ranks == 1:
        remedy = "start it with mpiexec or srun on two nodes to measure the cost of exchanges"
        return Check("launch", OK, detail, remedy)
    if n_nodes > len(counts):
        return Check("launch", SLOW, f"{detail}; ranks of one host share no memory", SHARED_MEMORY_REMEDY)
    return Check("launch", OK, detail)


def check_library(library: str, path: str, from_wheel: bool, in_allocation: bool) -> Check:
    """Check which MPI library was loaded. Not collective.

    Parameters
    ----------
    library : str
        Version text of the library.
    path : str
        File of the library; empty if unknown.
    from_wheel : bool
        True if the library belongs to this Python environment.
    in_allocation : bool
        True within a job of SLURM, where the MPI library of the site should be used.
    """
    detail = f"{library}, {path or 'path unknown'}"
    if from_wheel and in_allocation:
        remedy = "install this package without an extra such as [mpich], so that the MPI library of the site is used"
        return Check("MPI library", SLOW, f"{detail}; from a package of this environment", remedy)
    return Check("MPI library", OK, detail)


def check_cores(survey: LaunchSurvey) -> Check:
    """Check that every rank, and each of its BLAS threads, has a core. Not collective."""
    for node, n_cores in survey.cores_of_nodes.items():
        ranks = survey.ranks_on(node)
        threads = [survey.threads_of(rank) for rank in ranks]
        if sum(threads) > n_cores:
            return _shared_cores(survey.hosts[ranks[0]], n_cores, threads)
    fewest = min(survey.cores_of_nodes.values())
    detail = f"every rank and each of its BLAS threads has a core of its own ({count_text(fewest, 'core')} on a node)"
    return Check("cores", OK, detail)


def _shared_cores(host: str, n_cores: int, threads: list[int]) -> Check:
    """Return the check of a host with more BLAS threads than cores."""
    n_ranks = len(threads)
    each = len(set(threads)) == 1
    n_threads = count_text(threads[0] if each else sum(threads), "BLAS thread")
    ranks = f"{count_text(n_ranks, 'rank')} on {count_text(n_cores, 'core')} of {host}"
    detail = f"{ranks} ({n_threads} {'each' if each else 'in total'}): {'ranks' if n_ranks > 1 else 'threads'}"
    detail += " will share cores"
    if n_ranks > n_cores:
        return Check("cores", SLOW, detail, "start fewer ranks per node, or give them more cores")
    return Check("cores", SLOW, detail, "set OMP_NUM_THREADS to the number of cores per rank, or to 1")


def check_gpus(survey: LaunchSurvey) -> list[Check]:
    """Check that ranks can use the GPUs of their node and do not share them. Not collective.

    Returns
    -------
    checks : list of Check
        The most severe finding; empty if there are no GPUs.
    """
    for rank, (n_devices, names, _) in enumerate(survey.gpus):
        host = survey.hosts[rank]
        if n_devices and names is None:
            detail = f"{count_text(n_devices, 'GPU')} on {host}, but CuPy is not installed"
            return [Check("GPUs", SLOW, detail, "install CuPy for the CUDA version of the node, such as cupy-cuda13x")]
        if n_devices and not names:
            detail = f"CuPy finds none of {count_text(n_devices, 'GPU')} on {host}"
            return [Check("GPUs", WRONG, detail, "check the driver with nvidia-smi")]
    for rank, (_, names, _) in enumerate(survey.gpus):
        ranks = survey.ranks_on(survey.nodes[rank])
        n_seen = len({bus for other in ranks for bus in survey.gpus[other].buses})
        if names and len(ranks) > n_seen:
            detail = f"{len(ranks)} ranks share {count_text(n_seen, 'GPU')} of {survey.hosts[rank]} ({names[0]})"
            return [Check("GPUs", SLOW, detail, "start one rank per GPU")]
    names = survey.gpus[0].names
    return [Check("GPUs", OK, f"at least one per rank ({', '.join(sorted(set(names)))})")] if names else []


def launch_warnings(comm: "MPI.Intracomm") -> list[str]:
    """Return warnings about a launch for the start of a run, one line each. Collective over `comm`."""
    checks = check_launch(survey_launch(comm))
    return [f"{each.check}: {each.detail}: {each.remedy}" for each in checks if each.status != OK]


def check_launch(survey: LaunchSurvey) -> list[Check]:
    """Return all checks that need no measurement. Not collective."""
    path = next(iter(mpi.library_paths()), "")
    return [
        check_placement(survey),
        check_library(mpi.library_version(), path, path.startswith(sys.prefix), "SLURM_JOB_ID" in os.environ),
        check_cores(survey),
        *check_gpus(survey),
    ]


def survey_launch(comm: "MPI.Intracomm") -> LaunchSurvey:
    """Collect facts about the launch, without measuring. Collective over `comm`."""
    nodes = collective.node_of_each_rank(comm)
    n_devices = devices.n_device_files()
    usable = devices.gpus() if n_devices else None
    names = None if usable is None else [name for name, _ in usable]
    gpus = GpuSurvey(n_devices, names, tuple(bus for _, bus in usable or ()))
    return LaunchSurvey(
        nodes=nodes,
        hosts=comm.allgather(platform.node()),
        cores=comm.allgather(len(os.sched_getaffinity(0))),
        cores_of_nodes=dict(zip(nodes, collective.cores_of_each_rank(comm), strict=True)),
        blas_threads=[described["blas_threads"] for described in comm.allgather(hardware.describe_hardware())],
        gpus=comm.allgather(gpus),
    )
