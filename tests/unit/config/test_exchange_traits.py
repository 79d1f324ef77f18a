"""Tests of the table of exchanges: each record is consistent with the package, and no module bypasses the table."""

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

import hpc_dasgd
from hpc_dasgd.config import exchange_traits
from hpc_dasgd.config.exchange_traits import (
    Remark,
    all_traits,
    kinds_with,
    register,
    traits_in,
    traits_of,
    unregister,
)
from hpc_dasgd.config.help import exchanges_help, settings_help
from hpc_dasgd.config.settings import ExchangeConfig, load_config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.overlay import topology

PACKAGE = Path(hpc_dasgd.__file__).parent
ABILITIES = [
    *("whole_updates", "replayable", "plannable", "gives_times", "survives_deaths", "on_device", "device_windows"),
    *("synchronous", "topologies", "idle_unless", "remarks"),
]
TOY = replace(traits_of("none"), kind="toy", summary="does nothing useful", topologies=("ring", "star"), remarks=())
each_exchange = pytest.mark.parametrize("traits", all_traits(), ids=lambda traits: traits.kind)


@pytest.fixture
def toy():
    """The record of an exchange that does not ship, registered during the test."""
    register(TOY)
    yield TOY
    unregister(TOY.kind)


@each_exchange
def test_the_implementation_is_defined_in_a_file_of_the_package(traits):
    module, _, name = traits.implementation.partition(":")
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    assert path.is_relative_to(PACKAGE)
    tree = ast.parse(path.read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


@each_exchange
def test_the_settings_that_a_record_names_exist(traits):
    settings = {entry.name for entry in fields(ExchangeConfig)}
    assert set(traits.settings) <= settings - {"kind"}
    assert set(traits.shown_settings) <= set(traits.settings)
    assert {name for name, _ in traits.replay_requires} <= set(traits.settings)
    assert set(traits.idle_unless or ()) <= set(traits.settings)
    assert {remark.setting for remark in traits.remarks if remark.setting} <= set(traits.settings)


@each_exchange
def test_the_topologies_that_a_record_names_exist(traits):
    assert set(traits.topologies) <= {"complete", *topology.TREES, *topology.GRAPHS}


@each_exchange
def test_every_exchange_has_a_one_line_description_in_the_help(traits):
    (line,) = [line for line in exchanges_help().splitlines() if line.startswith(f"  {traits.kind}: ")]
    assert traits.summary and traits.summary in line
    assert traits.traffic and traits.traffic in line


def test_every_ability_belongs_to_at_least_one_exchange():
    assert all(kinds_with(ability) for ability in ABILITIES)


@pytest.mark.parametrize("settings", [{}, {"kind": "teleport"}, {"kind": ["read"]}])
def test_an_unknown_kind_in_a_file_gives_a_record_without_abilities(settings):
    traits = traits_in(settings)
    assert not any(getattr(traits, ability) for ability in ABILITIES)
    assert traits.idle_ranks(settings) == ()


def test_an_unknown_kind_is_refused_with_the_list_of_kinds():
    with pytest.raises(ConfigError, match=r"`exchange.kind` must be one of read, .*, none, got 'teleport'"):
        traits_of("teleport")


def test_a_registered_exchange_is_accepted_as_a_setting_and_listed_in_the_help(toy):
    settings = {"budget": {"gradients": 1}, "exchange": {"kind": "toy", "topology": "star"}}
    assert load_config(settings).exchange.kind == "toy"
    assert f"  toy: {toy.summary}; transfers per exchange: {toy.traffic} (topology: ring, star)" in exchanges_help()
    assert all_traits()[-1] == traits_in(settings["exchange"]) == toy
    with pytest.raises(ConfigError, match=r"`exchange\.topology` must be one of ring, star with `exchange\.kind` toy"):
        load_config(settings | {"exchange": {"kind": "toy", "topology": "tree"}})


def test_the_error_for_an_unknown_kind_lists_a_registered_exchange(toy):
    with pytest.raises(ConfigError, match=r'`exchange\.kind` must be one of "read", .*, "toy", got .teleport.'):
        load_config({"budget": {"gradients": 1}, "exchange": {"kind": "teleport"}})


def test_an_exchange_is_unknown_after_it_was_unregistered(toy):
    unregister("toy")
    with pytest.raises(ConfigError, match=r"`exchange.kind` must be one of .*, got 'toy'"):
        load_config({"budget": {"gradients": 1}, "exchange": {"kind": "toy"}})
    unregister("toy")  # does nothing


@pytest.mark.parametrize("kind", ["read", "toy"])
def test_a_kind_cannot_be_registered_twice(toy, kind):
    with pytest.raises(ConfigError, match=f"`exchange.kind` must not be registered twice, got '{kind}'"):
        register(replace(TOY, kind=kind))


def test_the_server_is_idle_only_if_it_computes_no_gradients():
    server = traits_of("server")
    assert server.idle_ranks({"server_rank": 3, "server_computes": False}) == (3,)
    assert server.idle_ranks({"server_rank": 3, "server_computes": True}) == ()
    assert server.idle_ranks({}) == traits_of("read").idle_ranks({"server_computes": False}) == ()


def test_a_remark_applies_only_if_its_setting_has_its_value():
    remark = Remark("text", setting="mixing", value="push-sum")
    traits = replace(TOY, remarks=(remark, Remark("always")))
    assert traits.remarks_on({"mixing": "push-sum"}) == ["text", "always"]
    assert traits.remarks_on({"mixing": "average"}) == traits.remarks_on({}) == ["always"]


def test_a_description_names_the_kind_and_its_unusual_settings():
    read = traits_of("read")
    assert read.described({"topology": "tree", "consistency": "snapshot"}) == "read, tree"
    assert read.described({"topology": "tree", "consistency": "elementwise"}) == "read, tree, elementwise"


def test_the_help_of_the_setting_refers_to_the_list_of_exchanges():
    (line,) = [line for line in settings_help().splitlines() if line.startswith("  exchange.kind ")]
    assert "list of exchanges below" in line


# A search of the sources.


def is_kind_of_exchange(node):
    """Return True for ``exchange.kind``, ``config.kind``, ``exchange["kind"]`` and the like in a syntax tree."""
    source = ast.unparse(node)
    if isinstance(node, ast.Attribute) and node.attr == "kind":
        return "exchange" in source or source == "config.kind"
    return isinstance(node, ast.Subscript | ast.Call) and "exchange" in source and "'kind'" in source


def is_text(node):
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(is_text, node.elts))
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def comparisons_with_a_kind(source):
    """Yield the lines of a module that compare a kind of exchange with a literal, or look one up in a dictionary."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(is_kind_of_exchange, sides)) and any(map(is_text, sides)):
                yield node.lineno
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            if is_kind_of_exchange(node.slice):
                yield node.lineno
        elif isinstance(node, ast.Match) and is_kind_of_exchange(node.subject):
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "is_comparison"),
    [
        ("if exchange.kind == 'read': pass", True),
        ("if run.config.exchange.kind in ('read', 'none'): pass", True),
        ("x = settings['exchange']['kind'] != 'server'", True),
        ("x = exchange.get('kind') == 'server'", True),
        ("if 'read' == config.kind: pass", True),
        ("make = {'read': 1}[config.exchange.kind]", True),
        ("if config.optimizer.kind == 'sgd': pass", False),
        ("if exchange.topology == 'complete': pass", False),
        ("if first.exchange.kind == second.exchange.kind: pass", False),
    ],
)
def test_the_search_finds_comparisons_of_kinds_with_literals(source, is_comparison):
    assert bool(list(comparisons_with_a_kind(source))) == is_comparison


def test_no_module_compares_the_kind_of_an_exchange_with_a_literal():
    table = Path(exchange_traits.__file__)
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != table
        for line in comparisons_with_a_kind(path.read_text())
    ]
    assert not found
