"""Table of the objectives of the package, and the construction of objectives from settings."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset, open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.interface import Objective

_Factory = Callable[..., Objective]

_SHIPPED = {
    "quadratic": "hpc_dasgd.objectives.quadratic:Quadratic",
    "logistic": "hpc_dasgd.objectives.logistic:logistic",
    "softmax": "hpc_dasgd.objectives.softmax:softmax",
    "mlp": "hpc_dasgd.objectives.mlp:mlp",
    "cnn": "hpc_dasgd.objectives.cnn:cnn",
}
_WITHOUT_DATA = {"quadratic"}
_REQUIRED_METHODS = ("initial", "loss_and_gradient")
_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def make(kind: str, options: Mapping[str, Any], data: Dataset | None) -> Objective:
    """Return a new objective; only its own module is imported.

    Parameters
    ----------
    kind : str
        The setting ``objective.kind``: a kind of the package, or ``"package.module:factory"``. The module is searched
        in the current directory too, and the factory is called as ``factory(data, **options)``.
    options : mapping
        The other settings of the section ``[objective]``.
    data : Dataset or None
        The data set to train on, if any.

    Raises
    ------
    ConfigError
        If `kind` is unknown, has no such option or does not allow its value, or cannot be used with `data`.

    Examples
    --------
    >>> make("quadratic", {"dimension": 3}, None).initial(None)
    array([1., 1., 1.])
    """
    factory = _factory(kind)
    if data is None and kind in _SHIPPED and kind not in _WITHOUT_DATA:
        raise ConfigError(f'`data.path` must be set for `objective.kind` = "{kind}"')
    _check_names(factory, options)
    objective = factory(data, **options)
    missing = [name for name in _REQUIRED_METHODS if not callable(getattr(objective, name, None))]
    if missing:
        raise ConfigError(f"`objective.kind` must make an object with {' and '.join(missing)}, got {kind!r}")
    return objective


def configured(config: Config) -> tuple[Objective, Dataset | None]:
    """Return the objective that the settings describe, and its data set.

    Raises the errors of `make` and `open_dataset`.
    """
    data = None if config.data.path is None else open_dataset(config.data.path, config.device.dtype)
    return make(config.objective.kind, dict(config.objective.options), data), data


def describe() -> dict[str, str]:
    """Return one line for each kind of the package: a summary, and the options with their default values."""
    return {kind: _line(_load(path)) for kind, path in _SHIPPED.items()}


def _line(factory: _Factory) -> str:
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    return f"{summary} {', '.join(map(_with_default, _options(factory)))}"


def _with_default(option: inspect.Parameter) -> str:
    return option.name if option.default is None else f"{option.name} = {json.dumps(option.default)}"


def _options(factory: _Factory) -> list[inspect.Parameter]:
    """Return the parameters of a factory except the first, which is the data set."""
    return list(inspect.signature(factory).parameters.values())[1:]


def _check_names(factory: _Factory, options: Mapping[str, Any]) -> None:
    parameters = _options(factory)
    named = {option.name: option for option in parameters if option.kind in _NAMED_KINDS}
    accepts_any = any(option.kind is option.VAR_KEYWORD for option in parameters)
    for name in options:
        if name not in named and not accepts_any:
            raise ConfigError(f"unknown key `objective.{name}`; one of: {', '.join(['kind', *named])}")
    for name, option in named.items():
        if option.default is option.empty and name not in options:
            raise ConfigError(f"`objective.{name}` must be set")


def _factory(kind: str) -> _Factory:
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
            raise  # the user's module exists, but a module that it imports does not
        raise ConfigError(f"`objective.kind` must name a module that can be imported, got {kind!r}") from None
    if not callable(factory):
        raise ConfigError(f"`objective.kind` must name a function or class of {module}, got {kind!r}")
    return factory


def _load(path: str) -> Any:
    """Return the object ``"package.module:name"``; None if the module has no such name."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name, None)
