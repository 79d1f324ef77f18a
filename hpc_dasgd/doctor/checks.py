"""What measurements mean: a line for each check, with a remedy where something is slow or wrong. Pure."""

from collections import Counter
from typing import NamedTuple

from hpc_dasgd.doctor.measurements import SLEEP_S, Link, Measurements

OK, SLOW, WRONG = "ok", "slow", "wrong"
_LOWEST_COPY_SHARE = 0.5  # of memcpy that a read on the same node reaches at least
_NO_SHARED_MEMORY = "see why MPI's shared memory is off"
_HELPED = SLEEP_S / 2  # a call that takes so long has waited for its target to wake up
# By how the library calls itself; the first that is found.
_PROGRESS = {
    "Intel": "take a fabric with RDMA (`FI_PROVIDER` other than tcp)",
    "Open MPI": "take a network that UCX does RDMA on (`OMPI_MCA_osc=ucx` or rdma)",
    "MPICH": "take a build for a network with RDMA, or set MPIR_CVAR_ASYNC_PROGRESS=1, at the cost of a core per rank",
}


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


def launch_check(found: Measurements) -> Check:
    """How many ranks there are, and where."""
    counts = Counter(found.hosts)
    hosts = ", ".join(f"{host} ({count})" for host, count in list(counts.items())[:8])
    n_nodes, n_ranks = len(set(found.nodes)), len(found.nodes)
    detail = f"{_count(n_ranks, 'rank')} on {_count(n_nodes, 'node')}: {hosts}{' ...' if len(counts) > 8 else ''}"
    if n_ranks == 1:
        return Check("launch", OK, detail, "start it with mpiexec or srun on two nodes to see what exchanges cost")
    if n_nodes > len(counts):
        return Check("launch", SLOW, f"{detail}; ranks of one host share no memory", _NO_SHARED_MEMORY)
    return Check("launch", OK, detail)


def library_check(library: str, path: str, from_wheel: bool, in_allocation: bool) -> Check:
    """Which MPI was loaded, and whether it is the site's."""
    detail = f"{library}, {path or 'path unknown'}"
    if from_wheel and in_allocation:
        remedy = "install without the extra, so that the site's MPI and its network are used"
        return Check("MPI library", SLOW, f"{detail}; from a package of this environment", remedy)
    return Check("MPI library", OK, detail)


def cores_check(found: Measurements) -> Check:
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


def gpu_checks(found: Measurements) -> list[Check]:
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


def window_checks(found: Measurements, library: str) -> list[Check]:
    """Memory model, speed, progress without the target, and whole reads; for each kind of link there is."""
    if found.window_error:
        return [Check("windows", WRONG, found.window_error, "take another MPI, or another transport of this one")]
    checks = [Check("windows", OK, "unified memory model")] if found.links else []
    for link in found.links:
        checks += [_speed(link), *_progress(link, library), _torn(link)]
    return checks


def disk_check(directory: str, seconds: float, error: str) -> Check:
    """Whether files can be written, locked and read while they grow."""
    if error:
        remedy = "take another directory, or set HDF5_USE_FILE_LOCKING=FALSE where the file system has no locks"
        return Check("files", WRONG, f"{directory}: {error}", remedy)
    detail = f"{directory}: a growing file was written, read and synced in {1e3 * seconds:.0f} ms"
    if seconds > 1:
        return Check("files", SLOW, detail, "take a faster file system for `--run`")
    return Check("files", OK, detail)


def _speed(link: Link) -> Check:
    share = link.get_bytes_per_s / link.memcpy_bytes_per_s
    detail = (
        f"read: {1e6 * link.get_s:.1f} us, {link.get_bytes_per_s / 1e9:.2f} GB/s ({share:.2f} of memcpy); accumulate: "
        f"{1e6 * link.accumulate_s:.1f} us, {link.accumulate_bytes_per_s / 1e9:.2f} GB/s"
    )
    if link.same_node and share < _LOWEST_COPY_SHARE:
        return Check(_name("speed", link), SLOW, detail, _NO_SHARED_MEMORY)
    return Check(_name("speed", link), OK, detail)


def _progress(link: Link, library: str) -> list[Check]:
    """Whether calls get through while the target computes."""
    checks = []
    for call, seconds, remedy in (
        (
            "read",
            link.asleep_get_s,
            "else reads arrive when their target calls MPI: once a step",
        ),
        ("accumulate", link.asleep_accumulate_s, "else take `exchange.kind` read, which adds to nobody's memory"),
    ):
        name, detail = _name(f"{call} alone", link), f"1 MiB in {1e3 * seconds:.1f} ms while the target computes"
        if seconds < _HELPED:
            checks.append(Check(name, OK, detail))
        else:
            advice = next((advice for mpi, advice in _PROGRESS.items() if mpi in library), "take a network with RDMA")
            checks.append(Check(name, SLOW, f"{detail}: it needs the target's help", f"{advice}; {remedy}"))
    return checks


def _torn(link: Link) -> Check:
    name = _name("whole reads", link)
    detail = f"{link.n_reads} publications read under constant writing, {link.n_dropped} dropped, {link.n_torn} torn"
    if link.n_torn:
        return Check(name, WRONG, detail, "report this MPI and network: checked reads must be whole")
    return Check(name, OK, detail)


def _name(what: str, link: Link) -> str:
    return f"{what}, {'same node' if link.same_node else 'other node'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
