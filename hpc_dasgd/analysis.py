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
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd import runlog
from hpc_dasgd.config import Config, load_config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.versions import Missed, between_models, causal_order, missed_gradients, replicas_at

_MEMORY_BYTES = 1 << 30  # of version vectors; where there are more, they are read piece by piece
_MOMENTS = 100  # at which models are compared with each other
_PAIR_OPERATIONS = 10**9  # all that may be spent on it; one moment costs n_ranks**3
_HISTOGRAM_BINS = 20
_BAR_WIDTH = 40
_TABLE_RANKS = 32


class _RankFile(NamedTuple):
    """A rank's file as it was when the run was opened."""

    path: Path
    n_gradients: int
    n_vectors: int
    n_evaluations: int


class _VersionRows:
    """The logged version vectors of a rank, (n_vectors, n_ranks) uint32, read from its file when sliced."""

    def __init__(self, source: _RankFile, n_ranks: int):
        self._source = source
        self.shape = (source.n_vectors, n_ranks)

    def __getitem__(self, rows) -> np.ndarray:
        with _open(self._source.path) as file:
            return file["gradient/versions"][rows]


@dataclass(frozen=True, eq=False)
class Staleness:
    """Staleness of a run (``theory.md``, "Definitions").

    Attributes
    ----------
    missed : Missed
        ``S_t`` of every gradient whose vector was logged, ``W_s`` of every gradient.
    counts : ndarray, shape (n_ranks,), int64
        Gradients of each rank.
    between_mean : float
        Staleness between two different models: mean over all pairs, at moments spread over the run,
        from the vectors last logged; too high where not every vector was logged.
    between_max : int
        The largest of these.
    """

    missed: Missed
    counts: np.ndarray
    between_mean: float
    between_max: int

    def histogram(self, n_bins: int = _HISTOGRAM_BINS) -> tuple[np.ndarray, np.ndarray]:
        """Count gradients by staleness in at most `n_bins` bins of equal, whole width.

        Returns
        -------
        edges : ndarray, shape (n + 1,), int64
            Bin ``b`` holds ``edges[b] <= S_t < edges[b + 1]``.
        counts : ndarray, shape (n,), int64
        """
        top = int(self.missed.staleness.max())
        width = -(-(top + 1) // n_bins)
        counts = np.bincount(self.missed.staleness // width)
        return np.arange(counts.size + 1) * width, counts

    def as_dict(self) -> dict:
        """Everything in numbers, lists and dicts that JSON can hold."""
        staleness = self.missed.staleness
        edges, counts = self.histogram()
        percents = (25, 50, 75, 90, 99)
        return {
            **_moments(staleness),
            "W_max": int(self.missed.reach.max()),
            "gradients": int(self.counts.sum()),
            "measured": int(staleness.size),
            "n_ranks": int(self.counts.size),
            "between_models": {"mean": self.between_mean, "max": self.between_max},
            "percentiles": dict(
                zip(map(str, percents), np.percentile(staleness, percents).tolist(), strict=True)
            ),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "per_rank": self._per_rank(),
        }

    def _per_rank(self) -> list[dict]:
        by_rank = self.missed.staleness[np.argsort(self.missed.rank, kind="stable")]
        ends = np.cumsum(np.bincount(self.missed.rank, minlength=self.counts.size))
        columns = (self.counts.tolist(), self.missed.per_source.tolist(), np.split(by_rank, ends[:-1]))
        return [
            {"rank": rank, "gradients": count, "missed_by_others": missed} | _moments(own)
            for rank, (count, missed, own) in enumerate(zip(*columns, strict=True))
        ]


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
    versions_every : int
        Every how many gradients of a rank its version vector was logged; 0: none was.
    warnings : list of str
        What is missing, cut or to be read with care.
    """

    directory: Path
    attributes: dict
    x0: np.ndarray
    final: np.ndarray | None
    parameter_shapes: dict | None
    versions_every: int
    warnings: list[str]
    _files: list[_RankFile] = field(repr=False)

    @property
    def n_ranks(self) -> int:
        """Ranks that the run was started with."""
        return self.attributes["n_ranks"]

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

    @property
    def counts(self) -> np.ndarray:
        """Gradients of each rank, shape (n_ranks,), int64."""
        return np.array([file.n_gradients for file in self._files], np.int64)

    @cached_property
    def gradients(self) -> np.ndarray:
        """All gradients, rank after rank: structured, ``rank`` and `runlog.GRADIENT_COLUMNS`."""
        rows = np.empty(self.counts.sum(), runlog.record_dtype((runlog.RANK, *runlog.GRADIENT_COLUMNS)))
        rows["rank"] = np.repeat(np.arange(self.n_ranks), self.counts)
        parts = np.split(rows, np.cumsum(self.counts)[:-1])
        for source, part in zip(self._files, parts, strict=True):
            if part.size:
                _read_columns(source.path, "gradient", runlog.GRADIENT_COLUMNS, part)
        return rows

    @cached_property
    def evaluation(self) -> np.ndarray:
        """Evaluations of rank 0's replica: structured, `runlog.EVALUATION_COLUMNS`."""
        rows = np.empty(self._files[0].n_evaluations, runlog.record_dtype(runlog.EVALUATION_COLUMNS))
        if rows.size:
            _read_columns(self._files[0].path, "evaluation", runlog.EVALUATION_COLUMNS, rows)
        return rows

    @cached_property
    def versions(self) -> list[np.ndarray] | None:
        """By rank its logged version vectors, (n, n_ranks) uint32; None where none were logged.

        Row ``r`` is of gradient ``r * versions_every`` of the rank.
        """
        if not self.versions_every:
            return None
        idle = np.zeros((0, self.n_ranks), runlog.VERSIONS.dtype)
        return [rows[: rows.shape[0]] if rows.shape[0] else idle for rows in self._version_rows()]

    def staleness(self) -> Staleness:
        """Compute the staleness from the logged version vectors, once.

        Raises
        ------
        ConfigError
            If none were logged, there is no gradient yet, or they contradict each other.
        """
        return self._staleness

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
    def _staleness(self) -> Staleness:
        if not self.counts.any():
            raise ConfigError(f"{self.directory} holds no gradients yet")
        if not self.versions_every:
            raise ConfigError(
                f'{self.directory} holds no version vectors: its `log.versions` is "none"; '
                'staleness needs "full" or "every N"'
            )
        ends = np.cumsum(self.counts)[:-1]
        starts, times = (np.split(self.gradients[name], ends) for name in ("t_start_s", "t_end_s"))
        n_bytes = sum(source.n_vectors for source in self._files) * self.n_ranks * 4
        versions = self.versions if n_bytes <= _MEMORY_BYTES else self._version_rows()
        try:
            order = causal_order(times, versions, self.versions_every)
        except ValueError as error:
            raise ConfigError(f"the log of {self.directory} is damaged: {error}") from None
        missed = missed_gradients(order, versions, self.versions_every)
        return Staleness(missed, self.counts, *_between(starts, versions, self.versions_every))

    def _version_rows(self) -> list[_VersionRows]:
        return [_VersionRows(source, self.n_ranks) for source in self._files]


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
    run_file = path / runlog.RUN_FILE if path.is_dir() else path
    try:
        with _open(run_file) as file:
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
            shapes = file["x0"].attrs.get("parameter_shapes")
            x0, final = file["x0"][:], file["final"][:] if "final" in file else None
            schema, n_ranks, *_ = (attributes[name] for name in ("schema", "n_ranks", "status", "config"))
    except (OSError, KeyError) as error:
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else str(error).strip("'\"")
        raise ConfigError(f"{path} must be a run directory or its {runlog.RUN_FILE}: {reason}") from None
    if schema > runlog.SCHEMA:
        raise ConfigError(f"{run_file} must have a schema of at most {runlog.SCHEMA}, got {schema}")
    every, warnings, files = 0, _warnings_of(attributes), []
    for rank_path in (run_file.parent / runlog.rank_file(rank) for rank in range(n_ranks)):
        try:
            with _open(rank_path) as file:
                every = int(file.attrs["versions_every"])
                files.append(_measure(rank_path, file, every, warnings))
        except (OSError, KeyError):
            warnings.append(
                f"{rank_path.name} is missing or unreadable: its rank counts as one without gradients"
            )
            files.append(_RankFile(rank_path, 0, 0, 0))
    if every > 1:
        warnings.append(
            f"staleness is that of every {every}th gradient of a rank: no other version vector was logged"
        )
    shapes = None if shapes is None else json.loads(shapes)
    return Run(run_file.parent, attributes, x0, final, shapes, every, warnings, files)


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
    result = run.staleness().as_dict()
    bins = result["histogram"]
    spans = [
        f"{first}" if last == first + 1 else f"{first}-{last - 1}" for first, last in pairwise(bins["edges"])
    ]
    lines = [
        f"staleness of {run.directory}: {result['gradients']} gradients on {result['n_ranks']} ranks",
        "  ".join(f"{name} {result[name]:.4g}" for name in ("S_avg", "S_rms", "S_max", "W_max")),
        "between models: mean {mean:.4g}, max {max}".format(**result["between_models"]),
        "percentiles: " + ", ".join(f"{name} % {value:.4g}" for name, value in result["percentiles"].items()),
        "",
        f"{'staleness':>13} {'gradients':>11}",
    ]
    for span, count in zip(spans, bins["counts"], strict=True):
        bar = "#" * math.ceil(_BAR_WIDTH * count / max(bins["counts"]))
        lines.append(f"{span:>13} {count:>11} {count / result['measured']:>7.1%} {bar}".rstrip())
    lines += ["", f"{'rank':>13} {'gradients':>11} {'S_avg':>9} {'S_rms':>9} {'S_max':>7}"]
    for row in result["per_rank"][:_TABLE_RANKS]:
        numbers = "{S_avg:>9.4g} {S_rms:>9.4g} {S_max:>7}".format(**row) if row["gradients"] else f"{'-':>9}"
        lines.append(f"{row['rank']:>13} {row['gradients']:>11} {numbers}")
    if run.n_ranks > _TABLE_RANKS:
        lines.append(f"{'...':>13} {run.n_ranks - _TABLE_RANKS} more ranks in the JSON form")
    return "\n".join(lines + [f"note: {warning}" for warning in run.warnings])


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path)
    except OSError:
        # Being written, or left open by a killed process.
        return h5py.File(path, swmr=True)


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _warnings_of(attributes: dict) -> list[str]:
    """What the settings say about the log; nothing where this version cannot read them."""
    try:
        exchange = tomllib.loads(attributes["config"]).get("exchange", {})
    except tomllib.TOMLDecodeError:
        exchange = {}
    warnings = []
    if attributes["status"] != "complete":
        warnings.append("the run is not complete: it is going on, or was killed")
    if exchange.get("kind") == "none":
        warnings.append(
            "`exchange.kind` is none: the models are independent, staleness between them means nothing"
        )
    if exchange.get("consistency") == "elementwise" and exchange.get("kind") == "read":
        warnings.append(
            "`exchange.consistency` is elementwise: staleness is exact only to within the two counts "
            "between which a contribution was read"
        )
    return warnings


def _measure(path: Path, file: h5py.File, every: int, warnings: list[str]) -> _RankFile:
    """See how many whole rows a rank's file holds; its data sets may have been caught growing."""
    lengths = {len(file["gradient"][column.name]) for column in runlog.GRADIENT_COLUMNS}
    n_gradients, n_vectors = min(lengths), 0
    if every:
        n_vectors = len(file["gradient/versions"])
        n_gradients = min(n_gradients, n_vectors * every)
        n_vectors = -(-n_gradients // every)
    if n_gradients < max(lengths):
        warnings.append(f"{path.name} is cut to {n_gradients} gradients: some of its data sets hold no more")
    n_evaluations = min(len(file["evaluation"][column.name]) for column in runlog.EVALUATION_COLUMNS)
    return _RankFile(path, n_gradients, n_vectors, n_evaluations)


def _read_columns(path: Path, group: str, columns: tuple[runlog.Column, ...], out: np.ndarray) -> None:
    with _open(path) as file:
        for column in columns:
            out[column.name] = file[group][column.name][: out.size]


def _moments(staleness: np.ndarray) -> dict:
    if not staleness.size:
        return dict.fromkeys(("S_avg", "S_rms", "S_max"))
    squares = np.square(staleness, dtype=np.float64)
    return {
        "S_avg": float(staleness.mean()),
        "S_rms": math.sqrt(squares.mean()),
        "S_max": int(staleness.max()),
    }


def _between(starts: list[np.ndarray], versions: list, every: int) -> tuple[float, int]:
    """Mean and maximum staleness between two different models, at moments spread evenly over the run."""
    n_ranks = len(starts)
    if n_ranks == 1:
        return 0.0, 0
    n_moments = max(1, min(_MOMENTS, _PAIR_OPERATIONS // n_ranks**3))
    first, last = min(s[0] for s in starts if s.size), max(s[-1] for s in starts if s.size)
    moments = np.linspace(first, last, n_moments + 2)[1:-1]
    pairs = np.array([between_models(replicas) for replicas in replicas_at(moments, starts, versions, every)])
    return float(pairs.sum() / (n_moments * n_ranks * (n_ranks - 1))), int(pairs.max())
