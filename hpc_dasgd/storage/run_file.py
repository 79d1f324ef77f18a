"""``run.h5``: written at the start of a generation, completed at the end of the run. On one rank only.

create_run(directory, ...)          # before any rank makes its log
stop_run(run_directory, ...)        # where a signal ended it
complete_run(run_directory, ...)    # after every rank has closed its log
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation, chain
from hpc_dasgd.storage.h5clear import mark_closed
from hpc_dasgd.storage.hdf5_io import require_space, sync, writing
from hpc_dasgd.storage.log_reader import Stream, n_counting, read_streams, reading

# The name by which netCDF readers know a scale that has a length and no values.
_NETCDF_DIMENSION = "This is a netCDF dimension but not a netCDF variable.%10d"
_SPARE_BYTES = 1 << 20
_PARAMETER = layout.Column("parameter", "i1", "length of the parameter vector; holds no values")
_X0 = layout.Column("x0", None, "parameters at the start, the same on all ranks")
_STATISTIC = layout.Column("running_statistic", "i1", "length of the running statistics; holds no values")
_STATISTICS = layout.Column("running_statistics", None, "what ranks keep beside the parameters, mean over ranks")
_FINAL = layout.Column("final", None, "parameters at the end; with exchange `none` those of rank 0")


def create_run(
    directory: Path,
    *,
    config_toml: str,
    attributes: Mapping,
    x0: np.ndarray,
    parameter_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Make the folder of a generation, of the first the run directory, and its ``run.h5``.

    Parameters
    ----------
    directory : Path
        See `schema.generation_directory`; made with its parents where it does not exist.
    config_toml : str
        All settings, as TOML text.
    attributes : mapping of str to str, number or list of str
        What else is known of the run, ``n_ranks`` at the least; become attributes of the file. Of a run that can
        be resumed: ``run_id``, ``generation``, ``parent``, ``versions_before``, ``begun_s``, as `generations` says.
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
    n_named = sum(map(math.prod, (parameter_shapes or {}).values()))
    if parameter_shapes and n_named != x0.size:
        raise ConfigError(f"`parameter_shapes` must add up to {x0.size} parameters, got {n_named}")
    with layout.making("run directory", directory):
        if any([*directory.glob(layout.RUN_FILE), *directory.glob(layout.RANK_FILES)]):
            raise ConfigError(f"`--run` must be a directory that holds no run yet, got {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        require_space(directory, x0.nbytes + _SPARE_BYTES)
        part = directory / f".{layout.RUN_FILE}.part"  # or a start that is killed here might leave what cannot be read
        part.unlink(missing_ok=True)
        with writing(part, "x") as file:
            file.attrs.update(schema=layout.SCHEMA, status="running", config=config_toml, **attributes)
            scale = layout.create(file, _PARAMETER, shape=x0.shape)
            scale.make_scale(_NETCDF_DIMENSION % x0.size)
            data_set = layout.create(file, _X0, data=x0)
            data_set.dims[0].attach_scale(scale)
            if parameter_shapes:
                data_set.attrs["parameter_shapes"] = json.dumps(dict(parameter_shapes))
        os.replace(part, directory / layout.RUN_FILE)
        sync(directory)


def stop_run(
    run_directory: Path, attributes: Mapping, running_statistics: Mapping[str, np.ndarray] | None = None
) -> None:
    """Say in the newest generation's ``run.h5`` that the run was stopped and can go on.

    Parameters
    ----------
    run_directory : Path
    attributes : mapping of str to str, number or list of str
        More attributes of the file.
    running_statistics : mapping of str to ndarray, optional
        As of `complete_run`.

    Raises
    ------
    ConfigError
        If there is no such file, or it cannot be replaced.
    """
    newest = chain(run_directory)[-1]
    with _replacing(newest.directory / layout.RUN_FILE) as file:
        file.attrs.update(attributes, status="stopped")
        _add_statistics(file, running_statistics)


def complete_run(
    run_directory: Path,
    *,
    final: np.ndarray,
    attributes: Mapping,
    running_statistics: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Add to ``run.h5`` how the run ended.

    The rows of all ranks become virtual data sets under the names of the rank files: rank after rank, of each its
    generations, of these its parts, each cut where the next one begins. They refer to the files by relative name, so
    the directory can be moved as a whole. A file that was not closed, because its rank died, is left out; those of
    earlier generations are marked as closed.

    Files are replaced at once by completed copies, since somebody may be reading them. Of a run of several
    generations the newest one's own ``run.h5`` is completed too, without data sets; lists by rank stand in that one.

    Parameters
    ----------
    run_directory : Path
    final : ndarray, shape (n_params,), host memory
        Final parameters.
    attributes : mapping of str to str, number or list of str
        More attributes of the file; numbers are of all generations together.
    running_statistics : mapping of str to ndarray, optional
        Become one vector, as parameters do; names and shapes are its attribute ``shapes``.

    Raises
    ------
    ConfigError
        If the files of the run are not there or cannot be replaced.
    """
    generations = chain(run_directory)
    first, newest = generations[0], generations[-1]
    _mark_closed(generations[:-1])
    streams = read_streams(generations, [], opener=h5py.File)
    if newest is not first:
        with _replacing(newest.directory / layout.RUN_FILE) as file:
            file.attrs.update(attributes, status="complete")
            _add_statistics(file, running_statistics)
        attributes = {name: value for name, value in attributes.items() if np.ndim(value) == 0}
        attributes["own_status"] = first.status
    with _replacing(run_directory / layout.RUN_FILE) as file:
        _remove_ending(file)
        data_set = layout.create(file, _FINAL, data=final)
        data_set.dims[0].attach_scale(file[_PARAMETER.name])
        if "parameter_shapes" in file[_X0.name].attrs:
            data_set.attrs["parameter_shapes"] = file[_X0.name].attrs["parameter_shapes"]
        _add_statistics(file, running_statistics)
        if any(stream.parts for stream in streams):
            _join_rank_files(file, run_directory, generations, streams)
        file.attrs.update(attributes, status="complete")


def read_running_statistics(run_directory: Path) -> dict[str, np.ndarray]:
    """Return those of the newest generation that has some in its ``run.h5``; empty where none has."""
    for generation in reversed(chain(run_directory)):
        with reading(generation.directory / layout.RUN_FILE) as file:
            if found := running_statistics_in(file):
                return found
    return {}


def running_statistics_in(file: h5py.File) -> dict[str, np.ndarray]:
    """Return the running statistics that stand in a ``run.h5``; empty where there are none."""
    if _STATISTICS.name not in file:
        return {}
    data_set = file[_STATISTICS.name]
    return by_name(data_set[:], json.loads(data_set.attrs["shapes"]))


def by_name(flat: np.ndarray, shapes: Mapping) -> dict[str, np.ndarray]:
    """Return views of a flat vector by name, each in its shape."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(flat, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _add_statistics(file: h5py.File, statistics: Mapping[str, np.ndarray] | None) -> None:
    for name in {_STATISTICS.name, _STATISTIC.name} & set(file):  # of when the run was stopped, or ended before
        del file[name]
    if not statistics:
        return
    flat = np.concatenate([np.ravel(values) for values in statistics.values()])
    scale = layout.create(file, _STATISTIC, shape=flat.shape)
    scale.make_scale(_NETCDF_DIMENSION % flat.size)
    data_set = layout.create(file, _STATISTICS, data=flat)
    data_set.dims[0].attach_scale(scale)
    data_set.attrs["shapes"] = json.dumps({name: np.shape(values) for name, values in statistics.items()})


@contextmanager
def _replacing(path: Path) -> Iterator[h5py.File]:
    """A copy of an HDF5 file, to be changed; takes the file's place, durably, when the context is left."""
    copy = path.with_name(f".{path.name}.part")
    with layout.making("run file", path):
        # The vectors of parameters in it at most double it.
        require_space(path.parent, 2 * path.stat().st_size + _SPARE_BYTES)
        shutil.copyfile(path, copy)
        with writing(copy, "r+") as file:
            yield file
        os.replace(copy, path)
        sync(path.parent)


def _mark_closed(generations: Sequence[Generation]) -> None:
    """Make the files of generations that were killed such that virtual data sets can read them."""
    for generation in generations:
        for path in generation.directory.glob(layout.RANK_FILES):
            with suppress(OSError, ConfigError):  # what cannot be marked is left out
                mark_closed(path)


def _remove_ending(file: h5py.File) -> None:
    """Take away what an earlier `complete_run` had added: the run was resumed with a larger budget."""
    if _FINAL.name in file:
        file[_FINAL.name].dims[0].detach_scale(file[_PARAMETER.name])
        for name in {_FINAL.name, "gradient", "evaluation"} & set(file):
            del file[name]


def _join_rank_files(
    file: h5py.File, directory: Path, generations: Sequence[Generation], streams: Sequence[Stream]
) -> None:
    """Make the groups ``gradient``, of all ranks, and ``evaluation``, of the first, of virtual data sets."""
    every = max(stream.versions_every for stream in streams)
    gradient, evaluation = file.create_group("gradient"), file.create_group("evaluation")
    spans = [(rank, span) for rank, stream in enumerate(streams) for span in stream.spans if span.part is not None]
    sources = [_Source(span.part.path.relative_to(directory), span.rows) for _, span in spans]
    for column in layout.GRADIENT_COLUMNS:
        _join(gradient, column, sources)
    evaluations = [
        _Source(part.path.relative_to(directory), slice(0, n_rows))
        for (_, part), n_rows in zip(streams[0].parts, n_counting(streams[0], generations, "evaluation"), strict=True)
    ]
    for column in layout.EVALUATION_COLUMNS:
        _join(evaluation, column, evaluations)
    n_rows = [span.end - span.first for _, span in spans]
    for column, values in (
        (layout.RANK, [rank for rank, _ in spans]),
        (layout.GENERATION, [generations[span.generation].number for _, span in spans]),
    ):
        repeated = np.repeat(np.array(values, column.dtype), n_rows)
        layout.create(gradient, column, data=repeated, compression="gzip" if repeated.size else None)
    if every:
        layout.create(gradient, layout.SOURCE_RANK, data=np.arange(len(streams)))
        vectors = [
            _Source(source.path, span.vector_rows(span.first, span.end), span.part.n_columns)
            for (_, span), source in zip(spans, sources, strict=True)
        ]
        _join(gradient, layout.VERSIONS, vectors, len(streams))
    if every > 1:
        versions = [np.arange(span.first, span.end) for _, span in spans]
        logged = np.flatnonzero(np.concatenate([np.empty(0, int), *versions]) % every == 0)
        layout.create(gradient, layout.VERSIONS_ROW, data=logged)
    layout.attach_scales(file)


class _Source(NamedTuple):
    """Rows of a data set in the file of a rank; of a table its columns."""

    path: Path
    rows: slice
    n_columns: int | None = None


def _join(group: h5py.Group, column: layout.Column, sources: Sequence[_Source], n_columns: int | None = None) -> None:
    """Make a virtual data set of rows of those of the same path in other files, one after another."""
    path = f"{group.name}/{column.name}"
    n_rows = sum(source.rows.stop - source.rows.start for source in sources)
    joined = h5py.VirtualLayout((n_rows,) if n_columns is None else (n_rows, n_columns), column.dtype)
    begin = 0
    for source in sources:
        end = begin + source.rows.stop - source.rows.start
        if end > begin:
            shape = (source.rows.stop,) if source.n_columns is None else (source.rows.stop, source.n_columns)
            virtual = h5py.VirtualSource(source.path.as_posix(), path, shape, column.dtype)[source.rows]
            if n_columns is None:
                joined[begin:end] = virtual
            else:
                joined[begin:end, : source.n_columns] = virtual
        begin = end
    missing = np.nan if column.dtype == "f8" else 0
    layout.describe(group.create_virtual_dataset(column.name, joined, fillvalue=missing), column)
