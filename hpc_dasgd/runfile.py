"""``run.h5``: written at the start of a run, completed at its end. On one rank only.

create_run(directory, ...)      # before any rank makes its log
complete_run(directory, ...)    # after every rank has closed its log
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd import schema
from hpc_dasgd.errors import ConfigError

# The name by which netCDF readers know a scale that has a length and no values.
_NETCDF_DIMENSION = "This is a netCDF dimension but not a netCDF variable.%10d"
_PARAMETER = schema.Column("parameter", "i1", "length of the parameter vector; holds no values")
_X0 = schema.Column("x0", None, "parameters at the start, the same on all ranks")
_FINAL = schema.Column("final", None, "parameters at the end; with exchange `none` those of rank 0")


def create_run(
    directory: Path,
    *,
    config_toml: str,
    attributes: Mapping,
    x0: np.ndarray,
    parameter_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Make the run directory and its ``run.h5``.

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
    n_named = sum(map(math.prod, (parameter_shapes or {}).values()))
    if parameter_shapes and n_named != x0.size:
        raise ConfigError(f"`parameter_shapes` must add up to {x0.size} parameters, got {n_named}")
    with schema.making("run directory", directory):
        if any([*directory.glob(schema.RUN_FILE), *directory.glob(schema.RANK_FILES)]):
            raise ConfigError(f"`--run` must be a directory that holds no run yet, got {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        with h5py.File(directory / schema.RUN_FILE, "x", libver=schema.FORMAT) as file:
            file.attrs.update(schema=schema.SCHEMA, status="running", config=config_toml, **attributes)
            scale = schema.create(file, _PARAMETER, shape=x0.shape)
            scale.make_scale(_NETCDF_DIMENSION % x0.size)
            data_set = schema.create(file, _X0, data=x0)
            data_set.dims[0].attach_scale(scale)
            if parameter_shapes:
                data_set.attrs["parameter_shapes"] = json.dumps(dict(parameter_shapes))


def complete_run(directory: Path, *, final: np.ndarray, attributes: Mapping) -> None:
    """Add to ``run.h5`` how the run ended.

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
    copy = directory / f".{schema.RUN_FILE}.part"
    shutil.copyfile(directory / schema.RUN_FILE, copy)
    with h5py.File(copy, "r+", libver=schema.FORMAT) as file:
        data_set = schema.create(file, _FINAL, data=final)
        data_set.dims[0].attach_scale(file[_PARAMETER.name])
        if "parameter_shapes" in file[_X0.name].attrs:
            data_set.attrs["parameter_shapes"] = file[_X0.name].attrs["parameter_shapes"]
        _join_rank_files(file, list(_closed_rank_files(directory, int(file.attrs["n_ranks"]))))
        file.attrs.update(attributes, status="complete")
    os.replace(copy, directory / schema.RUN_FILE)


class _Part(NamedTuple):
    """What of a rank's file goes into the virtual data sets: all data sets, by path."""

    rank: int
    file: str
    versions_every: int
    shapes: dict[str, tuple[int, ...]]


def _closed_rank_files(directory: Path, n_ranks: int) -> Iterator[_Part]:
    # By name: the listing of a network file system may lag behind what other nodes have made.
    for path in (directory / schema.rank_file(rank) for rank in range(n_ranks)):
        try:
            with h5py.File(path) as file:
                groups = (file["gradient"], file["evaluation"])
                shapes = {item.name: item.shape for group in groups for item in group.values()}
                yield _Part(int(file.attrs["rank"]), path.name, int(file.attrs["versions_every"]), shapes)
        except OSError:
            continue  # left open by a rank that died, which virtual data sets cannot read


def _join_rank_files(file: h5py.File, parts: list[_Part]) -> None:
    """Make the groups ``gradient``, of all ranks, and ``evaluation``, of the first, of virtual data sets."""
    every = parts[0].versions_every
    gradient, evaluation = file.create_group("gradient"), file.create_group("evaluation")
    for column in (*schema.GRADIENT_COLUMNS, schema.VERSIONS) if every else schema.GRADIENT_COLUMNS:
        _join(gradient, column, parts)
    for column in schema.EVALUATION_COLUMNS:
        _join(evaluation, column, parts[:1])
    n_rows = [part.shapes["/gradient/version"][0] for part in parts]
    ranks = np.repeat([part.rank for part in parts], n_rows)
    schema.create(gradient, schema.RANK, data=ranks, compression="gzip" if ranks.size else None)
    if every:
        schema.create(gradient, schema.SOURCE_RANK, data=np.arange(gradient[schema.VERSIONS.name].shape[1]))
    if every > 1:
        firsts = np.cumsum(n_rows) - n_rows
        rows = [np.arange(first, first + n, every) for first, n in zip(firsts, n_rows, strict=True)]
        schema.create(gradient, schema.VERSIONS_ROW, data=np.concatenate(rows))
    schema.attach_scales(file)


def _join(group: h5py.Group, column: schema.Column, parts: list[_Part]) -> None:
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
    schema.describe(group.create_virtual_dataset(column.name, layout, fillvalue=missing), column)
