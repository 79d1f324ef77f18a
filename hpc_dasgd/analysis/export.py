"""Export of parameters and other arrays to files that NumPy reads."""

import os
import zipfile
from collections.abc import Mapping

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.errors import ConfigError


def export_parameters(run: Run, path: str | os.PathLike[str]) -> None:
    """Write the parameters and the running statistics of a run as ``.npz``, one array per name.

    Parameters
    ----------
    run : Run
        If it is not complete, the parameters of its newest valid checkpoints are written.
    path : path
        The file to write. A missing suffix is not added.

    Raises
    ------
    ConfigError
        If the run has neither final parameters nor valid checkpoints, or the file cannot be written.
    """
    arrays = run.running_statistics | run.parameters()
    try:
        write_npz(path, arrays)
    except OSError as error:
        raise ConfigError(f"cannot write parameters to {path}: {error.strerror or error}") from None


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, AnyArray]) -> None:
    """Write arrays by name to `path`, in the format of `numpy.savez`; no suffix is added.

    `numpy.savez` would add a suffix to the file name, and it reserves names that a parameter may have, such as "file".

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
