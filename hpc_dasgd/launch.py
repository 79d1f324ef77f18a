"""How this process was started: its environment, the world of ranks, whether the launcher did its job.

The only mention of ``COMM_WORLD``. Importing this starts nothing; `world` starts MPI.
"""

import atexit
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from hpc_dasgd.errors import ConfigError, HpcDasgdError

T = TypeVar("T")

_DEFAULTS = {
    # Ranks of one node share its cores: several BLAS threads each would fight for them. OpenBLAS, MKL and
    # BLIS follow this variable unless their own is set; setting those would overrule the user's here.
    "OMP_NUM_THREADS": "1",
    "UCX_LOG_LEVEL": "error",  # else warns at exit of memory still registered
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else each rank's JAX takes three quarters of its GPU's memory
    "HDF5_USE_FILE_LOCKING": "BEST_EFFORT",  # else files cannot be made on file systems without locks
}
_ONE_NODE_DEFAULTS = {"OMPI_MCA_osc": "^ucx"}  # else Open MPI prints a line per window where there is no UCX network


def set_environment_defaults(environ=os.environ) -> None:
    """Set what keeps MPI, HDF5, BLAS and JAX quiet, single-threaded and modest, where the user set nothing.

    To be called before NumPy is loaded, since BLAS reads its variables then.
    """
    defaults = _DEFAULTS | (_ONE_NODE_DEFAULTS if _on_one_node(environ) else {})
    for name, value in defaults.items():
        environ.setdefault(name, value)


def _on_one_node(environ: Mapping[str, str]) -> bool:
    """Whether all ranks of this launch are on one node, as far as the launcher says."""
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == environ["OMPI_COMM_WORLD_SIZE"]
    # srun sets none of Open MPI's variables.
    n_nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1"))
    return n_nodes == "1"


def world():
    """All ranks of this launch, MPI started where it was not.

    Returns
    -------
    MPI.Intracomm

    Raises
    ------
    ConfigError
        If the launcher started several processes that do not know of each other.
    """
    import mpi4py

    set_environment_defaults()
    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.thread_level = "funneled"  # one thread calls MPI; a higher level costs locks in every call
        mpi4py.rc.finalize = False
        atexit.register(_finalize)
    from mpi4py import MPI

    check_size(MPI.COMM_WORLD.Get_size(), os.environ)
    return MPI.COMM_WORLD


def forgo_finalize() -> None:
    """End this process, when it ends, without ``MPI_Finalize``, which would wait for ranks that died.

    Without effect where the caller had imported ``mpi4py.MPI`` before; it may set ``mpi4py.rc.finalize`` itself.
    """
    atexit.unregister(_finalize)


def _finalize() -> None:
    if mpi_runs():
        from mpi4py import MPI

        MPI.Finalize()


def check_size(n_ranks: int, environ: Mapping[str, str]) -> None:
    """Refuse a launch whose processes each believe to be alone or in another number.

    ``srun`` with an MPI that does not speak its PMI, or the ``mpiexec`` of one MPI with the library of
    another, silently start N runs of one rank. Inside an allocation of SLURM an ``mpiexec`` may well
    start fewer ranks than there are tasks, so that SLURM's count says something only about a rank that is
    alone and that no ``mpiexec`` speaks of.

    Raises
    ------
    ConfigError
    """
    variable = _contradiction(n_ranks, environ)
    if variable is not None:
        raise ConfigError(
            f"the launcher started {environ[variable]} processes (`{variable}`) but MPI counts {n_ranks}: use"
            " the mpiexec of the MPI that mpi4py loads, or srun --mpi=pmi2 (MPICH, Intel MPI) or --mpi=pmix"
            f" (Open MPI); to run alone, unset {variable}"
        )


def _contradiction(n_ranks: int, environ: Mapping[str, str]) -> str | None:
    """Name the variable in which the launcher speaks of another number of ranks."""
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
    counts = {name: int(environ[name]) for name in names if environ.get(name, "").isdecimal()}
    if n_ranks > 1 or len(counts) > 1:
        counts.pop("SLURM_NTASKS", None)
    return next((name for name, count in counts.items() if count != n_ranks), None)


def agreed(comm, attempt: Callable[[], T]) -> T:
    """Return ``attempt()`` where it succeeds on every rank; else raise the same error on all. Collective.

    The error is that of the lowest rank that failed. Only errors of this package are agreed on; any
    other exception is a fault of one rank and passes through.
    """
    result, error = None, None
    try:
        result = attempt()
    except HpcDasgdError as raised:
        error = raised
    for failure in comm.allgather(error):
        if failure is not None:
            failure.agreed = True
            raise failure
    return result


def nodes(comm) -> tuple[int, ...]:
    """The node of each rank, named by the lowest rank that shares memory there. Collective."""
    from mpi4py import MPI

    sharing = comm.Split_type(MPI.COMM_TYPE_SHARED)
    node = sharing.bcast(comm.rank, root=0)
    sharing.Free()
    return tuple(comm.allgather(node))


def oversubscribed(comm) -> bool:
    """Whether the ranks of some node have fewer cores than they are. Collective.

    A rank that waits then has to give its core away, which not every MPI does.
    """
    at = nodes(comm)
    n_ranks = Counter(at)
    return any(n_ranks[node] > n_cores for node, n_cores in zip(at, cores(comm), strict=True))


def cores(comm) -> tuple[int, ...]:
    """Of each rank how many different cores the ranks of its node may run on. Collective."""
    from mpi4py import MPI

    sharing = comm.Split_type(MPI.COMM_TYPE_SHARED)
    n_cores = len(set().union(*sharing.allgather(os.sched_getaffinity(0))))
    sharing.Free()
    return tuple(comm.allgather(n_cores))


def started_rank() -> int:
    """This process's rank: MPI's where it knows of all ranks, else the launcher's word, else 0."""
    if mpi_runs() and _contradiction(n_started_ranks(), os.environ) is None:
        from mpi4py import MPI

        return MPI.COMM_WORLD.Get_rank()
    ranks = (os.environ.get(name, "") for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"))
    return next((int(rank) for rank in ranks if rank.isdecimal()), 0)


def n_started_ranks() -> int:
    """Ranks that MPI counts; 1 where it was not started."""
    if not mpi_runs():
        return 1
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_size()


def alone() -> bool:
    """Whether no other rank can be waiting for this one."""
    return n_started_ranks() == 1


def where() -> str:
    """Which rank this is, on which node, as messages say it; nothing where there is one alone."""
    n_ranks = n_started_ranks()
    return f"[rank {started_rank()}/{n_ranks} {platform.node()}] " if n_ranks > 1 else ""


def warn(text: str) -> None:
    """Say on standard error what went wrong on this rank, where training goes on all the same."""
    with suppress(OSError, ValueError):  # nobody may be reading any more
        print(f"hpc-dasgd: {where()}{text}", file=sys.stderr, flush=True)


def wait_to_exit() -> None:
    """Wait for all ranks under Open MPI, to be called by all of them, about to exit with an error.

    Its mpiexec kills the others when the first one does, also rank 0 before it has said what is wrong.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()


def abort(status: int) -> None:
    """End all ranks of the launch with `status`."""
    from mpi4py import MPI

    with suppress(OSError, ValueError):  # nobody may be reading any more
        sys.stdout.flush()
    MPI.COMM_WORLD.Abort(status)


def mpi_runs() -> bool:
    """Whether MPI was started in this process and not ended."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()
