"""Detection of a terminal, directly or through the launcher of MPI."""

import os
import stat
from typing import TextIO

from hpc_dasgd.runtime.processes import process_status

_LAUNCHERS = ("mpiexec", "mpirun", "prterun", "orterun")


def is_terminal(stream: TextIO) -> bool:
    """Return whether the output of `stream` appears on a terminal.

    Returns True if `stream` is a terminal, or a pipe to a launcher whose stream with that file descriptor is one:
    ``mpiexec`` reads the output of its ranks through pipes, even if it was started in a terminal. Not collective.
    """
    if stream.isatty():
        return True
    try:
        descriptor = stream.fileno()
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and _launcher_has_terminal(descriptor)
    except (OSError, ValueError):
        return False


def _launcher_has_terminal(descriptor: int) -> bool:
    """Return whether the nearest ancestor process that is a launcher has a terminal as that file descriptor."""
    pid = os.getppid()
    while pid > 1:
        status = process_status(pid)
        if status is None:
            return False
        if status.name.startswith(_LAUNCHERS):
            return os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("/dev/pts/")
        pid = status.parent
    return False
