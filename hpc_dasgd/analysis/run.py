"""A run directory, read from its files: gradients, version vectors, staleness, parameters. Needs no MPI.

A run can be opened while it is being written and after it was killed. All properties then refer to what the files
held at the time of opening. A run that was resumed is read as if it had never been interrupted.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.analysis.run_attributes import merged_attributes, warnings_from_attributes
from hpc_dasgd.analysis.run_log import RunLog
from hpc_dasgd.arrays.types import AnyArray, Float64s, Floats, Int64s
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset, open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.storage import checkpoint_selection, layout
from hpc_dasgd.storage.generations import find_run_directory, read_generations
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, error_reason, open_readable
from hpc_dasgd.storage.log_index import index_streams
from hpc_dasgd.storage.run_file import running_statistics_in, split_by_name
from hpc_dasgd.storage.run_settings import config_sections, parse_config
from hpc_dasgd.theory.staleness import Staleness, measure
from hpc_dasgd.theory.version_vectors import Order, causal_order, replicas_at

DatasetSource: TypeAlias = Dataset | str | Path
"""An open data set, or the path or name of one."""


@dataclass(frozen=True, eq=False)
class Run(RunLog):
    """A run directory. Made by `open_run`. Its log is read when it is first used, and kept.

    Attributes
    ----------
    directory : Path
        Directory of the run.
    attributes : dict of str to (str, int, float or list)
        Attributes of ``run.h5`` (``docs/file-format.md``) of the newest generation, except for ``started`` and
        ``command``, which are those of the first. Lists with one entry per rank are completed from earlier
        generations if these had more ranks.
    generations : tuple of Generation
        Generations of the run that count, oldest first: a run gets a new generation at each start.
    x0 : ndarray, shape (n_params,), float32 or float64
        Initial parameters.
    final : ndarray, shape (n_params,), dtype of `x0`, or None
        Final parameters; None if the run is not complete.
    parameter_shapes : dict of str to list of int, or None
        Names and shapes of the arrays that the parameters consist of, in order; None if they have no names.
    running_statistics : dict of str to ndarray
        Arrays that the objective changed besides the parameters, at the end of the run, averaged over the ranks; see
        `hpc_dasgd.objectives.Objective`.
    warnings : list of str
        Warnings about missing parts of the log and limited results.

    Examples
    --------
    >>> run = open_run("runs/digits-20250101-120000")    # doctest: +SKIP
    >>> run.gradients["loss"].mean()                     # doctest: +SKIP
    0.31
    >>> run.versions[0].shape                            # doctest: +SKIP
    (5012, 4)
    >>> run.staleness().as_dict()["S_avg"]               # doctest: +SKIP
    1.7
    """

    x0: Floats
    final: Floats | None
    parameter_shapes: dict[str, list[int]] | None
    running_statistics: dict[str, AnyArray]
    warnings: list[str]

    @property
    def status(self) -> str:
        """``"complete"``, ``"stopped"`` (by a signal), or ``"running"``, which a run that was killed keeps."""
        return cast(str, self.attributes["status"])

    @cached_property
    def config(self) -> Config:
        """Settings of the newest generation. Raises `ConfigError` if this version of the package cannot read them."""
        return parse_config(self.attributes["config"], self.directory)

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Settings by section as the file holds them, without validation; empty if they are not valid TOML."""
        return config_sections(self.attributes["config"])

    def staleness(self) -> Staleness:
        """Return the staleness computed from the logged version vectors (``docs/theory.md``, Definitions).

        Computed by the first call and kept.

        Raises
        ------
        ConfigError
            If no version vectors were logged, there are no gradients yet, or the vectors contradict each other.
        """
        return self._staleness

    def staleness_by_row(self) -> tuple[Int64s, Int64s]:
        """Return the staleness of each gradient whose version vector was logged.

        Raises like `staleness`.

        Returns
        -------
        rows : ndarray, shape (n_vectors,), int64
            Row of each of these gradients in `gradients`, ascending.
        staleness : ndarray, shape (n_vectors,), int64
            Number of gradients that it missed.
        """
        missed = self.staleness().missed
        firsts = np.cumsum(self.counts) - self.counts
        logged = [
            np.arange(first, first + count, self.versions_every)
            for first, count in zip(firsts, self.counts, strict=True)
        ]
        return np.concatenate(logged), missed.staleness[np.argsort(missed.rank, kind="stable")]

    def version_vectors_at(self, times_s: Float64s) -> Int64s:
        """Return the version vectors of all replicas at given times, as last logged.

        Raises like `version_rows`.

        Parameters
        ----------
        times_s : ndarray, shape (n_times,), float64, s since the run began
            Ascending.

        Returns
        -------
        versions : ndarray, shape (n_times, n_ranks, n_ranks), int64
            ``versions[m, i]`` is the vector of rank ``i``, zero before its first gradient.
        """
        return replicas_at(times_s, self._by_rank("t_start_s"), self.version_rows(), self.versions_every)

    def objective(
        self, given: Objective | None = None, data: DatasetSource | None = None
    ) -> tuple[Objective, Dataset | None]:
        """Return the objective that the run trained, and its open data set.

        Parameters
        ----------
        given : Objective, optional
            The objective, if it was passed to `hpc_dasgd.train`.
        data : Dataset or path, optional
            Replaces the data set that the run names.

        Returns
        -------
        objective : Objective
        dataset : Dataset or None
            None for an objective without data.

        Raises
        ------
        ConfigError
            If the objective was passed to `hpc_dasgd.train` and `given` is None, or it cannot be made here.
        """
        if given is None and self.attributes.get("objective_given"):
            raise ConfigError(f"the objective of {self.directory} was passed in Python: pass it here too")
        source = data or self.attributes.get("data_path") or self.config.data.path
        dataset = source if source is None or isinstance(source, Dataset) else open_dataset(source, self.x0.dtype)
        if given is None:
            given = objectives.make(self.config.objective.kind, dict(self.config.objective.options), dataset)
        return given, dataset

    def parameters(self) -> dict[str, AnyArray]:
        """Return the final parameters by name, each in its shape.

        If they have no names, the dict holds one vector ``"parameters"``. If the run is not complete, the parameters
        are those of its newest valid checkpoints.

        Raises
        ------
        ConfigError
            If there are neither final parameters nor valid checkpoints.
        """
        flat = self.final
        if flat is None:
            flat = checkpoint_selection.read_parameters(self.directory, self.attributes.get("run_id", ""))
        if flat is None:
            reasons = f"its status is {self.status!r}, and it has no good checkpoint of every rank"
            raise ConfigError(f"{self.directory} has no final parameters: {reasons}")
        return split_by_name(flat, self.parameter_shapes or {"parameters": [flat.size]})

    @cached_property
    def order(self) -> Order:
        """The global order of the gradients. Raises like `staleness`."""
        try:
            return causal_order(self._by_rank("t_end_s"), self.version_rows(), self.versions_every)
        except ValueError as error:
            raise ConfigError(f"the log of {self.directory} is damaged: {error}") from None

    @cached_property
    def _staleness(self) -> Staleness:
        versions = self.version_rows()
        return measure(self._by_rank("t_start_s"), self.order, versions, self.versions_every, self.n_ranks_at)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run that is complete, still running, or was killed.

    Parameters
    ----------
    path : path
        The run directory, the folder of one of its generations, or a ``run.h5`` in one of these. All open the whole
        run.

    Returns
    -------
    run : Run

    Raises
    ------
    ConfigError
        If there is no run, or it cannot be read.

    Examples
    --------
    >>> run = open_run("runs/digits-20250101-120000")    # doctest: +SKIP
    >>> run.n_ranks, run.status                          # doctest: +SKIP
    (4, 'complete')
    """
    directory = find_run_directory(Path(path))
    generations = read_generations(directory)
    attributes = merged_attributes(generations)
    try:
        with open_readable(directory / layout.RUN_FILE) as file:
            shapes, x0 = file["x0"].attrs.get("parameter_shapes", "null"), file["x0"][:]
            final = file["final"][:] if attributes["status"] == "complete" else None
            statistics = {} if final is None else running_statistics_in(file)
    except HDF5_ERRORS as error:
        rule = f"must be a run directory or its {layout.RUN_FILE}"
        raise ConfigError(f"{path} {rule}: {error_reason(error)}") from None
    warnings = warnings_from_attributes(attributes)
    streams = index_streams(generations, warnings)
    run = Run(
        directory=directory,
        attributes=attributes,
        generations=tuple(generations),
        _streams=streams,
        x0=x0,
        final=final,
        parameter_shapes=json.loads(shapes),
        running_statistics=statistics,
        warnings=warnings,
    )
    if run.versions_every > 1:
        warnings.append(
            f"staleness is that of one gradient in {run.versions_every}: no other version vectors were logged"
        )
    return run
