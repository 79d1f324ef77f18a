"""Files that their writer has not closed: opening them for reading, and marking them as closed.

HDF5 sets consistency flags in a file that is open for writing. While they are set, only readers with ``swmr=True`` can
open the file: virtual data sets, ``h5dump`` and most other tools cannot. If the writer was killed, the flags stay set.
A file written in SWMR mode is consistent nevertheless, and clearing the flags, as the tool ``h5clear`` does, is enough.

The flags are in the superblock (HDF5 File Format Specification 3.0, "Disk Format: Level 0A", version 3): signature,
version, sizes of offsets and lengths, consistency flags, four addresses, the third of which is the end of the file,
and a checksum of these.
"""

import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

import h5py

from hpc_dasgd.errors import ConfigError

_SUPERBLOCK = struct.Struct("<8s4B4QI")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MASK_32 = 0xFFFFFFFF
# HDF5 sleeps 1 ns after the first attempt and twice as long after each further one: 0.1 s in total. Its default of
# 100 attempts would never end.
_READ_ATTEMPTS = 27


def open_growing(path: Path, cache_bytes: int | None = None) -> h5py.File:
    """Open a file for reading whose consistency flags are set, because it is being written or its writer was killed.

    HDF5 reads metadata with a wrong checksum again, since the writer may be about to complete it. In a damaged file
    the number of attempts must be limited; h5py has no setting for that, so this function calls the HDF5 library
    that h5py has loaded.

    Parameters
    ----------
    path : Path
    cache_bytes : int, optional
        Size of the chunk cache; HDF5's default if None.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    if cache_bytes is not None:
        n_elements, n_slots, _, preemption = access.get_cache()
        access.set_cache(n_elements, n_slots, cache_bytes, preemption)
    with suppress(AttributeError):  # the symbol is found only on systems that search the libraries h5py is linked to
        set_read_attempts = ctypes.CDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts
        set_read_attempts(ctypes.c_int64(access.id), ctypes.c_uint(_READ_ATTEMPTS))
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, fapl=access))


def mark_closed(path: Path) -> None:
    """Clear the consistency flags of a file that was not closed. No process may be writing the file.

    Raises
    ------
    ConfigError
        If it is not an HDF5 file with a superblock of version 3, as `log_segment` writes them.
    OSError
        If it cannot be read or written.
    """
    with open(path, "r+b", buffering=0) as file:
        superblock = file.read(_SUPERBLOCK.size)
        if len(superblock) < _SUPERBLOCK.size:
            raise ConfigError(f"{path} must be an HDF5 file, got {len(superblock)} bytes")
        signature, version, offset_bytes, length_bytes, flags, *addresses, checksum = _SUPERBLOCK.unpack(superblock)
        is_supported = (signature, version, offset_bytes, length_bytes) == (_SIGNATURE, 3, 8, 8)
        if not is_supported or checksum != _lookup3(superblock[:-4]):
            raise ConfigError(f"{path} must be an HDF5 file with a superblock of version 3")
        if not flags:
            return
        # The last writes may be beyond the end that the superblock states.
        addresses[2] = max(addresses[2], os.fstat(file.fileno()).st_size)
        closed = _SUPERBLOCK.pack(signature, version, offset_bytes, length_bytes, 0, *addresses, 0)
        file.seek(0)
        file.write(closed[:-4] + struct.pack("<I", _lookup3(closed[:-4])))
        os.fsync(file.fileno())


def _lookup3(data: bytes) -> int:
    """Return the checksum that HDF5 uses for metadata: Jenkins' hash "lookup3" of `data`."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK_32
    *triples, last = struct.iter_unpack("<3I", data + bytes(-len(data) % 12))
    for x, y, z in triples:
        a, b, c = (a + x) & _MASK_32, (b + y) & _MASK_32, (c + z) & _MASK_32
        for bits in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & _MASK_32) ^ _rotate_left(c, bits)
            c = (c + b) & _MASK_32
            a, b, c = b, c, a
    a, b, c = ((value + word) & _MASK_32 for value, word in zip((a, b, c), last, strict=True))
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotate_left(b, bits)) & _MASK_32
        a, b, c = b, c, a
    return b


def _rotate_left(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK_32
