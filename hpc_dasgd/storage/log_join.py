"""Joining the logs of all ranks into virtual data sets of ``run.h5``, when `run_file` completes a run.

Rows are ordered by rank, then by version; files are referred to by paths relative to the run directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation
from hpc_dasgd.storage.log_index import Stream
from hpc_dasgd.storage.log_reader import count_events


class _Source(NamedTuple):
    """Consecutive rows of a data set of a rank's file; `n_columns` if it is two-dimensional."""

    path: Path
    rows: slice
    n_columns: int | None = None

    @property
    def n_rows(self) -> int:
        return int(self.rows.stop - self.rows.start)


def join_logs(
    file: h5py.File, run_directory: Path, generations: Sequence[Generation], streams: Sequence[Stream]
) -> None:
    """Create the groups ``gradient``, with the rows of all ranks, and ``evaluation``, with those of rank 0.

    Parameters
    ----------
    file : h5py.File
        The ``run.h5`` in the run directory, open for writing, without these groups.
    run_directory : Path
    generations : sequence of Generation
    streams : sequence of Stream
        Of closed files only: HDF5 cannot read a file that is open for writing through a virtual data set.
    """
    every = max(stream.versions_every for stream in streams)
    gradient, evaluation = file.create_group("gradient"), file.create_group("evaluation")
    spans = [(rank, span, segment) for rank, stream in enumerate(streams) for span, segment in stream.logged_spans()]
    sources = [_Source(segment.path.relative_to(run_directory), span.rows(segment)) for _, span, segment in spans]
    for column in layout.GRADIENT_COLUMNS:
        _join(gradient, column, sources)
    n_evaluations = count_events(streams[0], generations, "evaluation")
    evaluations = [
        _Source(segment.path.relative_to(run_directory), slice(0, n_rows))
        for (_, segment), n_rows in zip(streams[0].segments, n_evaluations, strict=True)
    ]
    for column in layout.EVALUATION_COLUMNS:
        _join(evaluation, column, evaluations)
    n_rows = [span.n_gradients for _, span, _ in spans]
    for column, values in (
        (layout.RANK, [rank for rank, _, _ in spans]),
        (layout.GENERATION, [generations[span.generation].number for _, span, _ in spans]),
    ):
        repeated = np.repeat(np.array(values, column.dtype), n_rows)
        layout.create_data_set(gradient, column, data=repeated, compression="gzip" if repeated.size else None)
    if every:
        layout.create_data_set(gradient, layout.SOURCE_RANK, data=np.arange(len(streams)))
        vectors = [
            _Source(source.path, segment.vector_rows(span.first, span.end), segment.n_columns)
            for (_, span, segment), source in zip(spans, sources, strict=True)
        ]
        _join(gradient, layout.VERSIONS, vectors, len(streams))
    if every > 1:
        versions = [np.arange(span.first, span.end) for _, span, _ in spans]
        logged = np.flatnonzero(np.concatenate([np.empty(0, int), *versions]) % every == 0)
        layout.create_data_set(gradient, layout.VERSIONS_ROW, data=logged)
    layout.attach_dimension_scales(file)


def _join(group: h5py.Group, column: layout.Column, sources: Sequence[_Source], n_columns: int | None = None) -> None:
    """Create a virtual data set of the rows of data sets with the same path in other files, in order."""
    path = f"{group.name}/{column.name}"
    n_rows = sum(source.n_rows for source in sources)
    joined = h5py.VirtualLayout((n_rows,) if n_columns is None else (n_rows, n_columns), column.dtype)
    begin = 0
    for source in sources:
        end = begin + source.n_rows
        if end > begin:
            shape = (source.rows.stop,) if source.n_columns is None else (source.rows.stop, source.n_columns)
            virtual = h5py.VirtualSource(source.path.as_posix(), path, shape, column.dtype)[source.rows]
            if n_columns is None:
                joined[begin:end] = virtual
            else:
                joined[begin:end, : source.n_columns] = virtual
        begin = end
    missing = np.nan if column.dtype == "f8" else 0
    layout.describe_data_set(group.create_virtual_dataset(column.name, joined, fillvalue=missing), column)
