"""The HDF5 files that a run writes: ``run.h5``, and one growing ``rank_00000.h5`` per rank.

    create_run(directory, ...)                       # rank 0, before the first step
    with RankLog(directory / rank_file(rank), ...):  # every rank, its own file, throughout
        log.append(...)
    complete_run(directory, ...)                     # rank 0, after every rank has closed its log

Nothing here is collective, and no file ever has two writers. The rank files are written in HDF5's
single-writer-multiple-reader mode: others may read them while they grow, with ``swmr=True``, and what a
killed process leaves behind opens in the same way. Reading is the job of `analysis`.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.checks import integer
from hpc_dasgd.errors import ConfigError

SCHEMA = 1
RUN_FILE = "run.h5"
RANK_FILES = "rank_*.h5"

FLUSH_EVERY_S = 2.0  # what a killed run may lose, apart from a partly filled batch
_BATCH_ROWS = 4096
_MIN_BATCH_ROWS = 64
_BATCH_BYTES = 1 << 22  # of version vectors
_CHUNK_BYTES = 1 << 18  # of version vectors; small, since a flush writes a partly filled chunk anew
_EVALUATION_CHUNK_ROWS = 256
# The name by which netCDF readers know a scale that has a length and no values.
_NETCDF_DIMENSION = "This is a netCDF dimension but not a netCDF variable.%10d"


class Column(NamedTuple):
    """A data set with one value, or one row of values, per row of its group."""

    name: str
    dtype: str
    description: str
    units: str = "1"


GRADIENT_COLUMNS = (
    Column("t_start_s", "f8", "start of the computation since the run began, one clock for all ranks", "s"),
    Column("t_end_s", "f8", "end of the computation since the run began, one clock for all ranks", "s"),
    Column("loss", "f8", "loss of the batch, at the replica the gradient was taken at"),
    Column("gradient_norm", "f8", "Euclidean norm of the gradient"),
    Column("version", "u4", "updates that the rank had made before: which of its gradients, from 0"),
)
EVALUATION_COLUMNS = (
    Column("t_s", "f8", "start of the evaluation since the run began", "s"),
    Column("gradients", "i8", "gradients of all ranks in the evaluated replica"),
    Column("loss", "f8", "loss on the evaluation set"),
    Column("accuracy", "f8", "fraction of the evaluation set classified rightly; nan without classes"),
)
VERSIONS = Column("versions", "u4", "version vector of the replica: updates of each rank that it held")
VERSIONS_ROW = Column("versions_row", "i8", "row of the other data sets that each of `versions` belongs to")
SOURCE_RANK = Column("source_rank", "i4", "rank whose updates a column of `versions` counts")
RANK = Column("rank", "i4", "rank that took the gradient")
_PARAMETER = Column("parameter", "i1", "length of the parameter vector; holds no values")
_X0 = Column("x0", "", "parameters at the start, the same on all ranks")
_FINAL = Column("final", "", "parameters at the end; with exchange `none` those of rank 0")


def record_dtype(columns: tuple[Column, ...]) -> np.dtype:
    """The structured type of one row of `columns`."""
    return np.dtype([(column.name, column.dtype) for column in columns])


def rank_file(rank: int) -> str:
    """Name of a rank's file in the run directory."""
    return f"rank_{rank:05d}.h5"


def create_run(
    directory: Path,
    *,
    config_toml: str,
    attributes: Mapping,
    x0: np.ndarray,
    parameter_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Make the run directory and its ``run.h5``. On one rank only, before any `RankLog`.

    Parameters
    ----------
    directory : Path
        Made with its parents where it does not exist.
    config_toml : str
        All settings, as TOML text.
    attributes : mapping of str to str, number or list of str
        What else is known of the run, ``n_ranks`` at the least; become attributes of the file.
    x0 : ndarray, shape (n_params,), host memory
        Initial parameters.
    parameter_shapes : mapping of str to tuple of int, optional
        Names and shapes of the arrays that `x0` is made of, in order; kept as JSON, an attribute of
        the same name of ``/x0`` and ``/final``.

    Raises
    ------
    ConfigError
        If the directory holds a run or cannot be written to, or the shapes do not add up to `x0`.
    """
    shapes = {name: list(shape) for name, shape in (parameter_shapes or {}).items()}
    n_named = sum(map(math.prod, shapes.values()))
    if shapes and n_named != x0.size:
        raise ConfigError(f"`parameter_shapes` must add up to {x0.size} parameters, got {n_named}")
    first = {"schema": SCHEMA, "status": "running", "config": config_toml}
    with _as_config_error(f"cannot make run directory {directory}"):
        if any([*directory.glob(RUN_FILE), *directory.glob(RANK_FILES)]):
            raise ConfigError(f"`--run` must be a directory that holds no run yet, got {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        with h5py.File(directory / RUN_FILE, "x") as file:
            _set_attributes(file, first | dict(attributes))
            scale = _create(file, _PARAMETER, dtype=_PARAMETER.dtype, shape=x0.shape)
            scale.make_scale(_NETCDF_DIMENSION % x0.size)
            data_set = _create(file, _X0, data=x0)
            data_set.dims[0].attach_scale(scale)
            if shapes:
                data_set.attrs["parameter_shapes"] = json.dumps(shapes)


class RankLog:
    """One rank's file: a row per gradient, a row per evaluation. A context manager.

    The constructor makes the file, so that what is wrong with the place shows before the first step;
    leaving the context writes what is buffered and closes it, after an exception too. `append` only
    fills a buffer, which goes to the file when it is full or `FLUSH_EVERY_S` old. A full disk shows as
    the `OSError` of h5py, from `append`, `append_evaluation` or the end of the context.

    Parameters
    ----------
    path : Path
        ``directory / rank_file(rank)``; must not exist.
    rank, n_ranks : int
        Whose log this is, of how many.
    versions_every : int
        Every how many gradients the version vector is kept: row ``r`` of ``/gradient/versions`` is of
        gradient ``r * versions_every``. With 0 there is no such data set.

    Raises
    ------
    ConfigError
        If the file cannot be made.
    """

    def __init__(self, path: Path, rank: int, n_ranks: int, versions_every: int):
        self._every = integer("versions_every", versions_every, at_least=0)
        vector_bytes = n_ranks * np.dtype(VERSIONS.dtype).itemsize
        capacity = max(_MIN_BATCH_ROWS, min(_BATCH_ROWS, _BATCH_BYTES // vector_bytes))
        self._rows = np.empty(capacity, record_dtype(GRADIENT_COLUMNS))
        self._vectors = np.empty((capacity, n_ranks), VERSIONS.dtype)
        self._n_rows = self._n_vectors = 0
        self._rows_to_vector = 0  # rows until the next one whose vector is kept
        self._flush_due_s = FLUSH_EVERY_S
        attributes = {"schema": SCHEMA, "rank": rank, "n_ranks": n_ranks, "versions_every": versions_every}
        with _as_config_error(f"cannot make log file {path}"):
            self._file = h5py.File(path, "x", libver="latest")
            _set_attributes(self._file, attributes)
            self._gradient = self._file.create_group("gradient")
            self._evaluation = self._file.create_group("evaluation")
            for column in GRADIENT_COLUMNS:
                _create_growing(self._gradient, column, (_BATCH_ROWS,))
            for column in EVALUATION_COLUMNS:
                _create_growing(self._evaluation, column, (_EVALUATION_CHUNK_ROWS,))
            if self._every:
                chunk_rows = max(1, min(_BATCH_ROWS, _CHUNK_BYTES // vector_bytes))
                _create_growing(self._gradient, VERSIONS, (chunk_rows, n_ranks))
                _create(self._gradient, SOURCE_RANK, data=np.arange(n_ranks, dtype=SOURCE_RANK.dtype))
            if self._every > 1:
                _create_growing(self._gradient, VERSIONS_ROW, (_BATCH_ROWS,))
            _attach_scales(self._file)
            self._file.swmr_mode = True  # from here on nothing but rows can be added

    def append(self, t_start_s, t_end_s, loss, gradient_norm, version, versions) -> None:
        """Log one gradient. Costs 1 to 2 us, of which half is the writing of full buffers.

        Parameters
        ----------
        t_start_s, t_end_s, loss, gradient_norm : float
        version : int
            As described in `GRADIENT_COLUMNS`.
        versions : ndarray, shape (n_ranks,), integer
            Version vector of the replica the gradient was taken at; copied.
        """
        row = self._n_rows
        self._rows[row] = t_start_s, t_end_s, loss, gradient_norm, version
        self._n_rows = row + 1
        if self._every:
            if self._rows_to_vector == 0:
                self._vectors[self._n_vectors] = versions
                self._n_vectors += 1
                self._rows_to_vector = self._every
            self._rows_to_vector -= 1
        if t_end_s >= self._flush_due_s or self._n_rows == len(self._rows):
            self._flush()
            self._flush_due_s = t_end_s + FLUSH_EVERY_S

    def append_evaluation(self, t_s: float, gradients: int, loss: float, accuracy: float) -> None:
        """Log one evaluation, and hand it to the file at once; see `EVALUATION_COLUMNS`."""
        for column, value in zip(EVALUATION_COLUMNS, (t_s, gradients, loss, accuracy), strict=True):
            _extend(self._evaluation[column.name], [value])
        self._flush()

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        try:
            self._flush()
        finally:
            self._file.close()

    def _flush(self) -> None:
        rows, vectors = self._rows[: self._n_rows], self._vectors[: self._n_vectors]
        # Emptied first: what a full disk refused must not be tried again, out of step with the rest.
        self._n_rows = self._n_vectors = 0
        if len(vectors):
            _extend(self._gradient[VERSIONS.name], vectors)
            if self._every > 1:
                data_set = self._gradient[VERSIONS_ROW.name]
                _extend(data_set, np.arange(len(data_set), len(data_set) + len(vectors)) * self._every)
        if len(rows):
            for column in GRADIENT_COLUMNS:
                _extend(self._gradient[column.name], rows[column.name])
        self._file.flush()


def complete_run(directory: Path, *, final: np.ndarray, attributes: Mapping) -> None:
    """Add to ``run.h5`` how the run ended. On one rank only, after every `RankLog` is closed.

    The rows of all ranks become virtual data sets, rank after rank, under the names of the rank files;
    they refer to those by relative name, so the directory can be moved as a whole. A rank file that was
    not closed, because its rank died, is left out. The file is replaced at once by a completed copy,
    since somebody may be reading it.

    Parameters
    ----------
    directory : Path
        The run directory.
    final : ndarray, shape (n_params,), host memory
        Final parameters.
    attributes : mapping of str to str, number or list of str
        More attributes of the file.
    """
    copy = directory / f".{RUN_FILE}.part"
    shutil.copyfile(directory / RUN_FILE, copy)
    with h5py.File(copy, "r+", libver="latest") as file:
        data_set = _create(file, _FINAL, data=final)
        data_set.dims[0].attach_scale(file[_PARAMETER.name])
        if "parameter_shapes" in file[_X0.name].attrs:
            data_set.attrs["parameter_shapes"] = file[_X0.name].attrs["parameter_shapes"]
        _join_rank_files(file, directory)
        _set_attributes(file, dict(attributes) | {"status": "complete"})
    os.replace(copy, directory / RUN_FILE)


@contextmanager
def _as_config_error(what: str):
    try:
        yield
    except OSError as error:
        # The text of an HDF5 error fills a paragraph; that of its error number says the same.
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise ConfigError(f"{what}: {reason}") from None


def _set_attributes(target: h5py.File, attributes: Mapping) -> None:
    for name, value in attributes.items():
        is_list_of_text = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        target.attrs.create(name, value, dtype=h5py.string_dtype() if is_list_of_text else None)


def _describe(data_set: h5py.Dataset, column: Column) -> h5py.Dataset:
    data_set.attrs["units"] = column.units
    data_set.attrs["description"] = column.description
    return data_set


def _create(group: h5py.Group, column: Column, **options) -> h5py.Dataset:
    return _describe(group.create_dataset(column.name, **options), column)


def _create_growing(group: h5py.Group, column: Column, chunks: tuple[int, ...]) -> h5py.Dataset:
    shape, maxshape = (0, *chunks[1:]), (None, *chunks[1:])
    return _create(group, column, dtype=column.dtype, shape=shape, maxshape=maxshape, chunks=chunks)


def _extend(data_set: h5py.Dataset, rows) -> None:
    n_before = len(data_set)
    data_set.resize(n_before + len(rows), axis=0)
    data_set[n_before:] = rows


def _attach_scales(file: h5py.File) -> None:
    """Give the data sets of the two groups their dimension scales: one per axis, as netCDF wants."""
    for group, scale in ((file["gradient"], "version"), (file["evaluation"], "t_s")):
        own_axis = (scale, VERSIONS.name, VERSIONS_ROW.name, SOURCE_RANK.name)
        group[scale].make_scale(scale)
        for name in set(group) - set(own_axis):
            group[name].dims[0].attach_scale(group[scale])
    gradient = file["gradient"]
    if VERSIONS.name in gradient:
        rows, columns = gradient[VERSIONS.name].dims
        rows_name = VERSIONS_ROW.name if VERSIONS_ROW.name in gradient else "version"
        for dimension, name in ((rows, rows_name), (columns, SOURCE_RANK.name)):
            gradient[name].make_scale(name)
            dimension.attach_scale(gradient[name])


class _Part(NamedTuple):
    """What of a rank's file goes into the virtual data sets: all data sets, by path."""

    rank: int
    file: str
    versions_every: int
    shapes: dict[str, tuple[int, ...]]


def _closed_rank_files(directory: Path):
    for path in directory.glob(RANK_FILES):
        try:
            with h5py.File(path) as file:
                groups = (file["gradient"], file["evaluation"])
                shapes = {item.name: item.shape for group in groups for item in group.values()}
                yield _Part(int(file.attrs["rank"]), path.name, int(file.attrs["versions_every"]), shapes)
        except OSError:
            continue  # left open by a rank that died, which virtual data sets cannot read


def _join_rank_files(file: h5py.File, directory: Path) -> None:
    """Make the groups ``gradient``, over all ranks, and ``evaluation``, of rank 0, of virtual data sets."""
    parts = sorted(_closed_rank_files(directory))
    every = parts[0].versions_every
    gradient, evaluation = file.create_group("gradient"), file.create_group("evaluation")
    for column in (*GRADIENT_COLUMNS, VERSIONS) if every else GRADIENT_COLUMNS:
        _join(gradient, column, parts)
    for column in EVALUATION_COLUMNS:
        _join(evaluation, column, [part for part in parts if part.rank == 0])
    n_rows = [part.shapes["/gradient/version"][0] for part in parts]
    ranks = np.repeat(np.array([part.rank for part in parts], RANK.dtype), n_rows)
    _create(gradient, RANK, data=ranks, compression="gzip" if ranks.size else None)
    if every:
        n_ranks = gradient[VERSIONS.name].shape[1]
        _create(gradient, SOURCE_RANK, data=np.arange(n_ranks, dtype=SOURCE_RANK.dtype))
    if every > 1:
        firsts = np.cumsum(n_rows) - n_rows
        rows = [np.arange(first, first + n, every) for first, n in zip(firsts, n_rows, strict=True)]
        _create(gradient, VERSIONS_ROW, data=np.concatenate(rows))
    _attach_scales(file)


def _join(group: h5py.Group, column: Column, parts: list[_Part]) -> None:
    """Make a virtual data set of those of the same path in the files of `parts`, one after another."""
    path = f"{group.name}/{column.name}"
    shapes = [part.shapes[path] for part in parts]
    layout = h5py.VirtualLayout((sum(shape[0] for shape in shapes), *shapes[0][1:]), column.dtype)
    begin = 0
    for part, shape in zip(parts, shapes, strict=True):
        end = begin + shape[0]
        if end > begin:
            layout[begin:end] = h5py.VirtualSource(part.file, path, shape, column.dtype)
        begin = end
    missing = np.nan if column.dtype == "f8" else 0
    _describe(group.create_virtual_dataset(column.name, layout, fillvalue=missing), column)
