"""Objectives: the functions that are minimized, those of the package and those of users.

Training, analysis and planning import it. A new objective of the package is a module here and an entry in `registry`;
`interface.Objective` describes what each must offer. `from_torch` and `from_jax` import PyTorch and JAX when they are
first used.
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
