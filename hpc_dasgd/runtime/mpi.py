"""The MPI of this process: its start and end, the communicator of all ranks, and messages that name the rank.

The only module that mentions ``COMM_WORLD``. Importing it starts nothing; `comm_world` starts MPI.
"""

import atexit
import os
import platform
import sys
from contextlib import suppress

from hpc_dasgd.runtime import launcher


def comm_world():
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

    launcher.set_environment_defaults()
    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.thread_level = "funneled"  # one thread calls MPI; a higher level costs locks in every call
        mpi4py.rc.finalize = False
        atexit.register(_finalize)
    from mpi4py import MPI

    launcher.check_size(MPI.COMM_WORLD.Get_size(), os.environ)
    return MPI.COMM_WORLD


def skip_mpi_finalize() -> None:
    """End this process, when it ends, without ``MPI_Finalize``, which would wait for ranks that died.

    Without effect where the caller had imported ``mpi4py.MPI`` before; it may set ``mpi4py.rc.finalize`` itself.
    """
    atexit.unregister(_finalize)


def _finalize() -> None:
    if is_mpi_running():
        from mpi4py import MPI

        MPI.Finalize()


def own_rank() -> int:
    """This process's rank: MPI's where it knows of all ranks, else the launcher's word, else 0."""
    if is_mpi_running() and launcher.contradicting_variable(n_ranks_started(), os.environ) is None:
        from mpi4py import MPI

        return MPI.COMM_WORLD.Get_rank()
    ranks = (os.environ.get(name, "") for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"))
    return next((int(rank) for rank in ranks if rank.isdecimal()), 0)


def n_ranks_started() -> int:
    """Ranks that MPI counts; 1 where it was not started."""
    if not is_mpi_running():
        return 1
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_size()


def is_single_rank() -> bool:
    """Whether no other rank can be waiting for this one."""
    return n_ranks_started() == 1


def rank_prefix() -> str:
    """Which rank this is, on which node, as messages say it; nothing where there is one alone."""
    n_ranks = n_ranks_started()
    return f"[rank {own_rank()}/{n_ranks} {platform.node()}] " if n_ranks > 1 else ""


def warn(text: str) -> None:
    """Say on standard error what went wrong on this rank, where training goes on all the same."""
    with suppress(OSError, ValueError):  # nobody may be reading any more
        print(f"hpc-dasgd: {rank_prefix()}{text}", file=sys.stderr, flush=True)


def wait_for_all_to_exit() -> None:
    """Wait for all ranks under Open MPI, to be called by all of them, about to exit with an error.

    Its mpiexec kills the others when the first one does, also rank 0 before it has said what is wrong.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()


def library_version() -> str:
    """Return the name and version of the MPI library that this process has loaded, in one line."""
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split())


def abort(status: int) -> None:
    """End all ranks of the launch with `status`."""
    from mpi4py import MPI

    with suppress(OSError, ValueError):  # nobody may be reading any more
        sys.stdout.flush()
    MPI.COMM_WORLD.Abort(status)


def is_mpi_running() -> bool:
    """Whether MPI was started in this process and not ended."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()
