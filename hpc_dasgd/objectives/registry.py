"""What is minimized: the objectives that ship, and the user's own.

`make` finds one by the setting ``objective.kind``; what each must offer stands in `interface.Objective`.
`from_torch` and `from_jax` make one of a model of another library, which is loaded when they are asked for.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module

from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset, open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.interface import Objective

_SHIPPED = {
    "quadratic": "hpc_dasgd.objectives.quadratic:Quadratic",
    "logistic": "hpc_dasgd.objectives.logistic:logistic",
    "softmax": "hpc_dasgd.objectives.softmax:softmax",
    "mlp": "hpc_dasgd.objectives.mlp:mlp",
    "cnn": "hpc_dasgd.objectives.cnn:cnn",
}
_WITHOUT_DATA = {"quadratic"}
_REQUIRED = ("initial", "loss_and_gradient")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def make(kind: str, options: Mapping, data) -> Objective:
    """Return the objective that the settings ask for; nothing is imported for any other.

    Parameters
    ----------
    kind : str
        The setting ``objective.kind``: a kind that ships, or ``"package.module:factory"``. The user's module
        is looked for in the current directory too, and its factory called as ``factory(data, **options)``.
    options : mapping
        The other settings of the table ``objective``.
    data : Dataset or None
        What to train on.

    Raises
    ------
    ConfigError
        If there is no such kind, it takes no such option or not that value, or `data` is not for it.
    """
    factory = _factory(kind)
    if data is None and kind in _SHIPPED and kind not in _WITHOUT_DATA:
        raise ConfigError(f'`data.path` must be set for `objective.kind` = "{kind}"')
    _check_names(factory, options)
    objective = factory(data, **options)
    missing = [name for name in _REQUIRED if not callable(getattr(objective, name, None))]
    if missing:
        raise ConfigError(f"`objective.kind` must make an object with {' and '.join(missing)}, got {kind!r}")
    return objective


def configured(config: Config) -> tuple[Objective, Dataset | None]:
    """Return the objective that the settings ask for, and the data set it is made for; raises as `make`."""
    data = None if config.data.path is None else open_dataset(config.data.path, config.device.dtype)
    return make(config.objective.kind, dict(config.objective.options), data), data


def describe() -> dict[str, str]:
    """Return, for each kind that ships, one line: what it is, and its options with their defaults, if any."""
    return {kind: _line(_load(path)) for kind, path in _SHIPPED.items()}


def _line(factory: Callable) -> str:
    summary = inspect.getdoc(factory).partition("\n")[0]
    return f"{summary} {', '.join(map(_with_default, _options(factory)))}"


def _with_default(option: inspect.Parameter) -> str:
    return option.name if option.default is None else f"{option.name} = {json.dumps(option.default)}"


def _options(factory: Callable) -> list[inspect.Parameter]:
    """Return the parameters of a factory after its first, which takes the data set."""
    return list(inspect.signature(factory).parameters.values())[1:]


def _check_names(factory: Callable, options: Mapping) -> None:
    takes = _options(factory)
    named = {option.name: option for option in takes if option.kind in _NAMED}
    takes_any = any(option.kind is option.VAR_KEYWORD for option in takes)
    for name in options:
        if name not in named and not takes_any:
            raise ConfigError(f"unknown key `objective.{name}`; one of: {', '.join(['kind', *named])}")
    for name, option in named.items():
        if option.default is option.empty and name not in options:
            raise ConfigError(f"`objective.{name}` must be set")


def _factory(kind: str) -> Callable:
    if kind in _SHIPPED:
        return _load(_SHIPPED[kind])
    module, _, name = kind.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        allowed = f'one of {", ".join(_SHIPPED)} or "package.module:factory"'
        raise ConfigError(f"`objective.kind` must be {allowed}, got {kind!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = _load(kind)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the user's module is there, but one that it imports is not
        raise ConfigError(f"`objective.kind` must name a module that can be imported, got {kind!r}") from None
    if not callable(factory):
        raise ConfigError(f"`objective.kind` must name a function or class of {module}, got {kind!r}")
    return factory


def _load(path: str):
    """Return what ``"package.module:name"`` means; None if the module has no such name."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name, None)
