"""Rules that join several settings: checked after each setting has been checked by its own rule."""

from dataclasses import fields
from typing import TYPE_CHECKING

from hpc_dasgd.config.exchange_traits import kinds_with, traits_of
from hpc_dasgd.errors import ConfigError

if TYPE_CHECKING:
    from hpc_dasgd.config.settings import Config, ExchangeConfig


def check_consistency(config: "Config") -> None:
    """Raise `ConfigError` if settings contradict each other."""
    if all(getattr(config.budget, limit.name) is None for limit in fields(config.budget)):
        raise ConfigError("`budget` must set at least one of gradients, seconds, target_loss")
    _check_exchange(config.exchange)
    schedule = config.optimizer.schedule
    if schedule == "staleness-adaptive":
        _require_kind(config.exchange, "whole_updates", f"with `optimizer.schedule` {schedule}")
    if config.optimizer.stepsize == "bound":
        _check_bound(config)


def _check_exchange(exchange: "ExchangeConfig") -> None:
    """Raise `ConfigError` for settings that the kind of exchange does not support."""
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


def _require_kind(exchange: "ExchangeConfig", trait: str, condition: str) -> None:
    """Raise `ConfigError` if the exchange lacks a trait that another setting needs."""
    if not getattr(traits_of(exchange.kind), trait):
        kinds = kinds_with(trait)
        rule = kinds[0] if len(kinds) == 1 else f"one of {', '.join(kinds)}"
        raise ConfigError(f"`exchange.kind` must be {rule} {condition}, got {exchange.kind}")


def _check_bound(config: "Config") -> None:
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
