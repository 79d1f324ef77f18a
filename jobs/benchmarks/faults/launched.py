"""Starts `hpc-dasgd train` under ``mpiexec`` and sends signals to its ranks."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from jobs.benchmarks.mpiexec import ENVIRONMENT, MPIEXEC

_MARKER = "HPC_DASGD_FAULT_JOB"  # environment variable that marks the processes of a job
LONGEST_S = 90  # a job that takes longer is considered to hang
_RANK_VARIABLES = (b"PMI_RANK", b"OMPI_COMM_WORLD_RANK", b"PMIX_RANK")


class Job:
    """A training job on `n_ranks` ranks, started by the constructor; leaving its context ends all its processes."""

    def __init__(self, n_ranks: int, config: Path, run: Path, errors: Path):
        self.n_ranks, self._errors = n_ranks, errors
        program = ["hpc_dasgd", "train", str(config), "--run", str(run), "--resume"]
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [MPIEXEC, "-n", str(n_ranks), sys.executable, "-m", *program],
                env=ENVIRONMENT | {_MARKER: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        self._ends_s = time.monotonic() + LONGEST_S
        self._seen: set[int] = set()

    @property
    def is_running(self) -> bool:
        """True until the job ends or exceeds `LONGEST_S`."""
        return self._process.poll() is None and time.monotonic() < self._ends_s

    @property
    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    def ranks(self) -> dict[int, int]:
        """Return the process ids of the running ranks, by rank."""
        found = {}
        for pid in _descendants(self._process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = dict(re.findall(rb"([A-Z_]+)=([^\0]*)", Path(f"/proc/{pid}/environ").read_bytes()))
            except OSError:
                continue
            self._seen.add(pid)
            rank = next((variables[name] for name in _RANK_VARIABLES if name in variables), None)
            if rank is not None and command[0] == sys.executable.encode():
                found[int(rank)] = pid
        return found

    def kill(self, rank: int | None) -> bool:
        """Send SIGKILL to one rank, or to all if `rank` is None; return True if any was running."""
        ranks = self.ranks()
        victims = list(ranks.values()) if rank is None else [ranks[rank]] if rank in ranks else []
        for pid in victims:
            _send(pid, signal.SIGKILL)
        return bool(victims)

    def stop(self, rank: int) -> None:
        """Send SIGUSR1 to one rank, which ends the run with checkpoints."""
        _send(self.ranks()[rank], signal.SIGUSR1)

    def wait(self) -> int | None:
        """Wait for the launcher; return its exit status, or None if it exceeds `LONGEST_S`."""
        try:
            return self._process.wait(max(0, self._ends_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        left = set() if self._process.poll() is not None else _descendants(self._process.pid)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        ours = f"{_MARKER}={os.getpid()}".encode()
        for pid in left | self._seen:  # the process id may belong to another program now
            with suppress(OSError):
                if ours in Path(f"/proc/{pid}/environ").read_bytes():
                    _send(pid, signal.SIGKILL)


def _descendants(pid: int) -> set[int]:
    """Return the process ids of all descendants of a process."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), set()).add(int(stat.parent.name))
    found, new = set(), {pid}
    while new:
        new = set().union(*(children.get(each, set()) for each in new)) - found
        found |= new
    return found


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
