"""What a process computes with, as far as it decides on the last bits of a result."""

import os
import platform
from pathlib import Path

import numpy as np

_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


def describe_hardware() -> dict[str, str]:
    """Return ``cpu`` (its model), ``blas`` (NumPy's, with its version) and ``blas_threads`` (as the environment asks).

    A BLAS chooses its kernels by the processor and splits sums among its threads.
    """
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    asked = [os.environ[name] for name in _THREADS if os.environ.get(name)]
    return {
        "cpu": _cpu(),
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "blas_threads": asked[0] if asked else "all cores",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
