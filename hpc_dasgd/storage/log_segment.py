"""One file of a rank's log, of rows that only grow in number.

Written in HDF5's single-writer-multiple-reader mode: others may read it while it grows, with ``swmr=True``, and what
a killed process leaves behind opens in the same way.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.h5clear import mark_closed
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, discard_handle, probe_writable

CHUNK_ROWS = 4096
_CHUNK_BYTES = 1 << 18  # of version vectors; small, since a flush writes a partly filled chunk anew
_EVALUATION_CHUNK_ROWS = 256


class LogRows(NamedTuple):
    """Rows of all groups, in the numbering of streams.

    Attributes
    ----------
    first_version : int
        Of the first gradient.
    gradients, evaluations, changes : ndarray, structured
        By `schema.GRADIENT_COLUMNS`, `schema.EVALUATION_COLUMNS`, `schema.PACE_COLUMNS`.
    vectors : ndarray, shape (n, n_streams), uint32
        Of those gradients whose version is a multiple of ``versions_every``.
    """

    first_version: int
    gradients: np.ndarray
    vectors: np.ndarray
    evaluations: np.ndarray
    changes: np.ndarray

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self[1:])

    def copy(self) -> "LogRows":
        return LogRows(self.first_version, *(array.copy() for array in self[1:]))


class LogSegment:
    """A file of rows, made by the constructor.

    One in which a write has failed is to be left by `abandon`.

    Parameters
    ----------
    path : Path
        Where no file is yet, in a directory that is there.
    rank, n_ranks : int
    first_version : int
        Of the first gradient to come.
    n_streams, versions_every : int
        Length of the version vectors, and every how many gradients there is one; 0: never.
    paced : bool
        Whether there is a group ``pace``.

    Attributes
    ----------
    next_version : int
        Of the first gradient that is not in the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        rank: int,
        n_ranks: int,
        first_version: int,
        n_streams: int,
        versions_every: int,
        paced: bool,
    ):
        self.path, self.next_version = path, first_version
        self._first_version, self._every = first_version, versions_every
        probe_writable(path)
        self._file = None
        self._growing: dict[tuple[str, layout.Column], h5py.Dataset] = {}
        self._n_whole: dict[str, int] = {}  # rows by group
        self._places: dict[str, int] = {}  # of these numbers in the file
        try:
            self._file = h5py.File(path, "x", libver=layout.FORMAT)
            self._file.attrs.update(
                schema=layout.SCHEMA,
                rank=rank,
                n_ranks=n_ranks,
                versions_every=versions_every,
                first_version=first_version,
            )
            self._make_groups(n_streams, paced)
            layout.attach_scales(self._file)
            self._file.swmr_mode = True  # from here on nothing but rows can be added
        except HDF5_ERRORS as error:
            if self._file is not None:
                discard_handle(self._file)
            path.unlink(missing_ok=True)
            raise OSError(layout.reason(error)) from None

    @property
    def n_gradients(self) -> int:
        return self.next_version - self._first_version

    @property
    def is_empty(self) -> bool:
        return not any(self._n_whole.values())

    def is_there(self) -> bool:
        """Whether the file still is where it was made: a deleted one silently takes more. May raise `OSError`."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.id.get_vfd_handle()))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return False
            raise

    def write(self, rows: LogRows) -> None:
        """Hand rows to the file; one of `FAULTS` if that fails."""
        if len(rows.vectors):
            _extend(self._growing["gradient", layout.VERSIONS], rows.vectors)
            if self._every > 1:
                first = -(-rows.first_version // self._every) * self._every - self._first_version
                versions_row = np.arange(first, first + len(rows.vectors) * self._every, self._every)
                _extend(self._growing["gradient", layout.VERSIONS_ROW], versions_row)
        tables = {"gradient": rows.gradients, "evaluation": rows.evaluations, "pace": rows.changes}
        for (group, column), data_set in self._growing.items():
            if column.name in tables[group].dtype.names and len(tables[group]):
                _extend(data_set, tables[group][column.name])
        self._file.flush()
        self.next_version += len(rows.gradients)
        for group in self._n_whole:
            self._n_whole[group] += len(tables[group])

    def close(self) -> None:
        """Close the file; does not fail."""
        try:
            self._file.flush()  # after a failed close it could not be given up
            self._file.close()
        except HDF5_ERRORS:
            self.abandon()

    def abandon(self) -> None:
        """Leave the file as it is on the disk, saying in it how many rows are whole; does not fail."""
        handle, there = self._file.id.get_vfd_handle(), False
        with suppress(OSError):
            there = self.is_there()
        for group, place in self._places.items():
            with suppress(OSError):  # in place, for which a full disk has room
                os.pwrite(handle, np.array(self._n_whole[group], "<i8").tobytes(), place)
        discard_handle(self._file)
        if there:
            with suppress(OSError, ConfigError):
                mark_closed(self.path)

    def _make_groups(self, n_streams: int, paced: bool) -> None:
        for column in layout.GRADIENT_COLUMNS:
            self._make("gradient", column, (CHUNK_ROWS,))
        for column in layout.EVALUATION_COLUMNS:
            self._make("evaluation", column, (_EVALUATION_CHUNK_ROWS,))
        for column in layout.PACE_COLUMNS if paced else ():
            self._make("pace", column, (_EVALUATION_CHUNK_ROWS,))
        if self._every:
            vector_bytes = n_streams * np.dtype(layout.VERSIONS.dtype).itemsize
            chunk_rows = max(1, min(CHUNK_ROWS, _CHUNK_BYTES // vector_bytes))
            self._make("gradient", layout.VERSIONS, (chunk_rows, n_streams))
            layout.create(self._file["gradient"], layout.SOURCE_RANK, data=np.arange(n_streams))
        if self._every > 1:
            self._make("gradient", layout.VERSIONS_ROW, (CHUNK_ROWS,))
        for group in {group: None for group, _ in self._growing}:
            column = layout.Column(group, "<i8", layout.WHOLE_ROWS)
            data_set = layout.create(self._file.require_group(layout.WHOLE), column, data=-1)
            self._file.flush()
            self._places[group], self._n_whole[group] = data_set.id.get_offset(), 0

    def _make(self, group: str, column: layout.Column, chunks: tuple[int, ...]) -> None:
        options = {"shape": (0, *chunks[1:]), "maxshape": (None, *chunks[1:]), "chunks": chunks}
        self._growing[group, column] = layout.create(self._file.require_group(group), column, **options)


def _extend(data_set: h5py.Dataset, rows) -> None:
    n_before = len(data_set)
    data_set.resize(n_before + len(rows), axis=0)
    data_set[n_before:] = rows
