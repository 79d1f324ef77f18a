"""Combination of the checkpoints of all ranks into parameters. Every file is read by one rank; no rank reads all."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from mpi4py import MPI

from hpc_dasgd.arrays.types import Floats, Int64s
from hpc_dasgd.storage.checkpoint_file import SavedCheckpoint
from hpc_dasgd.storage.checkpoint_selection import CheckpointFile, most_complete

_BLOCK_PARAMS = 1 << 24  # parameters that ranks exchange at once


def combine(comm: MPI.Intracomm, files: Sequence[CheckpointFile], own: CheckpointFile, out: Floats) -> None:
    """Combine contributions into parameters, as their headers say. Collective over `comm`.

    Parameters
    ----------
    comm : MPI.Intracomm
    files : sequence of CheckpointFile
        A set that belongs together, the same on all ranks.
    own : CheckpointFile
        The checkpoint that this rank continues.
    out : ndarray, shape (n_params,), float32 or float64, host memory
        Overwritten with the parameters.
    """
    combines = files[0].header.combines
    if combines == "newest":
        _read_in_parts(comm, most_complete(list(files)).path, out)
    elif combines == "own":
        with SavedCheckpoint(own.path) as saved:
            out[:] = saved.contribution(0, out.size)
    else:
        contributing = [file.path for file in files if file.header.contributes]
        _sum_contributions(comm, contributing, out)
        if combines == "mean":
            out /= len(contributing)


def combined_versions(files: Sequence[CheckpointFile], n_ranks: int) -> Int64s:
    """Return the number of updates of each rank in the combined parameters. Not collective.

    Parameters
    ----------
    files : sequence of CheckpointFile
        A set that belongs together.
    n_ranks : int
        Number of ranks of the new generation.

    Returns
    -------
    versions : ndarray, shape (n_streams,), int64
        One entry for each rank of the largest generation, the new one included.
    """
    newest = most_complete(list(files))
    with SavedCheckpoint(newest.path) as saved:
        logged = saved.versions
    versions = np.zeros(max(n_ranks, logged.size), np.int64)
    versions[: logged.size] = logged
    if newest.header.combines != "newest":
        for file in files:
            versions[file.header.rank] = file.header.version
    return versions


def _read_in_parts(comm: MPI.Intracomm, path: Path, out: Floats) -> None:
    """Fill `out` on every rank with the contribution in one file, of which each rank reads a part. Collective."""
    with SavedCheckpoint(path) as saved:
        for bounds in _blocks(out.size, comm.size):
            lo, hi = bounds[comm.rank : comm.rank + 2]
            out[lo:hi] = saved.contribution(lo, hi)
    _allgather(comm, out)


def _sum_contributions(comm: MPI.Intracomm, paths: Sequence[Path], out: Floats) -> None:
    """Fill `out` on every rank with the sum of contributions, added in the order of `paths`. Collective.

    Each file is read by one rank. As many files as there are ranks are added at once, each element by the rank that
    owns it, so that the sum does not depend on the number of ranks. Takes the memory of two blocks.
    """
    for first in range(0, len(paths), comm.size):
        n_files = min(comm.size, len(paths) - first)
        reads = comm.rank < n_files
        with SavedCheckpoint(paths[first + comm.rank]) if reads else nullcontext() as saved:
            for bounds in _blocks(out.size, comm.size):
                lo, hi = bounds[comm.rank : comm.rank + 2]
                block = np.empty(0, out.dtype) if saved is None else saved.contribution(bounds[0], bounds[-1])
                sent = np.diff(bounds) if reads else np.zeros(comm.size, int)
                received_counts = np.where(np.arange(comm.size) < n_files, hi - lo, 0)
                received = np.empty((n_files, hi - lo), out.dtype)
                comm.Alltoallv(
                    [block, (sent, np.cumsum(sent) - sent)],
                    [received, (received_counts, np.cumsum(received_counts) - received_counts)],
                )
                for number, values in enumerate(received, first):
                    if number:
                        values += out[lo:hi]
                    out[lo:hi] = values
    _allgather(comm, out)


def _allgather(comm: MPI.Intracomm, out: Floats) -> None:
    """Give every rank the parts of `out` that the other ranks own. Collective."""
    for bounds in _blocks(out.size, comm.size):
        counts = np.diff(bounds)
        comm.Allgatherv(MPI.IN_PLACE, [out[bounds[0] : bounds[-1]], (counts, np.cumsum(counts) - counts)])


def _blocks(n_params: int, n_ranks: int) -> Iterator[list[int]]:
    """Yield for each block of parameters the bounds of the parts that the ranks own, ``n_ranks + 1`` numbers."""
    for lo in range(0, n_params, _BLOCK_PARAMS):
        n_block = min(_BLOCK_PARAMS, n_params - lo)
        yield [lo + n_block * rank // n_ranks for rank in range(n_ranks + 1)]
