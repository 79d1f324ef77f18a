"""Settings: each rule, each way of giving them, and what a wrong one is told."""

import dataclasses
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dasgd.config.settings import Config, DataConfig, ExchangeConfig, OptimizerConfig, load_config, settings_help
from hpc_dasgd.errors import ConfigError

BUDGET = {"budget": {"gradients": 100}}
HUGE = 10**400  # an integer that TOML can hold and no float

NO_TEXT = ["", " \t", 3, True, ["digits"], None]
NO_POSITIVE_INTEGER = [0, -1, 2.0, True, "3", [3], None]
NO_POSITIVE = [0, -0.5, math.inf, math.nan, HUGE, True, "0.1", [0.1]]
NO_FRACTION = [1, 1.0, -0.1, math.nan, False, "0.9"]
BAD = {
    "name": [*NO_TEXT, "runs/digits", ".", "..", "two\nlines", "a\0b"],
    "seed": [-1, 2**64, 1.0, True, "0", None],
    "data.path": NO_TEXT,
    "data.batch_size": NO_POSITIVE_INTEGER,
    "objective.kind": NO_TEXT,
    "optimizer.kind": ["lbfgs", "SGD", "", 0, None, ["sgd"], np.array(["sgd", "adam"])],
    "optimizer.stepsize": [*NO_POSITIVE, None, "best"],
    "optimizer.schedule": ["linear", 1],
    "optimizer.step_every": NO_POSITIVE_INTEGER,
    "optimizer.step_factor": NO_POSITIVE,
    "optimizer.momentum": NO_FRACTION,
    "optimizer.beta1": NO_FRACTION,
    "optimizer.beta2": NO_FRACTION,
    "optimizer.epsilon": NO_POSITIVE,
    "exchange.kind": ["write", "", 1],
    "exchange.topology": ["line", 4],
    "exchange.every": [*NO_POSITIVE_INTEGER, "automatic"],
    "exchange.max_overhead": [0, 1, -0.1, math.nan, True, "0.1"],
    "exchange.fan_out": NO_POSITIVE_INTEGER,
    "exchange.degree": NO_POSITIVE_INTEGER,
    "exchange.mixing": ["mean", 0.5],
    "exchange.survive": [0, 1, "true", None],
    "exchange.device_windows": [0, 1, "true", None],
    "exchange.heartbeat_timeout_s": [*NO_POSITIVE, None],
    "exchange.server_rank": [-1, 0.0, True, "0", None],
    "exchange.server_computes": [0, 1, "true", None],
    "exchange.consistency": ["strict", True],
    "exchange.reads_in_flight": NO_POSITIVE_INTEGER,
    "budget.gradients": NO_POSITIVE_INTEGER,
    "budget.seconds": NO_POSITIVE,
    "budget.target_loss": ["low", True, math.nan, -math.inf, HUGE],
    "device.kind": ["tpu", 0],
    "device.dtype": ["float16", "double", 64],
    "device.tf32": [0, 1, "true", None],
    "log.versions": ["all", "every", "every 0", "every -1", "every 1.5", "every 2 3", "", 10, None],
    "log.evaluate_every_s": NO_POSITIVE,
    "checkpoint.every_s": NO_POSITIVE,
    "checkpoint.keep": [1, 0, -2, 2.0, True, "2", None],
    "straggler.ranks": [[-1], [0.0], [True], ["0"], 0, "0", None],
    "straggler.delay_ms": [-1, math.nan, math.inf, HUGE, "1", True],
    "straggler.distribution": ["normal", 1],
}

# As interface.md prints them; None where it prints an example rather than a default.
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


def nested(key, value):
    """Settings with `key` set to `value`, and otherwise enough to load."""
    section, _, name = key.rpartition(".")
    table = {"budget": {"gradients": 100}}
    (table.setdefault(section, {}) if section else table)[name] = value
    return table


def looked_up(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def all_keys():
    for entry in dataclasses.fields(Config):
        if dataclasses.is_dataclass(entry.default_factory):
            for inner in dataclasses.fields(entry.default_factory):
                yield f"{entry.name}.{inner.name}"
        else:
            yield entry.name


def refusal(source, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert message and len(message.splitlines()) == 1
    return message


def test_every_setting_is_held_against_bad_values_here():
    assert set(BAD) == set(all_keys()) - {"objective.options"}


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(k, v, id=f"{k}={str(v)[:20]!r}") for k, vs in BAD.items() for v in vs]
)
def test_a_bad_value_is_refused_by_key_and_value(key, value):
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
def test_choices_are_accepted_and_listed_where_another_is_refused(key, allowed):
    for choice in allowed:
        assert looked_up(load_config(nested(key, choice)), key) == choice
    message = refusal(nested(key, "nonsense"))
    assert all(f'"{choice.split()[0]}' in message for choice in allowed)


USABLE = {
    "read": ["complete", "tree", "ring", "star"],
    "accumulate": ["complete"],
    "gossip": ["complete", "ring", "torus", "exponential", "random-regular"],
}


@pytest.mark.parametrize("topology", ["complete", "tree", "ring", "torus", "exponential", "random-regular", "star"])
@pytest.mark.parametrize("kind", ["read", "accumulate", "gossip", "server", "allreduce", "none"])
def test_an_exchange_refuses_a_topology_it_cannot_use(kind, topology):
    settings = BUDGET | {"exchange": {"kind": kind, "topology": topology}}
    if topology in USABLE.get(kind, [topology]):
        assert load_config(settings).exchange.topology == topology
    else:
        message = refusal(settings)
        assert message.startswith(f"`exchange.topology` must be one of {', '.join(USABLE[kind])} with ")
        assert message.endswith(f"`exchange.kind` {kind}, got {topology!r}")


@pytest.mark.parametrize("kind", ["gossip", "allreduce", "none"])
def test_a_staleness_adaptive_stepsize_needs_an_exchange_that_knows_it(kind):
    exchange = {"kind": kind, "topology": "ring" if kind == "gossip" else "complete"}
    message = refusal(BUDGET | {"exchange": exchange, "optimizer": {"schedule": "staleness-adaptive"}})
    rule = "must be one of read, accumulate, server with `optimizer.schedule` staleness-adaptive"
    assert message == f"`exchange.kind` {rule}, got {kind}"


@pytest.mark.parametrize(
    ("sections", "rule"),
    [
        ({"exchange": {"kind": "allreduce"}}, "`exchange.kind` must be one of read, accumulate, server"),
        ({"exchange": {"every": "auto"}}, "`exchange.every` must be a number"),
        ({"optimizer": {"kind": "adam"}}, "`optimizer.kind` must be sgd"),
        ({"optimizer": {"schedule": "cosine"}}, "`optimizer.schedule` must be constant or staleness-adaptive"),
        ({"budget": {"target_loss": 0.1}}, "`budget` must set gradients or seconds"),
    ],
)
def test_a_stepsize_from_theory_needs_what_theory_knows(sections, rule):
    sections = {"budget": {"seconds": 1}} | sections
    sections["optimizer"] = {"stepsize": "bound"} | sections.get("optimizer", {})
    assert refusal(sections).startswith(f'{rule} with `optimizer.stepsize` = "bound"')


@pytest.mark.parametrize("kind", ["accumulate", "gossip", "server", "allreduce", "none"])
@pytest.mark.parametrize("what", ["survive", "device_windows"])
def test_only_reads_survive_or_have_windows_on_a_device(kind, what):
    message = refusal(BUDGET | {"exchange": {"kind": kind, what: True}})
    assert message == f"`exchange.kind` must be read with `exchange.{what}` = true, got {kind}"


def test_who_has_windows_on_a_device_does_not_survive():
    message = refusal(BUDGET | {"exchange": {"survive": True, "device_windows": True}})
    assert message == "`exchange.survive` must be false with `exchange.device_windows` = true, got true"


@pytest.mark.parametrize("every", [2, "auto"])
def test_allreduce_refuses_steps_without_exchange(every):
    message = refusal(BUDGET | {"exchange": {"kind": "allreduce", "every": every}})
    assert message == f"`exchange.every` must be 1 with `exchange.kind` allreduce, got {every!r}"


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
    assert looked_up(load_config(nested(key, value)), key) == value


@pytest.mark.parametrize(
    ("text", "every"),
    [("full", 1), ("none", 0), ("every 10", 10), (" full ", 1), ("every\t7", 7), ("none\n", 0)],
)
def test_versions_every(text, every):
    assert load_config(nested("log.versions", text)).log.versions_every == every


def test_defaults_are_those_of_the_interface():
    config = load_config(BUDGET)
    assert {key: looked_up(config, key) for key in DEFAULTS} == DEFAULTS


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
def test_a_section_that_is_no_table_is_refused(value):
    assert refusal(BUDGET | {"exchange": value}) == f"`exchange` must be a table, got {value!r}"


def test_a_budget_is_needed_and_any_limit_will_do():
    message = refusal({})
    assert "`budget`" in message
    assert all(limit in message for limit in ("gradients", "seconds", "target_loss"))
    for limit in ("gradients", "seconds", "target_loss"):
        assert looked_up(load_config({"budget": {limit: 3}}), f"budget.{limit}") == 3


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("seed=7", "seed", 7),
        ("seed = 0x10 ", "seed", 16),
        ("optimizer.stepsize=1e-3", "optimizer.stepsize", 1e-3),
        ("exchange.kind=allreduce", "exchange.kind", "allreduce"),
        ('exchange.kind="allreduce"', "exchange.kind", "allreduce"),
        ("exchange.kind='allreduce'", "exchange.kind", "allreduce"),
        ("data.path=runs/a=b.h5", "data.path", "runs/a=b.h5"),
        ("data.path=/scratch/my data.h5", "data.path", "/scratch/my data.h5"),
        ("log.versions=every 10", "log.versions", "every 10"),
        ("straggler.ranks=[1, 2]", "straggler.ranks", (1, 2)),
        ("straggler.ranks=[]", "straggler.ranks", ()),
        ("objective.hidden=[64]", "objective.options", {"hidden": [64]}),
        ("objective.activation=tanh", "objective.options", {"activation": "tanh"}),
        ("objective.bias=false", "objective.options", {"bias": False}),
        ("objective.text=1\nname = 'x'", "objective.options", {"text": "1\nname = 'x'"}),
    ],
)
def test_an_override_is_read_as_toml_else_as_a_word(override, key, expected):
    value = looked_up(load_config(BUDGET, [override]), key)
    assert value == expected
    assert type(value) is type(expected)


def test_overrides_apply_in_order_over_the_file_and_leave_the_source_alone(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("seed = 1\n[budget]\ngradients = 5\n")
    config = load_config(path, ["seed=2", "budget.seconds=3", "seed=4"])
    assert (config.seed, config.budget.gradients, config.budget.seconds) == (4, 5, 3)
    source = {"budget": {"gradients": 5}}
    load_config(source, ["budget.gradients=6", "device.kind=cpu"])
    assert source == {"budget": {"gradients": 5}}


@pytest.mark.parametrize("override", ["seed", "", "=3", ".seed=3", "data.=3", "a.b.c=3", "objective..x=1", "se\ned"])
def test_a_malformed_override_is_refused(override):
    message = refusal(BUDGET, [override])
    assert message == f"--set must be KEY=VALUE or SECTION.KEY=VALUE, got {override!r}"


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("seed=", "`seed` must be "),
        ("seed=007", "`seed` must be "),
        ("seed=1\nname='x'", "`seed` must be "),
        ("seed=" + "9" * 5000, "`seed` must be "),
        ("name=3", "`name` must be "),
        ("exchange=ring", "`exchange` must be a table"),
        ("exchange.knd=read", "unknown key `exchange.knd`"),
        ("name.first=x", "`name` must be "),
    ],
)
def test_what_an_override_sets_is_checked_like_any_setting(override, start):
    assert refusal(BUDGET, [override]).startswith(start)


def test_an_override_of_a_section_that_is_no_table_is_refused():
    assert refusal(BUDGET | {"exchange": "ring"}, ["exchange.kind=read"]) == "`exchange` must be a table, got 'ring'"


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    missing = tmp_path / "missing.toml"
    assert refusal(missing) == f"cannot read settings file {missing}: No such file or directory"
    assert refusal(str(missing)) == refusal(missing)
    assert refusal(tmp_path) == f"cannot read settings file {tmp_path}: Is a directory"
    assert "missing.toml" in refusal(tmp_path / "two\nlines" / "missing.toml")


@pytest.mark.parametrize(
    "content",
    [
        b"seed 1",
        b"seed = 1\nseed = 2\n",
        b"[data\n",
        b"\xff\xfe",
        "name = 'ü'".encode("latin-1"),
        b"seed = " + b"9" * 5000,
    ],
    ids=["no equals sign", "twice", "open bracket", "UTF-16", "Latin-1", "endless integer"],
)
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"settings file {path} is not TOML: ")


def test_paths_are_accepted_where_text_is():
    assert load_config(BUDGET | {"data": {"path": Path("a/b.h5")}}).data.path == "a/b.h5"


@pytest.mark.parametrize("value", [None, [None], {"a": {1, 2}}, {1: 2}, np.zeros((2, 2)), object])
def test_an_option_of_an_objective_that_toml_cannot_hold_is_refused(value):
    message = refusal(BUDGET | {"objective": {"hidden": value}})
    assert message.startswith("`objective.hidden` must be a string, a number, a boolean, or a list or table")


def test_a_date_is_no_option(tmp_path):
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


def test_a_config_made_by_hand_is_checked_when_loaded():
    config = dataclasses.replace(load_config(BUDGET), optimizer=OptimizerConfig(stepsize=math.nan))
    assert refusal(config) == '`optimizer.stepsize` must be a positive number or "bound", got nan'
    config = dataclasses.replace(load_config(BUDGET), exchange=ExchangeConfig(every=0))
    assert refusal(config).startswith("`exchange.every` must be ")
    config = dataclasses.replace(load_config(BUDGET), data=DataConfig(path=Path("a.h5")))
    assert load_config(config).data.path == "a.h5"


TEXT = st.text(min_size=1, max_size=8)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False) | st.integers(1, 2**70)
FRACTION = st.floats(0, 1, exclude_max=True)
COUNT = st.integers(1, 2**40)
OPTIONS = st.recursive(
    TEXT | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SOURCES = st.fixed_dictionaries(
    {
        "budget": st.fixed_dictionaries(
            {"gradients": COUNT}, optional={"seconds": POSITIVE, "target_loss": st.floats(-9, 9)}
        )
    },
    optional={
        "name": TEXT.filter(
            lambda name: name.isprintable() and name.strip() and "/" not in name and name not in (".", "..")
        ),
        "seed": st.integers(0, 2**64 - 1),
        "data": st.fixed_dictionaries({}, optional={"path": TEXT.filter(str.strip), "batch_size": COUNT}),
        "objective": st.dictionaries(st.text(max_size=6).filter(lambda key: key != "kind"), OPTIONS, max_size=4),
        "optimizer": st.fixed_dictionaries(
            {},
            optional={"stepsize": POSITIVE, "momentum": FRACTION, "step_every": COUNT, "epsilon": POSITIVE},
        ),
        "log": st.fixed_dictionaries({"versions": COUNT.map("every {}".format)}),
        "straggler": st.fixed_dictionaries({"ranks": st.lists(COUNT, max_size=3), "delay_ms": POSITIVE}),
    },
)


@given(SOURCES)
def test_settings_survive_being_written_as_toml(source):
    config = load_config(source)
    assert looked_up(config, "objective.options") == source.get("objective", {})
    assert load_config(config) == config
    assert load_config(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e-300, 0.1, 1e16])
def test_floats_of_options_survive_being_written_as_toml(value):
    config = load_config(BUDGET | {"objective": {"scale": value}})
    assert tomllib.loads(config.to_toml())["objective"]["scale"] == value


@pytest.mark.parametrize("text", ["\x7f", '"', "\\", "a\nb", "\t", "\x00", "ü", "\u2028", "\U0001f642", "= [", ""])
def test_texts_of_options_survive_being_written_as_toml(text):
    config = load_config(BUDGET | {"objective": {text: text, "table": {text: [text]}}})
    written = tomllib.loads(config.to_toml())["objective"]
    assert (written[text], written["table"]) == (text, {text: [text]})


def test_a_toml_text_of_settings_reads_back_from_a_file(tmp_path):
    config = load_config(BUDGET, ["name=digits", "straggler.ranks=[0, 3]", "objective.hidden=[128, 128]"])
    path = tmp_path / "again.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(path) == config


def test_help_has_one_line_for_every_key():
    lines = settings_help().splitlines()
    assert [line.split()[0] for line in lines] == [key for key in all_keys() if key != "objective.options"]
    assert all(line == line.rstrip() and len(line.split()) > 2 for line in lines)
