"""Reading the files of ranks, while they grow too.

A *stream* is what the ranks of one number did in all generations. Its gradients have consecutive versions; where they
stand is told by spans.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.h5clear import open_growing
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS

_BLOCK_ENTRIES = 1 << 21
_PART = re.compile(r"rank_\d{5,}(_\d+)?\.h5")


class Part(NamedTuple):
    """A file of a rank as it was when the run was opened.

    Attributes
    ----------
    path : Path
    first : int
        Version of its first gradient.
    versions_every, n_gradients, n_evaluations, n_changes : int
        Whole rows.
    n_columns : int
        Length of its version vectors.
    """

    path: Path
    first: int = 0
    versions_every: int = 0
    n_gradients: int = 0
    n_evaluations: int = 0
    n_changes: int | None = None  # None: not paced
    n_columns: int = 0


class Span(NamedTuple):
    """Consecutive gradients of a stream, ``first <= version < end``, all in one file; `part` is None where in none."""

    first: int
    end: int
    part: Part | None
    generation: int  # its place in the chain

    @property
    def rows(self) -> slice:
        """Where they stand in the file."""
        return slice(self.first - self.part.first, self.end - self.part.first)

    def vector_rows(self, begin: int, end: int) -> slice:
        """Where the vectors stand that are logged of versions in ``[begin, end)``."""
        every = self.part.versions_every
        before = -(-self.part.first // every)
        return slice(-(-begin // every) - before, -(-end // every) - before)


class Stream(NamedTuple):
    """All that a run's files hold of one stream.

    Attributes
    ----------
    spans : list of Span
        In the order of versions, without gaps: from 0 to `n_gradients`.
    parts : list of (int, Part)
        The files, each behind its generation's place in the chain.
    """

    spans: list[Span]
    parts: list[tuple[int, Part]]

    @property
    def n_gradients(self) -> int:
        return self.spans[-1].end if self.spans else 0

    @property
    def n_lost(self) -> int:
        """Gradients that counted and are in no file."""
        return sum(span.end - span.first for span in self.spans if span.part is None)

    @property
    def versions_every(self) -> int:
        return max((part.versions_every for _, part in self.parts), default=0)


class VersionRows:
    """The logged version vectors of a stream, (n_vectors, n_streams) uint32, read from its files when sliced.

    Entries are limited to what counts of a stream, generation by generation: what a generation made beyond the
    checkpoints that its child began with is lost work, also in the vectors of others.

    Parameters
    ----------
    stream : Stream
        Without lost gradients.
    limits : sequence of ndarray or None, shape (n_streams,)
        By generation its child's ``versions_before``; None: it has no child.
    n_streams, every : int
    """

    def __init__(self, stream: Stream, limits: Sequence[np.ndarray | None], n_streams: int, every: int):
        self._stream, self._limits, self._every = stream, limits, every
        self.shape = (-(-stream.n_gradients // every), n_streams)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if not isinstance(rows, slice):
            row = range(self.shape[0])[rows]
            return self[row : row + 1][0]
        begin, end, step = rows.indices(self.shape[0])
        out = np.zeros((max(0, end - begin), self.shape[1]), layout.VERSIONS.dtype)
        for first, found, limit in self._logged(begin, end):
            if limit is not None:
                np.minimum(found, limit, out=found, casting="unsafe")
            out[first - begin : first - begin + len(found), : found.shape[1]] = found
        return out[::step]

    def n_limited(self) -> int:
        """How many vectors are limited."""
        n_rows = max(1, _BLOCK_ENTRIES // self.shape[1])
        blocks = (self._logged(begin, begin + n_rows) for begin in range(0, self.shape[0], n_rows))
        return sum(
            int((found > limit).any(axis=1).sum()) for block in blocks for _, found, limit in block if limit is not None
        )

    def _logged(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield, span after span, the first row, the rows as they were logged, and their limit."""
        for span in self._stream.spans:
            first, last = max(begin, -(-span.first // self._every)), min(end, -(-span.end // self._every))
            if first < last:
                with reading(span.part.path) as file:
                    found = file["gradient/versions"][span.vector_rows(first * self._every, last * self._every)]
                limit = self._limits[span.generation]
                yield first, found, None if limit is None else limit[: found.shape[1]]


def open_file(path: Path) -> h5py.File:
    """Open a file of a run for reading, whether it is whole, growing, or left by a killed process."""
    try:
        return h5py.File(path)
    except OSError:
        return open_growing(path)


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """A file of a run, open for reading; `ConfigError` where it cannot be read within the context."""
    try:
        with open_file(path) as file:
            yield file
    except HDF5_ERRORS as error:
        raise ConfigError(f"{path} cannot be read: {layout.reason(error)}") from None


def rank_paths(directory: Path, n_ranks: int) -> list[list[Path]]:
    """By rank the files of a generation, part after part; the first of each whether it is there or not."""
    paths = [[directory / layout.rank_file(rank)] for rank in range(n_ranks)]
    names = [path.name for path in directory.glob(layout.RANK_FILES) if _PART.fullmatch(path.name)]
    for rank, part in sorted(map(layout.rank_and_part, names)):
        if part and rank < n_ranks:
            paths[rank].append(directory / layout.rank_file(rank, part))
    return paths


def read_streams(generations: Sequence, warnings: list[str], opener=open_file) -> list[Stream]:
    """See what is in the files of a chain of generations, see `generations.chain`, by stream.

    Parameters
    ----------
    generations : sequence of Generation
    warnings : list of str
        What is missing is added.
    opener : callable, optional
        From path to file; what it raises makes a file one that is left out.
    """
    n_streams = generations[-1].versions_before.size
    parts = [[] for _ in range(n_streams)]
    for place, generation in enumerate(generations):
        for rank, paths in enumerate(rank_paths(generation.directory, generation.n_ranks)):
            begun = int(generation.versions_before[rank])
            looks = [_look_at(path, begun, warnings, generation.directory, len(paths) > 1, opener) for path in paths]
            parts[rank] += [(place, part) for part in looks if part is not None]
    streams = [Stream(_spans(rank, generations, parts[rank]), parts[rank]) for rank in range(n_streams)]
    for rank, stream in enumerate(streams):
        if stream.n_lost:
            warnings.append(f"{stream.n_lost} gradients of rank {rank} are missing from its log")
    return streams


def read_gradients(stream: Stream, rank: int, generations: Sequence, out: np.ndarray) -> None:
    """Fill `out`, structured by `schema.GRADIENT_COLUMNS`; nan where a file lacks a column.

    Times are as if every rank's clock had gone evenly from its offset at the start of a generation to that at its
    end. A gradient that is lost takes no time, where the one before it ended.
    """
    ended_s = 0.0
    for span in stream.spans:
        rows, begun_s = out[span.first : span.end], generations[span.generation].begun_s
        if span.part is None:
            for column in layout.GRADIENT_COLUMNS:
                rows[column.name] = np.arange(span.first, span.end) if column.name == "version" else math.nan
            rows["t_start_s"] = rows["t_end_s"] = max(ended_s, begun_s)
        else:
            read_columns(span.part.path, "gradient", layout.GRADIENT_COLUMNS, rows, span.rows.start)
            rate = _clock_rate(generations, span.generation, rank)
            for name in ("t_start_s", "t_end_s") if rate != 1 else ():
                rows[name] = begun_s + (rows[name] - begun_s) * rate
        ended_s = float(rows["t_end_s"][-1])


def read_events(stream: Stream, generations: Sequence, group: str, columns: tuple[layout.Column, ...]) -> np.ndarray:
    """The rows of ``evaluation`` or ``pace`` that count, structured by `columns`."""
    n_rows = n_counting(stream, generations, group)
    out = np.empty(sum(n_rows), layout.record_dtype(columns))
    begin = 0
    for (_, part), n in zip(stream.parts, n_rows, strict=True):
        read_columns(part.path, group, columns, out[begin : begin + n])
        begin += n
    return out


def n_counting(stream: Stream, generations: Sequence, group: str) -> list[int]:
    """How many rows of ``evaluation`` or ``pace`` count, by part: those of before its generation's child began."""
    counting = []
    for place, part in stream.parts:
        times = np.empty(part.n_evaluations if group == "evaluation" else part.n_changes or 0, [("t_s", "f8")])
        read_columns(part.path, group, layout.EVALUATION_COLUMNS[:1], times)
        counting.append(int(np.searchsorted(times["t_s"], _end_s(generations, place), "right")))
    return counting


def read_columns(
    path: Path, group: str, columns: tuple[layout.Column, ...], out: np.ndarray, first_row: int = 0
) -> None:
    """Fill `out`, structured, with consecutive rows of a group; nan where the file lacks a column."""
    if out.size:
        with reading(path) as file:
            for column in columns:
                known = column.name in file[group]
                out[column.name] = file[group][column.name][first_row : first_row + out.size] if known else math.nan


def _look_at(path: Path, begun: int, warnings: list[str], directory: Path, has_parts: bool, opener) -> Part | None:
    """See how many whole rows a rank's file holds; its data sets may have been caught growing."""
    name = path.relative_to(directory.parent if directory.match(layout.GENERATIONS) else directory)
    try:
        with opener(path) as file:
            gradient, every = file["gradient"], int(file.attrs["versions_every"])
            first = int(file.attrs.get("first_version", begun))
            n_longest, n_gradients = _lengths(file, "gradient", layout.GRADIENT_COLUMNS)
            if every:
                n_columns = gradient[layout.VERSIONS.name].shape[1]
                # Vectors are of the versions that are multiples of `every`.
                end = (-(-first // every) + len(gradient[layout.VERSIONS.name])) * every
                n_gradients = min(n_gradients, end - first)
            for group in {"evaluation", "pace"} & set(file):  # they are few, and the end of a run needs them
                _ = file[f"{group}/t_s"][:]
            part = Part(
                path,
                first,
                every,
                n_gradients,
                _lengths(file, "evaluation", layout.EVALUATION_COLUMNS)[1],
                _lengths(file, "pace", layout.PACE_COLUMNS)[1] if "pace" in file else None,
                n_columns if every else 0,
            )
    except HDF5_ERRORS:
        if has_parts:
            warnings.append(f"{name} is missing or unreadable; the log goes on in another part")
        else:
            warnings.append(f"{name} is missing or unreadable: its rank counts as one without gradients")
        return None
    if n_gradients < n_longest and not has_parts:
        warnings.append(f"{name} is cut to {n_gradients} gradients: some of its data sets hold no more")
    return part


def _end_s(generations: Sequence, place: int) -> float:
    """Until when what a generation logged counts."""
    return generations[place + 1].begun_s if place + 1 < len(generations) else math.inf


def _clock_rate(generations: Sequence, place: int, rank: int) -> float:
    """Factor that makes a rank's seconds those of rank 0, in a generation."""
    generation = generations[place]
    drifts_s = generation.attributes.get("clock_drift_s", [])
    if rank >= len(drifts_s) or not drifts_s[rank]:
        return 1.0
    span_s = min(generation.attributes["seconds"], _end_s(generations, place)) - generation.begun_s
    return 1 + drifts_s[rank] / span_s if span_s > 0 else 1.0


def _lengths(file: h5py.File, group: str, columns: tuple[layout.Column, ...]) -> tuple[int, int]:
    """Rows that a group holds, and that are whole; runs of earlier versions may lack a column."""
    lengths = [len(file[group][column.name]) for column in columns if column.name in file[group]]
    whole = int(file[f"{layout.WHOLE}/{group}"][()]) if f"{layout.WHOLE}/{group}" in file else -1
    return max(lengths), min(lengths) if whole < 0 else min(*lengths, whole)


def _spans(rank: int, generations: Sequence, parts: list[tuple[int, Part]]) -> list[Span]:
    """Where the gradients of a stream stand that count."""
    spans, done = [], 0
    for place, child in enumerate([*generations[1:], None]):
        limit = (
            math.inf if child is None else int(child.versions_before[rank : rank + 1].sum())
        )  # 0: no such stream yet
        own = [part for of, part in parts if of == place]
        for part, following in pairwise([*own, None]):
            end = min(limit, part.first + part.n_gradients, math.inf if following is None else following.first)
            for first, until, source in ((done, min(part.first, end), None), (max(done, part.first), end, part)):
                if first < until:
                    spans.append(Span(first, until, source, place))
                    done = until
        if done < limit < math.inf:
            spans.append(Span(done, limit, None, place))
            done = limit
    return spans
