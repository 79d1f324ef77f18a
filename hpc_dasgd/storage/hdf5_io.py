"""Errors of HDF5, durable writes, probing for writability, and opening files in any state for reading.

Nothing here knows what is in the files; `layout` does.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.h5clear import open_growing

HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError)
"""Exceptions by which h5py reports errors of HDF5."""

_PROBE_BYTES = 1 << 16  # more than HDF5 writes when it creates a file


def error_reason(error: BaseException) -> str:
    """Return one line that states the reason of an error of h5py."""
    # HDF5's own text fills a paragraph; strerror states the same. The number may be in that text only.
    number = getattr(error, "errno", None) or re.search(r"errno = (\d+)", str(error))
    if number:
        return os.strerror(number if isinstance(number, int) else int(number[1]))
    text = str(error.args[0] if isinstance(error, KeyError) else error)  # str() of a KeyError adds quotes
    return text.splitlines()[0]


@contextmanager
def creation_errors(what: str, path: Path) -> Iterator[None]:
    """Convert an `OSError` raised in the context into a `ConfigError` that names what could not be created.

    Parameters
    ----------
    what : str
        What is created, for the message: ``cannot make {what} {path}: ...``.
    path : Path
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot make {what} {path}: {error_reason(error)}") from None


@contextmanager
def durable_file(path: Path, mode: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for writing; when the context is left, close it and make it durable.

    If HDF5 cannot write or close the file, it is removed.

    Parameters
    ----------
    path : Path
    mode : {"x", "r+"}
        As for `h5py.File`.

    Raises
    ------
    OSError
        If the file cannot be created, written or synced.
    """
    if mode == "x":
        probe_writable(path)
    file = h5py.File(path, mode, libver=layout.LIBVER)
    try:
        yield file
        file.flush()  # before the close: after a failed close the handle cannot be discarded
        file.close()
        fsync_path(path)
    except HDF5_ERRORS as error:
        discard_handle(file)
        path.unlink(missing_ok=True)
        raise OSError(error_reason(error)) from None
    except BaseException:
        file.close()
        raise


def discard_handle(file: h5py.File) -> None:
    """Close a file in which a write has failed, leaving the file on the disk as it is.

    After a failed write HDF5 keeps the data and tries to write it again at every flush and close; each attempt fails
    with a traceback, and the process crashes when it exits. This redirects the file's descriptor to ``/dev/null``, so
    that these writes succeed without effect. Data sets with unwritten data must still be open, since HDF5 prints an
    error that occurs when a data set is closed, instead of returning it.
    """
    if file:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, file.id.get_vfd_handle())
        os.close(null)
        with suppress(*HDF5_ERRORS):
            file.close()


def probe_writable(path: Path) -> None:
    """Raise `OSError` if a new file cannot be created and written at `path`, because of a quota or for another reason.

    Call this before HDF5 creates the file: if HDF5 fails to create a file, it crashes when the process exits.
    """
    with open(path, "xb") as file:
        try:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        finally:
            path.unlink()


def require_space(directory: Path, n_bytes: int) -> None:
    """Raise `OSError` (no space left) if less than `n_bytes` are free on the file system of `directory`."""
    space = os.statvfs(directory)
    if space.f_blocks and space.f_bavail * space.f_frsize < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fsync_path(path: Path) -> None:
    """Make the content of a file, or the entries of a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_readable(path: Path) -> h5py.File:
    """Open a file for reading, whether it was closed, is being written, or was left open by a killed process.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    try:
        return h5py.File(path)
    except OSError:
        return open_growing(path)


@contextmanager
def readable_file(path: Path) -> Iterator[h5py.File]:
    """Open a file as `open_readable` does, for the time of the context.

    Raises
    ------
    ConfigError
        If the file cannot be opened, or something in it cannot be read within the context.
    """
    try:
        with open_readable(path) as file:
            yield file
    except HDF5_ERRORS as error:
        raise ConfigError(f"{path} cannot be read: {error_reason(error)}") from None
