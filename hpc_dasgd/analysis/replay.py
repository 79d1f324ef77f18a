"""Replay of a run of exchange `read`: its gradients recomputed one after another from its log. Needs no MPI.

A replica is a function of its version vector, an update is a function of the replica at which it was computed, and the
log holds the version vectors. One process can therefore recompute the asynchronous run bit for bit, in any order that
respects causality. If the run was resumed, its contributions are summed as they were when it was resumed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_dasgd.analysis.export import write_npz
from hpc_dasgd.analysis.recompute import Recomputation, replay_device
from hpc_dasgd.analysis.run import DatasetSource, Run
from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.types import AnyArray, Floats, Int64s
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.runtime import hardware

_ATTRIBUTES_THAT_CHANGE_BITS = ("cpu", "blas", "blas_threads", "numpy_version")


@dataclass(frozen=True, eq=False)
class ReplicaState:
    """A recomputed replica.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,), float32 or float64
    versions : ndarray, shape (n_ranks,), int64
        Version vector: number of updates of each rank that `parameters` contain.
    gradient : ndarray, shape (n_params,), dtype of `parameters`, or None
        Gradient at `parameters`; None if only parameters were recomputed.
    loss : float
        Loss of the batch of `gradient`; nan if there is none.
    differences : list of str
        As for `ReplayResult`. The log of a run that was killed may lack updates that replicas contained.
    """

    parameters: Floats
    versions: Int64s
    gradient: Floats | None = None
    loss: float = math.nan
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """Result of a replay.

    Attributes
    ----------
    n_gradients : int
        Number of recomputed gradients.
    parameters : ndarray, shape (n_params,), float32 or float64
        Recomputed final parameters.
    agrees : bool
        Whether every loss equals the logged one and `parameters` equal the final parameters of the run, bit for bit.
    largest_difference : float
        Largest absolute difference between an element of `parameters` and of the final parameters of the run.
    differences : list of str
        The first loss that differs from the logged one, generations whose initial parameters differ, and differences
        in hardware and libraries between this machine and the run.
    max_contributions : int
        Largest number of contributions in memory at the same time. It is bounded by the staleness, not by the length
        of the run.
    """

    n_gradients: int
    parameters: Floats
    agrees: bool
    largest_difference: float
    differences: list[str] = field(default_factory=list)
    max_contributions: int = 0


def replay(run: Run, *, objective: Objective | None = None, data: DatasetSource | None = None) -> ReplayResult:
    """Recompute the whole run and compare the results with its files.

    Parameters
    ----------
    run : Run
        A complete run.
    objective : Objective, optional
        The objective, if it was passed to `hpc_dasgd.train`.
    data : Dataset or path, optional
        Replaces the data set that the run names.

    Returns
    -------
    result : ReplayResult

    Raises
    ------
    ConfigError
        If the run cannot be replayed; the message gives the reasons.

    Examples
    --------
    >>> replay(open_run("runs/digits-20250101-120000")).agrees    # doctest: +SKIP
    True
    """
    if run.final is None:
        raise ConfigError(f"{run.directory} cannot be replayed to its end: it is not complete")
    recomputation = Recomputation(run, objective, data)
    for _ in recomputation:
        pass
    parameters = recomputation.final_parameters()
    differences = [*recomputation.differences]
    if parameters.tobytes() != run.final.tobytes():
        differences.append("the final parameters differ")
    agrees = not differences
    if not agrees:
        differences += _machine_differences(run)
    return ReplayResult(
        n_gradients=int(run.counts.sum()),
        parameters=parameters,
        agrees=agrees,
        largest_difference=float(np.abs(parameters - run.final).max()),
        differences=differences,
        max_contributions=recomputation.max_contributions,
    )


def state_after(
    run: Run, n_gradients: int, *, objective: Objective | None = None, data: DatasetSource | None = None
) -> ReplicaState:
    """Recompute the parameters after the first `n_gradients` gradients of the global order.

    These are the ``x_t`` of ``docs/theory.md``. Possibly no rank ever held them.

    Parameters
    ----------
    run : Run
    n_gradients : int
        From 0 to the number of gradients of the run.
    objective, data
        As for `replay`.

    Returns
    -------
    state : ReplicaState
        Without a gradient.

    Raises
    ------
    ConfigError
        If `n_gradients` is out of range, or the run cannot be replayed.
    """
    n_all = int(run.counts.sum())
    if not 0 <= n_gradients <= n_all:
        raise ConfigError(f"`--until` must be between 0 and the run's {n_all} gradients, got {n_gradients}")
    recomputation = Recomputation(run, objective, data, stop=n_gradients)
    versions = np.zeros(run.n_ranks, np.int64)
    for rank in recomputation:
        versions[rank] += 1
    return ReplicaState(recomputation.replica(0, versions), versions, differences=recomputation.differences)


def state_at_gradient(
    run: Run, rank: int, version: int, *, objective: Objective | None = None, data: DatasetSource | None = None
) -> ReplicaState:
    """Recompute one gradient, and the replica at which it was computed.

    Parameters
    ----------
    run : Run
    rank : int
        Rank that computed the gradient.
    version : int
        Index of the gradient among those of `rank`, from 0.
    objective, data
        As for `replay`.

    Returns
    -------
    state : ReplicaState

    Raises
    ------
    ConfigError
        If there is no such gradient, or the run cannot be replayed.
    """
    if not 0 <= rank < run.n_ranks:
        raise ConfigError(f"`--inspect` must name a rank below {run.n_ranks}, got {rank}")
    count = run.counts[rank]
    if not 0 <= version < count:
        raise ConfigError(f"`--inspect` must name one of the {count} gradients of rank {rank}, got {version}")
    order = run.order
    stop = int(np.flatnonzero((order.rank == rank) & (order.index == version))[0]) + 1
    recomputation = Recomputation(run, objective, data, stop=stop)
    for _ in recomputation:
        pass
    return ReplicaState(
        recomputation.parameters,
        recomputation.versions,
        recomputation.gradient,
        recomputation.loss,
        recomputation.differences,
    )


def sample_replicas(
    run: Run, n_samples: int, *, objective: Objective | None = None, data: DatasetSource | None = None
) -> Iterator[Floats]:
    """Recompute the run and yield replicas at gradients that are evenly spaced in the global order.

    Parameters
    ----------
    run : Run
    n_samples : int
        Largest number of replicas.
    objective, data
        As for `replay`.

    Yields
    ------
    parameters : ndarray, shape (n_params,), float32 or float64
        Overwritten when the next replica is requested.

    Raises
    ------
    ConfigError
        If the run cannot be replayed.
    """
    every = max(1, ceil_div(int(run.counts.sum()), n_samples))
    recomputation = Recomputation(run, objective, data)
    for number, _ in enumerate(recomputation):
        if number % every == every // 2:
            yield recomputation.parameters


def write_state(state: ReplicaState, path: str | Path) -> None:
    """Write ``parameters``, ``versions`` and, if there is one, ``gradient`` as ``.npz`` to `path`; no suffix is added.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    arrays: dict[str, AnyArray] = {"parameters": state.parameters, "versions": state.versions}
    if state.gradient is not None:
        arrays["gradient"] = state.gradient
    try:
        write_npz(path, arrays)
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror or error}") from None


def _machine_differences(run: Run) -> list[str]:
    """Return the differences between this machine and that of the run that may change the last bits of results."""
    here = hardware.describe_hardware() | {"numpy_version": np.__version__}
    logged = {name: run.attributes[name] for name in _ATTRIBUTES_THAT_CHANGE_BITS if name in run.attributes}
    models = {_model(name) for name in run.attributes.get("devices", ())}
    if models:
        here["device"], logged["device"] = _model(replay_device(run).name), ", ".join(sorted(models))
    return [f"{name} is {here[name]}, in the run {value}" for name, value in logged.items() if value != here[name]]


def _model(device: str) -> str:
    """Return the name of a device without its PCI address."""
    return device.rpartition(" (")[0] or device
