"""Processes of this and other hosts, as far as ``/proc`` shows whether they have exited."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

from hpc_dasgd.runtime.processes import started_ticks


class Process(NamedTuple):
    """The identity of a process.

    Attributes
    ----------
    host : str
    pid_namespace : str
        Name of the PID namespace: ranks in containers may each number their own processes.
    pid : int
    started : int or None
        Start time, in ticks since the boot of the host. It distinguishes the process from a later one with the same
        number. None if it is unknown.
    """

    host: str
    pid_namespace: str
    pid: int
    started: int | None

    @classmethod
    def own(cls) -> Process:
        """Return the identity of this process."""
        try:
            pid_namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            pid_namespace = ""
        return cls(platform.node(), pid_namespace, os.getpid(), started_ticks(os.getpid()))

    def is_visible_from(self, other: Process) -> bool:
        """Return True if the process `other` can tell whether this process has exited."""
        return (self.host, self.pid_namespace) == (other.host, other.pid_namespace)

    def has_exited(self) -> bool:
        """Return True if the process has exited or is a zombie; only for processes that are visible from this one."""
        return self.started is not None and started_ticks(self.pid) != self.started
