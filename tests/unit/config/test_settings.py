"""Tests of settings: rules, defaults, keys, and the list of settings in the help."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from hpc_dasgd.config.help import settings_help
from hpc_dasgd.config.settings import Config, DataConfig, ExchangeConfig, OptimizerConfig, load_config
from tests.unit.config.tables import BUDGET, nested, refusal, value_of

HUGE = 10**400  # an integer that TOML can represent and a float cannot

NOT_TEXT = ["", " \t", 3, True, ["digits"], None]
NOT_POSITIVE_INTEGER = [0, -1, 2.0, True, "3", [3], None]
NOT_POSITIVE = [0, -0.5, math.inf, math.nan, HUGE, True, "0.1", [0.1]]
NOT_FRACTION = [1, 1.0, -0.1, math.nan, False, "0.9"]
BAD = {
    "name": [*NOT_TEXT, "runs/digits", ".", "..", "two\nlines", "a\0b"],
    "seed": [-1, 2**64, 1.0, True, "0", None],
    "data.path": NOT_TEXT,
    "data.batch_size": NOT_POSITIVE_INTEGER,
    "objective.kind": NOT_TEXT,
    "optimizer.kind": ["lbfgs", "SGD", "", 0, None, ["sgd"], np.array(["sgd", "adam"])],
    "optimizer.stepsize": [*NOT_POSITIVE, None, "best"],
    "optimizer.schedule": ["linear", 1],
    "optimizer.step_every": NOT_POSITIVE_INTEGER,
    "optimizer.step_factor": NOT_POSITIVE,
    "optimizer.momentum": NOT_FRACTION,
    "optimizer.beta1": NOT_FRACTION,
    "optimizer.beta2": NOT_FRACTION,
    "optimizer.epsilon": NOT_POSITIVE,
    "exchange.kind": ["write", "", 1],
    "exchange.topology": ["line", 4],
    "exchange.every": [*NOT_POSITIVE_INTEGER, "automatic"],
    "exchange.max_overhead": [0, 1, -0.1, math.nan, True, "0.1"],
    "exchange.fan_out": NOT_POSITIVE_INTEGER,
    "exchange.degree": NOT_POSITIVE_INTEGER,
    "exchange.mixing": ["mean", 0.5],
    "exchange.survive": [0, 1, "true", None],
    "exchange.device_windows": [0, 1, "true", None],
    "exchange.heartbeat_timeout_s": [*NOT_POSITIVE, None],
    "exchange.server_rank": [-1, 0.0, True, "0", None],
    "exchange.server_computes": [0, 1, "true", None],
    "exchange.consistency": ["strict", True],
    "exchange.reads_in_flight": NOT_POSITIVE_INTEGER,
    "budget.gradients": NOT_POSITIVE_INTEGER,
    "budget.seconds": NOT_POSITIVE,
    "budget.target_loss": ["low", True, math.nan, -math.inf, HUGE],
    "device.kind": ["tpu", 0],
    "device.dtype": ["float16", "double", 64],
    "device.tf32": [0, 1, "true", None],
    "log.versions": ["all", "every", "every 0", "every -1", "every 1.5", "every 2 3", "", 10, None],
    "log.evaluate_every_s": NOT_POSITIVE,
    "checkpoint.every_s": NOT_POSITIVE,
    "checkpoint.keep": [1, 0, -2, 2.0, True, "2", None],
    "straggler.ranks": [[-1], [0.0], [True], ["0"], 0, "0", None],
    "straggler.delay_ms": [-1, math.nan, math.inf, HUGE, "1", True],
    "straggler.distribution": ["normal", 1],
}

# The defaults that users rely on; None means that the setting is not set.
DEFAULTS = {
    "seed": 0,
    "data.path": None,
    "data.batch_size": 32,
    "objective.kind": "mlp",
    "optimizer.kind": "sgd",
    "optimizer.stepsize": 0.1,
    "optimizer.schedule": "constant",
    "exchange.kind": "read",
    "exchange.topology": "complete",
    "exchange.every": 1,
    "exchange.max_overhead": 0.1,
    "exchange.consistency": "snapshot",
    "budget.seconds": None,
    "budget.target_loss": None,
    "device.kind": "auto",
    "device.dtype": "float32",
    "device.tf32": False,
    "log.versions": "full",
    "log.evaluate_every_s": 5.0,
    "checkpoint.every_s": 60.0,
    "checkpoint.keep": 2,
    "straggler.ranks": (0,),
    "straggler.delay_ms": 0.0,
}


def all_keys():
    for entry in dataclasses.fields(Config):
        if dataclasses.is_dataclass(entry.default_factory):
            for inner in dataclasses.fields(entry.default_factory):
                yield f"{entry.name}.{inner.name}"
        else:
            yield entry.name


def test_bad_values_are_listed_for_every_setting():
    assert set(BAD) == set(all_keys()) - {"objective.options"}


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(k, v, id=f"{k}={str(v)[:20]!r}") for k, vs in BAD.items() for v in vs]
)
def test_a_bad_value_is_refused_with_its_key_and_value(key, value):
    message = refusal(nested(key, value))
    assert message.startswith(f"`{key}` must be ")
    assert message.endswith(f", got {value!r}")


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("optimizer.kind", ["sgd", "momentum", "adam"]),
        ("optimizer.schedule", ["constant", "cosine", "step", "staleness-adaptive"]),
        ("exchange.kind", ["read", "accumulate", "gossip", "server", "allreduce", "none"]),
        ("exchange.mixing", ["average", "push-sum"]),
        ("straggler.distribution", ["constant", "exponential"]),
        ("exchange.consistency", ["snapshot", "elementwise"]),
        ("device.kind", ["cpu", "gpu", "auto"]),
        ("device.dtype", ["float32", "float64"]),
        ("log.versions", ["full", "none", "every 10"]),
    ],
)
def test_choices_are_accepted_and_listed_when_another_value_is_refused(key, allowed):
    for choice in allowed:
        assert value_of(load_config(nested(key, choice)), key) == choice
    message = refusal(nested(key, "nonsense"))
    assert all(f'"{choice.split()[0]}' in message for choice in allowed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**64 - 1),
        ("optimizer.stepsize", 5e-324),
        ("optimizer.stepsize", 1),
        ("optimizer.momentum", 0),
        ("optimizer.beta1", 0.9999999999),
        ("budget.target_loss", -3),
        ("straggler.delay_ms", 0),
        ("exchange.every", 1),
        ("exchange.every", "auto"),
        ("exchange.server_rank", 0),
    ],
)
def test_values_at_the_edge_of_their_range_are_accepted(key, value):
    assert value_of(load_config(nested(key, value)), key) == value


@pytest.mark.parametrize(
    ("text", "every"),
    [("full", 1), ("none", 0), ("every 10", 10), (" full ", 1), ("every\t7", 7), ("none\n", 0)],
)
def test_versions_every_is_the_number_of_gradients_per_logged_vector(text, every):
    assert load_config(nested("log.versions", text)).log.versions_every == every


def test_defaults_are_those_of_the_documented_interface():
    config = load_config(BUDGET)
    assert {key: value_of(config, key) for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ({"sede": 1}, ["unknown key `sede`", "did you mean seed?", "name, seed, data", "straggler"]),
        (
            {"exchange": {"topolgy": "tree"}},
            ["`exchange.topolgy`", "did you mean topology?", "kind, topology, every"],
        ),
        ({"data": {"zzz": 1}}, ["unknown key `data.zzz`; one of: path, batch_size"]),
        ({"checkpoints": {"every_s": 1}}, ["unknown key `checkpoints`", "one of: name"]),
        ({"a\nb": 1}, ["unknown key `a b`"]),
        ({3: 1}, ["unknown key `3`"]),
        ({"device": {None: 1}}, ["unknown key `device.None`"]),
    ],
)
def test_an_unknown_key_is_refused_with_the_list_of_keys(source, parts):
    message = refusal(BUDGET | source)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("value", ["ring", 3, ["a"], None])
def test_a_section_that_is_not_a_table_is_refused(value):
    assert refusal(BUDGET | {"exchange": value}) == f"`exchange` must be a table, got {value!r}"


def test_a_path_object_is_accepted_for_a_string():
    assert load_config(BUDGET | {"data": {"path": Path("a/b.h5")}}).data.path == "a/b.h5"


@pytest.mark.parametrize("value", [None, [None], {"a": {1, 2}}, {1: 2}, np.zeros((2, 2)), object])
def test_an_option_of_an_objective_that_toml_cannot_hold_is_refused(value):
    message = refusal(BUDGET | {"objective": {"hidden": value}})
    assert message.startswith("`objective.hidden` must be a string, a number, a boolean, or a list or table")


def test_a_date_is_refused_as_an_option(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("budget.gradients = 1\n[objective]\nday = 2026-01-01\n")
    assert refusal(path).startswith("`objective.day` must be ")


def test_settings_are_frozen():
    config = load_config(BUDGET)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
    for entry in dataclasses.fields(config):
        section = getattr(config, entry.name)
        if dataclasses.is_dataclass(section):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(section, dataclasses.fields(section)[0].name, "x")


def test_a_config_object_is_checked_when_loaded():
    config = dataclasses.replace(load_config(BUDGET), optimizer=OptimizerConfig(stepsize=math.nan))
    assert refusal(config) == '`optimizer.stepsize` must be a positive number or "bound", got nan'
    config = dataclasses.replace(load_config(BUDGET), exchange=ExchangeConfig(every=0))
    assert refusal(config).startswith("`exchange.every` must be ")
    config = dataclasses.replace(load_config(BUDGET), data=DataConfig(path=Path("a.h5")))
    assert load_config(config).data.path == "a.h5"


def test_the_help_has_one_line_for_every_setting():
    lines = settings_help().splitlines()
    assert [line.split()[0] for line in lines] == [key for key in all_keys() if key != "objective.options"]
    assert all(line == line.rstrip() and len(line.split()) > 2 for line in lines)
