"""Selecting the exchange for the setting ``exchange.mixing``."""

from hpc_dasgd.exchange.gossip.average import AverageExchange
from hpc_dasgd.exchange.gossip.mixing import MixingExchange
from hpc_dasgd.exchange.gossip.push_sum import PushSumExchange
from hpc_dasgd.exchange.interface import ExchangeSetup

MIXINGS: dict[str, type[AverageExchange] | type[PushSumExchange]] = {
    "average": AverageExchange,
    "push-sum": PushSumExchange,
}
"""Class of the exchange for each value of ``exchange.mixing``."""


def make_gossip(setup: ExchangeSetup) -> MixingExchange:
    """Return the exchange for ``setup.settings.mixing``. Collective over ``setup.comm``."""
    return MIXINGS[setup.settings.mixing](setup)
