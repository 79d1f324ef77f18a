"""Which checkpoints of a run belong together. No MPI: a rank looks at a share of the files, or one process at all."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpc_dasgd.errors import CheckpointError
from hpc_dasgd.storage import checkpoint_file
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, SavedCheckpoint


class CheckpointFile(NamedTuple):
    """A checkpoint that looks good from outside."""

    path: Path
    header: CheckpointHeader


def inspect_files(paths: Iterable[Path], run_id: str) -> tuple[list[CheckpointFile], list[str]]:
    """Look at files, at the cost of a kilobyte each: those that may be good, and what is wrong with the others."""
    files, problems = [], []
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        try:
            header = checkpoint_file.read_header(path)
            if header.run_id != run_id:
                raise CheckpointError(f"{name} is of another run")
            if header.rank != checkpoint_file.rank_of(path):
                raise CheckpointError(f"{name} is of rank {header.rank}")
        except CheckpointError as error:
            problems.append(str(error))
        else:
            files.append(CheckpointFile(path, header))
    return files, problems


def find_damaged(files: Iterable[CheckpointFile]) -> dict[Path, str]:
    """Read all of the files, and say which are damaged."""
    damaged = {}
    for file in files:
        try:
            checkpoint_file.verify_checksum(file.path)
        except CheckpointError as error:
            damaged[file.path] = str(error)
    return damaged


def newest_set(files: Iterable[CheckpointFile]) -> list[CheckpointFile] | None:
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


def most_complete(files: list[CheckpointFile]) -> CheckpointFile:
    """Of a set the file that holds the most gradients."""
    return max(files, key=lambda file: (file.header.contributes, file.header.gradients))


def parameters(directory: Path, run_id: str) -> np.ndarray | None:
    """The parameters of the newest good checkpoints of a run, put together by one process; None without any.

    Takes memory of two copies of them.
    """
    files, _ = inspect_files((path for paths in checkpoint_file.paths(directory).values() for path in paths), run_id)
    while (found := newest_set(files)) is not None and (damaged := find_damaged(found)):
        files = [file for file in files if file.path not in damaged]
    if found is None:
        return None
    header = found[0].header
    if header.combines in ("newest", "own"):
        found = [most_complete(found) if header.combines == "newest" else found[0]]
    total = np.zeros(header.n_params, header.dtype)
    contributing = [file for file in found if file.header.contributes]
    for file in contributing:
        with SavedCheckpoint(file.path) as saved:
            total += saved.contribution(0, header.n_params)
    return total / len(contributing) if header.combines == "mean" else total
