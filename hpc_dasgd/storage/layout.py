"""Layout of a run directory: names of files, their data sets with units and descriptions, dimension scales.

This module only states the layout; `log_segment` and `run_file` write files by it, `log_index`, `log_reader` and
`generations` read them. ``docs/file-format.md`` describes the same layout for users.

    RUN/run.h5, RUN/rank_00000.h5                           generation 0: the first launch of the run
    RUN/generation_00001/run.h5, .../rank_00000.h5          a later generation, resumed from checkpoints
    .../rank_00000_1.h5                                     segment 1 of the log of a rank; segment 0 has no suffix
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

SCHEMA = 1
"""Version of the layout, attribute ``schema`` of every file; files of a later version are refused."""

LIBVER = ("v110", "v110")
"""Format of all files, h5py's ``libver``: that of HDF5 1.10, the oldest with virtual data sets and SWMR, so that old
readers can open them."""

FLUSH_EVERY_S = 2.0
"""Seconds between two flushes of a log; a killed run loses at most the rows since the last flush."""

RUN_FILE = "run.h5"
RANK_FILE_PATTERN = "rank_*.h5"
GENERATION_PATTERN = f"generation_{'[0-9]' * 5}"

_RANK_FILE = re.compile(r"rank_(\d{5,})(?:_(\d+))?\.h5")


class Column(NamedTuple):
    """A data set with one value, or one row of values, per row of its group.

    Attributes
    ----------
    name : str
        Name of the data set in its group.
    dtype : str or None
        NumPy's name of the dtype; None if it is that of the data.
    description, units : str
        Attributes of the data set; units are ``"s"`` or ``"1"`` (dimensionless).
    """

    name: str
    dtype: str | None
    description: str
    units: str = "1"


GRADIENT_COLUMNS = (
    Column("t_start_s", "f8", "start of the computation since the run began, one clock for all ranks", "s"),
    Column("t_end_s", "f8", "end of the computation since the run began, one clock for all ranks", "s"),
    Column("loss", "f8", "loss of the batch at the replica that the gradient was computed at"),
    Column("gradient_norm", "f8", "Euclidean norm of the gradient"),
    Column("version", "u4", "number of updates that the rank had made before this one; counts gradients from 0"),
    Column("stepsize", "f8", "stepsize (learning rate) with which the gradient was applied"),
)
EVALUATION_COLUMNS = (
    Column("t_s", "f8", "start of the evaluation since the run began", "s"),
    Column("gradients", "i8", "gradients of all ranks in the evaluated replica"),
    Column("loss", "f8", "loss on the evaluation set"),
    Column("accuracy", "f8", "fraction of the evaluation set classified correctly; nan without classes"),
    Column(
        "consensus_distance", "f8", "root mean squared distance of the replicas from their mean; nan except for gossip"
    ),
)
INTERVAL_COLUMNS = (
    Column("t_s", "f8", "time of a change of the exchange interval since the run began", "s"),
    Column("version", "u4", "number of updates that the rank had made at that time"),
    Column("every", "u4", "new exchange interval: own updates between two exchanges"),
    Column("overhead", "f8", "estimated fraction of time spent in exchanges at the new interval"),
)
"""Columns of the group ``pace``: changes of the exchange interval if ``exchange.every`` is ``"auto"``."""

VERSIONS = Column("versions", "u4", "version vector of the replica: number of updates of each rank contained in it")
VERSIONS_ROW = Column("versions_row", "i8", "row of the other data sets that each row of `versions` belongs to")
SOURCE_RANK = Column("source_rank", "i4", "rank whose updates a column of `versions` counts")
RANK = Column("rank", "i4", "rank that computed the gradient")
GENERATION = Column("generation", "i4", "generation in which the gradient was computed")

COMPLETE_ROWS_GROUP = "whole"
"""Group of a rank's file with one scalar per group of rows, which is -1 unless a write to the file failed."""

COMPLETE_ROWS_DESCRIPTION = "number of rows of the group of this name that are written in all columns; -1: all"


def rank_file(rank: int, segment: int = 0) -> str:
    """Return the name of a segment of a rank's log.

    Examples
    --------
    >>> rank_file(3), rank_file(3, segment=1)
    ('rank_00003.h5', 'rank_00003_1.h5')
    """
    return f"rank_{rank:05d}_{segment}.h5" if segment else f"rank_{rank:05d}.h5"


def parse_rank_file(name: str) -> tuple[int, int] | None:
    """Return the rank and the segment that the name of a file states; None if it is not the name of a rank's file.

    Examples
    --------
    >>> parse_rank_file("rank_00003_1.h5"), parse_rank_file("rank_00003.0.h5")
    ((3, 1), None)
    """
    match = _RANK_FILE.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2] or 0))


def generation_directory(run_directory: Path, generation: int) -> Path:
    """Return the directory that holds the files of a generation."""
    return run_directory / f"generation_{generation:05d}" if generation else run_directory


def record_dtype(columns: tuple[Column, ...]) -> np.dtype[np.void]:
    """Return the structured dtype of one row of `columns`."""
    return np.dtype([(column.name, column.dtype) for column in columns])


def create_data_set(group: h5py.Group, column: Column, **options: Any) -> h5py.Dataset:
    """Create the data set of `column`; `options` are those of h5py's ``create_dataset``."""
    return describe_data_set(group.create_dataset(column.name, dtype=column.dtype, **options), column)


def describe_data_set(data_set: h5py.Dataset, column: Column) -> h5py.Dataset:
    """Write the attributes ``units`` and ``description`` of a data set, and return it."""
    data_set.attrs.update({"units": column.units, "description": column.description})
    return data_set


def attach_dimension_scales(file: h5py.File) -> None:
    """Attach one dimension scale per axis to the data sets of each group, as netCDF readers require."""
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
