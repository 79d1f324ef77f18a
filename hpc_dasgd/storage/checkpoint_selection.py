"""Selection of the checkpoints from which a run resumes, and reading its parameters from them.

Not collective: each rank may inspect a share of the files, or one process all of them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpc_dasgd.arrays.types import Floats
from hpc_dasgd.errors import CheckpointError
from hpc_dasgd.storage import checkpoint_file
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, SavedCheckpoint
from hpc_dasgd.storage.checkpoint_user_block import display_name


class CheckpointFile(NamedTuple):
    """A checkpoint of full length with a valid header, whose checksum has not been verified yet."""

    path: Path
    header: CheckpointHeader


def inspect_files(paths: Iterable[Path], run_id: str) -> tuple[list[CheckpointFile], list[str]]:
    """Read the headers of files, one kilobyte each.

    Parameters
    ----------
    paths : iterable of Path
    run_id : str
        Run that the checkpoints must belong to.

    Returns
    -------
    files : list of CheckpointFile
        Files with a valid header of this run.
    problems : list of str
        One line of text for each other file.
    """
    files, problems = [], []
    for path in paths:
        try:
            header = checkpoint_file.read_header(path)
            if header.run_id != run_id:
                raise CheckpointError(f"{display_name(path)} belongs to another run")
            if header.rank != checkpoint_file.rank_of(path):
                raise CheckpointError(f"{display_name(path)} was written by rank {header.rank}")
        except CheckpointError as error:
            problems.append(str(error))
        else:
            files.append(CheckpointFile(path, header))
    return files, problems


def find_damaged(files: Iterable[CheckpointFile]) -> dict[Path, str]:
    """Verify the checksums of files, and return a message for each damaged file. Reads the files completely."""
    damaged = {}
    for file in files:
        try:
            checkpoint_file.verify_checksum(file.path)
        except CheckpointError as error:
            damaged[file.path] = str(error)
    return damaged


def newest_set(files: Iterable[CheckpointFile]) -> list[CheckpointFile] | None:
    """Select the newest file of each rank in the newest generation that has all files needed to resume.

    Returns
    -------
    files : list of CheckpointFile or None
        In the order of ranks; None if no generation has all files needed.
    """
    files = sorted(files, key=lambda file: file.header.t_s)
    for generation in sorted({file.header.generation for file in files}, reverse=True):
        newest = {file.header.rank: file for file in files if file.header.generation == generation}
        selected = [newest[rank] for rank in sorted(newest)]
        header = selected[0].header
        # Any replica is a state of the run by itself; of contributions, those of all ranks are needed.
        is_enough = header.combines == "newest" or len(selected) == header.n_ranks
        if is_enough and any(file.header.contributes for file in selected):
            return selected
    return None


def most_complete(files: list[CheckpointFile]) -> CheckpointFile:
    """Return the file of a set whose replica contains the most gradients."""
    return max(files, key=lambda file: (file.header.contributes, file.header.gradients))


def read_parameters(run_directory: Path, run_id: str) -> Floats | None:
    """Combine the newest undamaged checkpoints of a run into its parameters. Needs memory for two parameter vectors.

    Returns
    -------
    parameters : ndarray, shape (n_params,), or None
        None if there are no such checkpoints.
    """
    paths = [path for paths in checkpoint_file.list_checkpoints(run_directory).values() for path in paths]
    files, _ = inspect_files(paths, run_id)
    while (selected := newest_set(files)) is not None and (damaged := find_damaged(selected)):
        files = [file for file in files if file.path not in damaged]
    if selected is None:
        return None
    header = selected[0].header
    if header.combines in ("newest", "own"):
        selected = [most_complete(selected) if header.combines == "newest" else selected[0]]
    total: Floats = np.zeros(header.n_params, header.dtype)
    contributing = [file for file in selected if file.header.contributes]
    for file in contributing:
        with SavedCheckpoint(file.path) as saved:
            total += saved.contribution(0, header.n_params)
    return total / len(contributing) if header.combines == "mean" else total
