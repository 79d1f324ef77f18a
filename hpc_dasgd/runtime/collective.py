"""Collective helpers: errors raised on all ranks, and which ranks share a node."""

import os
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from hpc_dasgd.errors import HpcDasgdError

T = TypeVar("T")


def raise_on_all_ranks(comm, attempt: Callable[[], T]) -> T:
    """Return ``attempt()`` where it succeeds on every rank; else raise the same error on all. Collective.

    The error is that of the lowest rank that failed. Only errors of this package are agreed on; any
    other exception is a fault of one rank and passes through.
    """
    result, error = None, None
    try:
        result = attempt()
    except HpcDasgdError as raised:
        error = raised
    for failure in comm.allgather(error):
        if failure is not None:
            failure.agreed = True
            raise failure
    return result


def node_of_each_rank(comm) -> tuple[int, ...]:
    """The node of each rank, named by the lowest rank that shares memory there. Collective."""
    from mpi4py import MPI

    sharing = comm.Split_type(MPI.COMM_TYPE_SHARED)
    node = sharing.bcast(comm.rank, root=0)
    sharing.Free()
    return tuple(comm.allgather(node))


def is_oversubscribed(comm) -> bool:
    """Whether the ranks of some node have fewer cores than they are. Collective.

    A rank that waits then has to give its core away, which not every MPI does.
    """
    at = node_of_each_rank(comm)
    n_ranks = Counter(at)
    return any(n_ranks[node] > n_cores for node, n_cores in zip(at, cores_of_each_rank(comm), strict=True))


def cores_of_each_rank(comm) -> tuple[int, ...]:
    """Of each rank how many different cores the ranks of its node may run on. Collective."""
    from mpi4py import MPI

    sharing = comm.Split_type(MPI.COMM_TYPE_SHARED)
    n_cores = len(set().union(*sharing.allgather(os.sched_getaffinity(0))))
    sharing.Free()
    return tuple(comm.allgather(n_cores))
