"""Tests of the rules that join several settings."""

import pytest

from hpc_dasgd.config.settings import load_config
from tests.unit.config.tables import BUDGET, refusal, value_of

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
def test_a_staleness_adaptive_schedule_requires_an_exchange_with_whole_updates(kind):
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
def test_a_stepsize_from_the_bounds_requires_settings_that_they_cover(sections, rule):
    sections = {"budget": {"seconds": 1}} | sections
    sections["optimizer"] = {"stepsize": "bound"} | sections.get("optimizer", {})
    assert refusal(sections).startswith(f'{rule} with `optimizer.stepsize` = "bound"')


@pytest.mark.parametrize("kind", ["accumulate", "gossip", "server", "allreduce", "none"])
@pytest.mark.parametrize("what", ["survive", "device_windows"])
def test_survival_and_device_windows_require_the_exchange_read(kind, what):
    message = refusal(BUDGET | {"exchange": {"kind": kind, what: True}})
    assert message == f"`exchange.kind` must be read with `exchange.{what}` = true, got {kind}"


def test_device_windows_and_survival_exclude_each_other():
    message = refusal(BUDGET | {"exchange": {"survive": True, "device_windows": True}})
    assert message == "`exchange.survive` must be false with `exchange.device_windows` = true, got true"


@pytest.mark.parametrize("every", [2, "auto"])
def test_allreduce_refuses_steps_without_exchange(every):
    message = refusal(BUDGET | {"exchange": {"kind": "allreduce", "every": every}})
    assert message == f"`exchange.every` must be 1 with `exchange.kind` allreduce, got {every!r}"


def test_a_budget_with_at_least_one_limit_is_required():
    message = refusal({})
    assert "`budget`" in message
    assert all(limit in message for limit in ("gradients", "seconds", "target_loss"))
    for limit in ("gradients", "seconds", "target_loss"):
        assert value_of(load_config({"budget": {limit: 3}}), f"budget.{limit}") == 3
