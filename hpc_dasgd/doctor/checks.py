"""Interpretation of measurements: one check per property, with a remedy if it is slow or wrong. No MPI calls."""

from hpc_dasgd.doctor.measurements import SLEEP_S, Link, Measurements
from hpc_dasgd.runtime.launch_checks import OK, SHARED_MEMORY_REMEDY, SLOW, WRONG, Check

_LOWEST_COPY_SHARE = 0.5  # fraction of the speed of memcpy that a read within a node should reach
_WAITED_S = SLEEP_S / 2  # a call that takes longer waited until its target called MPI
_SLOW_DISK_S = 1.0
# Remedies by a name that the version text of the MPI library contains; the first match is used.
_PROGRESS_REMEDIES = {
    "Intel": "use a fabric with RDMA (`FI_PROVIDER` other than tcp)",
    "Open MPI": "use a network on which UCX does RDMA (`OMPI_MCA_osc=ucx` or rdma)",
    "MPICH": "use a build for a network with RDMA, or set MPIR_CVAR_ASYNC_PROGRESS=1, which costs one core per rank",
}


def window_checks(measured: Measurements, library: str) -> list[Check]:
    """Check the memory model, and for each kind of link speed, progress and consistency of reads.

    Parameters
    ----------
    measured : Measurements
        Result of `measure`.
    library : str
        Version text of the MPI library, from which the remedies follow.

    Returns
    -------
    checks : list of Check
    """
    if measured.window_error:
        remedy = "use another MPI library, or another transport of this one"
        return [Check("windows", WRONG, measured.window_error, remedy)]
    checks = [Check("windows", OK, "unified memory model")] if measured.links else []
    for link in measured.links:
        checks += [_speed(link), *_progress(link, library), _consistency(link)]
    return checks


def disk_check(directory: str, seconds: float, error: str) -> Check:
    """Check that files can be written, locked, and read while they grow.

    Parameters
    ----------
    directory : str
        Directory in which the trial file was written.
    seconds : float, s
        Time of the trial.
    error : str
        Why it failed; empty if it succeeded.

    Returns
    -------
    check : Check
    """
    if error:
        remedy = "use another directory, or set HDF5_USE_FILE_LOCKING=FALSE if the file system does not support locks"
        return Check("files", WRONG, f"{directory}: {error}", remedy)
    detail = f"{directory}: a growing file was written, read and synced in {1e3 * seconds:.0f} ms"
    if seconds > _SLOW_DISK_S:
        return Check("files", SLOW, detail, "use a faster file system for `--run`")
    return Check("files", OK, detail)


def _speed(link: Link) -> Check:
    """Check latency and bandwidth; within a node against the speed of memcpy."""
    share = link.get_bytes_per_s / link.memcpy_bytes_per_s
    detail = (
        f"read: {1e6 * link.get_s:.1f} us, {link.get_bytes_per_s / 1e9:.2f} GB/s ({share:.2f} of memcpy); accumulate: "
        f"{1e6 * link.accumulate_s:.1f} us, {link.accumulate_bytes_per_s / 1e9:.2f} GB/s"
    )
    if link.same_node and share < _LOWEST_COPY_SHARE:
        return Check(_name("speed", link), SLOW, detail, SHARED_MEMORY_REMEDY)
    return Check(_name("speed", link), OK, detail)


def _progress(link: Link, library: str) -> list[Check]:
    """Check that calls complete while the target makes no MPI calls (passive-target progress)."""
    advice = next((advice for mpi, advice in _PROGRESS_REMEDIES.items() if mpi in library), "use a network with RDMA")
    alternatives = {
        "read": (link.asleep_get_s, "otherwise reads complete only when their target calls MPI, once per step"),
        "accumulate": (
            link.asleep_accumulate_s,
            "otherwise use `exchange.kind` read, which does not write to memory of other ranks",
        ),
    }
    checks = []
    for call, (seconds, alternative) in alternatives.items():
        name = _name(f"{call} progress", link)
        detail = f"1 MiB in {1e3 * seconds:.1f} ms while the target computes"
        if seconds < _WAITED_S:
            checks.append(Check(name, OK, detail))
        else:
            detail += ": completes only when the target calls MPI"
            checks.append(Check(name, SLOW, detail, f"{advice}; {alternative}"))
    return checks


def _consistency(link: Link) -> Check:
    """Check that no accepted read mixes parts of several publications."""
    name = _name("consistent reads", link)
    detail = (
        f"{link.n_reads} publications read while their owner kept writing, {link.n_dropped} reads dropped, "
        f"{link.n_torn} torn"
    )
    if link.n_torn:
        return Check(name, WRONG, detail, "report this MPI library and network: accepted reads must be consistent")
    return Check(name, OK, detail)


def _name(prefix: str, link: Link) -> str:
    return f"{prefix}, {'same node' if link.same_node else 'other node'}"
