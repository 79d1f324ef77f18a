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
from hpc_dasgd import launch, machine, runfile
from hpc_dasgd.config import Config
from hpc_dasgd.errors import ConfigError


def default(config: Config) -> Path:
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


def describe_launch(comm, host: str) -> dict:
    """What ``run.h5`` says of the ranks and their machines. Collective."""
    described = comm.allgather(machine.describe())
    return {
        "n_ranks": comm.size,
        "hosts": comm.allgather(host),
        "nodes": launch.nodes(comm),
        "cores": launch.cores(comm),
        **{name: "; ".join(sorted({other[name] for other in described})) for name in described[0]},
    }


def create(directory: Path, config: Config, started: Mapping, objective, x0: np.ndarray) -> None:
    """Make ``run.h5``; `started` are more attributes. On one rank."""
    import mpi4py
    from mpi4py import MPI

    attributes = {
        "seed": config.seed,
        **started,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "hpc_dasgd_version": hpc_dasgd.__version__,
        "python_version": platform.python_version(),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "mpi4py_version": mpi4py.__version__,
        "mpi_library": " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split()),
    }
    shapes = getattr(objective, "parameter_shapes", None)
    runfile.create_run(directory, config_toml=config.to_toml(), attributes=attributes, x0=x0, parameter_shapes=shapes)


class LastWords(NamedTuple):
    """What a rank says of itself when it has trained."""

    rank: int
    made: int
    dropped_reads: int
    transferred_bytes: int
    clock_offset_s: float
    clock_drift_s: float
    clock_error_s: float
    loss: float
    accuracy: float


def complete(directory: Path, replicas, last: LastWords, settled, seconds: float) -> tuple[dict, float, float]:
    """Have the first rank that lives complete ``run.h5``; every rank has closed its log. Collective.

    Returns
    -------
    summary : dict
        What ``run.h5`` says of how the run ended.
    loss, accuracy : float
        Of that rank.

    Raises
    ------
    ConfigError
        On every rank, where ``run.h5`` cannot be completed.
    """
    words = replicas.allgather(last)
    present = [each for each in words if each is not None]
    summary = _summarize(words, present, replicas, settled, seconds)
    writer, error = present[0], None
    if writer.rank == last.rank:
        try:
            runfile.complete_run(directory, final=replicas.parameters, attributes=summary)
        except ConfigError as raised:
            error = raised
    for failure in replicas.allgather(error):
        if failure is not None:
            failure.agreed = True
            raise failure
    return summary, writer.loss, writer.accuracy


def _summarize(words: list[LastWords | None], present: list[LastWords], replicas, settled, seconds: float) -> dict:
    """What ``run.h5`` says of how the run ended; of a rank that died, what its last publication tells."""
    made = [int(replicas.versions[rank]) if each is None else each.made for rank, each in enumerate(words)]
    return {
        "gradients": sum(made),
        "seconds": seconds,
        "drift": settled.drift,
        "dropped_reads": sum(each.dropped_reads for each in present),
        "consensus_distance": settled.consensus_distance,
        "transferred_bytes": [0 if each is None else each.transferred_bytes for each in words],
        "clock_offset_s": [0.0 if each is None else each.clock_offset_s for each in words],
        "clock_drift_s": [0.0 if each is None else each.clock_drift_s for each in words],
        "clock_error_s": max(each.clock_error_s for each in present),
    }
