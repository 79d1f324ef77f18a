"""What a run trains, on what and with what: agreed on by all ranks, and held against the settings."""

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.arrays import devices
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset, open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.runtime import collective, mpi
from hpc_dasgd.window import gpu_memory


def agree_on_problem(comm, config: Config, objective, data) -> tuple[object, Dataset | None, np.ndarray]:
    """Objective, data set and first parameters, the same on every rank. Collective."""
    data = collective.raise_on_all_ranks(comm, lambda: _open_data(config, data))
    if objective is None:
        options = dict(config.objective.options)
        objective = collective.raise_on_all_ranks(comm, lambda: objectives.make(config.objective.kind, options, data))
    x0 = collective.raise_on_all_ranks(comm, lambda: _initial(objective, config))
    collective.raise_on_all_ranks(comm, lambda: _check(config, comm.size, objective, data))
    comm.Bcast(x0, root=0)
    return objective, data, x0


def choose_device(comm, config: Config, objective):
    """The `Host` or `Gpu` of this rank: GPUs of a node are taken in turn. Collective.

    By "auto" an objective is given a GPU only if it says that it takes one.
    """
    nodes, rank = collective.node_of_each_rank(comm), comm.rank
    local_rank = nodes[:rank].count(nodes[rank])
    return collective.raise_on_all_ranks(comm, lambda: _choose_device(comm, config, objective, local_rank))


def _choose_device(comm, config: Config, objective, local_rank: int):
    takes_gpu = config.device.kind != "auto" or getattr(objective, "on_gpu", False)
    chosen = devices.choose(config.device.kind if takes_gpu else "cpu", local_rank, config.device.tf32)
    if config.exchange.device_windows and chosen.on_host:
        raise ConfigError(f"`exchange.device_windows` = true needs a GPU, got {chosen.name} on rank {comm.rank}")
    if config.exchange.device_windows and not gpu_memory.taken(comm):
        library = mpi.library_version()
        raise ConfigError(f"`exchange.device_windows` = true needs an MPI that says it takes GPU memory, got {library}")
    return chosen


def _open_data(config: Config, data) -> Dataset | None:
    path = data if data is not None else config.data.path
    return path if path is None or isinstance(path, Dataset) else open_dataset(path, config.device.dtype)


def _initial(objective, config: Config) -> np.ndarray:
    """The objective's first parameters, in the settings' dtype, checked."""
    x0 = np.ascontiguousarray(objective.initial(np.random.default_rng(config.seed)), config.device.dtype)
    if x0.ndim != 1 or x0.size == 0:
        raise ConfigError(f"`initial` of the objective must return a non-empty vector, got shape {x0.shape}")
    if not np.isfinite(x0).all():
        raise ConfigError("`initial` of the objective must return finite parameters")
    return x0


def _check(config: Config, n_ranks: int, objective, data: Dataset | None) -> None:
    """Hold the settings against what is known only now: the ranks, the objective, the data."""
    if config.exchange.kind == "server":
        server = config.exchange.server_rank
        if server >= n_ranks:
            raise ConfigError(f"`exchange.server_rank` must be below the number of ranks, {n_ranks}, got {server}")
        if n_ranks == 1 and not config.exchange.server_computes:
            raise ConfigError("`exchange.server_computes` must be true on a single rank, got false")
    beyond = [rank for rank in config.straggler.ranks if rank >= n_ranks]
    if beyond and config.straggler.delay_ms > 0:
        raise ConfigError(f"`straggler.ranks` must be below the number of ranks, {n_ranks}, got {beyond[0]}")
    if config.budget.target_loss is None:
        return
    # The run might never end otherwise.
    if not callable(getattr(objective, "evaluate", None)):
        raise ConfigError("`budget.target_loss` needs an objective with `evaluate`, got one without")
    if data is not None and data.test.n_rows == 0:
        raise ConfigError(f"`budget.target_loss` needs an evaluation set, got no rows in `/test/x` of {data.path}")
