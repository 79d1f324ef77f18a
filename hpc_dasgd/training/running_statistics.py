"""Running statistics that ranks keep beside the parameters, such as running means of batch normalization."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.config.exchange_traits import ExchangeTraits
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.objectives.interface import Objective, has_running_statistics
from hpc_dasgd.runtime.collective import on_rank_0
from hpc_dasgd.storage.run_file import read_running_statistics, split_by_name

if TYPE_CHECKING:
    from mpi4py import MPI

_PIECE = 2048  # values per call of `allgather`: with ``exchange.survive`` the board of a rank is small


def restore(comm: "MPI.Intracomm", objective: Objective, run_directory: Path) -> None:
    """Load the running statistics that an earlier generation of the run ended with. Collective over `comm`.

    Does nothing if there are none, as after the job was killed, or if the objective keeps other statistics now.

    Parameters
    ----------
    comm : MPI.Intracomm
    objective : Objective
    run_directory : Path
    """
    if not has_running_statistics(objective):
        return
    saved = on_rank_0(comm, lambda: read_running_statistics(run_directory))
    own = objective.running_statistics()
    if saved and {name: values.shape for name, values in saved.items()} == {n: np.shape(v) for n, v in own.items()}:
        objective.load_running_statistics(saved)


def average_over_ranks(objective: Objective, exchange: Exchange, traits: ExchangeTraits) -> dict[str, AnyArray]:
    """Give the objective of every rank the mean over ranks of its running statistics. Collective, after `settle`.

    The mean is over the ranks that have computed gradients and are alive. Values that are equal on all of them do not
    change. With exchange `none` each rank keeps its own.

    Parameters
    ----------
    objective : Objective
    exchange : Exchange
    traits : ExchangeTraits
        Traits of the exchange.

    Returns
    -------
    statistics : dict of str to ndarray
        Running statistics that the objective of this rank has afterwards; empty if it keeps no statistics.
    """
    if not has_running_statistics(objective):
        return {}
    own: dict[str, AnyArray] = objective.running_statistics()
    if traits.combines == "own" or not own:
        return own
    flat = np.concatenate([np.asarray(values, np.float64).ravel() for values in own.values()])
    for lo in range(0, flat.size, _PIECE):
        piece = flat[lo : lo + _PIECE]
        gathered = exchange.allgather(piece.copy() if exchange.made else None)
        given = [values for values in gathered if values is not None]
        if given:
            same = np.all(np.equal(given, given[0]), axis=0)  # infinite values too
            piece[:] = np.where(same, given[0], np.mean(given, axis=0))
    parts = split_by_name(flat, {name: values.shape for name, values in own.items()})
    mean = {name: part.astype(own[name].dtype) for name, part in parts.items()}
    objective.load_running_statistics(mean)
    return mean
