"""Resuming a run from its newest good checkpoints, with any number of ranks."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from hpc_dasgd.arrays.types import Floats
from hpc_dasgd.config.exchange_traits import all_traits, traits_of
from hpc_dasgd.config.settings import Config, load_config
from hpc_dasgd.console.formats import ranks_text
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.runtime.collective import on_rank_0, raise_on_all_ranks
from hpc_dasgd.storage import checkpoint_file, checkpoint_selection, layout
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, SavedCheckpoint
from hpc_dasgd.storage.checkpoint_selection import CheckpointFile
from hpc_dasgd.storage.generations import read_generation, read_generations
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, error_reason
from hpc_dasgd.storage.log_index import index_streams
from hpc_dasgd.training.combination import combine, combined_versions
from hpc_dasgd.training.generation_start import GenerationStart

if TYPE_CHECKING:
    from mpi4py import MPI


def resume_run(
    comm: "MPI.Intracomm", directory: Path, config: Config, x0: Floats, warn: Callable[[str], None]
) -> GenerationStart:
    """Combine the newest good checkpoints of a run. Collective over `comm`.

    Parameters
    ----------
    comm : MPI.Intracomm
    directory : Path
        The run directory.
    config : Config
        Settings of the new generation.
    x0 : ndarray, shape (n_params,)
        First parameters of the objective: their number and dtype must fit the checkpoints. They are used if the run
        ended before its first step.
    warn : callable
        Called on rank 0 with a line of text for each file that is damaged or does not belong to the run.

    Returns
    -------
    start : GenerationStart

    Raises
    ------
    ConfigError
        On every rank, if there is no set of good checkpoints, or if it does not fit the settings.
    """
    run = on_rank_0(comm, lambda: _read_run(directory))
    files, problems = _inspect(comm, directory, run.run_id)
    while (newest := checkpoint_selection.newest_set(files)) is not None and (damaged := _verify(comm, newest)):
        problems += damaged.values()
        files = [file for file in files if file.path not in damaged]
    for problem in problems if comm.rank == 0 else ():
        warn(problem)
    if newest is None:
        on_rank_0(comm, lambda: _require_no_step(directory, files, problems))
        versions = np.zeros(max(comm.size, run.n_ranks), np.int64)
        return GenerationStart(x0, run.run_id, run.n_generations, parent=0, versions_before=versions, begun_s=0.0)
    header = newest[0].header
    raise_on_all_ranks(comm, lambda: _check(directory, header, run, config, x0))
    chosen = on_rank_0(comm, lambda: _stepsize_chosen(directory, header.generation, config))
    return _continue_from(comm, newest, run, np.empty_like(x0), config.optimizer.kind, chosen)


class _RunFile(NamedTuple):
    """Properties of the run that is resumed."""

    run_id: str
    n_ranks: int
    n_generations: int
    versions_every: int


def _read_run(directory: Path) -> _RunFile:
    path = directory / layout.RUN_FILE
    try:
        with h5py.File(path) as file:
            run_id, text, n_ranks = (file.attrs[name] for name in ("run_id", "config", "n_ranks"))
        every = load_config(tomllib.loads(text)).log.versions_every
    except HDF5_ERRORS as error:  # errors of the settings are among them
        raise ConfigError(f"--resume needs the {layout.RUN_FILE} of {directory}: {error_reason(error)}") from None
    numbers = [int(folder.name.rpartition("_")[2]) for folder in directory.glob(layout.GENERATION_PATTERN)]
    return _RunFile(run_id, int(n_ranks), 1 + max(numbers, default=0), every)


def _stepsize_chosen(directory: Path, generation: int, config: Config) -> str:
    """Return how the stepsize of a generation was chosen, as JSON; empty if the settings give or gave it."""
    if config.optimizer.stepsize != "bound":
        return ""
    return str(read_generation(directory, generation).attributes["stepsize_chosen"])


def _inspect(comm: "MPI.Intracomm", directory: Path, run_id: str) -> tuple[list[CheckpointFile], list[str]]:
    """Return the files that look good by their headers, and what is wrong with the others. Collective."""
    listed = comm.bcast(checkpoint_file.list_checkpoints(directory) if comm.rank == 0 else None, root=0)
    own_share = [path for rank in sorted(listed)[comm.rank :: comm.size] for path in listed[rank]]
    files, problems = zip(*comm.allgather(checkpoint_selection.inspect_files(own_share, run_id)), strict=True)
    return [file for part in files for file in part], [problem for part in problems for problem in part]


def _verify(comm: "MPI.Intracomm", files: Sequence[CheckpointFile]) -> dict[Path, str]:
    """Read all of the files, each on one rank, and return which are damaged. Collective."""
    damaged = comm.allgather(checkpoint_selection.find_damaged(files[comm.rank :: comm.size]))
    return {path: problem for part in damaged for path, problem in part.items()}


def _require_no_step(directory: Path, files: Sequence[CheckpointFile], problems: Sequence[str]) -> None:
    """Raise `ConfigError` unless the run ended before its first step, when not every rank had a checkpoint yet."""
    started = any(file.header.generation or file.header.version for file in files)
    if problems or started or any(stream.n_gradients for stream in index_streams(read_generations(directory), [])):
        found = "; ".join([*problems, _missing(files)])
        raise ConfigError(f"--resume needs a good checkpoint of every rank of {directory}: {found}")


def _missing(files: Sequence[CheckpointFile]) -> str:
    """Return which ranks of the newest generation have no good checkpoint, as text."""
    newest = max((file.header for file in files), key=lambda header: header.generation, default=None)
    if newest is None:
        return "there is none"
    present = {file.header.rank for file in files if file.header.generation == newest.generation}
    missing = [rank for rank in range(newest.n_ranks) if rank not in present]
    return f"generation {newest.generation} has none of {ranks_text(missing)}"


def _check(directory: Path, header: CheckpointHeader, run: _RunFile, config: Config, x0: Floats) -> None:
    """Check that the checkpoints fit the settings of the new generation."""
    if (header.n_params, header.dtype) != (x0.size, x0.dtype.name):
        raise ConfigError(
            f"--resume needs an objective of {header.n_params} parameters of {header.dtype}, as {directory} has, "
            f"got {x0.size} of {x0.dtype.name}"
        )
    if header.combines == "own" and traits_of(config.exchange.kind).combines != "own":
        kinds = " or ".join(traits.kind for traits in all_traits() if traits.combines == "own")
        raise ConfigError(f"`exchange.kind` must stay {kinds} to resume {directory}, got {config.exchange.kind}")
    if config.log.versions_every != run.versions_every:
        names = {0: "none", 1: "full"}
        rule = f"must stay {names.get(run.versions_every, f'every {run.versions_every}')!r} with --resume"
        raise ConfigError(f"`log.versions` {rule}, got {config.log.versions!r}")


def _continue_from(
    comm: "MPI.Intracomm", files: Sequence[CheckpointFile], run: _RunFile, x0: Floats, optimizer: str, chosen: str
) -> GenerationStart:
    """Return the start of a generation that continues from a set of checkpoints; fills `x0`. Collective."""
    header = files[0].header
    of_rank = {file.header.rank: file for file in files}
    # The rank of the earlier generation that this one continues; with more ranks than before, several continue one.
    continued = of_rank.get(comm.rank % header.n_ranks, checkpoint_selection.most_complete(list(files)))
    combine(comm, files, continued, x0)
    with SavedCheckpoint(continued.path) as saved:
        optimizer_state = saved.optimizer_state if continued.header.optimizer == optimizer else None
    own = of_rank.get(comm.rank)
    return GenerationStart(
        x0=x0,
        run_id=run.run_id,
        generation=run.n_generations,
        parent=header.generation,
        versions_before=comm.bcast(combined_versions(files, comm.size) if comm.rank == 0 else None, root=0),
        begun_s=max(file.header.t_s for file in files),
        slot=0 if own is None else checkpoint_file.slot_of(own.path) + 1,
        optimizer_state=optimizer_state,
        stepsize_chosen=chosen,
    )
