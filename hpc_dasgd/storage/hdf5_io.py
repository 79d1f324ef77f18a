"""Writing HDF5 files on disks that may be full or away."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from hpc_dasgd.storage import layout

HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError)  # as h5py reports what HDF5 could not do

_TRIED_BYTES = 1 << 16  # more than HDF5 writes before anything is in a file


@contextmanager
def writing(path: Path, mode: str) -> Iterator[h5py.File]:
    """A file to write, closed and durable when the context is left; removed, with an `OSError`, if that fails."""
    if mode == "x":
        probe_writable(path)
    file = h5py.File(path, mode, libver=layout.FORMAT)
    try:
        yield file
        file.flush()  # after a failed close it could not be given up
        file.close()
        sync(path)
    except HDF5_ERRORS as error:
        discard_handle(file)
        path.unlink(missing_ok=True)
        raise OSError(layout.reason(error)) from None
    except BaseException:
        file.close()
        raise


def discard_handle(file: h5py.File) -> None:
    """Close a file in which a write has failed, and leave it as it is on the disk.

    HDF5 cannot do without what it failed to write: flushing and closing fail too from then on, with tracebacks, and
    the process crashes when it exits. So what it still holds has to go somewhere. (An error while a data set is
    closed is not even raised, but printed: those that are written to have to stay open.)
    """
    if file:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, file.id.get_vfd_handle())
        os.close(nowhere)
        with suppress(*HDF5_ERRORS):
            file.close()


def probe_writable(path: Path) -> None:
    """Raise `OSError` where a file cannot be made, or not be written for a quota or the like.

    To be done before HDF5 makes it: one that it fails to make it keeps, and crashes at exit.
    """
    with open(path, "xb") as file:
        try:
            file.write(bytes(_TRIED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        finally:
            path.unlink()


def require_space(directory: Path, n_bytes: int) -> None:
    """Raise `OSError` where a disk has less room than that."""
    space = os.statvfs(directory)
    if space.f_blocks and space.f_bavail * space.f_frsize < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
