"""What a run directory holds: the names of its files, their data sets, units, descriptions and scales.

`runfile` and `logfile` write by it, `generations` and `rankfiles` read by it.

    RUN/run.h5, RUN/rank_00000.h5                           generation 0, the first start of the run
    RUN/generation_00001/run.h5, .../rank_00000.h5          a later one, which went on from checkpoints
    .../rank_00000_1.h5                                     part 1 of a log that could not go on in part 0
"""

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.errors import ConfigError

SCHEMA = 1
# Of HDF5 1.10, the first with virtual data sets and readers of growing files: what the tools on clusters can read.
FORMAT = ("v110", "v110")
FLUSH_EVERY_S = 2.0  # between two flushes of a log: what a killed run may lose, apart from a partly filled batch
RUN_FILE = "run.h5"
RANK_FILES = "rank_*.h5"
GENERATIONS = f"generation_{'[0-9]' * 5}"


class Column(NamedTuple):
    """A data set with one value, or one row of values, per row of its group."""

    name: str
    dtype: str | None  # None: that of the data
    description: str
    units: str = "1"


GRADIENT_COLUMNS = (
    Column("t_start_s", "f8", "start of the computation since the run began, one clock for all ranks", "s"),
    Column("t_end_s", "f8", "end of the computation since the run began, one clock for all ranks", "s"),
    Column("loss", "f8", "loss of the batch, at the replica the gradient was taken at"),
    Column("gradient_norm", "f8", "Euclidean norm of the gradient"),
    Column("version", "u4", "updates that the rank had made before: which of its gradients, from 0"),
    Column("stepsize", "f8", "stepsize (learning rate) by which the gradient became an update"),
)
EVALUATION_COLUMNS = (
    Column("t_s", "f8", "start of the evaluation since the run began", "s"),
    Column("gradients", "i8", "gradients of all ranks in the evaluated replica"),
    Column("loss", "f8", "loss on the evaluation set"),
    Column("accuracy", "f8", "fraction of the evaluation set classified rightly; nan without classes"),
    Column("consensus_distance", "f8", "root mean squared distance of replicas from their mean; nan but for gossip"),
)
PACE_COLUMNS = (
    Column("t_s", "f8", "when the distance between exchanges was changed, since the run began", "s"),
    Column("version", "u4", "updates that the rank had made by then"),
    Column("every", "u4", "own updates from one exchange to the next, from then on"),
    Column("overhead", "f8", "share of the time that exchanges take at this distance, as measured so far"),
)
VERSIONS = Column("versions", "u4", "version vector of the replica: updates of each rank that it held")
VERSIONS_ROW = Column("versions_row", "i8", "row of the other data sets that each of `versions` belongs to")
SOURCE_RANK = Column("source_rank", "i4", "rank whose updates a column of `versions` counts")
RANK = Column("rank", "i4", "rank that took the gradient")
GENERATION = Column("generation", "i4", "generation that the gradient was taken in")
# Of each group of a rank's file, when it was left behind because a write had failed.
WHOLE = "whole"
WHOLE_ROWS = "rows that are whole, of the file's group of that name; -1: all"


def rank_file(rank: int, part: int = 0) -> str:
    """Name of a rank's file in the folder of its generation."""
    return f"rank_{rank:05d}_{part}.h5" if part else f"rank_{rank:05d}.h5"


def rank_and_part(name: str) -> tuple[int, int]:
    """Of which rank a file with such a name is, and which part."""
    rank, part = re.fullmatch(r"rank_(\d{5,})(?:_(\d+))?\.h5", name).groups()
    return int(rank), int(part or 0)


def generation_directory(run_directory: Path, generation: int) -> Path:
    """Folder of a generation's files."""
    return run_directory / f"generation_{generation:05d}" if generation else run_directory


def record_dtype(columns: tuple[Column, ...]) -> np.dtype:
    """The structured type of one row of `columns`."""
    return np.dtype([(column.name, column.dtype) for column in columns])


def create(group: h5py.Group, column: Column, **options) -> h5py.Dataset:
    """Make the data set of `column`; the options are those of h5py's ``create_dataset``."""
    return describe(group.create_dataset(column.name, dtype=column.dtype, **options), column)


def describe(data_set: h5py.Dataset, column: Column) -> h5py.Dataset:
    """Give a data set its units and description."""
    data_set.attrs.update({"units": column.units, "description": column.description})
    return data_set


def attach_scales(file: h5py.File) -> None:
    """Give the data sets of each group one dimension scale per axis, as netCDF wants."""
    groups = {"gradient": "version", "evaluation": "t_s", "pace": "t_s"}
    for group, rows in ((file[name], rows) for name, rows in groups.items() if name in file):
        vector_rows = VERSIONS_ROW.name if VERSIONS_ROW.name in group else rows
        axes = {VERSIONS.name: (vector_rows, SOURCE_RANK.name)}
        scales = [name for name in (rows, VERSIONS_ROW.name, SOURCE_RANK.name) if name in group]
        for name in scales:
            group[name].make_scale(name)
        for name in set(group) - set(scales):
            for dimension, scale in zip(group[name].dims, axes.get(name, (rows,)), strict=True):
                dimension.attach_scale(group[scale])


@contextmanager
def making(what: str, path: Path):
    """Make an `OSError` within the context a `ConfigError` that names what could not be made."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot make {what} {path}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Say in a few words what an error of h5py is about."""
    # Says the same as HDF5's text, which fills a paragraph and may hold the number too.
    number = getattr(error, "errno", None) or re.search(r"errno = (\d+)", str(error))
    if number:
        return os.strerror(number if isinstance(number, int) else int(number[1]))
    text = str(error.args[0] if isinstance(error, KeyError) else error)  # as text a KeyError has quotes
    return text.splitlines()[0]
