"""Record of a run: its directory, and what its ``run.h5`` says about its start and its end."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

import hpc_dasgd
from hpc_dasgd.arrays.devices import Device
from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.config.settings import Config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.exchange.interface import Exchange, Settled
from hpc_dasgd.objectives.interface import Objective, has_parameter_shapes
from hpc_dasgd.runtime import hardware, mpi
from hpc_dasgd.runtime.collective import cores_of_each_rank, node_of_each_rank, on_rank_0
from hpc_dasgd.storage import checkpoint_file, layout, run_file
from hpc_dasgd.training.generation_start import GenerationStart

if TYPE_CHECKING:
    from mpi4py import MPI


def choose_directory(comm: "MPI.Intracomm", config: Config, run: str | Path | None, resume: bool) -> tuple[Path, bool]:
    """Choose the run directory. Collective over `comm`.

    Parameters
    ----------
    comm : MPI.Intracomm
    config : Config
    run : path or None
        The directory that the user names; None for a new one, ``runs/NAME-TIMESTAMP``.
    resume : bool
        Whether the user asks to continue a run.

    Returns
    -------
    directory : Path
    resumes : bool
        Whether `directory` holds a run to continue.

    Raises
    ------
    ConfigError
        On every rank, if `resume` is true and no directory is named.
    """

    def find() -> tuple[Path, bool]:
        if run is None and resume:
            raise ConfigError("`resume` needs the directory of the run, got none")
        directory = Path(_new_directory(config) if run is None else run)
        return directory, resume and (directory / layout.RUN_FILE).exists()

    return on_rank_0(comm, find)


def describe_launch(comm: "MPI.Intracomm", host: str, device: Device) -> dict[str, Any]:
    """Return the attributes of ``run.h5`` that describe the ranks and their machines. Collective over `comm`.

    Parameters
    ----------
    comm : MPI.Intracomm
    host : str
        Host name of this rank.
    device : Device
        Device of this rank.
    """
    described = comm.allgather(hardware.describe_hardware())
    return {
        "n_ranks": comm.size,
        "hosts": comm.allgather(host),
        "devices": comm.allgather(device.name),
        "nodes": node_of_each_rank(comm),
        "cores": cores_of_each_rank(comm),
        **{name: "; ".join(sorted({other[name] for other in described})) for name in described[0]},
    }


def create_record(
    directory: Path, config: Config, described: Mapping[str, Any], objective: Objective, start: GenerationStart
) -> None:
    """Create the ``run.h5`` of a generation. Not collective; called on one rank only.

    Parameters
    ----------
    directory : Path
        The run directory.
    config : Config
    described : mapping
        Further attributes, such as those of `describe_launch`.
    objective : Objective
    start : GenerationStart

    Raises
    ------
    ConfigError
        If the directory holds a run that is not resumed, or cannot be written to.
    """
    if start.generation == 0 and checkpoint_file.list_checkpoints(directory):
        raise ConfigError(f"`--run` must be a directory that holds no run yet, got {directory}")
    attributes = {
        "seed": config.seed,
        **described,
        "run_id": start.run_id,
        "generation": start.generation,
        "parent": start.parent,
        "versions_before": start.versions_before,
        "begun_s": start.begun_s,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        **_library_versions(),
    }
    run_file.create_run(
        layout.generation_directory(directory, start.generation),
        config_toml=config.to_toml(),
        attributes=attributes,
        x0=start.first_parameters,
        parameter_shapes=objective.parameter_shapes if has_parameter_shapes(objective) else None,
    )


def _library_versions() -> dict[str, str]:
    import mpi4py

    return {
        "hpc_dasgd_version": hpc_dasgd.__version__,
        "python_version": platform.python_version(),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "mpi4py_version": mpi4py.__version__,
        "mpi_library": mpi.library_version(),
    }


class RankSummary(NamedTuple):
    """What one rank did in this generation of a run.

    Attributes
    ----------
    rank : int
    made : int
        Number of updates that this rank made.
    dropped_reads, transferred_bytes : int
        Reads that were discarded as inconsistent, and bytes read from and sent to other ranks.
    clock_offset_s, clock_drift_s, clock_error_s : float, s
        See `runtime.clock.Clock`.
    checkpoint_stall_s : float, s
        Longest time that training waited for a checkpoint.
    loss, accuracy : float
        Newest evaluation of this rank.
    missing : list of str
        Descriptions of what could not be written to its files.
    """

    rank: int
    made: int
    dropped_reads: int
    transferred_bytes: int
    clock_offset_s: float
    clock_drift_s: float
    clock_error_s: float
    checkpoint_stall_s: float
    loss: float
    accuracy: float
    missing: list[str]


@dataclass(frozen=True, eq=False)
class RunEnd:
    """How a run ended.

    Attributes
    ----------
    settled : Settled
        Outcome of the final synchronisation.
    start : GenerationStart
        Where this generation began.
    seconds : float, s
        Time that the run has taken.
    signal : str
        Name of the signal that stopped it; empty if its budget is spent.
    statistics : dict of str to ndarray
        Running statistics of the objective; see `running_statistics.average_over_ranks`.
    """

    settled: Settled
    start: GenerationStart
    seconds: float
    signal: str
    statistics: dict[str, AnyArray]


class RunOutcome(NamedTuple):
    """Outcome of a run over all ranks.

    Attributes
    ----------
    gradients : int
        Number of gradients of all ranks, over all generations.
    loss, accuracy : float
        Newest evaluation of the lowest rank that is alive.
    missing : list of str
        Descriptions of what could not be written, on any rank.
    """

    gradients: int
    loss: float
    accuracy: float
    missing: list[str]


def complete_record(directory: Path, exchange: Exchange, summary: RankSummary, end: RunEnd) -> RunOutcome:
    """Write to ``run.h5`` how the run ended. Collective over the ranks that are alive, after each has closed its log.

    The lowest rank that is alive writes; if it dies while writing, the next one writes.

    Parameters
    ----------
    directory : Path
        The run directory.
    exchange : Exchange
    summary : RankSummary
        Summary of this rank.
    end : RunEnd

    Returns
    -------
    outcome : RunOutcome
    """
    of_ranks: list[RankSummary | None] = exchange.allgather(summary)
    present = [each for each in of_ranks if each is not None]
    attributes = _summarize(of_ranks, exchange, end) | {"signal": end.signal}
    for writer in present:
        problems = _write_end(directory, exchange, attributes, end) if writer.rank == summary.rank else []
        answers: list[list[str] | None] = exchange.allgather(problems)
        answer = answers[writer.rank]
        if answer is not None:
            break
    missing = [text for each in present for text in each.missing] + (answer or [])
    return RunOutcome(attributes["gradients"], writer.loss, writer.accuracy, missing)


def _write_end(directory: Path, exchange: Exchange, attributes: Mapping[str, Any], end: RunEnd) -> list[str]:
    """Complete ``run.h5`` on this rank; returns what could not be written."""
    try:
        if end.signal:
            run_file.stop_run(directory, attributes=attributes, running_statistics=end.statistics)
        else:
            run_file.complete_run(
                directory,
                final=exchange.device.to_host(exchange.parameters),
                attributes=attributes,
                running_statistics=end.statistics,
            )
    except ConfigError as error:
        return [f"{'how the run ended' if end.signal else 'the final parameters'}: {error}"]
    return []


def _new_directory(config: Config) -> Path:
    """Create a directory ``runs/NAME-TIMESTAMP``; jobs that start in the same second get different ones."""
    first = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        directory = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            directory.mkdir(parents=True)
        except OSError:
            if os.path.lexists(directory):
                continue
            # Otherwise `create_record` reports why the directory cannot be used.
        break
    return directory


def _summarize(of_ranks: list[RankSummary | None], exchange: Exchange, end: RunEnd) -> dict[str, Any]:
    """Return the attributes of ``run.h5`` that describe the end; a rank that died counts as far as it published."""
    present = [each for each in of_ranks if each is not None]
    made = [int(exchange.versions[rank]) if each is None else each.made for rank, each in enumerate(of_ranks)]
    return {
        "gradients": end.start.gradients + sum(made),
        "seconds": end.seconds,
        "died": np.array(exchange.died, np.int64),
        "drift": end.settled.drift,
        "dropped_reads": sum(each.dropped_reads for each in present),
        "consensus_distance": end.settled.consensus_distance,
        "transferred_bytes": [0 if each is None else each.transferred_bytes for each in of_ranks],
        "clock_offset_s": [0.0 if each is None else each.clock_offset_s for each in of_ranks],
        "clock_drift_s": [0.0 if each is None else each.clock_drift_s for each in of_ranks],
        "clock_error_s": max(each.clock_error_s for each in present),
        "checkpoint_stall_s": max(each.checkpoint_stall_s for each in present),
    }
