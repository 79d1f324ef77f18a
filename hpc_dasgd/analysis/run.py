"""What a run's files say: gradients, version vectors, staleness, parameters. Needs no MPI.

    run = open_run("runs/digits-20250101-120000")
    run.gradients["loss"], run.versions[0], run.staleness().as_dict()

A run can be opened while it is being written, and after it was killed: everything then refers to what
was in the files at the moment of opening. One that was resumed is read as if it had never been interrupted.
"""

import json
import os
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset, open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import checkpoint_selection, layout
from hpc_dasgd.storage.generations import Generation, chain, run_directory, settings
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS
from hpc_dasgd.storage.log_reader import Stream, VersionRows, open_file, read_events, read_gradients, read_streams
from hpc_dasgd.storage.run_file import by_name, running_statistics_in
from hpc_dasgd.theory.staleness import Staleness, measure
from hpc_dasgd.theory.version_vectors import Order, causal_order, replicas_at

_OF_THE_FIRST = ("started", "command")  # attributes that tell of the run what its first generation says
_BY_RANK = ("hosts", "devices", "nodes", "cores", "transferred_bytes", "clock_offset_s", "clock_drift_s")
_MEMORY_BYTES = 1 << 30  # of version vectors; where there are more, they are read piece by piece


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read when asked. Made by `open_run`.

    Attributes
    ----------
    directory : Path
    attributes : dict
        Attributes of ``run.h5``, as str, int, float or list: those of the newest generation, but ``started`` and
        ``command`` of the first. Lists by rank go on with what earlier generations say of ranks that the newest
        does not have.
    generations : tuple of Generation
        The starts of the run that count, the first to begin first.
    x0 : ndarray, shape (n_params,)
        Initial parameters.
    final : ndarray, shape (n_params,), or None
        Final parameters; None where the run is not complete.
    parameter_shapes : dict of str to list of int, or None
        Names and shapes of the arrays that the parameters are made of, in order.
    running_statistics : dict of str to ndarray
        What ranks kept beside the parameters, at the end, mean over ranks; see `objectives.Objective`.
    warnings : list of str
        What is missing, cut or to be read with care.
    """

    directory: Path
    attributes: dict
    generations: tuple[Generation, ...]
    x0: np.ndarray
    final: np.ndarray | None
    parameter_shapes: dict | None
    running_statistics: dict[str, np.ndarray]
    warnings: list[str]
    _streams: list[Stream] = field(repr=False)

    @property
    def n_ranks(self) -> int:
        """Ranks of the generation that had the most."""
        return len(self._streams)

    @property
    def versions_every(self) -> int:
        """Every how many gradients of a rank its version vector was logged; 0: none was."""
        return max(stream.versions_every for stream in self._streams)

    @property
    def has_versions(self) -> bool:
        """Whether there are version vectors of all that was logged: `version_rows` does not raise."""
        return bool(self.versions_every and self.counts.any() and not self.lost.any())

    @property
    def status(self) -> str:
        """``"complete"``, ``"stopped"`` (by a signal); or ``"running"``, for ever if it was killed."""
        return self.attributes["status"]

    @cached_property
    def config(self) -> Config:
        """Settings of the newest generation; `ConfigError` where this version of the package cannot read them."""
        return settings(self.attributes["config"], self.directory)

    @cached_property
    def settings(self) -> dict[str, dict]:
        """Settings by section as they stand in the file, of any version; empty where they cannot be read."""
        return sections(self.attributes["config"])

    @cached_property
    def counts(self) -> np.ndarray:
        """Gradients of each rank, shape (n_ranks,), int64."""
        return np.array([stream.n_gradients for stream in self._streams], np.int64)

    @cached_property
    def lost(self) -> np.ndarray:
        """Gradients of each rank that count and that its log lacks, shape (n_ranks,), int64."""
        return np.array([stream.n_lost for stream in self._streams], np.int64)

    @property
    def seconds(self) -> float:
        """How long the run trained; of one that did not end, up to its last gradient."""
        if "seconds" in self.attributes:
            return self.attributes["seconds"]
        gradients = self.gradients
        return float(gradients["t_end_s"].max() - gradients["t_start_s"].min()) if gradients.size else 0.0

    @cached_property
    def gradients(self) -> np.ndarray:
        """All gradients, rank after rank: structured, ``rank`` and `schema.GRADIENT_COLUMNS`.

        Of those that are lost the version is known and the rest nan; their times are when the one before ended.
        """
        rows = np.empty(self.counts.sum(), layout.record_dtype((layout.RANK, *layout.GRADIENT_COLUMNS)))
        rows["rank"] = np.repeat(np.arange(self.n_ranks), self.counts)
        for rank, stream in enumerate(self._streams):
            read_gradients(stream, rank, self.generations, rows[self.rows(rank)])
        return rows

    def n_ranks_at(self, moments: np.ndarray) -> np.ndarray:
        """How many ranks there were at given moments, in seconds since the run began; those before all others."""
        begun_s = [generation.begun_s for generation in self.generations]
        place = np.searchsorted(begun_s, moments, side="right") - 1
        return np.array([generation.n_ranks for generation in self.generations])[np.maximum(place, 0)]

    def rows(self, rank: int) -> slice:
        """Rows of `gradients` that are of `rank`."""
        end = int(self._ends[rank])
        return slice(end - int(self.counts[rank]), end)

    @cached_property
    def evaluation(self) -> np.ndarray:
        """Evaluations of rank 0's replica, after its death of the lowest that lives: structured,
        `schema.EVALUATION_COLUMNS`.
        """
        parts = []
        for rank, stream in enumerate(self._streams):
            parts.append(read_events(stream, self.generations, "evaluation", layout.EVALUATION_COLUMNS))
            if rank not in self.died:
                break
        rows = np.concatenate(parts)
        return rows[np.argsort(rows["t_s"], kind="stable")]

    @property
    def died(self) -> list[int]:
        """Ranks that died, in any generation, while the others went on."""
        return sorted({rank for generation in self.generations for rank in generation.attributes.get("died", [])})

    @cached_property
    def pace(self) -> np.ndarray | None:
        """Changes of the distance between exchanges, rank after rank: structured, ``rank`` and `schema.PACE_COLUMNS`.

        None where ``exchange.every`` was a number.
        """
        if all(part.n_changes is None for stream in self._streams for _, part in stream.parts):
            return None
        by_rank = [read_events(stream, self.generations, "pace", layout.PACE_COLUMNS) for stream in self._streams]
        rows = np.empty(sum(map(len, by_rank)), layout.record_dtype((layout.RANK, *layout.PACE_COLUMNS)))
        rows["rank"] = np.repeat(np.arange(self.n_ranks), [len(changes) for changes in by_rank])
        for column in layout.PACE_COLUMNS:
            rows[column.name] = np.concatenate([changes[column.name] for changes in by_rank])
        return rows

    @cached_property
    def versions(self) -> list[np.ndarray] | None:
        """By rank its logged version vectors, (n, n_ranks) uint32; None where none were logged.

        Row ``r`` is of gradient ``r * versions_every`` of the rank. Raises as `version_rows` where some are lost.
        """
        if not self.versions_every:
            return None
        return [rows[:] for rows in self._rows_on_demand()]

    def staleness(self) -> Staleness:
        """Compute the staleness from the logged version vectors, once.

        Raises
        ------
        ConfigError
            If none were logged, there is no gradient yet, or they contradict each other.
        """
        return self._staleness

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients whose staleness is known, as rows of `gradients`, and that; raises as `staleness`."""
        missed = self.staleness().missed
        firsts = np.cumsum(self.counts) - self.counts
        logged = [
            np.arange(first, first + count, self.versions_every)
            for first, count in zip(firsts, self.counts, strict=True)
        ]
        return np.concatenate(logged), missed.staleness[np.argsort(missed.rank, kind="stable")]

    def replicas(self, moments: np.ndarray) -> np.ndarray:
        """Look up the version vectors of all replicas at given moments: `versions.replicas_at` of the log."""
        return replicas_at(moments, self._by_rank("t_start_s"), self.version_rows(), self.versions_every)

    def objective(self, given=None, data: Dataset | str | Path | None = None) -> tuple[object, Dataset | None]:
        """Make the objective that the run trained, and open its data set.

        Parameters
        ----------
        given : optional
            The objective, where it was passed to `train`.
        data : Dataset or path, optional
            In place of the data set that the run says.

        Raises
        ------
        ConfigError
            If the objective was passed in Python and is not `given`, or it cannot be made here.
        """
        if given is None and self.attributes.get("objective_given"):
            raise ConfigError(f"the objective of {self.directory} was passed in Python: pass it here too")
        path = data or self.attributes.get("data_path") or self.config.data.path
        data = path if path is None or isinstance(path, Dataset) else open_dataset(path, self.x0.dtype)
        if given is None:
            given = objectives.make(self.config.objective.kind, dict(self.config.objective.options), data)
        return given, data

    def parameters(self) -> dict[str, np.ndarray]:
        """Final parameters by name, each in its shape; one flat ``parameters`` where they have no names.

        Of a run that is not complete those of its newest good checkpoints.

        Raises
        ------
        ConfigError
            If there are none.
        """
        flat = self.final
        if flat is None:
            flat = checkpoint_selection.parameters(self.directory, self.attributes.get("run_id", ""))
        if flat is None:
            reasons = f"its status is {self.status!r}, and it has no good checkpoint of every rank"
            raise ConfigError(f"{self.directory} has no final parameters: {reasons}")
        return by_name(flat, self.parameter_shapes or {"parameters": [flat.size]})

    @cached_property
    def order(self) -> Order:
        """The global order of the gradients; raises as `staleness`."""
        try:
            return causal_order(self._by_rank("t_end_s"), self.version_rows(), self.versions_every)
        except ValueError as error:
            raise ConfigError(f"the log of {self.directory} is damaged: {error}") from None

    def version_rows(self) -> Sequence:
        """By rank its logged version vectors, as `versions`, but read when sliced where all would fill the memory.

        Raises
        ------
        ConfigError
            If none were logged, some are lost, or there is no gradient yet.
        """
        if not self.counts.any():
            raise ConfigError(f"{self.directory} holds no gradients yet")
        if not self.versions_every:
            raise ConfigError(
                f'{self.directory} holds no version vectors: its `log.versions` is "none"; '
                'staleness needs "full" or "every N"'
            )
        on_demand = self._rows_on_demand()
        n_bytes = sum(rows.shape[0] for rows in on_demand) * self.n_ranks * 4
        return self.versions if n_bytes <= _MEMORY_BYTES else on_demand

    def lost_work(self) -> list[int]:
        """By generation but the last: how many of its gradients stand in its log and do not count."""
        return [
            sum(
                max(0, part.first + part.n_gradients - int(child.versions_before[rank]))
                for rank, stream in enumerate(self._streams)
                for part in [part for place, part in stream.parts if place == number][-1:]
            )
            for number, child in enumerate(self.generations[1:])
        ]

    def n_holding_lost_work(self) -> int:
        """Count the gradients whose replica held updates that were lost when the run was resumed.

        Raises as `version_rows`.
        """
        return sum(rows.n_limited() for rows in self._rows_on_demand())

    @cached_property
    def _staleness(self) -> Staleness:
        versions = self.version_rows()
        return measure(self._by_rank("t_start_s"), self.order, versions, self.versions_every, self.n_ranks_at)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def _by_rank(self, name: str) -> list[np.ndarray]:
        return np.split(self.gradients[name], np.cumsum(self.counts)[:-1])

    def _rows_on_demand(self) -> list[VersionRows]:
        for rank in np.flatnonzero(self.lost):
            raise ConfigError(
                f"{self.directory} lacks {self.lost[rank]} gradients of rank {rank} and their version vectors: "
                "its log could not be written"
            )
        limits = [*(generation.versions_before for generation in self.generations[1:]), None]
        return [VersionRows(stream, limits, self.n_ranks, self.versions_every) for stream in self._streams]


def open_run(path: str | os.PathLike) -> Run:
    """Open a run: complete, going on, or killed.

    Parameters
    ----------
    path : path
        The run directory, the folder of one of its generations, or a ``run.h5`` in these: all open the whole run.

    Raises
    ------
    ConfigError
        If there is no run, or it cannot be read.
    """
    directory = run_directory(Path(path))
    generations = chain(directory)
    attributes = _merged_attributes(generations)
    try:
        with open_file(directory / layout.RUN_FILE) as file:
            shapes, x0 = file["x0"].attrs.get("parameter_shapes", "null"), file["x0"][:]
            final = file["final"][:] if attributes["status"] == "complete" else None
            statistics = {} if final is None else running_statistics_in(file)
    except HDF5_ERRORS as error:
        rule = f"must be a run directory or its {layout.RUN_FILE}"
        raise ConfigError(f"{path} {rule}: {layout.reason(error)}") from None
    warnings = _warnings_of(attributes)
    streams = read_streams(generations, warnings)
    shapes = json.loads(shapes)
    run = Run(directory, attributes, tuple(generations), x0, final, shapes, statistics, warnings, streams)
    if run.versions_every > 1:
        warnings.append(f"staleness is of one gradient in {run.versions_every}: no other vectors were logged")
    return run


def sections(toml: str) -> dict[str, dict]:
    """Return the sections of settings given as TOML text; none where it cannot be read."""
    try:
        return {name: section for name, section in tomllib.loads(toml).items() if isinstance(section, dict)}
    except tomllib.TOMLDecodeError:
        return {}


def export_parameters(run: Run, path: str | os.PathLike) -> None:
    """Write the final parameters and running statistics to exactly `path`: a ``.npz`` with one array per name.

    Raises
    ------
    ConfigError
        If the run is not complete, or the file cannot be written.
    """
    arrays = run.running_statistics | run.parameters()
    try:
        # Not by `np.savez`, which appends to the file name and knows names that no parameter may have.
        with zipfile.ZipFile(path, "w") as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"cannot write parameters to {path}: {error.strerror or error}") from None


def staleness_text(run: Run) -> str:
    """Return the staleness of a run as a table for the terminal; raises as `Run.staleness`."""
    notes = [f"note: {warning}" for warning in run.warnings]
    return "\n".join([f"staleness of {run.directory}: {run.staleness().table()}", *notes])


def _merged_attributes(generations: Sequence[Generation]) -> dict:
    """What is known of a run from its generations; see `Run.attributes`."""
    first, newest = generations[0].attributes, generations[-1].attributes
    merged = newest | {name: first[name] for name in _OF_THE_FIRST if name in first}
    for name in _BY_RANK:
        for generation in reversed(generations):
            merged[name] = merged.get(name, []) + generation.attributes.get(name, [])[len(merged.get(name, [])) :]
    return {name: value for name, value in merged.items() if value != [] or name not in _BY_RANK}


def _warnings_of(attributes: dict) -> list[str]:
    """What the settings say about the log; nothing where this version cannot read them."""
    exchange = sections(attributes["config"]).get("exchange", {})
    warnings = []
    if attributes["status"] == "stopped":
        warnings.append("stopped by a signal; go on with --resume")
    elif attributes["status"] != "complete":
        warnings.append("the run is not complete: it is going on, or was killed")
    if attributes.get("died"):
        ranks = ", ".join(map(str, attributes["died"]))
        warnings.append(f"ranks {ranks} died and the others went on: the last gradients of those may be missing")
    traits = traits_in(exchange)
    warnings += [f"`exchange.kind` is {traits.kind}: {remark}" for remark in traits.remarks_on(exchange)]
    return warnings
