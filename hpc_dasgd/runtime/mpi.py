"""MPI in this process: its start and end, the communicator of all ranks, and messages that name the rank.

The only module that uses ``COMM_WORLD``. Importing it does not start MPI; `comm_world` does.
"""

from __future__ import annotations

import atexit
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_dasgd.runtime import launcher

if TYPE_CHECKING:
    from mpi4py import MPI

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def comm_world() -> MPI.Intracomm:
    """Return the communicator of all ranks of the launch, and start MPI if it is not running.

    Collective over all ranks of the launch if it starts MPI; otherwise not collective.

    Raises
    ------
    ConfigError
        If the launcher started several processes, each of which is the only rank of its own MPI job.
    """
    import mpi4py

    launcher.set_environment_defaults()
    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.thread_level = "funneled"  # one thread calls MPI; a higher level costs locks in every call
        mpi4py.rc.finalize = False
        atexit.register(_finalize)
    from mpi4py import MPI

    launcher.check_launch_size(MPI.COMM_WORLD.Get_size(), os.environ)
    return MPI.COMM_WORLD


def skip_mpi_finalize() -> None:
    """Do not call ``MPI_Finalize`` at the exit of this process, because it would wait for ranks that died.

    Not collective. It has no effect if the caller imported ``mpi4py.MPI`` before this package did; such a caller can
    set ``mpi4py.rc.finalize`` itself.
    """
    atexit.unregister(_finalize)


def is_mpi_running() -> bool:
    """Return True if MPI was initialized in this process and is not finalized. Not collective."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()


def world_size() -> int:
    """Return the number of ranks according to MPI; 1 if MPI is not running. Not collective."""
    if not is_mpi_running():
        return 1
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_size()


def process_rank() -> int:
    """Return the rank of this process. Not collective.

    It is MPI's rank if MPI is running and knows of all processes of the launch; otherwise the rank in the launcher's
    environment variables; otherwise 0.
    """
    if is_mpi_running() and launcher.contradicting_variable(world_size(), os.environ) is None:
        from mpi4py import MPI

        return MPI.COMM_WORLD.Get_rank()
    ranks = (os.environ.get(name, "") for name in _RANK_VARIABLES)
    return next((int(rank) for rank in ranks if rank.isdecimal()), 0)


def is_single_rank() -> bool:
    """Return True if this is the only rank, so that no other rank can be waiting for it. Not collective."""
    return world_size() == 1


def rank_prefix() -> str:
    """Return the prefix ``"[rank 3/16 host] "`` for messages; empty if there is one rank only. Not collective."""
    n_ranks = world_size()
    return f"[rank {process_rank()}/{n_ranks} {platform.node()}] " if n_ranks > 1 else ""


def print_warning(text: str) -> None:
    """Print a warning about this rank on standard error. Not collective.

    For problems after which training continues. If standard error is closed, nothing is printed.
    """
    with suppress(OSError, ValueError):
        print(f"hpc-dasgd: {rank_prefix()}{text}", file=sys.stderr, flush=True)


def barrier_before_exit() -> None:
    """Wait until all ranks have called this, under Open MPI only. Collective over all ranks of the launch.

    For ranks that all exit with an error status: Open MPI's ``mpiexec`` kills the remaining ranks as soon as the first
    one exits, including rank 0 before it has printed the error.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()


def abort(status: int) -> None:
    """End all ranks of the launch with the exit status `status`. Not collective; does not return."""
    from mpi4py import MPI

    with suppress(OSError, ValueError):  # standard output may be closed
        sys.stdout.flush()
    MPI.COMM_WORLD.Abort(status)


def library_version() -> str:
    """Return name and version of the MPI library of this process in one line. Not collective."""
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split())


def library_paths() -> list[str]:
    """Return the files of the MPI library that this process has loaded, each once. Not collective.

    Empty if MPI is not loaded, or if the system has no ``/proc/self/maps``.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = (fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6)
    return list(dict.fromkeys(path for path in paths if Path(path).name.startswith("libmpi")))


def _finalize() -> None:
    if is_mpi_running():
        from mpi4py import MPI

        MPI.Finalize()
