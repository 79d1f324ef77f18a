"""Checkpoint files: their paths, and writing, checking and reading one.

    RUN/checkpoint/rank_00000.0.h5, rank_00000.1.h5, used in turn

Each rank writes checkpoints independently; `checkpoint_writer` does it in a thread. Any set of checkpoints that has one
of each rank is a valid state of the run; `checkpoint_selection` finds the newest. A file is written under a temporary
name, synced and renamed, so that each rank always has one good file.

A file is HDF5 with a user block; see `checkpoint_user_block`.
"""

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import h5py
import numpy as np

from hpc_dasgd.arrays.types import AnyArray, Array, Int64s
from hpc_dasgd.errors import CheckpointError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.checkpoint_user_block import USER_BLOCK_BYTES, UserBlock, display_name, read_user_block
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, discard_handle, error_reason, fsync_path, require_space

DIRECTORY = "checkpoint"
_BLOCK_BYTES = 1 << 24
_SPARE_BYTES = 1 << 20  # a disk with less space left after the checkpoint counts as full
_NAME = re.compile(r"rank_(\d+)\.(\d+)\.h5")

_CONTRIBUTION = layout.Column(
    "contribution", None, "contribution of the rank to the run's state; see attribute `combines`"
)
_VERSIONS = layout.Column("versions", "i8", "updates of each rank, over all generations, in the replica of this rank")


@dataclass(frozen=True)
class CheckpointHeader:
    """Origin and time of a checkpoint, and how to use it.

    Attributes
    ----------
    run_id : str
        Identifier of the run.
    generation : int
        Generation of the run that wrote it.
    rank, n_ranks : int
        Rank that wrote it, and number of ranks in that generation.
    combines : {"sum", "newest", "mean", "own"}
        How the contributions of all ranks are combined into parameters; see `exchange.interface.Exchange`.
    version : int
        Updates that the rank had made, over all generations.
    gradients : int
        Gradients of all ranks, over all generations, in its replica.
    t_s : float
        Time in seconds since the run began.
    optimizer : str
        Setting ``optimizer.kind``.
    contributes : bool
        Whether the file holds a contribution. At the start of a generation only that of rank 0 does, unless
        `combines` is "own".
    n_params : int
        Length of the contribution.
    dtype : str
        NumPy's name of the dtype of the contribution.
    """

    run_id: str
    generation: int
    rank: int
    n_ranks: int
    combines: str
    version: int
    gradients: int
    t_s: float
    optimizer: str
    contributes: bool
    n_params: int
    dtype: str


@dataclass(frozen=True, eq=False)
class RankState:
    """State of a rank that a checkpoint holds in addition to its `CheckpointHeader`.

    Attributes
    ----------
    versions : ndarray, shape (n_streams,), int64
        Updates of each stream (see `log_index`), over all generations, in the replica of this rank.
    contribution : array, shape (n_params,), floating, or None
        None at the start of a generation, when the checkpoint of rank 0 holds the whole state.
    optimizer_state : mapping of str to array or int, or None
        None if the optimizer has made no step.
    """

    versions: Int64s
    contribution: Array | None
    optimizer_state: Mapping[str, Array | int] | None


def checkpoint_path(run_directory: Path, rank: int, slot: int) -> Path:
    """Return the path of a checkpoint of `rank`; its slots, numbered from 0, are written in turn."""
    return run_directory / DIRECTORY / f"rank_{rank:05d}.{slot}.h5"


def list_checkpoints(run_directory: Path) -> dict[int, list[Path]]:
    """List all checkpoint files of a run by rank; empty if there is no such directory."""
    by_rank: dict[int, list[Path]] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted((run_directory / DIRECTORY).iterdir()):
            if match := _NAME.fullmatch(path.name):
                by_rank.setdefault(int(match[1]), []).append(path)
    return by_rank


def rank_of(path: Path) -> int:
    """Return the rank that the name of a checkpoint file states."""
    return _numbers(path)[0]


def slot_of(path: Path) -> int:
    """Return the slot that the name of a checkpoint file states."""
    return _numbers(path)[1]


def _numbers(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"`path` must have the name of a checkpoint file, got {path.name}")
    return int(match[1]), int(match[2])


def read_header(path: Path) -> CheckpointHeader:
    """Read the header of a checkpoint; reads one kilobyte.

    Raises
    ------
    CheckpointError
        If it is not a checkpoint, or does not have its full length.
    """
    with _checkpoint_errors(path):
        return CheckpointHeader(**read_user_block(path).header)


def verify_checksum(path: Path) -> None:
    """Read a whole checkpoint, and compare it with its checksum.

    Raises
    ------
    CheckpointError
        If they differ, or the file cannot be read.
    """
    with _checkpoint_errors(path):
        expected, crc = read_user_block(path).crc32, 0
        with path.open("rb", buffering=0) as file:
            file.seek(USER_BLOCK_BYTES)
            while block := file.read(_BLOCK_BYTES):
                crc = zlib.crc32(block, crc)
    if crc != expected:
        raise CheckpointError(f"{display_name(path)} is damaged: its checksum is wrong")


class SavedCheckpoint:
    """A checkpoint that is open for reading; a context manager. Call `verify_checksum` first.

    The constructor, the properties and the methods raise `CheckpointError` if the file cannot be read.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path):
        self._path = path
        with _checkpoint_errors(path):
            self._file = h5py.File(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def versions(self) -> Int64s:
        """Version vector, shape (n_streams,); see `RankState`."""
        with _checkpoint_errors(self._path):
            return self._file[_VERSIONS.name][:]

    @property
    def optimizer_state(self) -> dict[str, AnyArray | int] | None:
        """State of the optimizer; see `RankState`."""
        with _checkpoint_errors(self._path):
            if "optimizer" not in self._file:
                return None
            group = self._file["optimizer"]
            arrays = {name: item[:] for name, item in group.items()}
            return arrays | {name: int(value) for name, value in group.attrs.items()}

    def contribution(self, lo: int, hi: int) -> AnyArray:
        """Read elements ``lo:hi`` of the contribution; zeros if the file holds no contribution."""
        with _checkpoint_errors(self._path):
            if _CONTRIBUTION.name in self._file:
                return self._file[_CONTRIBUTION.name][lo:hi]
            return np.zeros(hi - lo, self._file.attrs["dtype"])


def write_checkpoint(path: Path, header: CheckpointHeader, state: RankState) -> None:
    """Write a checkpoint under a temporary name, sync it, and rename it to `path`. Not collective.

    Parameters
    ----------
    path : Path
        Replaced if it exists; its directory is created.
    header : CheckpointHeader
    state : RankState
        Arrays in host memory, C-contiguous.

    Raises
    ------
    OSError
        If the checkpoint cannot be written; `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [state.contribution, *(state.optimizer_state or {}).values()]
    require_space(path.parent, _SPARE_BYTES + sum(getattr(array, "nbytes", 0) for array in arrays))
    temporary = path.with_name(f".{path.name}.part")
    try:
        extents = _create_file(temporary, header, state)
        file = os.open(temporary, os.O_RDWR)
        try:
            _fill_file(file, extents, header)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # some file systems do not support it for directories
        fsync_path(path.parent)


def _create_file(path: Path, header: CheckpointHeader, state: RankState) -> list[tuple[int, AnyArray]]:
    """Create the file with space for all arrays.

    The arrays are not written by HDF5, since it would block all other threads that use it, such as the one that logs.

    Returns
    -------
    extents : list of (int, ndarray)
        Offset in the file, in bytes, and values of each array, in increasing order of offsets.
    """
    file = h5py.File(path, "w", libver=layout.LIBVER, userblock_size=USER_BLOCK_BYTES)
    try:
        file.attrs.update(schema=layout.SCHEMA, **asdict(header))
        versions = np.ascontiguousarray(state.versions, np.int64)
        created = [(_allocate(file, _VERSIONS, versions), versions)]
        if state.contribution is not None:
            created.append((_allocate(file, _CONTRIBUTION, state.contribution), state.contribution))
        if state.optimizer_state is not None:
            group = file.create_group("optimizer")
            for name, value in state.optimizer_state.items():
                if isinstance(value, np.ndarray):
                    created.append(
                        (_allocate(group, layout.Column(name, None, "state of the optimizer"), value), value)
                    )
                else:
                    group.attrs[name] = value
        extents = [(data_set.get_offset(), values) for data_set, values in created]
        file.flush()  # before the close: after a failed close the handle cannot be discarded
        file.close()
    except HDF5_ERRORS as error:
        discard_handle(file)
        raise OSError(error_reason(error)) from None
    return sorted(extents, key=lambda extent: extent[0])


def _allocate(group: h5py.Group, column: layout.Column, values: AnyArray) -> h5py.h5d.DatasetID:
    """Create a data set for `values` with allocated, unwritten space."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(values.shape)
    dtype = h5py.h5t.py_create(values.dtype, logical=True)
    created = h5py.h5d.create(group.id, column.name.encode(), dtype, space, dcpl=properties)
    layout.describe_data_set(h5py.Dataset(created), column)
    return created


def _fill_file(file: int, extents: list[tuple[int, AnyArray]], header: CheckpointHeader) -> None:
    """Write the arrays, and the user block with the checksum of the rest."""
    crc, position = 0, USER_BLOCK_BYTES
    for offset, values in extents:
        crc = zlib.crc32(os.pread(file, offset - position, position), crc)
        view = values.data.cast("B")
        for lo in range(0, len(view), _BLOCK_BYTES):
            block = view[lo : lo + _BLOCK_BYTES]
            crc = zlib.crc32(block, crc)
            _write_all(file, block, offset + lo)
        position = offset + values.nbytes
    n_bytes = os.fstat(file).st_size
    crc = zlib.crc32(os.pread(file, n_bytes - position, position), crc)
    _write_all(file, memoryview(UserBlock(n_bytes, crc, asdict(header)).encode()), 0)


def _write_all(file: int, block: memoryview, offset: int) -> None:
    while block:
        n_written = os.pwrite(file, block, offset)
        block, offset = block[n_written:], offset + n_written


@contextmanager
def _checkpoint_errors(path: Path) -> Iterator[None]:
    """Convert an error of reading a file into a `CheckpointError`."""
    try:
        yield
    except (*HDF5_ERRORS, TypeError) as error:
        raise CheckpointError(f"{display_name(path)} cannot be read: {error_reason(error)}") from None
