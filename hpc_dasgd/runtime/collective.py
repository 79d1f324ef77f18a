"""Collective helpers: raise errors on all ranks, find out which ranks share a node and its cores."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hpc_dasgd.errors import HpcDasgdError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


def raise_on_all_ranks(comm: MPI.Intracomm, attempt: Callable[[], T]) -> T:
    """Return ``attempt()`` if it succeeds on every rank; otherwise raise the same error on all ranks.

    Collective over `comm`; waits for all ranks.

    Parameters
    ----------
    comm : MPI.Intracomm
    attempt : callable
        Called once, without arguments.

    Returns
    -------
    result
        What `attempt` returned on this rank.

    Raises
    ------
    HpcDasgdError
        Error of the lowest rank on which `attempt` raised one, with ``on_all_ranks = True``. Errors of other types
        are programming errors of one rank, and are not exchanged.
    """
    error: HpcDasgdError | None = None
    try:
        result = attempt()
    except HpcDasgdError as raised:
        error = raised
    for failure in comm.allgather(error):
        if failure is not None:
            failure.on_all_ranks = True
            raise failure
    return result


def node_of_each_rank(comm: MPI.Intracomm) -> tuple[int, ...]:
    """Return the node of each rank, identified by the lowest rank that shares its memory. Collective over `comm`."""
    from mpi4py import MPI

    sharing = comm.Split_type(MPI.COMM_TYPE_SHARED)
    node = sharing.bcast(comm.rank, root=0)
    sharing.Free()
    return tuple(comm.allgather(node))


def cores_of_each_rank(comm: MPI.Intracomm) -> tuple[int, ...]:
    """Return, for each rank, the number of cores that the ranks of its node may use. Collective over `comm`."""
    from mpi4py import MPI

    sharing = comm.Split_type(MPI.COMM_TYPE_SHARED)
    n_cores = len(set().union(*sharing.allgather(os.sched_getaffinity(0))))
    sharing.Free()
    return tuple(comm.allgather(n_cores))


def on_rank_0(comm: MPI.Intracomm, find: Callable[[], T]) -> T:
    """Call `find` on rank 0; return its result, or raise its error, on all ranks. Collective over `comm`."""
    return comm.bcast(raise_on_all_ranks(comm, lambda: find() if comm.rank == 0 else None), root=0)


def is_oversubscribed(comm: MPI.Intracomm) -> bool:
    """Return True if a node has more ranks than cores that they may use. Collective over `comm`.

    A rank that waits then has to yield its core, which not every MPI library does.
    """
    nodes = node_of_each_rank(comm)
    n_ranks = Counter(nodes)
    return any(n_ranks[node] > n_cores for node, n_cores in zip(nodes, cores_of_each_rank(comm), strict=True))
