"""Settings for the tests of this room: tables that can be loaded, and the message of those that cannot."""

import pytest

from hpc_dasgd.config.settings import load_config
from hpc_dasgd.errors import ConfigError

BUDGET = {"budget": {"gradients": 100}}


def nested(key, value):
    """Return settings that can be loaded, with `key` set to `value`."""
    section, _, name = key.rpartition(".")
    table = {"budget": {"gradients": 100}}
    (table.setdefault(section, {}) if section else table)[name] = value
    return table


def value_of(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def refusal(source, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert message and len(message.splitlines()) == 1
    return message
