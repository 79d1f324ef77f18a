"""The description of the processor and the BLAS library."""

import numpy as np

from hpc_dasgd.runtime import hardware


def test_processor_blas_and_its_threads_are_described(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    description = hardware.describe_hardware()
    assert set(description) == {"cpu", "blas", "blas_threads"}
    assert all(description.values())
    assert description["blas_threads"] == "3"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert hardware.describe_hardware()["blas_threads"] == "2"


def test_blas_is_unknown_if_numpy_does_not_name_it(monkeypatch):
    monkeypatch.setattr(np, "show_config", lambda mode: {})
    assert hardware.describe_hardware()["blas"] == "unknown"
