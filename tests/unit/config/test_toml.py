"""Tests of settings as TOML: files, overrides of the command line, and output."""

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dasgd.config.settings import load_config
from tests.unit.config.tables import BUDGET, refusal, value_of


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
def test_an_override_is_read_as_toml_or_else_as_a_string(override, key, expected):
    value = value_of(load_config(BUDGET, [override]), key)
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
def test_a_value_from_an_override_is_checked_by_the_rule_of_its_setting(override, start):
    assert refusal(BUDGET, [override]).startswith(start)


def test_an_override_of_a_section_that_is_not_a_table_is_refused():
    assert refusal(BUDGET | {"exchange": "ring"}, ["exchange.kind=read"]) == "`exchange` must be a table, got 'ring'"


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path):
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
def test_a_file_that_is_not_toml_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"settings file {path} is not TOML: ")


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
def test_settings_are_equal_after_writing_and_reading_toml(source):
    config = load_config(source)
    assert value_of(config, "objective.options") == source.get("objective", {})
    assert load_config(config) == config
    assert load_config(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e-300, 0.1, 1e16])
def test_floats_of_options_are_equal_after_writing_and_reading_toml(value):
    config = load_config(BUDGET | {"objective": {"scale": value}})
    assert tomllib.loads(config.to_toml())["objective"]["scale"] == value


@pytest.mark.parametrize("text", ["\x7f", '"', "\\", "a\nb", "\t", "\x00", "ü", "\u2028", "\U0001f642", "= [", ""])
def test_strings_of_options_are_equal_after_writing_and_reading_toml(text):
    config = load_config(BUDGET | {"objective": {text: text, "table": {text: [text]}}})
    written = tomllib.loads(config.to_toml())["objective"]
    assert (written[text], written["table"]) == (text, {text: [text]})


def test_settings_written_to_a_toml_file_are_equal_after_loading(tmp_path):
    config = load_config(BUDGET, ["name=digits", "straggler.ranks=[0, 3]", "objective.hidden=[128, 128]"])
    path = tmp_path / "again.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(path) == config
