"""Going on with a run from its checkpoints, with any number of ranks.

The newest set of good checkpoints is combined into new parameters ``x_0``. Every file is read by one rank, which checks
all of it: no rank reads all.
"""

import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import h5py
import numpy as np
from mpi4py import MPI

from hpc_dasgd.config.exchange_traits import all_traits, traits_of
from hpc_dasgd.config.settings import Config, load_config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.runtime import collective
from hpc_dasgd.storage import checkpoint_file, checkpoint_selection, layout
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader
from hpc_dasgd.storage.checkpoint_selection import CheckpointFile
from hpc_dasgd.storage.generations import chain, read_generation
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS
from hpc_dasgd.storage.log_reader import read_streams

T = TypeVar("T")

_BLOCK_PARAMS = 1 << 24  # that ranks exchange at once


@dataclass(frozen=True, eq=False)
class GenerationStart:
    """Where a generation of a run begins.

    Attributes
    ----------
    x0 : ndarray, shape (n_params,), or None
    run_id : str
    generation : int
        0 for a new run.
    parent : int
        The generation that is resumed; -1 for a new run.
    versions_before : ndarray, shape (n_streams,), int64
        Updates that each rank made in earlier generations; as many entries as there ever were ranks.
    begun_s : float
        When, on the clock of the run.
    slot : int
        Of this rank's first checkpoint.
    optimizer_state : dict or None
        Of this rank; None for one that begins.
    chosen : str
        The stepsize that was chosen for the run, as JSON; empty where none was.
    """

    x0: np.ndarray | None
    run_id: str
    generation: int
    parent: int
    versions_before: np.ndarray
    begun_s: float
    slot: int = 0
    optimizer_state: dict | None = None
    chosen: str = ""

    @property
    def gradients(self) -> int:
        """Of all ranks in earlier generations."""
        return int(self.versions_before.sum())

    @property
    def without_arrays(self) -> "GenerationStart":
        """The same without parameters and optimizer state, once these are where they belong."""
        return replace(self, x0=None, optimizer_state=None)


def start_new_run(comm, x0: np.ndarray) -> GenerationStart:
    """The start of a new run. Collective."""
    run_id = comm.bcast(uuid.uuid4().hex if comm.rank == 0 else None, root=0)
    return GenerationStart(
        x0, run_id, generation=0, parent=-1, versions_before=np.zeros(comm.size, np.int64), begun_s=0.0
    )


def resume_run(comm, directory: Path, config: Config, x0: np.ndarray, warn: Callable[[str], None]) -> GenerationStart:
    """Combine the newest good checkpoints of a run. Collective.

    Parameters
    ----------
    comm : MPI.Intracomm
    directory : Path
        The run directory.
    config : Config
        Of the new generation.
    x0 : ndarray, shape (n_params,)
        Tells how many parameters the objective has, and their dtype.
    warn : callable
        Called on rank 0 with a line of text for each file that is not good.

    Raises
    ------
    ConfigError
        On every rank, where there is no set of good checkpoints, or they do not fit the settings.
    """
    run = _on_rank_0(comm, lambda: _read_run(directory))
    files, problems = _look(comm, directory, run.run_id)
    while (newest := checkpoint_selection.newest_set(files)) is not None and (damaged := _verify(comm, newest)):
        problems += damaged.values()
        files = [file for file in files if file.path not in damaged]
    for problem in problems if comm.rank == 0 else ():
        warn(problem)
    if newest is None:
        if _on_rank_0(comm, lambda: _never_began(directory, files, problems)):
            before = np.zeros(max(comm.size, run.n_ranks), np.int64)
            return GenerationStart(x0, run.run_id, run.n_generations, parent=0, versions_before=before, begun_s=0.0)
        found = "; ".join([*problems, _missing(files)])
        raise _on_all(ConfigError(f"--resume needs a good checkpoint of every rank of {directory}: {found}"))
    collective.raise_on_all_ranks(comm, lambda: _check(directory, newest[0].header, run, config, x0))
    chosen = _on_rank_0(comm, lambda: _chosen(directory, newest[0].header.generation, config))
    return _combine(comm, newest, run, config, x0, chosen)


class _Run(NamedTuple):
    """What ``run.h5`` says of the run."""

    run_id: str
    n_ranks: int
    n_generations: int
    versions_every: int


def _read_run(directory: Path) -> _Run:
    path = directory / layout.RUN_FILE
    try:
        with h5py.File(path) as file:
            run_id, text, n_ranks = (file.attrs[name] for name in ("run_id", "config", "n_ranks"))
        every = load_config(tomllib.loads(text)).log.versions_every
    except HDF5_ERRORS as error:  # of settings too
        raise ConfigError(f"--resume needs the {layout.RUN_FILE} of {directory}: {layout.reason(error)}") from None
    numbers = [int(folder.name.rpartition("_")[2]) for folder in directory.glob(layout.GENERATIONS)]
    return _Run(run_id, int(n_ranks), 1 + max(numbers, default=0), every)


def _chosen(directory: Path, generation: int, config: Config) -> str:
    """What the stepsize of a generation was chosen by; empty where it is a number again, or was one."""
    if config.optimizer.stepsize != "bound":
        return ""
    return read_generation(directory, generation).attributes["stepsize_chosen"]


def _look(comm, directory: Path, run_id: str) -> tuple[list[CheckpointFile], list[str]]:
    """All files that look good from outside, and what is wrong with the others. Collective."""
    listed = comm.bcast(checkpoint_file.paths(directory) if comm.rank == 0 else None, root=0)
    own_share = [path for rank in sorted(listed)[comm.rank :: comm.size] for path in listed[rank]]
    files, problems = zip(*comm.allgather(checkpoint_selection.inspect_files(own_share, run_id)), strict=True)
    return [file for some in files for file in some], [problem for some in problems for problem in some]


def _verify(comm, files: list[CheckpointFile]) -> dict[Path, str]:
    """Read all of the files, each on one rank, and say which are damaged. Collective."""
    damaged = comm.allgather(checkpoint_selection.find_damaged(files[comm.rank :: comm.size]))
    return {path: problem for some in damaged for path, problem in some.items()}


def _missing(files: list[CheckpointFile]) -> str:
    """Say which ranks of the newest generation have no good checkpoint."""
    newest = max((file.header for file in files), key=lambda header: header.generation, default=None)
    if newest is None:
        return "there is none"
    present = {file.header.rank for file in files if file.header.generation == newest.generation}
    missing = [str(rank) for rank in range(newest.n_ranks) if rank not in present]
    shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
    return f"of generation {newest.generation} there is none of rank {shown}"


def _never_began(directory: Path, files: list[CheckpointFile], problems: list[str]) -> bool:
    """Whether the run ended before its first step, when not every rank had a checkpoint yet."""
    if problems or any(file.header.generation or file.header.version for file in files):
        return False
    return not any(stream.n_gradients for stream in read_streams(chain(directory), []))


def _check(directory: Path, header: CheckpointHeader, run: _Run, config: Config, x0: np.ndarray) -> None:
    """Hold the checkpoints against the settings of the new generation."""
    if (header.n_params, header.dtype) != (x0.size, x0.dtype.name):
        raise ConfigError(
            f"--resume needs an objective of {header.n_params} parameters of {header.dtype}, as {directory} has, "
            f"got {x0.size} of {x0.dtype.name}"
        )
    if header.combines == "own" and traits_of(config.exchange.kind).combines != "own":
        able = [traits.kind for traits in all_traits() if traits.combines == "own"]
        raise ConfigError(
            f"`exchange.kind` must stay {' or '.join(able)} to resume {directory}, got {config.exchange.kind}"
        )
    if config.log.versions_every != run.versions_every:
        names = {0: "none", 1: "full"}
        rule = f"must stay {names.get(run.versions_every, f'every {run.versions_every}')!r} with --resume"
        raise ConfigError(f"`log.versions` {rule}, got {config.log.versions!r}")


def _combine(
    comm, newest: list[CheckpointFile], run: _Run, config: Config, like: np.ndarray, chosen: str
) -> GenerationStart:
    """Parameters, versions and optimizer state for a new generation. Collective."""
    header = newest[0].header
    best = checkpoint_selection.most_complete(newest)
    of_rank = {file.header.rank: file for file in newest}
    # What a rank takes over from one rank of the generation before; with more ranks than there were, from one of those.
    model = of_rank.get(comm.rank % header.n_ranks, best)
    x0 = np.empty_like(like)
    if header.combines == "newest":
        _read_by_parts(comm, best.path, x0)
    elif header.combines == "own":
        with checkpoint_file.SavedCheckpoint(model.path) as saved:
            x0[:] = saved.contribution(0, x0.size)
    else:
        contributing = [file.path for file in newest if file.header.contributes]
        _add_up(comm, contributing, x0)
        if header.combines == "mean":
            x0 /= len(contributing)
    with checkpoint_file.SavedCheckpoint(model.path) as saved:
        optimizer_state = saved.optimizer_state if model.header.optimizer == config.optimizer.kind else None
    own = of_rank.get(comm.rank)
    return GenerationStart(
        x0=x0,
        run_id=run.run_id,
        generation=run.n_generations,
        parent=header.generation,
        versions_before=comm.bcast(_versions(newest, best, comm.size) if comm.rank == 0 else None, root=0),
        begun_s=max(file.header.t_s for file in newest),
        slot=0 if own is None else checkpoint_file.slot_of(own.path) + 1,
        optimizer_state=optimizer_state,
        chosen=chosen,
    )


def _versions(newest: list[CheckpointFile], best: CheckpointFile, n_ranks: int) -> np.ndarray:
    """Updates of each rank that are in the combined parameters."""
    with checkpoint_file.SavedCheckpoint(best.path) as saved:
        known = saved.versions
    versions = np.zeros(max(n_ranks, known.size), np.int64)
    versions[: known.size] = known
    if best.header.combines != "newest":
        for file in newest:
            versions[file.header.rank] = file.header.version
    return versions


def _read_by_parts(comm, path: Path, out: np.ndarray) -> None:
    """Fill `out` on every rank with the contribution in one file, of which each rank reads a part. Collective."""
    with checkpoint_file.SavedCheckpoint(path) as saved:
        for bounds in _blocks(out.size, comm.size):
            lo, hi = bounds[comm.rank : comm.rank + 2]
            out[lo:hi] = saved.contribution(lo, hi)
    _allgather(comm, out)


def _add_up(comm, paths: list[Path], out: np.ndarray) -> None:
    """Fill `out` on every rank with the sum of contributions, added in the order of `paths`. Collective.

    Each file is read by one rank. As many as there are ranks are added at once, each element by the rank that owns
    it, so that the sum does not depend on the number of ranks. Takes memory of two blocks.
    """
    for first in range(0, len(paths), comm.size):
        n_files = min(comm.size, len(paths) - first)
        reads = comm.rank < n_files
        with checkpoint_file.SavedCheckpoint(paths[first + comm.rank]) if reads else nullcontext() as saved:
            for bounds in _blocks(out.size, comm.size):
                lo, hi = bounds[comm.rank : comm.rank + 2]
                block = saved.contribution(bounds[0], bounds[-1]) if reads else np.empty(0, out.dtype)
                sent = np.diff(bounds) if reads else np.zeros(comm.size, int)
                got = np.where(np.arange(comm.size) < n_files, hi - lo, 0)
                received = np.empty((n_files, hi - lo), out.dtype)
                comm.Alltoallv([block, (sent, np.cumsum(sent) - sent)], [received, (got, np.cumsum(got) - got)])
                for number, values in enumerate(received, first):
                    if number:
                        values += out[lo:hi]
                    out[lo:hi] = values
    _allgather(comm, out)


def _allgather(comm, out: np.ndarray) -> None:
    """Give every rank the parts of `out` that the others own. Collective."""
    for bounds in _blocks(out.size, comm.size):
        counts = np.diff(bounds)
        comm.Allgatherv(MPI.IN_PLACE, [out[bounds[0] : bounds[-1]], (counts, np.cumsum(counts) - counts)])


def _blocks(n_params: int, n_ranks: int) -> Iterator[list[int]]:
    """Yield for blocks of parameters where in them each rank's part begins, and where the last one ends."""
    for lo in range(0, n_params, _BLOCK_PARAMS):
        n_block = min(_BLOCK_PARAMS, n_params - lo)
        yield [lo + n_block * rank // n_ranks for rank in range(n_ranks + 1)]


def _on_rank_0(comm, find: Callable[[], T]) -> T:
    """What rank 0 finds, or the error that it meets, on every rank. Collective."""
    return comm.bcast(collective.raise_on_all_ranks(comm, lambda: find() if comm.rank == 0 else None), root=0)


def _on_all(error: ConfigError) -> ConfigError:
    """Mark an error that every rank raises."""
    error.agreed = True
    return error
