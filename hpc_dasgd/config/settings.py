"""Settings: frozen, validated, from TOML, with overrides.

A setting is a dataclass field whose metadata holds its rule; loading, the errors and the table in
``train --help`` are all made from these fields, so that a key stands in one place.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hpc_dasgd.config.exchange_traits import all_traits, kinds_with, traits_of
from hpc_dasgd.config.rules import (
    BOOLEAN,
    EXCHANGE_KIND,
    FILE_NAME,
    FRACTION,
    NOT_NEGATIVE,
    NUMBER,
    OPTION,
    POSITIVE,
    POSITIVE_INTEGER,
    RANK,
    RANKS,
    SEED,
    SEVERAL,
    SHARE,
    STEPS,
    STEPSIZE,
    TEXT,
    VERSIONS,
    Rule,
    one_of,
)
from hpc_dasgd.errors import ConfigError


def _setting(default, rule: Rule, text: str):
    return field(default=default, metadata={"rule": rule, "text": text})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str | None = _setting(
        None, TEXT, 'a data set file, or one that ships ("digits"); needed by all but quadratic'
    )
    batch_size: int = _setting(32, POSITIVE_INTEGER, "samples of one gradient")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """`kind` and whatever else stands in the table, which goes to the objective as keyword arguments."""

    kind: str = _setting("mlp", TEXT, 'quadratic, logistic, softmax, mlp, cnn or "package.module:factory"')
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    kind: str = _setting("sgd", one_of("sgd", "momentum", "adam"), "turns a gradient into an update")
    stepsize: float | str = _setting(0.1, STEPSIZE, 'learning rate; "bound": chosen before the run from theory')
    schedule: str = _setting(
        "constant",
        one_of("constant", "cosine", "step", "staleness-adaptive"),
        "stepsize against gradients of all ranks; staleness-adaptive: less for stale gradients",
    )
    step_every: int | None = _setting(None, POSITIVE_INTEGER, "step: gradients between drops (budget.gradients / 3)")
    step_factor: float = _setting(0.1, POSITIVE, "step: factor of a drop")
    momentum: float = _setting(0.9, FRACTION, "momentum: decay of the running sum")
    beta1: float = _setting(0.9, FRACTION, "adam: decay of the first moment")
    beta2: float = _setting(0.999, FRACTION, "adam: decay of the second moment")
    epsilon: float = _setting(1e-8, POSITIVE, "adam: added to the root of the second moment")


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    kind: str = _setting("read", EXCHANGE_KIND, "how updates travel, see below")
    topology: str = _setting(
        "complete",
        one_of("complete", "tree", "ring", "torus", "exponential", "random-regular", "star"),
        "who exchanges with whom",
    )
    every: int | str = _setting(1, STEPS, 'steps between exchanges; "auto" keeps their cost under max_overhead')
    max_overhead: float = _setting(0.1, SHARE, 'every = "auto": share of the step time that exchanges may take')
    consistency: str = _setting("snapshot", one_of("snapshot", "elementwise"), "read: what one read may mix")
    reads_in_flight: int = _setting(
        1, POSITIVE_INTEGER, "read: neighbours read at once; each costs one more copy in memory"
    )
    fan_out: int = _setting(2, POSITIVE_INTEGER, "tree: children of a rank on its node, and of a node")
    degree: int = _setting(4, POSITIVE_INTEGER, "random-regular: ranks that each rank reads")
    mixing: str = _setting("average", one_of("average", "push-sum"), "gossip: how replicas are mixed")
    survive: bool = _setting(False, BOOLEAN, "read: go on without ranks that died, where the launcher lets them")
    heartbeat_timeout_s: float = _setting(10.0, POSITIVE, "survive: a rank without a heartbeat for so long is dead")
    device_windows: bool = _setting(False, BOOLEAN, "read: windows in GPU memory, where the MPI takes such memory")
    server_rank: int = _setting(0, RANK, "server: the rank that holds the model")
    server_computes: bool = _setting(True, BOOLEAN, "server: whether that rank takes gradients too")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    gradients: int | None = _setting(None, POSITIVE_INTEGER, "of all ranks together")
    seconds: float | None = _setting(None, POSITIVE, "of training")
    target_loss: float | None = _setting(None, NUMBER, "on the evaluation set")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    kind: str = _setting(
        "auto", one_of("cpu", "gpu", "auto"), "where gradients are computed; auto: on a GPU where CuPy finds one"
    )
    dtype: str = _setting("float32", one_of("float32", "float64"), "of parameters and gradients")
    tf32: bool = _setting(False, BOOLEAN, "gpu: let matrix products of float32 round their factors to TF32")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    versions: str = _setting("full", VERSIONS, "which gradients' version vectors are written")
    evaluate_every_s: float = _setting(5.0, POSITIVE, "seconds between evaluations")

    @property
    def versions_every(self) -> int:
        """Gradients from one logged version vector to the next; 0 where none is logged."""
        words = self.versions.split()
        return int(words[1]) if words[0] == "every" else {"full": 1, "none": 0}[words[0]]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_s: float = _setting(60.0, POSITIVE, "seconds between checkpoints of a rank")
    keep: int = _setting(2, SEVERAL, "files of a rank that take turns")


@dataclass(frozen=True, kw_only=True)
class StragglerConfig:
    ranks: tuple[int, ...] = _setting((0,), RANKS, "ranks slowed down on purpose")
    delay_ms: float = _setting(0.0, NOT_NEGATIVE, "added to each of their steps")
    distribution: str = _setting(
        "constant", one_of("constant", "exponential"), "of the delay; exponential: delay_ms is its mean"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run. Made by `load_config`; see `settings_help` for the keys."""

    name: str = _setting("run", FILE_NAME, "names the run directory")
    seed: int = _setting(0, SEED, "of the initial parameters and of the sampling")
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    straggler: StragglerConfig = field(default_factory=StragglerConfig)

    def to_toml(self) -> str:
        """These settings as TOML text that `load_config` reads back to an equal `Config`."""
        table = _table(self)
        sections = {name: value for name, value in table.items() if isinstance(value, dict)}
        lines = _toml_lines({name: value for name, value in table.items() if name not in sections})
        for name, values in sections.items():
            lines += ["", f"[{name}]", *_toml_lines(values)]
        return "\n".join(lines) + "\n"


def load_config(source: "Config | Mapping | str | os.PathLike", overrides: Iterable[str] = ()) -> Config:
    """Read and validate settings.

    Parameters
    ----------
    source : Config, mapping, or path of a TOML file
    overrides : iterable of str
        ``section.key=value`` each, applied in order; the value is read as TOML, else taken as a string.

    Raises
    ------
    ConfigError
        A file that cannot be read, an unknown key, a wrong type or a value out of range; the message
        names it.
    """
    if isinstance(source, Config):
        table = _table(source)
    elif isinstance(source, Mapping):
        table = {key: dict(value) if isinstance(value, Mapping) else value for key, value in source.items()}
    else:
        table = _read_toml(Path(source))
    for override in overrides:
        _override(table, override)
    config = _build(Config, table, prefix="")
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """Hold settings against each other."""
    if all(getattr(config.budget, limit.name) is None for limit in fields(BudgetConfig)):
        raise ConfigError("`budget` must set at least one of gradients, seconds, target_loss")
    _check_exchange(config.exchange)
    schedule = config.optimizer.schedule
    if schedule == "staleness-adaptive":
        _require_kind(config.exchange, "whole_updates", f"with `optimizer.schedule` {schedule}")
    if config.optimizer.stepsize == "bound":
        _check_bound(config)


def _check_exchange(exchange: ExchangeConfig) -> None:
    """Check the settings of the exchange against what its kind can do."""
    traits = traits_of(exchange.kind)
    if traits.topologies and exchange.topology not in traits.topologies:
        raise ConfigError(
            f"`exchange.topology` must be one of {', '.join(traits.topologies)} with `exchange.kind` {exchange.kind}, "
            f"got {exchange.topology!r}"
        )
    if exchange.device_windows:
        _require_kind(exchange, "device_windows", "with `exchange.device_windows` = true")
        if exchange.survive:
            raise ConfigError("`exchange.survive` must be false with `exchange.device_windows` = true, got true")
    if exchange.survive:
        _require_kind(exchange, "survives_deaths", "with `exchange.survive` = true")
    if traits.synchronous and exchange.every != 1:
        raise ConfigError(f"`exchange.every` must be 1 with `exchange.kind` {exchange.kind}, got {exchange.every!r}")


def _require_kind(exchange: ExchangeConfig, trait: str, condition: str) -> None:
    """Raise `ConfigError` if the exchange lacks a trait that another setting needs."""
    if not getattr(traits_of(exchange.kind), trait):
        kinds = kinds_with(trait)
        rule = kinds[0] if len(kinds) == 1 else f"one of {', '.join(kinds)}"
        raise ConfigError(f"`exchange.kind` must be {rule} {condition}, got {exchange.kind}")


def _check_bound(config: Config) -> None:
    """Raise `ConfigError` for settings that the convergence bounds do not cover."""
    optimizer = config.optimizer
    condition = 'with `optimizer.stepsize` = "bound"'
    _require_kind(config.exchange, "whole_updates", condition)
    if config.exchange.every == "auto":
        raise ConfigError(f"`exchange.every` must be a number {condition}, got 'auto'")
    if optimizer.kind != "sgd":
        raise ConfigError(f"`optimizer.kind` must be sgd {condition}, got {optimizer.kind}")
    if optimizer.schedule not in ("constant", "staleness-adaptive"):
        rule = "must be constant or staleness-adaptive"
        raise ConfigError(f"`optimizer.schedule` {rule} {condition}, got {optimizer.schedule}")
    if config.budget.gradients is None and config.budget.seconds is None:
        raise ConfigError(f"`budget` must set gradients or seconds {condition}")


def exchanges_help() -> str:
    """Return one line per exchange: kind, what a rank does, what it transfers, and the topologies it can use."""
    lines = []
    for traits in all_traits():
        topologies = f" (topology: {', '.join(traits.topologies)})" if traits.chooses_topology else ""
        lines.append(f"  {traits.kind}: {traits.summary}; transfers per exchange: {traits.traffic}{topologies}")
    return "\n".join(lines)


def settings_help() -> str:
    """One line per setting: key, default, meaning."""
    lines = []
    for key, setting in _settings(Config):
        default = "" if setting.default is None else json.dumps(setting.default)
        lines.append(f"  {key:<26} {default:<12} {setting.metadata['text']}".rstrip())
    return "\n".join(lines)


def _settings(section, prefix=""):
    for entry in fields(section):
        if "rule" in entry.metadata:
            yield prefix + entry.name, entry
        elif is_dataclass(entry.default_factory):
            yield from _settings(entry.default_factory, entry.name + ".")


def _read_toml(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings file {path}: {error.strerror}") from None
    except ValueError as error:  # of the encoding, of the syntax, or an integer of thousands of digits
        raise ConfigError(f"settings file {path} is not TOML: {error}") from None


def _override(table: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not separator or not name or "" in sections or len(sections) > 1:
        raise ConfigError(f"--set must be KEY=VALUE or SECTION.KEY=VALUE, got {override!r}")
    value = _override_value(text)
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"`{section}` must be a table, got {table!r}")
    table[name] = value


def _override_value(text: str):
    try:
        table = tomllib.loads(f"value = {text}")
    except ValueError:
        return text.strip()
    # A text of several lines may go on with keys of its own, and then is no value.
    return table["value"] if len(table) == 1 else text.strip()


def _table(section) -> dict:
    """The settings of a dataclass as `_build` takes them, without those that are not set."""
    pairs = {entry.name: getattr(section, entry.name) for entry in fields(section)}
    pairs |= pairs.pop("options", {})
    return {name: _table(value) if is_dataclass(value) else value for name, value in pairs.items() if value is not None}


def _build(section, table: Mapping, prefix: str):
    """Make the dataclass `section` from `table`, checking every key by the rule of its field."""
    known = {entry.name: entry for entry in fields(section)}
    takes_options = known.pop("options", None) is not None
    values: dict[str, Any] = {"options": {}} if takes_options else {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        entry = known.get(name)
        if entry is None and takes_options:
            values["options"][name] = OPTION.check(key, value)
        elif entry is None:
            raise ConfigError(_unknown(key, name, known))
        elif "rule" in entry.metadata:
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            value = entry.metadata["rule"].check(key, value)
            values[name] = tuple(value) if isinstance(value, list) else value
        elif isinstance(value, Mapping):
            values[name] = _build(entry.default_factory, value, key + ".")
        else:
            raise ConfigError(f"`{key}` must be a table, got {value!r}")
    return section(**values)


def _unknown(key: str, name: str, known: Mapping) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown key `{key}`{hint}; one of: {', '.join(known)}"


def _toml_lines(table: Mapping) -> list[str]:
    return [f"{_toml_key(name)} = {_toml_value(value)}" for name, value in table.items()]


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_value(name)


def _toml_value(value) -> str:
    if isinstance(value, Mapping):  # an option of an objective may be a table
        return "{" + ", ".join(_toml_lines(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return float.__repr__(value)  # JSON would write Infinity and NaN
    # JSON's strings, integers and booleans are TOML's, but for a control character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
