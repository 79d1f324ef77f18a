"""Which MPI and network this is, what one-sided calls cost on it, what to set.

mpiexec -n 2 hpc-dasgd doctor
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd import schema
from hpc_dasgd.doctor import checks
from hpc_dasgd.doctor.checks import Check
from hpc_dasgd.doctor.measurements import Measurements, look_around, measure


def examine(comm, directory: Path) -> list[Check]:
    """Measure, and say what it means. Collective over `comm`; takes some seconds.

    Parameters
    ----------
    comm : MPI.Intracomm
    directory : Path
        Where run files would be written.

    Returns
    -------
    checks : list of Check
        The same on all ranks but for the network's, which rank 0 alone has.
    """
    found = measure(comm)
    return [
        *_launch_checks(found),
        *checks.window_checks(found, _library()),
        *([checks.disk_check(str(directory), *_try_files(directory))] if comm.rank == 0 else []),
    ]


def warnings(comm) -> list[str]:
    """What a run should be warned of when it starts, without measuring anything. Collective over `comm`."""
    found = _launch_checks(look_around(comm))
    return [f"{each.check}: {each.detail}: {each.remedy}" for each in found if each.status != checks.OK]


def text(found: list[Check]) -> str:
    """The checks as text for the terminal."""
    lines = []
    for each in found:
        lines.append(f"{each.status:<6} {each.check}: {each.detail}")
        if each.remedy:
            lines.append(f"{'':6} -> {each.remedy}")
    return "\n".join(lines)


def _launch_checks(found: Measurements) -> list[Check]:
    path = _loaded_mpi()
    return [
        checks.launch_check(found),
        checks.library_check(_library(), path, path.startswith(sys.prefix), "SLURM_JOB_ID" in os.environ),
        checks.cores_check(found),
        *checks.gpu_checks(found),
    ]


def _library() -> str:
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split())


def _loaded_mpi() -> str:
    """The file of the MPI library that this process has loaded; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ""
    paths = [parts[5] for line in lines if len(parts := line.split(maxsplit=5)) == 6]
    return next((path for path in paths if Path(path).name.startswith("libmpi")), "")


def _try_files(directory: Path) -> tuple[float, str]:
    """Write a growing file, read it meanwhile, sync it: how long that takes, and what went wrong."""
    begun_s = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as folder:
            path = Path(folder, schema.rank_file(0))
            with h5py.File(path, "x", libver=schema.FORMAT) as file:
                rows = file.create_dataset("rows", (0,), maxshape=(None,), dtype="f8", chunks=(1024,))
                file.swmr_mode = True
                rows.resize(1024, axis=0)
                rows[:] = np.arange(1024.0)
                file.flush()
                with h5py.File(path, swmr=True) as reader:
                    if reader["rows"][-1] != 1023:
                        return time.perf_counter() - begun_s, "a file that grows is not seen to grow"
            with path.open("rb") as written:
                os.fsync(written.fileno())
    except OSError as error:
        return time.perf_counter() - begun_s, schema.reason(error)
    return time.perf_counter() - begun_s, ""
