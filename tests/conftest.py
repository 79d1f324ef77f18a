"""What all tests need."""

import signal

import pytest

# Whoever starts the tests in the background may have it ignored, which the tests' own processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """Skip what is marked `gpu` where there is none, with the reason."""
    if item.get_closest_marker("gpu"):
        from hpc_dasgd.arrays import device  # not before the ranks' environment is set, which NumPy reads

        if not (device.n_device_files() and device.gpus()):
            pytest.skip("no GPU here that CuPy can use")
