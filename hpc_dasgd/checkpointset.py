"""Which checkpoints of a run belong together. No MPI: a rank looks at a share of the files, or one process at all."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpc_dasgd import checkpoint
from hpc_dasgd.checkpoint import Header, Saved
from hpc_dasgd.errors import CheckpointError


class File(NamedTuple):
    """A checkpoint that looks good from outside."""

    path: Path
    header: Header


def look(paths: Iterable[Path], run_id: str) -> tuple[list[File], list[str]]:
    """Look at files, at the cost of a kilobyte each: those that may be good, and what is wrong with the others."""
    files, problems = [], []
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        try:
            header = checkpoint.look(path)
            if header.run_id != run_id:
                raise CheckpointError(f"{name} is of another run")
            if header.rank != checkpoint.rank_of(path):
                raise CheckpointError(f"{name} is of rank {header.rank}")
        except CheckpointError as error:
            problems.append(str(error))
        else:
            files.append(File(path, header))
    return files, problems


def verify(files: Iterable[File]) -> dict[Path, str]:
    """Read all of the files, and say which are damaged."""
    damaged = {}
    for file in files:
        try:
            checkpoint.verify(file.path)
        except CheckpointError as error:
            damaged[file.path] = str(error)
    return damaged


def newest(files: Iterable[File]) -> list[File] | None:
    """The newest file of each rank, of the newest generation from which all that is needed is there."""
    files = sorted(files, key=lambda file: file.header.t_s)
    for generation in sorted({file.header.generation for file in files}, reverse=True):
        of_rank = {file.header.rank: file for file in files if file.header.generation == generation}
        found = [of_rank[rank] for rank in sorted(of_rank)]
        header = found[0].header
        # A replica is a state of the run by itself; of contributions all are needed.
        enough = header.combines == "newest" or len(found) == header.n_ranks
        if enough and any(file.header.contributes for file in found):
            return found
    return None


def best(files: list[File]) -> File:
    """Of a set the file that holds the most gradients."""
    return max(files, key=lambda file: (file.header.contributes, file.header.gradients))


def parameters(directory: Path, run_id: str) -> np.ndarray | None:
    """The parameters of the newest good checkpoints of a run, put together by one process; None without any.

    Takes memory of two copies of them.
    """
    files, _ = look((path for paths in checkpoint.paths(directory).values() for path in paths), run_id)
    while (found := newest(files)) is not None and (damaged := verify(found)):
        files = [file for file in files if file.path not in damaged]
    if found is None:
        return None
    header = found[0].header
    if header.combines in ("newest", "own"):
        found = [best(found) if header.combines == "newest" else found[0]]
    total = np.zeros(header.n_params, header.dtype)
    contributing = [file for file in found if file.header.contributes]
    for file in contributing:
        with Saved(file.path) as saved:
            total += saved.contribution(0, header.n_params)
    return total / len(contributing) if header.combines == "mean" else total
