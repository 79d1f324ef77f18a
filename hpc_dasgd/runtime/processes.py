"""Processes of this host, as ``/proc`` shows them."""

from pathlib import Path
from typing import NamedTuple


class ProcessStatus(NamedTuple):
    """State of a process; see ``/proc/PID/stat`` in the manual page ``proc(5)``.

    Attributes
    ----------
    name : str
        Name of the executable, at most 15 characters.
    state : str
        One letter, such as "R" (running), "Z" (zombie) or "X" (dead).
    parent : int
        Process ID of the parent process.
    start_ticks : int
        Start time in clock ticks since the boot of the host. It distinguishes the process from a later one with the
        same process ID.
    """

    name: str
    state: str
    parent: int
    start_ticks: int


def process_status(pid: int) -> ProcessStatus | None:
    """Return the state of a process; None if there is no such process, or no ``/proc``."""
    try:
        # Names may contain any byte, including parentheses and line ends.
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()  # the first is the third field of the manual page
    return ProcessStatus(name, state=fields[0], parent=int(fields[1]), start_ticks=int(fields[19]))


def started_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None if it has exited or is a zombie."""
    status = process_status(pid)
    return None if status is None or status.state in "ZX" else status.start_ticks
