"""Reading the rows of all ranks' logs that `log_index` lists: gradients, events and version vectors.

Files may still grow; only the rows that were there when the index was made are read.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.types import AnyArray, Int64s, UInt32s
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation
from hpc_dasgd.storage.hdf5_io import readable_file
from hpc_dasgd.storage.log_index import SegmentIndex, Stream

_BLOCK_ENTRIES = 1 << 21


class VersionRows:
    """Logged version vectors of a stream, read from its files when indexed.

    ``rows[i]`` is the vector of the gradient with version ``i * every``, shape (n_streams,), uint32; ``rows[a:b]`` has
    shape (b - a, n_streams). Raises `ConfigError` if a file cannot be read.

    Each entry is limited to the number of updates of its stream that count: updates after the checkpoints from which
    the next generation resumed are lost work, and are not counted in other streams' vectors.

    Parameters
    ----------
    stream : Stream
        Without lost gradients.
    limits : sequence of (ndarray or None), shape (n_streams,)
        For each generation, ``versions_before`` of the next generation; None for the last.
    n_streams, every : int
        Number of streams, and number of versions per logged vector.

    Attributes
    ----------
    shape : tuple of int
        Number of vectors, and `n_streams`.
    """

    def __init__(self, stream: Stream, limits: Sequence[Int64s | None], n_streams: int, every: int):
        self._stream, self._limits, self._every = stream, limits, every
        self.shape = (ceil_div(stream.n_gradients, every), n_streams)

    def __getitem__(self, rows: int | slice) -> UInt32s:
        if not isinstance(rows, slice):
            row = range(self.shape[0])[rows]
            return self[row : row + 1][0]
        begin, end, step = rows.indices(self.shape[0])
        out = np.zeros((max(0, end - begin), self.shape[1]), np.uint32)
        for first, vectors, limit in self._logged(begin, end):
            if limit is not None:
                np.minimum(vectors, limit, out=vectors, casting="unsafe")
            out[first - begin : first - begin + len(vectors), : vectors.shape[1]] = vectors
        return out[::step]

    def n_limited(self) -> int:
        """Return the number of vectors with an entry above its limit."""
        n_rows = max(1, _BLOCK_ENTRIES // self.shape[1])
        blocks = (self._logged(begin, begin + n_rows) for begin in range(0, self.shape[0], n_rows))
        return sum(
            int((vectors > limit).any(axis=1).sum())
            for block in blocks
            for _, vectors, limit in block
            if limit is not None
        )

    def _logged(self, begin: int, end: int) -> Iterator[tuple[int, UInt32s, Int64s | None]]:
        """Yield for each span the first row, the vectors as they were logged, and their limit."""
        for span, segment in self._stream.logged_spans():
            first, last = max(begin, ceil_div(span.first, self._every)), min(end, ceil_div(span.end, self._every))
            if first < last:
                with readable_file(segment.path) as file:
                    vectors = file["gradient/versions"][segment.vector_rows(first * self._every, last * self._every)]
                limit = self._limits[span.generation]
                yield first, vectors, None if limit is None else limit[: vectors.shape[1]]


def read_gradients(stream: Stream, rank: int, generations: Sequence[Generation], out: AnyArray) -> None:
    """Read all gradients of a stream.

    Times are corrected for the drift of the rank's clock, which is taken to be linear from the start to the end of each
    generation. A lost gradient has its version, nan in other columns, and the end of the gradient before it as its
    start and end.

    Parameters
    ----------
    stream : Stream
    rank : int
        Number of the stream.
    generations : sequence of Generation
    out : ndarray, shape (n_gradients,), structured with the columns `layout.GRADIENT_COLUMNS`
        Overwritten; nan if a file lacks a column.
    """
    ended_s = 0.0
    for span in stream.spans:
        rows, begun_s = out[span.first : span.end], generations[span.generation].begun_s
        if span.segment is None:
            for column in layout.GRADIENT_COLUMNS:
                rows[column.name] = np.arange(span.first, span.end) if column.name == "version" else math.nan
            rows["t_start_s"] = rows["t_end_s"] = max(ended_s, begun_s)
        else:
            first_row = span.rows(span.segment).start
            _read_columns(span.segment, "gradient", layout.GRADIENT_COLUMNS, rows, first_row)
            rate = _clock_rate(generations, span.generation, rank)
            for name in ("t_start_s", "t_end_s") if rate != 1 else ():
                rows[name] = begun_s + (rows[name] - begun_s) * rate
        ended_s = float(rows["t_end_s"][-1])


def read_events(
    stream: Stream, generations: Sequence[Generation], group: str, columns: tuple[layout.Column, ...]
) -> AnyArray:
    """Read the rows of a group other than ``gradient`` that count.

    Parameters
    ----------
    stream : Stream
    generations : sequence of Generation
    group : {"evaluation", "pace"}
    columns : tuple of Column

    Returns
    -------
    rows : ndarray, shape (n_rows,), structured with `columns`
    """
    n_rows = count_events(stream, generations, group)
    out = np.empty(sum(n_rows), layout.record_dtype(columns))
    begin = 0
    for (_, segment), n in zip(stream.segments, n_rows, strict=True):
        _read_columns(segment, group, columns, out[begin : begin + n])
        begin += n
    return out


def count_events(stream: Stream, generations: Sequence[Generation], group: str) -> list[int]:
    """Count for each segment the rows of ``evaluation`` or ``pace`` before the start of the next generation."""
    counts = []
    for generation, segment in stream.segments:
        n_rows = segment.n_evaluations if group == "evaluation" else segment.n_intervals or 0
        times = np.empty(n_rows, [("t_s", "f8")])
        _read_columns(segment, group, layout.EVALUATION_COLUMNS[:1], times)
        counts.append(int(np.searchsorted(times["t_s"], _end_s(generations, generation), "right")))
    return counts


def _read_columns(
    segment: SegmentIndex, group: str, columns: tuple[layout.Column, ...], out: AnyArray, first_row: int = 0
) -> None:
    """Fill `out`, structured, with consecutive rows of a group; nan if the file lacks a column."""
    if out.size:
        with readable_file(segment.path) as file:
            for column in columns:
                if column.name in file[group]:
                    out[column.name] = file[group][column.name][first_row : first_row + out.size]
                else:
                    out[column.name] = math.nan


def _end_s(generations: Sequence[Generation], number: int) -> float:
    """Return the time up to which rows of a generation count: the start of the next one."""
    return generations[number + 1].begun_s if number + 1 < len(generations) else math.inf


def _clock_rate(generations: Sequence[Generation], number: int, rank: int) -> float:
    """Return seconds of rank 0's clock per second of a rank's clock in a generation."""
    generation = generations[number]
    drifts_s = generation.attributes.get("clock_drift_s", [])
    if rank >= len(drifts_s) or not drifts_s[rank]:
        return 1.0
    span_s = min(generation.attributes["seconds"], _end_s(generations, number)) - generation.begun_s
    return float(1 + drifts_s[rank] / span_s) if span_s > 0 else 1.0
