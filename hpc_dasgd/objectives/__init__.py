"""Objectives: the functions that are minimized, those that ship and the user's own.

Training, analysis and planning import it. A new objective that ships is a module here and a line in `registry`; what
each must offer is described in `interface.Objective`. `from_torch` and `from_jax` load their library when they are
asked for.
"""

from importlib import import_module

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.objectives.registry import configured, describe, make

__all__ = ["Objective", "configured", "describe", "from_jax", "from_torch", "make"]

_FRAMEWORKS = {"from_torch": ("torch_module", "torch"), "from_jax": ("jax_function", "jax")}


def __getattr__(name: str) -> object:
    if name not in _FRAMEWORKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, package = _FRAMEWORKS[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(
            f"`{name}` needs the package {package}, which is not installed: pip install {package}"
        ) from None
