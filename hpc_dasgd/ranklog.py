"""What a rank writes while it runs: ``rank_00000.h5``, a row per gradient and a row per evaluation.

    with RankLog(directory, rank, n_ranks, versions_every) as log:
        log.append(...)

Nothing here is collective, and no file ever has two writers. The files are written in HDF5's
single-writer-multiple-reader mode: others may read them while they grow, with ``swmr=True``, and what a
killed process leaves behind opens in the same way.
"""

import math
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd import schema

FLUSH_EVERY_S = 2.0  # what a killed run may lose, apart from a partly filled batch
_BATCH_ROWS = 4096
_MIN_BATCH_ROWS = 64
_BATCH_BYTES = 1 << 22  # of version vectors
_CHUNK_BYTES = 1 << 18  # of version vectors; small, since a flush writes a partly filled chunk anew
_EVALUATION_CHUNK_ROWS = 256


class RankLog:
    """One rank's file. A context manager.

    The constructor makes the file, so that what is wrong with the place shows before the first step;
    leaving the context writes what is buffered and closes it, after an exception too. `append` only
    fills a buffer, which goes to the file when it is full or `FLUSH_EVERY_S` old. A full disk shows as
    the `OSError` of h5py, from `append`, `append_evaluation` or the end of the context.

    Parameters
    ----------
    directory : Path
        The run directory, which holds no file of this rank yet.
    rank, n_ranks : int
        Whose log this is, of how many.
    versions_every : int, at least 0
        Every how many gradients the version vector is kept: row ``r`` of ``/gradient/versions`` is of
        gradient ``r * versions_every``. With 0 there is no such data set.
    paced : bool
        Whether there is a group ``pace``, for `append_pace`.

    Raises
    ------
    ConfigError
        If the file cannot be made.
    """

    def __init__(self, directory: Path, rank: int, n_ranks: int, versions_every: int, paced: bool = False):
        self._every = versions_every
        vector_bytes = n_ranks * np.dtype(schema.VERSIONS.dtype).itemsize
        capacity = max(_MIN_BATCH_ROWS, min(_BATCH_ROWS, _BATCH_BYTES // vector_bytes))
        self._rows = np.empty(capacity, schema.record_dtype(schema.GRADIENT_COLUMNS))
        self._vectors = np.empty((capacity, n_ranks), schema.VERSIONS.dtype)
        self._changes = []
        self._n_rows = self._n_vectors = self._n_appended = 0
        self._flush_due_s = FLUSH_EVERY_S
        path = directory / schema.rank_file(rank)
        with schema.making("log file", path):
            self._file = h5py.File(path, "x", libver=schema.FORMAT)
            self._file.attrs.update(schema=schema.SCHEMA, rank=rank, n_ranks=n_ranks, versions_every=versions_every)
            self._gradient = self._file.create_group("gradient")
            self._evaluation = self._file.create_group("evaluation")
            for column in schema.GRADIENT_COLUMNS:
                _create_growing(self._gradient, column, (_BATCH_ROWS,))
            for column in schema.EVALUATION_COLUMNS:
                _create_growing(self._evaluation, column, (_EVALUATION_CHUNK_ROWS,))
            if paced:
                self._pace = self._file.create_group("pace")
                for column in schema.PACE_COLUMNS:
                    _create_growing(self._pace, column, (_EVALUATION_CHUNK_ROWS,))
            if self._every:
                chunk_rows = max(1, min(_BATCH_ROWS, _CHUNK_BYTES // vector_bytes))
                _create_growing(self._gradient, schema.VERSIONS, (chunk_rows, n_ranks))
                schema.create(self._gradient, schema.SOURCE_RANK, data=np.arange(n_ranks))
            if self._every > 1:
                _create_growing(self._gradient, schema.VERSIONS_ROW, (_BATCH_ROWS,))
            schema.attach_scales(self._file)
            self._file.swmr_mode = True  # from here on nothing but rows can be added

    def append(self, t_start_s, t_end_s, loss, gradient_norm, version, versions, stepsize=math.nan) -> None:
        """Log one gradient. Costs 1 to 2 us, of which half is the writing of full buffers.

        Parameters
        ----------
        t_start_s, t_end_s, loss, gradient_norm : float
        version : int
            As described in `schema.GRADIENT_COLUMNS`.
        versions : ndarray, shape (n_ranks,), integer
            Version vector of the replica the gradient was taken at; copied.
        stepsize : float, optional
            As described in `schema.GRADIENT_COLUMNS`.
        """
        self._rows[self._n_rows] = t_start_s, t_end_s, loss, gradient_norm, version, stepsize
        self._n_rows += 1
        if self._every and self._n_appended % self._every == 0:
            self._vectors[self._n_vectors] = versions
            self._n_vectors += 1
        self._n_appended += 1
        if t_end_s >= self._flush_due_s or self._n_rows == len(self._rows):
            self._flush()
            self._flush_due_s = t_end_s + FLUSH_EVERY_S

    def append_evaluation(
        self, t_s: float, gradients: int, loss: float, accuracy: float, consensus_distance: float = math.nan
    ) -> None:
        """Log one evaluation, and hand it to the file at once; see `schema.EVALUATION_COLUMNS`."""
        for column, value in zip(
            schema.EVALUATION_COLUMNS, (t_s, gradients, loss, accuracy, consensus_distance), strict=True
        ):
            _extend(self._evaluation[column.name], [value])
        self._flush()

    def append_pace(self, t_s: float, version: int, every: int, overhead: float) -> None:
        """Log that exchanges are `every` steps apart from now on; see `schema.PACE_COLUMNS`."""
        self._changes.append((t_s, version, every, overhead))

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        try:
            self._flush()
        finally:
            self._file.close()

    def _flush(self) -> None:
        rows, vectors = self._rows[: self._n_rows], self._vectors[: self._n_vectors]
        changes = np.array(self._changes, schema.record_dtype(schema.PACE_COLUMNS))
        # Emptied first: what a full disk refused must not be tried again, out of step with the rest.
        self._n_rows = self._n_vectors = 0
        self._changes = []
        if len(vectors):
            _extend(self._gradient[schema.VERSIONS.name], vectors)
            if self._every > 1:
                data_set = self._gradient[schema.VERSIONS_ROW.name]
                _extend(data_set, np.arange(len(data_set), len(data_set) + len(vectors)) * self._every)
        if len(rows):
            for column in schema.GRADIENT_COLUMNS:
                _extend(self._gradient[column.name], rows[column.name])
        if len(changes):
            for column in schema.PACE_COLUMNS:
                _extend(self._pace[column.name], changes[column.name])
        self._file.flush()


def _create_growing(group: h5py.Group, column: schema.Column, chunks: tuple[int, ...]) -> None:
    schema.create(group, column, shape=(0, *chunks[1:]), maxshape=(None, *chunks[1:]), chunks=chunks)


def _extend(data_set: h5py.Dataset, rows) -> None:
    n_before = len(data_set)
    data_set.resize(n_before + len(rows), axis=0)
    data_set[n_before:] = rows
