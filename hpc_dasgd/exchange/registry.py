"""From settings to an exchange: the only module that knows where the classes of exchanges are."""

from collections.abc import Callable
from importlib import import_module

from hpc_dasgd.config.exchange_traits import traits_of
from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.exchange.interface import Exchange, ExchangeSetup
from hpc_dasgd.exchange.mirrored import MirroredExchange


def make_exchange(setup: ExchangeSetup) -> Exchange:
    """Return the exchange that the settings name. Collective over ``setup.comm``.

    An exchange that works in host memory is mirrored on the device; see `MirroredExchange`.

    Raises
    ------
    ConfigError
        If no exchange of this kind is registered.
    """
    make = _implementation(setup.settings.kind)
    on_host = setup.device is None or setup.device.on_host
    if on_host or traits_of(setup.settings.kind).on_device:
        return make(setup)
    return MirroredExchange(setup, make)


def check_settings(settings: ExchangeConfig, n_ranks: int) -> None:
    """Check settings of an exchange against the number of ranks. Not collective.

    Raises
    ------
    ConfigError
        If no exchange of this kind is registered, or its settings cannot be used on this number of ranks.
    """
    implementation = _implementation(settings.kind)
    if isinstance(implementation, type) and issubclass(implementation, Exchange):
        implementation.check_settings(settings, n_ranks)


def _implementation(kind: str) -> Callable[[ExchangeSetup], Exchange]:
    """Import the class of an exchange, or the function that chooses one."""
    module, _, name = traits_of(kind).implementation.partition(":")
    implementation: Callable[[ExchangeSetup], Exchange] = getattr(import_module(module), name)
    return implementation
