"""Environment defaults for the ranks of a launch, and checks of the variables that the launcher sets."""

import os
from collections.abc import Mapping, MutableMapping

from hpc_dasgd.errors import ConfigError

_DEFAULTS = {
    # The ranks of a node share its cores; with several BLAS threads each they would compete for them. OpenBLAS, MKL
    # and BLIS follow this variable unless their own is set, so that a value of the user takes precedence.
    "OMP_NUM_THREADS": "1",
    "UCX_LOG_LEVEL": "error",  # otherwise UCX warns at exit about memory that is still registered
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # otherwise JAX takes three quarters of the GPU memory for each rank
    "HDF5_USE_FILE_LOCKING": "BEST_EFFORT",  # otherwise files cannot be made on file systems without locks
}
# Otherwise Open MPI prints a line per window if there is no UCX network.
_ONE_NODE_DEFAULTS = {"OMPI_MCA_osc": "^ucx"}


def set_environment_defaults(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of MPI, HDF5, BLAS and JAX that the user has not set. Not collective.

    Call it before NumPy is imported, because BLAS reads its variables at that time.

    Parameters
    ----------
    environ : mutable mapping
        Environment to change.

    Examples
    --------
    >>> environ = {"OMP_NUM_THREADS": "4"}
    >>> set_environment_defaults(environ)
    >>> environ["OMP_NUM_THREADS"], environ["UCX_LOG_LEVEL"]
    ('4', 'error')
    """
    defaults = _DEFAULTS | (_ONE_NODE_DEFAULTS if _is_on_one_node(environ) else {})
    for name, value in defaults.items():
        environ.setdefault(name, value)


def check_launch_size(n_ranks: int, environ: Mapping[str, str]) -> None:
    """Raise an error if the number of processes that the launcher started is not that of MPI's ranks. Not collective.

    ``srun`` with an MPI that does not support its PMI, and the ``mpiexec`` of one MPI with the library of another,
    silently start N runs of one rank each.

    Parameters
    ----------
    n_ranks : int
        Number of ranks according to MPI.
    environ : mapping
        Environment of this process.

    Raises
    ------
    ConfigError
        If a variable of the launcher contradicts `n_ranks`.
    """
    variable = contradicting_variable(n_ranks, environ)
    if variable is not None:
        raise ConfigError(
            f"the launcher started {environ[variable]} processes (`{variable}`) but MPI counts {n_ranks}: use"
            " the mpiexec of the MPI that mpi4py loads, or srun --mpi=pmi2 (MPICH, Intel MPI) or --mpi=pmix"
            f" (Open MPI); to run with one rank, unset {variable}"
        )


def contradicting_variable(n_ranks: int, environ: Mapping[str, str]) -> str | None:
    """Return the name of a variable of the launcher that contradicts the number of ranks, or None.

    In a SLURM allocation ``mpiexec`` may start fewer ranks than there are tasks. The number of tasks is therefore
    compared only if MPI counts one rank and no other launcher has set its variable.

    Examples
    --------
    >>> contradicting_variable(1, {"PMI_SIZE": "4"})
    'PMI_SIZE'
    >>> contradicting_variable(2, {"SLURM_NTASKS": "4"}) is None
    True
    """
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
    counts = {name: int(environ[name]) for name in names if environ.get(name, "").isdecimal()}
    if n_ranks > 1 or len(counts) > 1:
        counts.pop("SLURM_NTASKS", None)
    return next((name for name, count in counts.items() if count != n_ranks), None)


def _is_on_one_node(environ: Mapping[str, str]) -> bool:
    """Return True if, according to the launcher, all ranks are on one node."""
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == environ["OMPI_COMM_WORLD_SIZE"]
    # srun sets none of Open MPI's variables.
    n_nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1"))
    return n_nodes == "1"
