"""The problem of a run: settings, objective, data set, first parameters and device, agreed on by all ranks."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.arrays import devices
from hpc_dasgd.arrays.devices import Device
from hpc_dasgd.arrays.types import Floats
from hpc_dasgd.config.settings import Config, load_config
from hpc_dasgd.data.dataset import Dataset, open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.exchange import registry
from hpc_dasgd.objectives.interface import Objective, can_evaluate, computes_on_gpu
from hpc_dasgd.runtime import mpi
from hpc_dasgd.runtime.collective import node_of_each_rank, raise_on_all_ranks
from hpc_dasgd.training.request import RunRequest
from hpc_dasgd.window import gpu_memory

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, eq=False)
class Problem:
    """The objective of a run, with its settings, data, first parameters and device.

    Attributes
    ----------
    config : Config
    objective : Objective
    data : Dataset or None
        In host memory.
    x0 : ndarray, shape (n_params,), host memory
        First parameters of a new run, the same on all ranks.
    device : Device
        What this rank computes with.
    provenance : dict of str to (str or bool)
        Attributes of ``run.h5``: whether the objective was passed in Python, and the path of a data set that was
        passed in Python, or empty.
    """

    config: Config
    objective: Objective
    data: Dataset | None
    x0: Floats
    device: Device
    provenance: dict[str, str | bool]

    def with_config(self, config: Config) -> "Problem":
        """Return the same problem with other settings."""
        return replace(self, config=config)


def agree_on_problem(comm: "MPI.Intracomm", request: RunRequest) -> Problem:
    """Make the problem of a run, the same on every rank. Collective over `comm`.

    Raises
    ------
    ConfigError
        On every rank, if a setting, the data set or the objective is wrong on any rank.
    """
    config = raise_on_all_ranks(comm, lambda: load_config(request.config, request.overrides))
    data = raise_on_all_ranks(comm, lambda: _open_data(config, request.data))
    objective = request.objective
    if objective is None:
        options = dict(config.objective.options)
        objective = raise_on_all_ranks(comm, lambda: objectives.make(config.objective.kind, options, data))
    made = objective
    x0 = raise_on_all_ranks(comm, lambda: _first_parameters(made, config))
    raise_on_all_ranks(comm, lambda: _check(config, comm.size, made, data))
    comm.Bcast(x0, root=0)
    passed_data = data is not None and request.data is not None
    provenance: dict[str, str | bool] = {
        "objective_given": request.objective is not None,
        "data_path": str(Path(data.path).absolute()) if data is not None and passed_data else "",
    }
    return Problem(config, objective, data, x0, choose_device(comm, config, objective), provenance)


def choose_device(comm: "MPI.Intracomm", config: Config, objective: Objective) -> Device:
    """Choose the device of this rank; the ranks of a node take its GPUs in turn. Collective over `comm`.

    With ``device.kind = "auto"`` an objective gets a GPU only if it declares that it can compute on one.
    """
    nodes, rank = node_of_each_rank(comm), comm.rank
    local_rank = nodes[:rank].count(nodes[rank])
    return raise_on_all_ranks(comm, lambda: _choose_device(comm, config, objective, local_rank))


def _choose_device(comm: "MPI.Intracomm", config: Config, objective: Objective, local_rank: int) -> Device:
    takes_gpu = config.device.kind != "auto" or computes_on_gpu(objective)
    chosen = devices.choose(config.device.kind if takes_gpu else "cpu", local_rank, config.device.tf32)
    if config.exchange.device_windows and chosen.on_host:
        raise ConfigError(f"`exchange.device_windows` = true needs a GPU, got {chosen.name} on rank {comm.rank}")
    if config.exchange.device_windows and not gpu_memory.is_cuda_aware(comm):
        library = mpi.library_version()
        raise ConfigError(
            f"`exchange.device_windows` = true needs an MPI that declares support of GPU memory, got {library}"
        )
    return chosen


def _open_data(config: Config, data: Dataset | str | Path | None) -> Dataset | None:
    source = data if data is not None else config.data.path
    return source if source is None or isinstance(source, Dataset) else open_dataset(source, config.device.dtype)


def _first_parameters(objective: Objective, config: Config) -> Floats:
    """Return the first parameters of the objective in the dtype of the settings, checked."""
    rng = np.random.default_rng(config.seed)
    x0: Floats = np.ascontiguousarray(objective.initial(rng), config.device.dtype)
    if x0.ndim != 1 or x0.size == 0:
        raise ConfigError(f"`initial` of the objective must return a non-empty vector, got shape {x0.shape}")
    if not np.isfinite(x0).all():
        raise ConfigError("`initial` of the objective must return finite parameters")
    return x0


def _check(config: Config, n_ranks: int, objective: Objective, data: Dataset | None) -> None:
    """Check the settings against what is known only now: the number of ranks, the objective, the data set."""
    registry.check_settings(config.exchange, n_ranks)
    beyond = [rank for rank in config.straggler.ranks if rank >= n_ranks]
    if beyond and config.straggler.delay_ms > 0:
        raise ConfigError(f"`straggler.ranks` must be below the number of ranks, {n_ranks}, got {beyond[0]}")
    if config.budget.target_loss is None:
        return
    # Otherwise the run might never end.
    if not can_evaluate(objective):
        raise ConfigError("`budget.target_loss` needs an objective with `evaluate`, got one without")
    if data is not None and data.test.n_rows == 0:
        raise ConfigError(f"`budget.target_loss` needs an evaluation set, got no rows in `/test/x` of {data.path}")
