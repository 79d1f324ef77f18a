"""What a run's files say: gradients, version vectors, staleness, parameters. Needs no MPI.

    run = open_run("runs/digits-20250101-120000")
    run.gradients["loss"], run.versions[0], run.staleness().as_dict()

A run can be opened while it is being written, and after it was killed: everything then refers to what
was in the files at the moment of opening.
"""

import json
import math
import os
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hpc_dasgd import objectives, schema
from hpc_dasgd.config import Config, load_config
from hpc_dasgd.data import Dataset, open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.rankfiles import RankFile, VersionRows, look_at, open_file, read_columns
from hpc_dasgd.staleness import Staleness, measure
from hpc_dasgd.versions import Order, causal_order, replicas_at

_MEMORY_BYTES = 1 << 30  # of version vectors; where there are more, they are read piece by piece


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read when asked. Made by `open_run`.

    Attributes
    ----------
    directory : Path
    attributes : dict
        Attributes of ``run.h5``, as str, int, float or list.
    x0 : ndarray, shape (n_params,)
        Initial parameters.
    final : ndarray, shape (n_params,), or None
        Final parameters; None where the run is not complete.
    parameter_shapes : dict of str to list of int, or None
        Names and shapes of the arrays that the parameters are made of, in order.
    warnings : list of str
        What is missing, cut or to be read with care.
    """

    directory: Path
    attributes: dict
    x0: np.ndarray
    final: np.ndarray | None
    parameter_shapes: dict | None
    warnings: list[str]
    _files: list[RankFile] = field(repr=False)

    @property
    def n_ranks(self) -> int:
        """Ranks that the run was started with."""
        return self.attributes["n_ranks"]

    @property
    def versions_every(self) -> int:
        """Every how many gradients of a rank its version vector was logged; 0: none was."""
        return max(file.versions_every for file in self._files)

    @property
    def status(self) -> str:
        """``"complete"``; or ``"running"``, while the run goes on and for ever if it was killed."""
        return self.attributes["status"]

    @cached_property
    def config(self) -> Config:
        """Settings of the run; `ConfigError` where this version of the package cannot read them."""
        try:
            return load_config(tomllib.loads(self.attributes["config"]))
        except (ConfigError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"this version cannot read the settings of {self.directory}: {error}") from None

    @cached_property
    def settings(self) -> dict[str, dict]:
        """Settings by section as they stand in the file, of any version; empty where they cannot be read."""
        return sections(self.attributes["config"])

    @cached_property
    def counts(self) -> np.ndarray:
        """Gradients of each rank, shape (n_ranks,), int64."""
        return np.array([file.n_gradients for file in self._files], np.int64)

    @property
    def seconds(self) -> float:
        """How long the run trained; of one that did not end, up to its last gradient."""
        if "seconds" in self.attributes:
            return self.attributes["seconds"]
        gradients = self.gradients
        return float(gradients["t_end_s"].max() - gradients["t_start_s"].min()) if gradients.size else 0.0

    @cached_property
    def gradients(self) -> np.ndarray:
        """All gradients, rank after rank: structured, ``rank`` and `schema.GRADIENT_COLUMNS`."""
        rows = np.empty(self.counts.sum(), schema.record_dtype((schema.RANK, *schema.GRADIENT_COLUMNS)))
        rows["rank"] = np.repeat(np.arange(self.n_ranks), self.counts)
        parts = np.split(rows, np.cumsum(self.counts)[:-1])
        for source, part in zip(self._files, parts, strict=True):
            read_columns(source.path, "gradient", schema.GRADIENT_COLUMNS, part)
        # As if every clock had gone evenly from its offset at the start to that at the end.
        for drift_s, part in zip(self.attributes.get("clock_drift_s", []), parts, strict=False):
            for name in ("t_start_s", "t_end_s") if drift_s else ():
                part[name] *= 1 + drift_s / self.attributes["seconds"]
        return rows

    def rows(self, rank: int) -> slice:
        """Rows of `gradients` that are of `rank`."""
        end = int(self._ends[rank])
        return slice(end - int(self.counts[rank]), end)

    @cached_property
    def evaluation(self) -> np.ndarray:
        """Evaluations of rank 0's replica: structured, `schema.EVALUATION_COLUMNS`."""
        rows = np.empty(self._files[0].n_evaluations, schema.record_dtype(schema.EVALUATION_COLUMNS))
        read_columns(self._files[0].path, "evaluation", schema.EVALUATION_COLUMNS, rows)
        return rows

    @cached_property
    def pace(self) -> np.ndarray | None:
        """Changes of the distance between exchanges, rank after rank: structured, ``rank`` and `schema.PACE_COLUMNS`.

        None where ``exchange.every`` was a number.
        """
        return np.concatenate(changes) if (changes := list(self._pace_by_rank())) else None

    @cached_property
    def versions(self) -> list[np.ndarray] | None:
        """By rank its logged version vectors, (n, n_ranks) uint32; None where none were logged.

        Row ``r`` is of gradient ``r * versions_every`` of the rank.
        """
        if not self.versions_every:
            return None
        idle = np.zeros((0, self.n_ranks), schema.VERSIONS.dtype)
        return [rows[: rows.shape[0]] if rows.shape[0] else idle for rows in self._rows_on_demand()]

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

        Raises
        ------
        ConfigError
            If the run is not complete.
        """
        if self.final is None:
            raise ConfigError(f"{self.directory} has no final parameters: its status is {self.status!r}")
        shapes = self.parameter_shapes or {"parameters": [self.final.size]}
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        parts = np.split(self.final, ends[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

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
            If none were logged, or there is no gradient yet.
        """
        if not self.counts.any():
            raise ConfigError(f"{self.directory} holds no gradients yet")
        if not self.versions_every:
            raise ConfigError(
                f'{self.directory} holds no version vectors: its `log.versions` is "none"; '
                'staleness needs "full" or "every N"'
            )
        n_bytes = sum(source.n_vectors for source in self._files) * self.n_ranks * 4
        return self.versions if n_bytes <= _MEMORY_BYTES else self._rows_on_demand()

    @cached_property
    def _staleness(self) -> Staleness:
        versions = self.version_rows()
        return measure(self._by_rank("t_start_s"), self.order, versions, self.versions_every)

    def _pace_by_rank(self) -> Iterator[np.ndarray]:
        for rank, source in enumerate(self._files):
            if not source.path.exists():
                continue
            with open_file(source.path) as file:
                if "pace" not in file:
                    continue
                n_rows = min(len(file["pace"][column.name]) for column in schema.PACE_COLUMNS)
            rows = np.empty(n_rows, schema.record_dtype((schema.RANK, *schema.PACE_COLUMNS)))
            rows["rank"] = rank
            read_columns(source.path, "pace", schema.PACE_COLUMNS, rows)
            yield rows

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def _by_rank(self, name: str) -> list[np.ndarray]:
        return np.split(self.gradients[name], np.cumsum(self.counts)[:-1])

    def _rows_on_demand(self) -> list[VersionRows]:
        return [VersionRows(source, self.n_ranks) for source in self._files]


def open_run(path: str | os.PathLike) -> Run:
    """Open a run: complete, going on, or killed.

    Parameters
    ----------
    path : path
        The run directory, or its ``run.h5``.

    Raises
    ------
    ConfigError
        If there is no run, or it cannot be read.
    """
    path = Path(path)
    run_file = path / schema.RUN_FILE if path.is_dir() else path
    try:
        with open_file(run_file) as file:
            attributes = {name: np.asarray(value).tolist() for name, value in file.attrs.items()}
            shapes = file["x0"].attrs.get("parameter_shapes", "null")
            x0, final = file["x0"][:], file["final"][:] if "final" in file else None
            number, n_ranks, *_ = (attributes[name] for name in ("schema", "n_ranks", "status", "config"))
    except (OSError, KeyError) as error:
        rule = f"must be a run directory or its {schema.RUN_FILE}"
        raise ConfigError(f"{path} {rule}: {schema.reason(error)}") from None
    if number > schema.SCHEMA:
        raise ConfigError(f"{run_file} must have a schema of at most {schema.SCHEMA}, got {number}")
    directory, warnings = run_file.parent, _warnings_of(attributes)
    files = [look_at(directory / schema.rank_file(rank), warnings) for rank in range(n_ranks)]
    run = Run(directory, attributes, x0, final, json.loads(shapes), warnings, files)
    if run.versions_every > 1:
        warnings.append(f"staleness is of one gradient in {run.versions_every}: no other vectors were logged")
    return run


def sections(toml: str) -> dict[str, dict]:
    """Return the sections of settings given as TOML text; none where it cannot be read."""
    try:
        return {name: section for name, section in tomllib.loads(toml).items() if isinstance(section, dict)}
    except tomllib.TOMLDecodeError:
        return {}


def export(run: Run, path: str | os.PathLike) -> None:
    """Write the final parameters to exactly `path`, as a ``.npz`` archive with one array per name.

    Raises
    ------
    ConfigError
        If the run is not complete, or the file cannot be written.
    """
    parameters = run.parameters()
    try:
        # Not by `np.savez`, which appends to the file name and knows names that no parameter may have.
        with zipfile.ZipFile(path, "w") as archive:
            for name, values in parameters.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"cannot write parameters to {path}: {error.strerror or error}") from None


def staleness_text(run: Run) -> str:
    """Return the staleness of a run as a table for the terminal; raises as `Run.staleness`."""
    notes = [f"note: {warning}" for warning in run.warnings]
    return "\n".join([f"staleness of {run.directory}: {run.staleness().table()}", *notes])


def _warnings_of(attributes: dict) -> list[str]:
    """What the settings say about the log; nothing where this version cannot read them."""
    exchange = sections(attributes["config"]).get("exchange", {})
    warnings = []
    if attributes["status"] != "complete":
        warnings.append("the run is not complete: it is going on, or was killed")
    if exchange.get("kind") == "none":
        warnings.append("`exchange.kind` is none: staleness between independent models means nothing")
    if exchange.get("kind") == "read" and exchange.get("consistency") == "elementwise":
        warnings.append(
            "`exchange.consistency` is elementwise: staleness is exact only to within the two counts "
            "between which a contribution was read"
        )
    if exchange.get("kind") in ("accumulate", "server"):
        warnings.append(
            f"`exchange.kind` is {exchange['kind']}: a replica may hold more than its version vector says, "
            "so that staleness is never too low"
        )
    if exchange.get("kind") == "gossip":
        warnings.append("`exchange.kind` is gossip: a version vector counts updates of which a replica holds a share")
    return warnings
