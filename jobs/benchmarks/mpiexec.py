"""Starts programs on ranks with the ``mpiexec`` next to this Python, or else the one on ``PATH``; tests use it too."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]  # root of the repository, from which jobs and tests are imported
DIGITS = ROOT / "jobs" / "digits.toml"
_BESIDE = Path(sys.executable).with_name("mpiexec")
MPIEXEC = str(_BESIDE) if _BESIDE.exists() else shutil.which("mpiexec")
# By default Open MPI refuses to run as root and to start more ranks than cores. Other MPIs ignore these variables.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def train_digits(
    n_ranks: int, directory: Path, overrides: Iterable[str], timeout_s: float
) -> subprocess.CompletedProcess:
    """Train ``jobs/digits.toml`` on `n_ranks` ranks, with files in `directory` and settings replaced by `overrides`.

    Returns the completed launcher, whatever its exit status.

    Raises
    ------
    subprocess.TimeoutExpired
        If it takes longer than `timeout_s`.
    """
    command = [MPIEXEC, "-n", str(n_ranks), sys.executable]
    command += ["-m", "hpc_dasgd", "train", str(DIGITS), "--run", str(directory)]
    for override in overrides:
        command += ["--set", override]
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, env=ENVIRONMENT, timeout=timeout_s, check=False, **streams)


def mpi_library() -> str:
    """Return name and version of the MPI library in one line.

    Another process loads it, because a process in which MPI is initialized should not start ``mpiexec``.
    """
    command = [sys.executable, "-m", "mpi4py", "--mpi-lib-version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(printed.splitlines()[0].strip("\0").split())
