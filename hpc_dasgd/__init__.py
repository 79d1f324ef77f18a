"""Decentralized asynchronous SGD by one-sided MPI reads.

Importing the package loads neither NumPy, MPI nor HDF5; a module is loaded when one of its names is used first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_dasgd import objectives
    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.config.settings import Config, load_config
    from hpc_dasgd.data.dataset import open_dataset
    from hpc_dasgd.errors import ConfigError, TrainingError, WindowError
    from hpc_dasgd.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ConfigError",
    "TrainingError",
    "WindowError",
    "__version__",
    "load_config",
    "objectives",
    "open_dataset",
    "open_run",
    "train",
]

_MODULES = {
    "Config": "hpc_dasgd.config.settings",
    "ConfigError": "hpc_dasgd.errors",
    "TrainingError": "hpc_dasgd.errors",
    "WindowError": "hpc_dasgd.errors",
    "load_config": "hpc_dasgd.config.settings",
    "open_dataset": "hpc_dasgd.data.dataset",
    "open_run": "hpc_dasgd.analysis.run",
    "train": "hpc_dasgd.training.loop",
}


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return import_module("hpc_dasgd.objectives")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
