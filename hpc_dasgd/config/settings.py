"""Definition of all settings of a run, with their defaults, rules and help texts.

A setting is a dataclass field made by `sections.setting`. Loading, error messages and the list in ``train --help`` are
made from these fields, so that each setting is defined in one place.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_dasgd.config.consistency import check_consistency
from hpc_dasgd.config.rules import (
    AT_LEAST_TWO,
    BOOLEAN,
    EXCHANGE_KIND,
    FILE_NAME,
    FRACTION,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    POSITIVE_INTEGER,
    RANK,
    RANKS,
    SEED,
    SHARE,
    STEPS,
    STEPSIZE,
    TEXT,
    VERSIONS,
    one_of,
)
from hpc_dasgd.config.sections import build, setting, table_of
from hpc_dasgd.config.toml import apply_override, read_toml, toml_text


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Section ``[data]``: what to train on. Each field is one setting; its help text is its description."""

    path: str | None = setting(
        None,
        TEXT,
        'data set file, or the name of an included one ("digits"); every built-in objective but quadratic needs it',
    )
    batch_size: int = setting(32, POSITIVE_INTEGER, "number of examples per gradient")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Section ``[objective]``: what to minimize.

    Attributes
    ----------
    kind : str
    options : mapping
        All other keys of the section, which are passed to the objective as keyword arguments.
    """

    kind: str = setting("mlp", TEXT, 'quadratic, logistic, softmax, mlp, cnn or "package.module:factory"')
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Section ``[optimizer]``: how a gradient becomes an update."""

    kind: str = setting("sgd", one_of("sgd", "momentum", "adam"), "rule by which a gradient becomes an update")
    stepsize: float | str = setting(
        0.1, STEPSIZE, 'learning rate; "bound": chosen before training from the convergence bounds'
    )
    schedule: str = setting(
        "constant",
        one_of("constant", "cosine", "step", "staleness-adaptive"),
        "how the stepsize changes with the number of gradients of all ranks; staleness-adaptive: smaller for stale "
        "gradients",
    )
    step_every: int | None = setting(
        None, POSITIVE_INTEGER, "schedule step: gradients between reductions (default: budget.gradients / 3)"
    )
    step_factor: float = setting(0.1, POSITIVE, "schedule step: factor of the stepsize at each reduction")
    momentum: float = setting(0.9, FRACTION, "momentum: decay factor of the running sum of gradients")
    beta1: float = setting(0.9, FRACTION, "adam: decay factor of the first moment")
    beta2: float = setting(0.999, FRACTION, "adam: decay factor of the second moment")
    epsilon: float = setting(1e-8, POSITIVE, "adam: constant added to the square root of the second moment")


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """Section ``[exchange]``: how ranks exchange updates; `exchange_traits` lists the settings of each kind."""

    kind: str = setting("read", EXCHANGE_KIND, "how ranks exchange updates, see the list of exchanges below")
    topology: str = setting(
        "complete",
        one_of("complete", "tree", "ring", "torus", "exponential", "random-regular", "star"),
        "overlay: which ranks are neighbours",
    )
    every: int | str = setting(
        1, STEPS, 'number of steps between exchanges; "auto": chosen so that exchanges cost at most max_overhead'
    )
    max_overhead: float = setting(
        0.1, SHARE, 'every = "auto": largest fraction of the step time that exchanges may take'
    )
    consistency: str = setting(
        "snapshot",
        one_of("snapshot", "elementwise"),
        "read: snapshot: a read returns one publication; elementwise: it may mix elements of successive ones",
    )
    reads_in_flight: int = setting(
        1, POSITIVE_INTEGER, "read: number of neighbours read at the same time; each needs memory for one more model"
    )
    fan_out: int = setting(2, POSITIVE_INTEGER, "tree: number of children of a rank within its node, and of a node")
    degree: int = setting(4, POSITIVE_INTEGER, "random-regular: number of neighbours of each rank")
    mixing: str = setting("average", one_of("average", "push-sum"), "gossip: how replicas are averaged")
    survive: bool = setting(
        False, BOOLEAN, "read: continue without ranks that died, if the launcher does not end the job"
    )
    heartbeat_timeout_s: float = setting(
        10.0, POSITIVE, "survive: seconds without a heartbeat after which a rank counts as dead"
    )
    device_windows: bool = setting(False, BOOLEAN, "read: put windows into GPU memory, if the MPI library supports it")
    server_rank: int = setting(0, RANK, "server: the rank that holds the model")
    server_computes: bool = setting(True, BOOLEAN, "server: whether that rank computes gradients too")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Section ``[budget]``: when to stop. The limit that is reached first ends the run; None means no limit."""

    gradients: int | None = setting(None, POSITIVE_INTEGER, "number of gradients of all ranks together")
    seconds: float | None = setting(None, POSITIVE, "training time in seconds")
    target_loss: float | None = setting(None, NUMBER, "loss on the evaluation set at which the run ends")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Section ``[device]``: where and in which precision gradients are computed."""

    kind: str = setting(
        "auto", one_of("cpu", "gpu", "auto"), "where gradients are computed; auto: on a GPU if CuPy finds one"
    )
    dtype: str = setting("float32", one_of("float32", "float64"), "dtype of parameters and gradients")
    tf32: bool = setting(False, BOOLEAN, "gpu: allow matrix products of float32 arrays in TF32 precision")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Section ``[log]``: what is recorded while training."""

    versions: str = setting(
        "full", VERSIONS, 'which gradients are logged with their version vector: full, "every N" or none'
    )
    evaluate_every_s: float = setting(5.0, POSITIVE, "seconds between evaluations")

    @property
    def versions_every(self) -> int:
        """Number of gradients per logged version vector; 0 if none is logged."""
        words = self.versions.split()
        return int(words[1]) if words[0] == "every" else {"full": 1, "none": 0}[words[0]]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Section ``[checkpoint]``: how often ranks save their state, and how many files each keeps."""

    every_s: float = setting(60.0, POSITIVE, "seconds between checkpoints of a rank")
    keep: int = setting(2, AT_LEAST_TWO, "number of checkpoint files that each rank keeps, overwriting the oldest")


@dataclass(frozen=True, kw_only=True)
class StragglerConfig:
    """Section ``[straggler]``: ranks that are slowed down on purpose, for experiments."""

    ranks: tuple[int, ...] = setting((0,), RANKS, "ranks that are slowed down on purpose")
    delay_ms: float = setting(0.0, NOT_NEGATIVE, "milliseconds added to each step of these ranks")
    distribution: str = setting(
        "constant",
        one_of("constant", "exponential"),
        "distribution of the delay; exponential: random with mean delay_ms",
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run. Made by `load_config`; ``train --help`` lists the keys.

    Examples
    --------
    >>> config = load_config({"budget": {"gradients": 1000}}, ["exchange.topology=tree"])
    >>> config.exchange.topology, config.budget.gradients
    ('tree', 1000)
    """

    name: str = setting("run", FILE_NAME, "name of the run, with which its default directory begins")
    seed: int = setting(0, SEED, "seed of the initial parameters and of the sampling of examples")
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
        """Return the settings as TOML text from which `load_config` makes an equal `Config`."""
        return toml_text(table_of(self))


def load_config(source: Config | Mapping[str, Any] | str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """Read and validate settings. Not collective.

    Parameters
    ----------
    source : Config, mapping, or path of a TOML file
    overrides : iterable of str
        ``key=value`` or ``section.key=value`` each, applied in order. A value is read as TOML if it is TOML, else as
        a string.

    Raises
    ------
    ConfigError
        If the file cannot be read, a key is unknown, or a value has the wrong type or is out of range; the message
        names the file or the key.
    """
    if isinstance(source, Config):
        table = table_of(source)
    elif isinstance(source, Mapping):
        table = {key: dict(value) if isinstance(value, Mapping) else value for key, value in source.items()}
    else:
        table = read_toml(Path(source))
    for override in overrides:
        apply_override(table, override)
    config = build(Config, table)
    check_consistency(config)
    return config
