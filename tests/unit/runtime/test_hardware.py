"""What is said of the machine."""

import numpy as np

from hpc_dasgd.runtime import hardware


def test_it_names_processor_blas_and_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    found = hardware.describe_hardware()
    assert set(found) == {"cpu", "blas", "blas_threads"}
    assert all(found.values())
    assert found["blas_threads"] == "3"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert hardware.describe_hardware()["blas_threads"] == "2"


def test_a_numpy_that_says_nothing_of_its_blas(monkeypatch):
    monkeypatch.setattr(np, "show_config", lambda mode: {})
    assert hardware.describe_hardware()["blas"] == "unknown"
