"""What measurements mean: a line for each check, with a remedy where something is slow or wrong. Pure."""

from hpc_dasgd.doctor.measurements import SLEEP_S, Link, Measurements
from hpc_dasgd.runtime.launch_checks import NO_SHARED_MEMORY, OK, SLOW, WRONG, Check

_LOWEST_COPY_SHARE = 0.5  # of memcpy that a read on the same node reaches at least
_HELPED = SLEEP_S / 2  # a call that takes so long has waited for its target to wake up
# By how the library calls itself; the first that is found.
_PROGRESS = {
    "Intel": "take a fabric with RDMA (`FI_PROVIDER` other than tcp)",
    "Open MPI": "take a network that UCX does RDMA on (`OMPI_MCA_osc=ucx` or rdma)",
    "MPICH": "take a build for a network with RDMA, or set MPIR_CVAR_ASYNC_PROGRESS=1, at the cost of a core per rank",
}


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
        return Check(_name("speed", link), SLOW, detail, NO_SHARED_MEMORY)
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
