"""All checks of the command ``doctor``, and their text.

Example::

    mpiexec -n 2 hpc-dasgd doctor
"""

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from hpc_dasgd.doctor import checks
from hpc_dasgd.doctor.measurements import measure
from hpc_dasgd.runtime import launch_checks, mpi
from hpc_dasgd.runtime.launch_checks import Check
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.hdf5_io import error_reason

if TYPE_CHECKING:
    from mpi4py import MPI


def examine(comm: "MPI.Intracomm", directory: Path) -> list[Check]:
    """Run the measurements and return all checks. Collective over `comm`; takes some seconds.

    Parameters
    ----------
    comm : MPI.Intracomm
    directory : Path
        Directory in which run files would be written.

    Returns
    -------
    checks : list of Check
        Checks of the launch on every rank; those of the network and of files on rank 0 only.
    """
    measured = measure(comm)
    return [
        *launch_checks.check_launch(measured.survey),
        *checks.window_checks(measured, mpi.library_version()),
        *([checks.disk_check(str(directory), *_try_files(directory))] if comm.rank == 0 else []),
    ]


def text(found: Iterable[Check]) -> str:
    """Return checks as text for the terminal: status, name and detail, and the remedy on a line of its own.

    Examples
    --------
    >>> print(text([Check("files", "ok", "/scratch"), Check("cores", "slow", "4 ranks on 2 cores", "start fewer")]))
    ok     files: /scratch
    slow   cores: 4 ranks on 2 cores
           -> start fewer
    """
    lines = []
    for each in found:
        lines.append(f"{each.status:<6} {each.check}: {each.detail}")
        if each.remedy:
            lines.append(f"{'':6} -> {each.remedy}")
    return "\n".join(lines)


def _try_files(directory: Path) -> tuple[float, str]:
    """Write a growing file, read it at the same time, and sync it.

    Returns
    -------
    seconds : float, s
        Time that this took.
    error : str
        Why it failed; empty if it succeeded.
    """
    begun_s = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as folder:
            path = Path(folder, layout.rank_file(0))
            with h5py.File(path, "x", libver=layout.LIBVER) as file:
                rows = file.create_dataset("rows", (0,), maxshape=(None,), dtype="f8", chunks=(1024,))
                file.swmr_mode = True
                rows.resize(1024, axis=0)
                rows[:] = np.arange(1024.0)
                file.flush()
                with h5py.File(path, swmr=True) as reader:
                    if reader["rows"][-1] != 1023:
                        return (
                            time.perf_counter() - begun_s,
                            "rows written to a growing file are not visible to readers",
                        )
            with path.open("rb") as written:
                os.fsync(written.fileno())
    except OSError as error:
        return time.perf_counter() - begun_s, error_reason(error)
    return time.perf_counter() - begun_s, ""
