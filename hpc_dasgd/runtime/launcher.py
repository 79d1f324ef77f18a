"""Environment defaults for the ranks of a launch, and checks of what the launcher says."""

import os
from collections.abc import Mapping

from hpc_dasgd.errors import ConfigError

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
    variable = contradicting_variable(n_ranks, environ)
    if variable is not None:
        raise ConfigError(
            f"the launcher started {environ[variable]} processes (`{variable}`) but MPI counts {n_ranks}: use"
            " the mpiexec of the MPI that mpi4py loads, or srun --mpi=pmi2 (MPICH, Intel MPI) or --mpi=pmix"
            f" (Open MPI); to run alone, unset {variable}"
        )


def contradicting_variable(n_ranks: int, environ: Mapping[str, str]) -> str | None:
    """Name the variable in which the launcher speaks of another number of ranks."""
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
    counts = {name: int(environ[name]) for name in names if environ.get(name, "").isdecimal()}
    if n_ranks > 1 or len(counts) > 1:
        counts.pop("SLURM_NTASKS", None)
    return next((name for name, count in counts.items() if count != n_ranks), None)
