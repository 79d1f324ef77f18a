"""Making a file readable that its writer never closed.

HDF5 marks a file that is open for writing, and afterwards only a reader with ``swmr=True`` may open it: not virtual
data sets, not ``h5dump``, nor most other tools. A file written in SWMR mode is sound all the same, and what
``h5clear`` does to it is enough. Its header is (HDF5 File Format Specification 3.0, "Disk Format: Level 0A",
superblock version 3): signature, version, sizes of offsets and lengths, the mark, four addresses, of which the third
is the end of the file, and the checksum of all that.
"""

import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

import h5py

from hpc_dasgd.errors import ConfigError

_HEADER = struct.Struct("<8s4B4QI")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WORD = 0xFFFFFFFF
_READ_ATTEMPTS = 27  # HDF5 sleeps 1 ns after the first, then twice as long each time: 0.1 s; its own 100 never end


def open_growing(path: Path, cache_bytes: int | None = None) -> h5py.File:
    """Open a file that has its writer's mark for reading.

    A reader of a growing file reads again what has a wrong checksum. Where the file is damaged that has to come to an
    end, for which h5py has no setting: this calls the HDF5 that h5py has loaded.

    Parameters
    ----------
    path : Path
    cache_bytes : int, optional
        Size of the chunk cache; HDF5's own by default.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    if cache_bytes is not None:
        n_elements, n_slots, _, preemption = access.get_cache()
        access.set_cache(n_elements, n_slots, cache_bytes, preemption)
    with suppress(AttributeError):  # found in what h5py is linked with, where the system looks there
        set_read_attempts = ctypes.CDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts
        set_read_attempts(ctypes.c_int64(access.id), ctypes.c_uint(_READ_ATTEMPTS))
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, fapl=access))


def mark_closed(path: Path) -> None:
    """Take the mark of an open file away. Nobody may be writing the file any more.

    Raises
    ------
    ConfigError
        If it is not a file as `logfile` writes them.
    OSError
        If it cannot be read or written.
    """
    with open(path, "r+b", buffering=0) as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise ConfigError(f"{path} must be an HDF5 file, got {len(header)} bytes")
        signature, version, offset_bytes, length_bytes, mark, *addresses, checksum = _HEADER.unpack(header)
        if (signature, version, offset_bytes, length_bytes) != (_SIGNATURE, 3, 8, 8) or checksum != _sum(header[:-4]):
            raise ConfigError(f"{path} must be an HDF5 file with a superblock of version 3")
        if not mark:
            return
        # What was written last may stand beyond the end that the header knows.
        addresses[2] = max(addresses[2], os.fstat(file.fileno()).st_size)
        closed = _HEADER.pack(signature, version, offset_bytes, length_bytes, 0, *addresses, 0)
        file.seek(0)
        file.write(closed[:-4] + struct.pack("<I", _sum(closed[:-4])))
        os.fsync(file.fileno())


def _sum(data: bytes) -> int:
    """Jenkins' "lookup3" of bytes, with which HDF5 guards its metadata."""
    a = b = c = (0xDEADBEEF + len(data)) & _WORD
    *triples, last = struct.iter_unpack("<3I", data + bytes(-len(data) % 12))
    for x, y, z in triples:
        a, b, c = (a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD
        for bits in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & _WORD) ^ _turned(c, bits)
            c = (c + b) & _WORD
            a, b, c = b, c, a
    a, b, c = ((value + word) & _WORD for value, word in zip((a, b, c), last, strict=True))
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _turned(b, bits)) & _WORD
        a, b, c = b, c, a
    return b


def _turned(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _WORD
