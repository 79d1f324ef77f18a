"""Recomputing a run of exchange `read`, one gradient after another, from its log. Needs no MPI.

A replica is a function of its version vector, an update one of the replica it was taken at, and the log holds
the vectors: the asynchronous run is therefore recomputed by a single process, in any order that respects
causality, down to the last bit. Where it was resumed, its contributions are summed as they were then.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_dasgd.analysis.recompute import Recomputation, device_of
from hpc_dasgd.analysis.run import Run
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.runtime import hardware

_SHOWN_RANKS = 32
_CHANGES_BITS = ("cpu", "blas", "blas_threads", "numpy_version")


@dataclass(frozen=True, eq=False)
class Moment:
    """A replica at one moment of the run.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,)
    versions : ndarray, shape (n_ranks,), int64
        Updates of each rank in it.
    gradient : ndarray, shape (n_params,), or None
        Taken at `parameters`; None where none was asked for.
    loss : float
        Of the batch the gradient is of; nan without one.
    differences : list of str
        As of `Replayed`; of a run that was killed, logs may lack updates that replicas held.
    """

    parameters: np.ndarray
    versions: np.ndarray
    gradient: np.ndarray | None = None
    loss: float = math.nan
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a replay came to.

    Attributes
    ----------
    n_gradients : int
        Recomputed.
    parameters : ndarray, shape (n_params,)
        Behind the last of them, summed as rank 0 does.
    agrees : bool
        Whether every loss is the logged one, and `parameters` are the run's final ones, bit for bit.
    largest_difference : float
        Between an element of `parameters` and of the final ones.
    differences : list of str
        The first loss that is another, ``x_0`` of generations that are, and what of this machine is not what the
        run was made with.
    n_kept : int
        Contributions that were held at once at most: bounded by the staleness, whatever the run's length.
    """

    n_gradients: int
    parameters: np.ndarray
    agrees: bool
    largest_difference: float
    differences: list[str] = field(default_factory=list)
    n_kept: int = 0


def replay(run: Run, *, objective=None, data: Dataset | str | Path | None = None) -> Replayed:
    """Recompute the whole run and compare it with its files.

    Parameters
    ----------
    run : Run
    objective : optional
        What the run was made with, where it was passed to `train`; see `objectives.Objective`.
    data : Dataset or path, optional
        In place of the data set that the settings name.

    Raises
    ------
    ConfigError
        If the run cannot be replayed; the message says why.
    """
    if run.final is None:
        raise ConfigError(f"{run.directory} cannot be replayed to its end: it is not complete and has none")
    recomputation = Recomputation(run, objective, data)
    for _ in recomputation:
        pass
    parameters = recomputation.final()
    same = parameters.tobytes() == run.final.tobytes()
    differences = [*recomputation.differences]
    if not same:
        differences.append("the final parameters differ")
    if differences:
        differences += _other_machine(run)
    return Replayed(
        int(run.counts.sum()),
        parameters,
        not differences,
        float(np.abs(parameters - run.final).max()),
        differences,
        recomputation.n_kept,
    )


def until(run: Run, n_gradients: int, *, objective=None, data=None) -> Moment:
    """Recompute the first `n_gradients` gradients of the global order, and sum their updates.

    No rank ever held these parameters, the ``x_t`` of ``theory.md``. Parameters and errors as of `replay`.
    """
    n_all = int(run.counts.sum())
    if not 0 <= n_gradients <= n_all:
        raise ConfigError(f"`--until` must be between 0 and the run's {n_all} gradients, got {n_gradients}")
    recomputation = Recomputation(run, objective, data, stop=n_gradients)
    versions = np.zeros(run.n_ranks, np.int64)
    for rank in recomputation:
        versions[rank] += 1
    return Moment(recomputation.replica(0, versions), versions, differences=recomputation.differences)


def inspect(run: Run, rank: int, version: int, *, objective=None, data=None) -> Moment:
    """Recompute gradient `version` of `rank`, and the replica it was taken at.

    Other parameters and errors as of `replay`.
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
    return Moment(
        recomputation.parameters,
        recomputation.held,
        recomputation.gradient,
        recomputation.loss,
        recomputation.differences,
    )


def text(replayed: Replayed) -> str:
    """What a replay came to, for the terminal."""
    verdict = "agrees" if replayed.agrees else "DIFFERS"
    lines = [f"{verdict}: {replayed.n_gradients} gradients recomputed"]
    if replayed.agrees:
        lines[0] += ", every loss and the final parameters the same bit for bit"
    else:
        lines += [f"final parameters: largest difference {replayed.largest_difference:.3g}", *replayed.differences]
    return "\n".join([*lines, f"contributions held at once: {replayed.n_kept} at most"])


def moment_text(moment: Moment) -> str:
    """A moment in a few numbers, for the terminal."""
    versions = " ".join(map(str, moment.versions[:_SHOWN_RANKS]))
    more = f" ... ({moment.versions.size} ranks)" if moment.versions.size > _SHOWN_RANKS else ""
    lines = [
        f"parameters: norm {np.linalg.norm(moment.parameters):.6g}",
        f"holds {moment.versions.sum()} updates, by rank: {versions}{more}",
    ]
    if moment.gradient is not None:
        lines.append(f"gradient: norm {np.linalg.norm(moment.gradient):.6g}, loss {moment.loss:.6g}")
    return "\n".join([*lines, *(f"warning: {difference}" for difference in moment.differences)])


def write_moment(moment: Moment, path: str | Path) -> None:
    """Write ``parameters``, ``versions`` and, if there is one, ``gradient`` to exactly `path`, as ``.npz``.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    arrays = {"parameters": moment.parameters, "versions": moment.versions}
    if moment.gradient is not None:
        arrays["gradient"] = moment.gradient
    try:
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror or error}") from None


def visit(run: Run, n_visits: int, *, objective=None, data=None) -> Iterator[np.ndarray]:
    """Recompute the run and yield the replica of every so many'th gradient, `n_visits` in all or less.

    The arrays are overwritten when the next one is asked for. Other parameters and errors as of `replay`.
    """
    every = max(1, -(-int(run.counts.sum()) // n_visits))
    recomputation = Recomputation(run, objective, data)
    for number, _ in enumerate(recomputation):
        if number % every == every // 2:
            yield recomputation.parameters


def _other_machine(run: Run) -> list[str]:
    """What may change the last bits of a result and is another here than it was in the run."""
    here = hardware.describe_hardware() | {"numpy_version": np.__version__}
    then = {name: run.attributes[name] for name in _CHANGES_BITS if name in run.attributes}
    devices = {_model(name) for name in run.attributes.get("devices", ())}
    if devices:
        here, then = here | {"device": _model(device_of(run).name)}, then | {"device": ", ".join(sorted(devices))}
    return [f"{name} is {here[name]}, in the run {value}" for name, value in then.items() if value != here[name]]


def _model(device: str) -> str:
    return device.rpartition(" (")[0] or device
