"""The registry: settings of an exchange are checked by its class, and every row of the table has an implementation."""

import importlib

import pytest

from hpc_dasgd.config.exchange_traits import all_traits
from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.exchange import registry


@pytest.mark.parametrize("traits", all_traits(), ids=[traits.kind for traits in all_traits()])
def test_every_exchange_of_the_table_can_be_imported_and_accepts_its_default_settings(traits):
    module, _, name = traits.implementation.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    registry.check_settings(ExchangeConfig(kind=traits.kind), n_ranks=2)


def test_settings_that_do_not_fit_the_number_of_ranks_are_refused():
    with pytest.raises(ConfigError, match=r"`exchange\.server_rank` must be below the number of ranks, 4, got 4"):
        registry.check_settings(ExchangeConfig(kind="server", server_rank=4), n_ranks=4)
    with pytest.raises(ConfigError, match=r"`exchange\.server_computes` must be true on a single rank, got false"):
        registry.check_settings(ExchangeConfig(kind="server", server_computes=False), n_ranks=1)
    with pytest.raises(ConfigError, match=r"`exchange\.kind` must be one of read, .*got 'telepathy'"):
        registry.check_settings(ExchangeConfig(kind="telepathy"), n_ranks=1)
