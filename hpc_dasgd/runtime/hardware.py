"""The hardware and the libraries of this process that determine the last bits of a result."""

import os
import platform
from pathlib import Path

import numpy as np

_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


def describe_hardware() -> dict[str, str]:
    """Return the processor and the BLAS library of this process. Not collective.

    A BLAS library chooses its kernels by the processor, and splits sums among its threads.

    Returns
    -------
    description : dict
        ``cpu``, the model of the processor; ``blas``, name and version of NumPy's BLAS library; ``blas_threads``, the
        number of BLAS threads that the environment sets, or ``"all cores"``.
    """
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    n_threads = [os.environ[name] for name in _THREAD_VARIABLES if os.environ.get(name)]
    return {
        "cpu": _cpu_model(),
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "blas_threads": n_threads[0] if n_threads else "all cores",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
