"""What all tests need."""

import signal

import pytest

# Whoever starts the tests in the background may have it ignored, which the tests' own processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """Skip what is marked `gpu` where there is none, with the reason."""
    if item.get_closest_marker("gpu"):
        from hpc_dasgd.arrays import devices  # not before the ranks' environment is set, which NumPy reads

        if not (devices.n_device_files() and devices.gpus()):
            pytest.skip("no GPU here that CuPy can use")
