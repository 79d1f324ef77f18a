"""Which MPI and network this is, what one-sided calls cost on it, what to set.

mpiexec -n 2 hpc-dasgd doctor
"""

import os
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.doctor import checks
from hpc_dasgd.doctor.measurements import measure
from hpc_dasgd.runtime import launch_checks, mpi
from hpc_dasgd.runtime.launch_checks import Check
from hpc_dasgd.storage import layout


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
        *launch_checks.check_launch(found.survey),
        *checks.window_checks(found, mpi.library_version()),
        *([checks.disk_check(str(directory), *_try_files(directory))] if comm.rank == 0 else []),
    ]


def text(found: list[Check]) -> str:
    """The checks as text for the terminal."""
    lines = []
    for each in found:
        lines.append(f"{each.status:<6} {each.check}: {each.detail}")
        if each.remedy:
            lines.append(f"{'':6} -> {each.remedy}")
    return "\n".join(lines)


def _try_files(directory: Path) -> tuple[float, str]:
    """Write a growing file, read it meanwhile, sync it: how long that takes, and what went wrong."""
    begun_s = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as folder:
            path = Path(folder, layout.rank_file(0))
            with h5py.File(path, "x", libver=layout.FORMAT) as file:
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
        return time.perf_counter() - begun_s, layout.reason(error)
    return time.perf_counter() - begun_s, ""
