"""Environment defaults and checks of the launcher's variables; MPI is not started here."""

import sys

import pytest

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.runtime import launcher, mpi

DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "UCX_LOG_LEVEL": "error",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "HDF5_USE_FILE_LOCKING": "BEST_EFFORT",
}
ONE_NODE_DEFAULTS = {"OMPI_MCA_osc": "^ucx"}


def with_defaults(environ):
    environ = dict(environ)
    launcher.set_environment_defaults(environ)
    return environ


def test_defaults_are_set_in_an_empty_environment():
    assert with_defaults({}) == DEFAULTS | ONE_NODE_DEFAULTS


@pytest.mark.parametrize("name", sorted(DEFAULTS | ONE_NODE_DEFAULTS))
@pytest.mark.parametrize("value", ["7", ""])
def test_a_variable_that_the_user_set_is_kept(name, value):
    assert with_defaults({name: value}) == DEFAULTS | ONE_NODE_DEFAULTS | {name: value}


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"])
def test_the_number_of_blas_threads_that_the_user_set_takes_precedence(name):
    # The library's own variable has precedence, so it must not be set beside a user's OMP_NUM_THREADS.
    assert name not in with_defaults({"OMP_NUM_THREADS": "4"})
    assert with_defaults({name: "4"})[name] == "4"


@pytest.mark.parametrize(
    ("environ", "one_node"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "SLURM_NNODES": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, False),
        ({"SLURM_NNODES": "1"}, True),
        ({"SLURM_NNODES": "2"}, False),
        ({"SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "1"}, True),
        ({"SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "2"}, False),
    ],
)
def test_the_ucx_windows_of_open_mpi_are_disabled_on_one_node_only(environ, one_node):
    assert ("OMPI_MCA_osc" in with_defaults(environ)) == one_node


@pytest.mark.parametrize(
    ("n_ranks", "environ"),
    [
        (1, {}),
        (4, {}),
        (4, {"OMPI_COMM_WORLD_SIZE": "4"}),
        (4, {"PMI_SIZE": "4"}),
        (4, {"SLURM_NTASKS": "4"}),
        (1, {"SLURM_NTASKS": "1"}),
        (2, {"SLURM_NTASKS": "4"}),  # mpiexec -n 2 within an allocation of 4 tasks
        (2, {"SLURM_NTASKS": "4", "PMI_SIZE": "2"}),
        (1, {"SLURM_NTASKS": "4", "PMI_SIZE": "1"}),  # mpiexec -n 1 within an allocation of 4 tasks
        (1, {"SLURM_NTASKS": "4", "OMPI_COMM_WORLD_SIZE": "1"}),
        (1, {"OMPI_COMM_WORLD_SIZE": "", "PMI_SIZE": "many", "SLURM_NTASKS": "-2"}),
    ],
)
def test_a_launch_whose_size_mpi_confirms_is_accepted(n_ranks, environ):
    launcher.check_launch_size(n_ranks, environ)


@pytest.mark.parametrize(
    ("n_ranks", "variable", "count", "others"),
    [
        (1, "OMPI_COMM_WORLD_SIZE", "4", {}),
        (2, "OMPI_COMM_WORLD_SIZE", "4", {}),
        (1, "PMI_SIZE", "4", {}),
        (4, "PMI_SIZE", "2", {}),
        (1, "SLURM_NTASKS", "4", {}),  # srun --mpi=none
        (1, "SLURM_NTASKS", "4", {"PMI_SIZE": ""}),
        (1, "PMI_SIZE", "4", {"SLURM_NTASKS": "4"}),  # srun --mpi=pmi2 with Open MPI
        (1, "PMI_SIZE", "2", {"SLURM_NTASKS": "4"}),  # mpiexec of another MPI in an allocation of SLURM
    ],
)
def test_a_launch_whose_size_contradicts_mpi_is_refused(n_ranks, variable, count, others):
    with pytest.raises(ConfigError) as caught:
        launcher.check_launch_size(n_ranks, {variable: count} | others)
    message = str(caught.value)
    assert f"started {count} processes (`{variable}`) but MPI counts {n_ranks}" in message
    assert f"unset {variable}" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, 0),
        ({"OMPI_COMM_WORLD_RANK": "3"}, 3),
        ({"PMI_RANK": "2"}, 2),
        ({"PMIX_RANK": "5"}, 5),
        ({"SLURM_PROCID": "6"}, 6),
        ({"PMI_RANK": "2", "SLURM_PROCID": "0"}, 2),  # mpiexec within one task of SLURM
        ({"PMI_RANK": "", "SLURM_PROCID": "x"}, 0),
    ],
)
def test_without_mpi_the_rank_is_taken_from_the_launchers_variables(monkeypatch, environ, rank):
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert mpi.process_rank() == rank
    assert mpi.world_size() == 1
    assert mpi.is_single_rank()
    assert "mpi4py.MPI" not in sys.modules
