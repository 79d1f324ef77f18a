"""One segment of a rank's log: a file to which rows are appended.

Written in HDF5's single-writer/multiple-reader (SWMR) mode: other processes may read the file while it grows, with
``swmr=True``, and a file left behind by a killed process can be opened in the same way. `log_writer` decides when a
log needs another segment.
"""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.types import AnyArray, UInt32s
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.h5clear import mark_closed
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, discard_handle, error_reason, probe_writable

CHUNK_ROWS = 4096
_CHUNK_BYTES = 1 << 18  # of version vectors; small, since each flush rewrites a partly filled chunk
_EVENT_CHUNK_ROWS = 256


@dataclass(frozen=True)
class LogSettings:
    """Which rank a log belongs to, and what it contains.

    Attributes
    ----------
    rank, n_ranks : int
        Rank that writes the log, and number of ranks, in this generation.
    versions_every : int, at least 0
        Version vectors are logged for gradients whose version is a multiple of this; if 0, none is logged, and the
        file has no data set ``versions``.
    logs_intervals : bool
        Whether the file has a group ``pace`` with changes of the exchange interval.
    """

    rank: int
    n_ranks: int
    versions_every: int
    logs_intervals: bool = False


class LogRows(NamedTuple):
    """Consecutive rows of all groups of a log; versions count over all generations.

    Attributes
    ----------
    first_version : int
        Version of the first gradient.
    gradients, evaluations, intervals : ndarray, structured
        Columns as in `layout.GRADIENT_COLUMNS`, `layout.EVALUATION_COLUMNS`, `layout.INTERVAL_COLUMNS`.
    vectors : ndarray, shape (n, n_streams), uint32
        Version vectors of those gradients whose version is a multiple of ``versions_every``.
    """

    first_version: int
    gradients: AnyArray
    vectors: UInt32s
    evaluations: AnyArray
    intervals: AnyArray

    @property
    def n_bytes(self) -> int:
        """Memory of all arrays in bytes."""
        return self.gradients.nbytes + self.vectors.nbytes + self.evaluations.nbytes + self.intervals.nbytes

    def copy(self) -> "LogRows":
        """Return rows with copies of all arrays."""
        arrays = (self.gradients, self.vectors, self.evaluations, self.intervals)
        return LogRows(self.first_version, *(array.copy() for array in arrays))


class LogSegment:
    """A file with rows of a rank's log, created by the constructor. Not collective.

    After a failed write, call `abandon` instead of `close`.

    Parameters
    ----------
    path : Path
        File to create; its directory must exist.
    settings : LogSettings
    first_version : int
        Version of the first gradient that will be written.
    n_streams : int
        Length of the version vectors.

    Attributes
    ----------
    path : Path
        The file.
    next_version : int
        Version of the first gradient that is not in the file.

    Raises
    ------
    OSError
        If the file exists or cannot be created.
    """

    def __init__(self, path: Path, settings: LogSettings, first_version: int, n_streams: int):
        self.path, self.next_version = path, first_version
        self._first_version, self._every = first_version, settings.versions_every
        probe_writable(path)
        self._file: h5py.File = None
        self._growing: dict[tuple[str, layout.Column], h5py.Dataset] = {}
        self._n_complete: dict[str, int] = {}  # rows by group
        self._count_offsets: dict[str, int] = {}  # offset in the file of the number of complete rows, by group
        try:
            self._file = h5py.File(path, "x", libver=layout.LIBVER)
            self._file.attrs.update(
                schema=layout.SCHEMA,
                rank=settings.rank,
                n_ranks=settings.n_ranks,
                versions_every=settings.versions_every,
                first_version=first_version,
            )
            self._create_groups(n_streams, settings.logs_intervals)
            layout.attach_dimension_scales(self._file)
            self._file.swmr_mode = True  # from now on data sets can only grow
        except HDF5_ERRORS as error:
            if self._file is not None:
                discard_handle(self._file)
            path.unlink(missing_ok=True)
            raise OSError(error_reason(error)) from None

    @property
    def n_gradients(self) -> int:
        """Number of gradients in the file."""
        return self.next_version - self._first_version

    @property
    def is_empty(self) -> bool:
        """Whether no group has a row."""
        return not any(self._n_complete.values())

    def exists(self) -> bool:
        """Return whether `path` still names the open file; writes to a deleted file succeed without effect.

        Raises
        ------
        OSError
            If the file system cannot tell.
        """
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.id.get_vfd_handle()))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return False
            raise

    def write(self, rows: LogRows) -> None:
        """Append rows and flush them to the file system.

        `rows` must begin at `next_version`. Raises one of `hdf5_io.HDF5_ERRORS` if writing fails.
        """
        if len(rows.vectors):
            _append(self._growing["gradient", layout.VERSIONS], rows.vectors)
            if self._every > 1:
                first = ceil_div(rows.first_version, self._every) * self._every - self._first_version
                versions_row = np.arange(first, first + len(rows.vectors) * self._every, self._every)
                _append(self._growing["gradient", layout.VERSIONS_ROW], versions_row)
        tables = {"gradient": rows.gradients, "evaluation": rows.evaluations, "pace": rows.intervals}
        for (group, column), data_set in self._growing.items():
            if column.name in (tables[group].dtype.names or ()) and len(tables[group]):
                _append(data_set, tables[group][column.name])
        self._file.flush()
        self.next_version += len(rows.gradients)
        for group in self._n_complete:
            self._n_complete[group] += len(tables[group])

    def close(self) -> None:
        """Close the file, or abandon it if that fails; raises nothing."""
        try:
            self._file.flush()  # before the close: after a failed close the handle cannot be discarded
            self._file.close()
        except HDF5_ERRORS:
            self.abandon()

    def abandon(self) -> None:
        """Record in the file how many rows are complete, and discard the handle; raises nothing."""
        handle, exists = self._file.id.get_vfd_handle(), False
        with suppress(OSError):
            exists = self.exists()
        for group, offset in self._count_offsets.items():
            with suppress(OSError):  # overwrites in place, which also succeeds on a full disk
                os.pwrite(handle, np.array(self._n_complete[group], "<i8").tobytes(), offset)
        discard_handle(self._file)
        if exists:
            with suppress(OSError, ConfigError):
                mark_closed(self.path)

    def _create_groups(self, n_streams: int, logs_intervals: bool) -> None:
        for column in layout.GRADIENT_COLUMNS:
            self._create("gradient", column, (CHUNK_ROWS,))
        for column in layout.EVALUATION_COLUMNS:
            self._create("evaluation", column, (_EVENT_CHUNK_ROWS,))
        for column in layout.INTERVAL_COLUMNS if logs_intervals else ():
            self._create("pace", column, (_EVENT_CHUNK_ROWS,))
        if self._every:
            vector_bytes = n_streams * np.dtype(layout.VERSIONS.dtype).itemsize
            chunk_rows = max(1, min(CHUNK_ROWS, _CHUNK_BYTES // vector_bytes))
            self._create("gradient", layout.VERSIONS, (chunk_rows, n_streams))
            layout.create_data_set(self._file["gradient"], layout.SOURCE_RANK, data=np.arange(n_streams))
        if self._every > 1:
            self._create("gradient", layout.VERSIONS_ROW, (CHUNK_ROWS,))
        for group in {group: None for group, _ in self._growing}:
            column = layout.Column(group, "<i8", layout.COMPLETE_ROWS_DESCRIPTION)
            counts = self._file.require_group(layout.COMPLETE_ROWS_GROUP)
            data_set = layout.create_data_set(counts, column, data=-1)
            self._file.flush()
            self._count_offsets[group], self._n_complete[group] = data_set.id.get_offset(), 0

    def _create(self, group: str, column: layout.Column, chunks: tuple[int, ...]) -> None:
        self._growing[group, column] = layout.create_data_set(
            self._file.require_group(group),
            column,
            shape=(0, *chunks[1:]),
            maxshape=(None, *chunks[1:]),
            chunks=chunks,
        )


def _append(data_set: h5py.Dataset, rows: AnyArray) -> None:
    n_before = len(data_set)
    data_set.resize(n_before + len(rows), axis=0)
    data_set[n_before:] = rows
