"""Generations of a run: its first launch and each time it was resumed, as their ``run.h5`` files describe them.

A generation resumes from the checkpoints of its `parent`. A generation that was killed before it wrote checkpoints has
no child. The generations that make up the run are the newest one, its parent, and so on back to the first.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpc_dasgd.arrays.types import Int64s
from hpc_dasgd.config.settings import Config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, error_reason, open_readable
from hpc_dasgd.storage.run_settings import parse_config

_REQUIRED_ATTRIBUTES = ("schema", "n_ranks", "status", "config")


@dataclass(frozen=True, eq=False)
class Generation:
    """One launch of a run.

    Attributes
    ----------
    number : int
        Number of the generation, from 0.
    n_ranks : int
        Number of ranks.
    versions_before : ndarray, shape (n_streams,), int64
        Updates of each stream (see `log_index`) at its start.
    begun_s : float
        Its start in seconds since the run began.
    started : str
        Its start as date and time in ISO format; empty if unknown.
    status : str
        ``"complete"``, ``"stopped"`` (by a signal), or ``"running"``, which remains if the generation was killed.
    directory : Path
        Directory of its files.
    attributes : dict
        Attributes of its ``run.h5``, as str, int, float or list.
    """

    number: int
    n_ranks: int
    versions_before: Int64s
    begun_s: float
    started: str
    status: str
    directory: Path
    attributes: dict[str, Any] = field(repr=False)

    @cached_property
    def config(self) -> Config:
        """Its settings; raises `ConfigError` if this version of the package cannot read them."""
        return parse_config(self.attributes["config"], self.directory)


def find_run_directory(path: Path) -> Path:
    """Return the directory of a run, given that directory, the directory of a generation, or a ``run.h5``."""
    directory = path.parent if path.name == layout.RUN_FILE else path
    is_generation = (
        directory.resolve().match(layout.GENERATION_PATTERN) and (directory.parent / layout.RUN_FILE).exists()
    )
    return directory.resolve().parent if is_generation else directory


def read_generations(directory: Path) -> list[Generation]:
    """Read the generations that make up a run, the first one first.

    Parameters
    ----------
    directory : Path
        The run directory.

    Raises
    ------
    ConfigError
        If there is no run, or one of its ``run.h5`` files cannot be read or was written by a later version of the
        package.
    """
    generations = [read_generation(directory, newest_generation(directory))]
    while (parent := generations[0].attributes.get("parent", -1)) >= 0:
        first = generations[0]
        if parent >= first.number:
            raise ConfigError(f"{first.directory} must resume an earlier generation, got {parent}")
        generations.insert(0, read_generation(directory, parent))
    return generations


def newest_generation(directory: Path) -> int:
    """Return the number of the newest generation of a run directory that has a ``run.h5``; 0 if none has."""
    numbers = [
        int(path.parent.name.rpartition("_")[2])
        for path in directory.glob(f"{layout.GENERATION_PATTERN}/{layout.RUN_FILE}")
        if path.stat().st_size
    ]
    return max(numbers, default=0)


def read_generation(directory: Path, number: int) -> Generation:
    """Read the ``run.h5`` of one generation of a run directory; raises `ConfigError` as `read_generations` does."""
    folder = layout.generation_directory(directory, number)
    path = folder / layout.RUN_FILE
    try:
        with open_readable(path) as file:
            attributes = {name: np.asarray(value).tolist() for name, value in file.attrs.items()}
        schema, n_ranks, status, _ = (attributes[name] for name in _REQUIRED_ATTRIBUTES)
    except HDF5_ERRORS as error:
        rule = f"must be a run directory or its {layout.RUN_FILE}"
        raise ConfigError(f"{folder} {rule}: {error_reason(error)}") from None
    if schema > layout.SCHEMA:
        raise ConfigError(f"{path} must have a schema of at most {layout.SCHEMA}, got {schema}")
    return Generation(
        number,
        n_ranks,
        np.array(attributes.get("versions_before", [0] * n_ranks), np.int64),
        attributes.get("begun_s", 0.0),
        attributes.get("started", ""),
        attributes.get("own_status", status),
        folder,
        attributes,
    )
