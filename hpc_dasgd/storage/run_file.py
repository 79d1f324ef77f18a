"""``run.h5``: created at the start of a generation, completed at the end of the run.

One rank alone calls these functions, in this order:

    create_run(directory, ...)          # before any rank creates its log
    stop_run(run_directory, ...)        # if a signal ended the generation
    complete_run(run_directory, ...)    # after every rank has closed its log
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation, read_generations
from hpc_dasgd.storage.h5clear import mark_closed
from hpc_dasgd.storage.hdf5_io import creation_errors, durable_file, fsync_path, readable_file, require_space
from hpc_dasgd.storage.log_index import index_streams
from hpc_dasgd.storage.log_join import join_logs

# Name of a dimension scale with a length but no values, as netCDF defines it.
_NETCDF_DIMENSION = "This is a netCDF dimension but not a netCDF variable.%10d"
_SPARE_BYTES = 1 << 20
_PARAMETER = layout.Column("parameter", "i1", "length of the parameter vector; holds no values")
_X0 = layout.Column("x0", None, "parameters at the start, the same on all ranks")
_STATISTIC = layout.Column("running_statistic", "i1", "length of the running statistics; holds no values")
_STATISTICS = layout.Column("running_statistics", None, "state of the model beside its parameters, mean over ranks")
_FINAL = layout.Column("final", None, "parameters at the end; with exchange `none` those of rank 0")


def create_run(
    directory: Path,
    *,
    config_toml: str,
    attributes: Mapping[str, Any],
    x0: AnyArray,
    parameter_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Create the directory of a generation and its ``run.h5``.

    Parameters
    ----------
    directory : Path
        See `layout.generation_directory`; created with its parents if it does not exist.
    config_toml : str
        All settings, as TOML text.
    attributes : mapping of str to str, number or list of str
        Further attributes of the file, at least ``n_ranks``. A run that can be resumed needs ``run_id``,
        ``generation``, ``parent``, ``versions_before`` and ``begun_s``, see ``docs/file-format.md``.
    x0 : ndarray, shape (n_params,), host memory
        Initial parameters.
    parameter_shapes : mapping of str to tuple of int, optional
        Names and shapes of the arrays that `x0` consists of, in order; stored as JSON in an attribute of the same name
        of ``/x0`` and ``/final``.

    Raises
    ------
    ConfigError
        If the directory holds a run or cannot be written to, or the sizes of the shapes do not add up to that of `x0`.
    """
    n_named = sum(map(math.prod, (parameter_shapes or {}).values()))
    if parameter_shapes and n_named != x0.size:
        raise ConfigError(f"`parameter_shapes` must add up to {x0.size} parameters, got {n_named}")
    with creation_errors("run directory", directory):
        if any([*directory.glob(layout.RUN_FILE), *directory.glob(layout.RANK_FILE_PATTERN)]):
            raise ConfigError(f"`--run` must be a directory that holds no run yet, got {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        require_space(directory, x0.nbytes + _SPARE_BYTES)
        # Under a temporary name: a process that is killed here leaves no unreadable run.h5.
        temporary = directory / f".{layout.RUN_FILE}.part"
        temporary.unlink(missing_ok=True)
        with durable_file(temporary, "x") as file:
            file.attrs.update(schema=layout.SCHEMA, status="running", config=config_toml, **attributes)
            scale = layout.create_data_set(file, _PARAMETER, shape=x0.shape)
            scale.make_scale(_NETCDF_DIMENSION % x0.size)
            data_set = layout.create_data_set(file, _X0, data=x0)
            data_set.dims[0].attach_scale(scale)
            if parameter_shapes:
                data_set.attrs["parameter_shapes"] = json.dumps(dict(parameter_shapes))
        os.replace(temporary, directory / layout.RUN_FILE)
        fsync_path(directory)


def stop_run(
    run_directory: Path, attributes: Mapping[str, Any], running_statistics: Mapping[str, AnyArray] | None = None
) -> None:
    """Record in the newest generation's ``run.h5`` that a signal stopped the run, which can be resumed.

    Parameters
    ----------
    run_directory : Path
    attributes : mapping of str to str, number or list of str
        Further attributes of the file.
    running_statistics : mapping of str to ndarray, optional
        As in `complete_run`.

    Raises
    ------
    ConfigError
        If there is no such file, or it cannot be replaced.
    """
    newest = read_generations(run_directory)[-1]
    with _replacing(newest.directory / layout.RUN_FILE) as file:
        file.attrs.update(attributes, status="stopped")
        _store_statistics(file, running_statistics)


def complete_run(
    run_directory: Path,
    *,
    final: AnyArray,
    attributes: Mapping[str, Any],
    running_statistics: Mapping[str, AnyArray] | None = None,
) -> None:
    """Store the results of the run in ``run.h5``, and join the logs of all ranks in it; see `log_join`.

    Logs of this generation that were not closed, because their rank died, are left out of the joined data sets. Logs
    of earlier generations are marked as closed first.

    Each ``run.h5`` is replaced by a completed copy in one step, since other processes may be reading it. If the run has
    several generations, attributes are added to the ``run.h5`` of the newest one too; lists by rank are stored only
    there.

    Parameters
    ----------
    run_directory : Path
    final : ndarray, shape (n_params,), host memory
        Final parameters.
    attributes : mapping of str to str, number or list of str
        Further attributes of the file; numbers are totals of all generations.
    running_statistics : mapping of str to ndarray, optional
        State of the model beside its parameters. Stored as one vector, with names and shapes in the attribute
        ``shapes`` of the data set.

    Raises
    ------
    ConfigError
        If a ``run.h5`` is missing or cannot be replaced.
    """
    generations = read_generations(run_directory)
    first, newest = generations[0], generations[-1]
    _mark_closed(generations[:-1])
    streams = index_streams(generations, [], opener=h5py.File)
    if newest is not first:
        with _replacing(newest.directory / layout.RUN_FILE) as file:
            file.attrs.update(attributes, status="complete")
            _store_statistics(file, running_statistics)
        attributes = {name: value for name, value in attributes.items() if np.ndim(value) == 0}
        attributes["own_status"] = first.status
    with _replacing(run_directory / layout.RUN_FILE) as file:
        _remove_results(file)
        data_set = layout.create_data_set(file, _FINAL, data=final)
        data_set.dims[0].attach_scale(file[_PARAMETER.name])
        if "parameter_shapes" in file[_X0.name].attrs:
            data_set.attrs["parameter_shapes"] = file[_X0.name].attrs["parameter_shapes"]
        _store_statistics(file, running_statistics)
        if any(stream.segments for stream in streams):
            join_logs(file, run_directory, generations, streams)
        file.attrs.update(attributes, status="complete")


def read_running_statistics(run_directory: Path) -> dict[str, AnyArray]:
    """Read the running statistics of the newest generation that stored some; empty if none did."""
    for generation in reversed(read_generations(run_directory)):
        with readable_file(generation.directory / layout.RUN_FILE) as file:
            if statistics := running_statistics_in(file):
                return statistics
    return {}


def running_statistics_in(file: h5py.File) -> dict[str, AnyArray]:
    """Read the running statistics of an open ``run.h5``; empty if it has none."""
    if _STATISTICS.name not in file:
        return {}
    data_set = file[_STATISTICS.name]
    return split_by_name(data_set[:], json.loads(data_set.attrs["shapes"]))


def split_by_name(flat: AnyArray, shapes: Mapping[str, Sequence[int]]) -> dict[str, AnyArray]:
    """Return consecutive parts of a flat vector by name, as views in the given shapes.

    Examples
    --------
    >>> split_by_name(np.arange(6), {"weight": (2, 2), "bias": (2,)})["bias"]
    array([4, 5])
    """
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(flat, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _store_statistics(file: h5py.File, statistics: Mapping[str, AnyArray] | None) -> None:
    """Store running statistics in an open ``run.h5``, in place of those of an earlier stop or end."""
    for name in {_STATISTICS.name, _STATISTIC.name} & set(file):
        del file[name]
    if not statistics:
        return
    flat = np.concatenate([np.ravel(values) for values in statistics.values()])
    scale = layout.create_data_set(file, _STATISTIC, shape=flat.shape)
    scale.make_scale(_NETCDF_DIMENSION % flat.size)
    data_set = layout.create_data_set(file, _STATISTICS, data=flat)
    data_set.dims[0].attach_scale(scale)
    data_set.attrs["shapes"] = json.dumps({name: np.shape(values) for name, values in statistics.items()})


@contextmanager
def _replacing(path: Path) -> Iterator[h5py.File]:
    """Open a copy of an HDF5 file for writing; it replaces the file durably when the context is left."""
    copy = path.with_name(f".{path.name}.part")
    with creation_errors("run file", path):
        # The file consists mostly of parameter vectors; at most as many are added.
        require_space(path.parent, 2 * path.stat().st_size + _SPARE_BYTES)
        shutil.copyfile(path, copy)
        with durable_file(copy, "r+") as file:
            yield file
        os.replace(copy, path)
        fsync_path(path.parent)


def _mark_closed(generations: Sequence[Generation]) -> None:
    """Mark the logs of generations that have ended as closed, so that virtual data sets can read them."""
    for generation in generations:
        for path in generation.directory.glob(layout.RANK_FILE_PATTERN):
            with suppress(OSError, ConfigError):  # a file that cannot be marked is left out
                mark_closed(path)


def _remove_results(file: h5py.File) -> None:
    """Remove the results of an earlier `complete_run`, after which the run was resumed with a larger budget."""
    if _FINAL.name in file:
        file[_FINAL.name].dims[0].detach_scale(file[_PARAMETER.name])
        for name in {_FINAL.name, "gradient", "evaluation"} & set(file):
            del file[name]
