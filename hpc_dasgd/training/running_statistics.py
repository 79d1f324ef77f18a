"""What ranks keep beside the parameters, such as the running means of batch normalization, made one at the end."""

from pathlib import Path

import numpy as np

from hpc_dasgd.runtime import collective
from hpc_dasgd.storage.run_file import by_name, read_running_statistics

_PIECE = 2048  # values of a rank that travel at once; where deaths are survived, little fits on a rank's board


def restore(comm, objective, run_directory: Path) -> None:
    """Give every rank's objective what an earlier start of the run ended or was stopped with. Collective.

    Nothing happens where there is nothing, as after a kill, or the objective keeps other statistics now.
    """
    if not callable(getattr(objective, "load_running_statistics", None)):
        return
    found = collective.raise_on_all_ranks(
        comm, lambda: read_running_statistics(run_directory) if comm.rank == 0 else None
    )
    kept = comm.bcast(found, root=0)
    own = objective.running_statistics()
    if kept and {name: values.shape for name, values in kept.items()} == {n: np.shape(v) for n, v in own.items()}:
        objective.load_running_statistics(kept)


def average_over_ranks(objective, replicas) -> dict[str, np.ndarray]:
    """Give every rank's objective the mean over ranks of its running statistics. Collective, after `settle`.

    The mean is over the ranks that took gradients and live; values that are the same on all of them stay as they are.
    With exchange `none` each rank keeps its own.

    Parameters
    ----------
    objective : Objective
    replicas : Exchange

    Returns
    -------
    statistics : dict of str to ndarray
        What the objective of this rank has now; empty where it keeps nothing.
    """
    if not callable(getattr(objective, "running_statistics", None)):
        return {}
    own = objective.running_statistics()
    if replicas.combines == "own" or not own:
        return own
    flat = np.concatenate([np.asarray(values, np.float64).ravel() for values in own.values()])
    for lo in range(0, flat.size, _PIECE):
        piece = flat[lo : lo + _PIECE]
        given = [values for values in replicas.allgather(piece.copy() if replicas.made else None) if values is not None]
        if given:
            same = np.all(np.equal(given, given[0]), axis=0)  # infinite ones too
            piece[:] = np.where(same, given[0], np.mean(given, axis=0))
    parts = by_name(flat, {name: values.shape for name, values in own.items()})
    mean = {name: part.astype(own[name].dtype) for name, part in parts.items()}
    objective.load_running_statistics(mean)
    return mean
