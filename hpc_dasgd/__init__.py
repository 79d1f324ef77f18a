"""Decentralized asynchronous SGD by one-sided MPI reads.

Importing the package starts neither MPI nor HDF5; what is asked for is loaded then.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "train": "hpc_dasgd.training.loop",
    "Config": "hpc_dasgd.config.settings",
    "load_config": "hpc_dasgd.config.settings",
    "open_dataset": "hpc_dasgd.data.dataset",
    "open_run": "hpc_dasgd.analysis.run",
    "ConfigError": "hpc_dasgd.errors",
    "TrainingError": "hpc_dasgd.errors",
    "WindowError": "hpc_dasgd.errors",
}

__all__ = ["__version__", "objectives", *_HOME]


def __getattr__(name):
    if name == "objectives":
        return import_module("hpc_dasgd.objectives")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
