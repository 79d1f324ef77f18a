"""Checkpoints: one file per rank, written when the rank likes; any set of them is a valid state of the run.

    RUN/checkpoint/rank_00000.0.h5, rank_00000.1.h5, in turn

Writing is not collective (`checkpointwriter` does it beside the training). A file is written under another name,
synced and renamed, so that one good file per rank always exists.

A file is HDF5 behind a user block, a line of text that holds the length and the CRC-32 of all that follows: what is
damaged is found out before HDF5 looks at it.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.errors import CheckpointError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, discard_handle, require_space, sync

DIRECTORY = "checkpoint"
_USER_BLOCK_BYTES = 1024
_MAGIC = "hpc_dasgd checkpoint"
_PIECE_BYTES = 1 << 24
_SPARE_BYTES = 1 << 20  # a disk with less left behind the checkpoint counts as full
_NAME = re.compile(r"rank_(\d+)\.(\d+)\.h5")

_CONTRIBUTION = layout.Column("contribution", None, "what the rank adds to the run's state, see attribute `combines`")
_VERSIONS = layout.Column("versions", "i8", "updates of each rank, over all generations, in the replica of this rank")


@dataclass(frozen=True)
class CheckpointHeader:
    """Whose checkpoint a file is, and of when.

    Attributes
    ----------
    run_id : str
        Of the run that it belongs to.
    generation : int
        How often the run had been resumed.
    rank, n_ranks : int
        Whose it is, of how many.
    combines : {"sum", "newest", "mean", "own"}
        How the contributions of all ranks become parameters; see `exchange.interface.Exchange`.
    version : int
        Updates that the rank had made, over all generations.
    gradients : int
        Gradients of all ranks, over all generations, in its replica.
    t_s : float
        When, in seconds since the run began.
    optimizer : str
        Setting ``optimizer.kind``.
    contributes : bool
        Whether the file holds a contribution. At the start of a generation that of rank 0 says it all.
    n_params : int
    dtype : str
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
    """What a checkpoint holds of a rank beside its `Header`.

    Attributes
    ----------
    versions : ndarray, shape (n_streams,), int64
        Updates of each rank, over all generations, in the replica of this one.
    contribution : ndarray, shape (n_params,), or None
        None at the start of a generation, when all there is to know stands in that of rank 0.
    optimizer_state : dict of str to ndarray or int, or None
        None for one that has not begun.
    """

    versions: np.ndarray
    contribution: np.ndarray | None
    optimizer_state: Mapping | None


def path_of(directory: Path, rank: int, slot: int) -> Path:
    """Where a checkpoint of `rank` is in the run directory; slots are written in turn."""
    return directory / DIRECTORY / f"rank_{rank:05d}.{slot}.h5"


def paths(directory: Path) -> dict[int, list[Path]]:
    """All checkpoint files in a run directory, by rank."""
    found = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted((directory / DIRECTORY).iterdir()):
            if match := _NAME.fullmatch(path.name):
                found.setdefault(int(match[1]), []).append(path)
    return found


def rank_of(path: Path) -> int:
    """The rank whose checkpoint a file should be, by its name."""
    return int(_NAME.fullmatch(path.name)[1])


def slot_of(path: Path) -> int:
    """The slot of a checkpoint file."""
    return int(_NAME.fullmatch(path.name)[2])


def read_header(path: Path) -> CheckpointHeader:
    """Read whose checkpoint a file is, at the cost of its first kilobyte.

    Raises
    ------
    CheckpointError
        If it is no checkpoint, or has not its full length.
    """
    with _reading(path):
        return CheckpointHeader(**_read_user_block(path)["header"])


class SavedCheckpoint:
    """A checkpoint that `verify` found good, open for reading; a context manager.

    What cannot be read raises `CheckpointError`.
    """

    def __init__(self, path: Path):
        self._path = path
        with _reading(path):
            self._file = h5py.File(path)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    @property
    def versions(self) -> np.ndarray:
        """See `State`."""
        with _reading(self._path):
            return self._file[_VERSIONS.name][:]

    @property
    def optimizer_state(self) -> dict | None:
        """See `State`."""
        with _reading(self._path):
            if "optimizer" not in self._file:
                return None
            group = self._file["optimizer"]
            arrays = {name: item[:] for name, item in group.items()}
            return arrays | {name: int(value) for name, value in group.attrs.items()}

    def contribution(self, lo: int, hi: int) -> np.ndarray:
        """Elements ``lo:hi`` of the contribution, zeros where the rank had not contributed."""
        with _reading(self._path):
            if _CONTRIBUTION.name in self._file:
                return self._file[_CONTRIBUTION.name][lo:hi]
            return np.zeros(hi - lo, self._file.attrs["dtype"])


def verify_checksum(path: Path) -> None:
    """Read all of a checkpoint and hold it against its checksum; raises `CheckpointError` where they differ."""
    expected = _read_user_block(path)["crc32"]
    crc = 0
    with _reading(path), path.open("rb", buffering=0) as file:
        file.seek(_USER_BLOCK_BYTES)
        while piece := file.read(_PIECE_BYTES):
            crc = zlib.crc32(piece, crc)
    if crc != expected:
        raise CheckpointError(f"{short_name(path)} is damaged: its checksum is wrong")


def write_checkpoint(path: Path, header: CheckpointHeader, state: RankState) -> None:
    """Write a checkpoint beside `path`, sync it, and rename it; raises `OSError`, and `path` is then as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [state.contribution, *(state.optimizer_state or {}).values()]
    require_space(path.parent, _SPARE_BYTES + sum(getattr(array, "nbytes", 0) for array in arrays))
    part = path.with_name(f".{path.name}.part")
    try:
        extents = _make(part, header, state)
        file = os.open(part, os.O_RDWR)
        try:
            _fill(file, extents, header)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    with suppress(OSError):  # some file systems do not offer it
        sync(path.parent)


def _make(path: Path, header: CheckpointHeader, state: RankState) -> list[tuple[int, np.ndarray]]:
    """Make the file with room for all arrays; returns where in it each belongs.

    HDF5 itself writes no array: it would keep every other thread from the library meanwhile, the one that logs too.
    """
    places = []

    def make_room(group, column: layout.Column, values: np.ndarray) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(values.shape)
        kind = h5py.h5t.py_create(values.dtype, logical=True)
        created = h5py.h5d.create(group.id, column.name.encode(), kind, space, dcpl=plan)
        layout.describe(h5py.Dataset(created), column)
        places.append((created, values))

    file = h5py.File(path, "w", libver=layout.FORMAT, userblock_size=_USER_BLOCK_BYTES)
    try:
        file.attrs.update(schema=layout.SCHEMA, **asdict(header))
        make_room(file, _VERSIONS, np.ascontiguousarray(state.versions, np.int64))
        if state.contribution is not None:
            make_room(file, _CONTRIBUTION, state.contribution)
        if state.optimizer_state is not None:
            group = file.create_group("optimizer")
            for name, value in state.optimizer_state.items():
                if isinstance(value, np.ndarray):
                    make_room(group, layout.Column(name, None, "state of the optimizer"), value)
                else:
                    group.attrs[name] = value
        extents = [(created.get_offset(), values) for created, values in places]
        file.flush()  # a file that failed to close could not be given up
        file.close()
    except HDF5_ERRORS as error:
        discard_handle(file)
        raise OSError(layout.reason(error)) from None
    return sorted(extents, key=lambda extent: extent[0])


def _fill(file: int, extents: list[tuple[int, np.ndarray]], header: CheckpointHeader) -> None:
    """Write the arrays, and the user block with the checksum of everything."""
    crc, position = 0, _USER_BLOCK_BYTES
    for offset, values in extents:
        crc = zlib.crc32(os.pread(file, offset - position, position), crc)
        view = memoryview(values).cast("B")
        for lo in range(0, len(view), _PIECE_BYTES):
            piece = view[lo : lo + _PIECE_BYTES]
            crc = zlib.crc32(piece, crc)
            _write_all(file, piece, offset + lo)
        position = offset + values.nbytes
    n_bytes = os.fstat(file).st_size
    crc = zlib.crc32(os.pread(file, n_bytes - position, position), crc)
    _write_all(file, memoryview(_user_block({"bytes": n_bytes, "crc32": crc, "header": asdict(header)})), 0)


def _write_all(file: int, piece: memoryview, offset: int) -> None:
    while piece:
        n_written = os.pwrite(file, piece, offset)
        piece, offset = piece[n_written:], offset + n_written


def _user_block(content: dict) -> bytes:
    text = json.dumps(content)
    line = f"{_MAGIC} {zlib.crc32(text.encode()):08x} {text}\n".encode()
    assert len(line) <= _USER_BLOCK_BYTES
    return line.ljust(_USER_BLOCK_BYTES, b"\0")


def _read_user_block(path: Path) -> dict:
    with _reading(path), path.open("rb") as file:
        block, n_bytes = file.read(_USER_BLOCK_BYTES), os.fstat(file.fileno()).st_size
    match = re.fullmatch(rf"{_MAGIC} ([0-9a-f]{{8}}) (.*)\n\0*".encode(), block)
    if match is None or int(match[1], 16) != zlib.crc32(match[2]):
        raise CheckpointError(f"{short_name(path)} is no checkpoint, or its start is damaged")
    content = json.loads(match[2])
    if content["bytes"] != n_bytes:
        raise CheckpointError(f"{short_name(path)} must have {content['bytes']} bytes, got {n_bytes}")
    return content


class _reading:
    """Make an error while reading a file a `CheckpointError`."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _) -> None:
        if kind is not None and issubclass(kind, (*HDF5_ERRORS, TypeError)):
            raise CheckpointError(f"{short_name(self._path)} cannot be read: {layout.reason(error)}") from None


def short_name(path: Path) -> str:
    """How messages name a checkpoint."""
    return f"{path.parent.name}/{path.name}"
