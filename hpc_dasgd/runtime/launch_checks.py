"""Checks of a launch that take no time: ranks, MPI library, cores, GPUs."""

import os
import platform
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hpc_dasgd.arrays import devices
from hpc_dasgd.runtime import collective, hardware, mpi

OK, SLOW, WRONG = "ok", "slow", "wrong"


NO_SHARED_MEMORY = "see why MPI's shared memory is off"


class Check(NamedTuple):
    """One line of the report.

    Attributes
    ----------
    check : str
    status : {"ok", "slow", "wrong"}
    detail, remedy : str
        What was found; what to do, empty where nothing is to be done.
    """

    check: str
    status: str
    detail: str
    remedy: str = ""


class GpuSurvey(NamedTuple):
    """What a rank sees of the GPUs of its node."""

    n_devices: int
    """That the driver shows."""
    names: list[str] | None
    """Of those that CuPy can use; None without CuPy."""
    buses: tuple[str, ...]
    """Of the same: ranks may see different ones."""


@dataclass(frozen=True)
class LaunchSurvey:
    """What was found out about a launch without measuring anything.

    Attributes
    ----------
    nodes : tuple of int
        Node of each rank.
    hosts : list of str
        Host name of each rank.
    cores : list of int
        Number of cores that each rank may run on.
    cores_of_nodes : dict of int to int
        Number of different cores that the ranks of each node may run on.
    blas_threads : list of str
        Number of BLAS threads as each rank's environment asks.
    gpus : list of GpuSurvey
        What each rank sees of the GPUs of its node.
    """

    nodes: tuple[int, ...]
    hosts: list[str]
    cores: list[int]
    cores_of_nodes: dict[int, int]
    blas_threads: list[str]
    gpus: list[GpuSurvey]


def launch_check(found: LaunchSurvey) -> Check:
    """How many ranks there are, and where."""
    counts = Counter(found.hosts)
    hosts = ", ".join(f"{host} ({count})" for host, count in list(counts.items())[:8])
    n_nodes, n_ranks = len(set(found.nodes)), len(found.nodes)
    detail = f"{_count(n_ranks, 'rank')} on {_count(n_nodes, 'node')}: {hosts}{' ...' if len(counts) > 8 else ''}"
    if n_ranks == 1:
        return Check("launch", OK, detail, "start it with mpiexec or srun on two nodes to see what exchanges cost")
    if n_nodes > len(counts):
        return Check("launch", SLOW, f"{detail}; ranks of one host share no memory", NO_SHARED_MEMORY)
    return Check("launch", OK, detail)


def library_check(library: str, path: str, from_wheel: bool, in_allocation: bool) -> Check:
    """Which MPI was loaded, and whether it is the site's."""
    detail = f"{library}, {path or 'path unknown'}"
    if from_wheel and in_allocation:
        remedy = "install without the extra, so that the site's MPI and its network are used"
        return Check("MPI library", SLOW, f"{detail}; from a package of this environment", remedy)
    return Check("MPI library", OK, detail)


def cores_check(found: LaunchSurvey) -> Check:
    """Whether each rank, and each of its BLAS threads, has a core."""
    short = {}
    for node, cores in found.cores_of_nodes.items():
        ranks = [rank for rank, at in enumerate(found.nodes) if at == node]
        wanted = sum(
            int(found.blas_threads[rank]) if found.blas_threads[rank].isdigit() else found.cores[rank] for rank in ranks
        )
        if wanted > cores:
            short[found.hosts[ranks[0]]] = (len(ranks), wanted, cores)
    if not short:
        cores = min(found.cores_of_nodes.values())
        return Check("cores", OK, f"each rank and its BLAS threads have cores of their own ({cores} on a node)")
    host, (n_ranks, wanted, cores) = next(iter(short.items()))
    detail = f"{n_ranks} ranks with {wanted} BLAS threads on {_count(cores, 'core')} of {host}"
    if n_ranks > cores:
        return Check("cores", SLOW, detail, "start fewer ranks on a node, or let them have more cores")
    return Check("cores", SLOW, detail, "set OMP_NUM_THREADS to the cores of a rank, or to 1")


def gpu_checks(found: LaunchSurvey) -> list[Check]:
    """Which GPUs ranks can use, and how many ranks share one; nothing where there is none."""
    ranks_of_nodes = Counter(found.nodes)
    # The worst first.
    for rank, (n_devices, names, _) in enumerate(found.gpus):
        host = found.hosts[rank]
        if n_devices and names is None:
            detail = f"{_count(n_devices, 'GPU')} on {host}, and no CuPy that could use them"
            return [Check("GPUs", SLOW, detail, "install cupy for the CUDA of the node, as cupy-cuda13x")]
        if n_devices and not names:
            return [Check("GPUs", WRONG, f"CuPy sees none of {_count(n_devices, 'GPU')} on {host}", "see nvidia-smi")]
    for rank, (_, names, _) in enumerate(found.gpus):
        n_ranks = ranks_of_nodes[found.nodes[rank]]
        here = [gpus.buses for gpus, node in zip(found.gpus, found.nodes, strict=True) if node == found.nodes[rank]]
        n_seen = len(set().union(*here))
        if names and n_ranks > n_seen:
            detail = f"{n_ranks} ranks share {_count(n_seen, 'GPU')} of {found.hosts[rank]} ({names[0]})"
            return [Check("GPUs", SLOW, detail, "start one rank for each GPU")]
    names = found.gpus[0].names
    return [Check("GPUs", OK, f"one or more for each rank ({', '.join(sorted(set(names)))})")] if names else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def launch_warnings(comm) -> list[str]:
    """What a run should be warned of when it starts, without measuring anything. Collective over `comm`."""
    found = check_launch(survey_launch(comm))
    return [f"{each.check}: {each.detail}: {each.remedy}" for each in found if each.status != OK]


def check_launch(found: LaunchSurvey) -> list[Check]:
    path = _loaded_mpi()
    return [
        launch_check(found),
        library_check(mpi.library_version(), path, path.startswith(sys.prefix), "SLURM_JOB_ID" in os.environ),
        cores_check(found),
        *gpu_checks(found),
    ]


def _loaded_mpi() -> str:
    """The file of the MPI library that this process has loaded; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ""
    paths = [parts[5] for line in lines if len(parts := line.split(maxsplit=5)) == 6]
    return next((path for path in paths if Path(path).name.startswith("libmpi")), "")


def survey_launch(comm) -> LaunchSurvey:
    """Find out about the launch alone, which takes no time."""
    nodes = collective.node_of_each_rank(comm)
    n_devices = devices.n_device_files()
    found = devices.gpus() if n_devices else None
    gpus = GpuSurvey(n_devices, found and [name for name, _ in found], tuple(bus for _, bus in found or ()))
    return LaunchSurvey(
        nodes=nodes,
        hosts=comm.allgather(platform.node()),
        cores=comm.allgather(len(os.sched_getaffinity(0))),
        cores_of_nodes=dict(zip(nodes, collective.cores_of_each_rank(comm), strict=True)),
        blas_threads=[described["blas_threads"] for described in comm.allgather(hardware.describe_hardware())],
        gpus=comm.allgather(gpus),
    )
