"""The directory of a run: where it is, and what its ``run.h5`` says of how the run began and ended."""

import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

import hpc_dasgd
from hpc_dasgd.config.settings import Config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.runtime import collective, hardware, mpi
from hpc_dasgd.storage import checkpoint_file, layout, run_file
from hpc_dasgd.training.resume import GenerationStart


def choose_directory(comm, config: Config, run: str | Path | None, resume: bool) -> tuple[Path, bool]:
    """The run directory, and whether there is a run in it to go on with. Collective.

    Raises
    ------
    ConfigError
        On every rank, if `resume` is asked for and no directory is named.
    """

    def find() -> tuple[Path, bool]:
        if run is None and resume:
            raise ConfigError("`resume` needs the directory of the run, got none")
        directory = Path(_default(config) if run is None else run)
        return directory, resume and (directory / layout.RUN_FILE).exists()

    return comm.bcast(collective.raise_on_all_ranks(comm, lambda: find() if comm.rank == 0 else None), root=0)


def describe_launch(comm, host: str, device) -> dict:
    """What ``run.h5`` says of the ranks, their machines, and the `device` of each. Collective."""
    described = comm.allgather(hardware.describe_hardware())
    return {
        "n_ranks": comm.size,
        "hosts": comm.allgather(host),
        "devices": comm.allgather(device.name),
        "nodes": collective.node_of_each_rank(comm),
        "cores": collective.cores_of_each_rank(comm),
        **{name: "; ".join(sorted({other[name] for other in described})) for name in described[0]},
    }


def create_record(directory: Path, config: Config, started: Mapping, objective, start: GenerationStart) -> None:
    """Make the ``run.h5`` of a generation; `started` are more attributes. On one rank.

    Raises
    ------
    ConfigError
        If the directory holds a run that was not resumed, or cannot be written to.
    """
    if start.generation == 0 and checkpoint_file.paths(directory):
        raise ConfigError(f"`--run` must be a directory that holds no run yet, got {directory}")
    import mpi4py

    attributes = {
        "seed": config.seed,
        **started,
        "run_id": start.run_id,
        "generation": start.generation,
        "parent": start.parent,
        "versions_before": start.versions_before,
        "begun_s": start.begun_s,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "hpc_dasgd_version": hpc_dasgd.__version__,
        "python_version": platform.python_version(),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "mpi4py_version": mpi4py.__version__,
        "mpi_library": mpi.library_version(),
    }
    shapes = getattr(objective, "parameter_shapes", None)
    run_file.create_run(
        layout.generation_directory(directory, start.generation),
        config_toml=config.to_toml(),
        attributes=attributes,
        x0=start.x0,
        parameter_shapes=shapes,
    )


class RankSummary(NamedTuple):
    """What a rank says of itself when it has trained; in this generation, where a run was resumed."""

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


class RunOutcome(NamedTuple):
    """What all ranks together have come to; loss and accuracy are those of the first rank that lives."""

    gradients: int
    loss: float
    accuracy: float
    missing: list[str]


def complete_record(
    directory: Path,
    replicas,
    last: RankSummary,
    settled,
    start: GenerationStart,
    seconds: float,
    stopped: str,
    statistics: Mapping,
) -> RunOutcome:
    """Have the first rank that lives say in ``run.h5`` how the run ended; every rank has closed its log. Collective.

    Parameters
    ----------
    directory : Path
        The run directory.
    replicas : Exchange
    last : LastWords
        Of this rank.
    settled : Settled
    start : Start
    seconds : float
        That the run has taken.
    stopped : str
        The signal that stopped it; empty where its budget is spent.
    statistics : mapping of str to ndarray
        Running statistics; see `running_statistics.make_one`.
    """
    words = replicas.allgather(last)
    present = [each for each in words if each is not None]
    summary = _summarize(words, present, replicas, settled, start, seconds) | {"signal": stopped}
    for writer in present:  # should one die over it, the next
        problem = []
        if writer.rank == last.rank:
            try:
                if stopped:
                    run_file.stop_run(directory, attributes=summary, running_statistics=statistics)
                else:
                    run_file.complete_run(
                        directory,
                        final=replicas.device.to_host(replicas.parameters),
                        attributes=summary,
                        running_statistics=statistics,
                    )
            except ConfigError as error:
                problem = [f"{'how the run ended' if stopped else 'the final parameters'}: {error}"]
        answers = replicas.allgather(problem)
        if answers[writer.rank] is not None:
            break
    missing = [text for each in present for text in each.missing] + answers[writer.rank]
    return RunOutcome(summary["gradients"], writer.loss, writer.accuracy, missing)


def _default(config: Config) -> Path:
    """Make a new directory ``runs/NAME-TIMESTAMP``; jobs that start in the same second get different ones."""
    first = Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        directory = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            directory.mkdir(parents=True)
        except OSError:
            if os.path.lexists(directory):
                continue
            # Else `create_run` will say what is wrong with the place.
        return directory


def _summarize(
    words: list[RankSummary | None],
    present: list[RankSummary],
    replicas,
    settled,
    start: GenerationStart,
    seconds: float,
) -> dict:
    """What ``run.h5`` says of how the run ended; of a rank that died, what its last publication tells."""
    made = [int(replicas.versions[rank]) if each is None else each.made for rank, each in enumerate(words)]
    return {
        "gradients": start.gradients + sum(made),
        "seconds": seconds,
        "died": np.array(replicas.died, np.int64),
        "drift": settled.drift,
        "dropped_reads": sum(each.dropped_reads for each in present),
        "consensus_distance": settled.consensus_distance,
        "transferred_bytes": [0 if each is None else each.transferred_bytes for each in words],
        "clock_offset_s": [0.0 if each is None else each.clock_offset_s for each in words],
        "clock_drift_s": [0.0 if each is None else each.clock_drift_s for each in words],
        "clock_error_s": max(each.clock_error_s for each in present),
        "checkpoint_stall_s": max(each.checkpoint_stall_s for each in present),
    }
