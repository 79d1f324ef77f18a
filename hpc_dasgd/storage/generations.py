"""The starts of a run that was resumed, and which of them count.

A generation goes on from the checkpoints of its `parent`; one that died before its first checkpoints has no child. The
run is the chain from the newest generation back to the first.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hpc_dasgd.config.settings import Config, load_config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS
from hpc_dasgd.storage.log_reader import open_file

_NECESSARY = ("schema", "n_ranks", "status", "config")


@dataclass(frozen=True, eq=False)
class Generation:
    """One start of a run.

    Attributes
    ----------
    number : int
        From 0.
    n_ranks : int
    versions_before : ndarray, shape (n_streams,), int64
        Updates of each stream at its start; stream r is the rank r of every generation.
    begun_s : float, s
        When it began, on the run's clock.
    started : str
        The same as date and time.
    status : str
        How it ended: ``"complete"``, ``"stopped"`` by a signal; ``"running"`` while it goes on, and for ever if it
        was killed.
    directory : Path
        Of its files.
    attributes : dict
        Those of its ``run.h5``, as str, int, float or list.
    """

    number: int
    n_ranks: int
    versions_before: np.ndarray
    begun_s: float
    started: str
    status: str
    directory: Path
    attributes: dict = field(repr=False)

    @cached_property
    def config(self) -> Config:
        """Its settings; `ConfigError` where this version of the package cannot read them."""
        return settings(self.attributes["config"], self.directory)


def settings(text: str, directory: Path) -> Config:
    """Read the settings that stand in a ``run.h5`` of a directory; `ConfigError` where this version cannot."""
    try:
        return load_config(tomllib.loads(text))
    except (ConfigError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"this version cannot read the settings of {directory}: {error}") from None


def run_directory(path: Path) -> Path:
    """The directory of the run that a path leads to: that itself, a generation's folder, or a ``run.h5``."""
    directory = path.parent if path.name == layout.RUN_FILE else path
    is_folder = directory.resolve().match(layout.GENERATIONS) and (directory.parent / layout.RUN_FILE).exists()
    return directory.resolve().parent if is_folder else directory


def chain(directory: Path) -> list[Generation]:
    """The generations of a run that count, the first to begin first.

    Raises
    ------
    ConfigError
        If there is no run, one of its ``run.h5`` cannot be read, or it is of a later version.
    """
    newest = read_generation(directory, newest_number(directory))
    found = [newest]
    while (parent := found[0].attributes.get("parent", -1)) >= 0:
        if parent >= found[0].number:
            raise ConfigError(f"{found[0].directory} must go on from an earlier generation, got {parent}")
        found.insert(0, read_generation(directory, parent))
    return found


def newest_number(directory: Path) -> int:
    """Number of the newest generation that has its ``run.h5``."""
    numbers = [
        int(path.parent.name.rpartition("_")[2])
        for path in directory.glob(f"{layout.GENERATIONS}/{layout.RUN_FILE}")
        if path.stat().st_size
    ]
    return max(numbers, default=0)


def read_generation(directory: Path, number: int) -> Generation:
    """Read what a generation's ``run.h5`` says; `ConfigError` as of `chain`."""
    folder = layout.generation_directory(directory, number)
    path = folder / layout.RUN_FILE
    try:
        with open_file(path) as file:
            attributes = {name: np.asarray(value).tolist() for name, value in file.attrs.items()}
        version, n_ranks, status, _ = (attributes[name] for name in _NECESSARY)
    except HDF5_ERRORS as error:
        rule = f"must be a run directory or its {layout.RUN_FILE}"
        raise ConfigError(f"{folder} {rule}: {layout.reason(error)}") from None
    if version > layout.SCHEMA:
        raise ConfigError(f"{path} must have a schema of at most {layout.SCHEMA}, got {version}")
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
