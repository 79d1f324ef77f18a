"""How far apart exchanges are put: as near as their cost allows."""

import math

import pytest

from hpc_dasgd.training.exchange_interval import LONGEST, ExchangeInterval


class Steps:
    """Steps of which a quiet one takes `quiet_s` beside the gradient and an exchanging one `cost_s` more."""

    def __init__(self, max_overhead, gradient_s, quiet_s, cost_s):
        self.pace = ExchangeInterval(max_overhead)
        self.gradient_s, self.quiet_s, self.cost_s = gradient_s, quiet_s, cost_s
        self._since = 0
        self.changes = []

    def take(self, n_steps):
        """Make steps; return how many of them exchanged, and the share of the time that this took."""
        n_exchanges = 0
        for _ in range(n_steps):
            self._since += 1
            exchanging = self._since >= self.pace.every
            if exchanging:
                self._since = 0
                n_exchanges += 1
            if self.pace.record(exchanging, self.quiet_s + exchanging * self.cost_s, self.gradient_s):
                self.changes.append(self.pace.chosen)
        spent_s = n_exchanges * self.cost_s
        return n_exchanges, spent_s / (spent_s + n_steps * (self.gradient_s + self.quiet_s))


@pytest.mark.parametrize(
    ("max_overhead", "cost_s", "expected"),
    [
        (0.1, 0.0, 1),
        (0.1, 0.1e-3, 1),  # 0.1 / (0.1 + 1): under a tenth
        (0.1, 0.2e-3, 2),  # 0.2 / (0.2 + 2)
        (0.1, 1.05e-3, 10),  # 1.05 / (1.05 + 10): under a tenth, and not with 9
        (0.5, 4.5e-3, 5),  # 4.5 / (4.5 + 5)
        (0.1, 10.0, LONGEST),
    ],
)
def test_exchanges_are_as_near_as_the_limit_allows(max_overhead, cost_s, expected):
    steps = Steps(max_overhead, gradient_s=0.9e-3, quiet_s=0.1e-3, cost_s=cost_s)
    steps.take(20_000)
    assert steps.pace.chosen == expected
    n_exchanges, share = steps.take(20_000)
    assert n_exchanges >= 20_000 // expected * 60 / 64 - 1
    assert share <= max_overhead or expected == LONGEST
    assert steps.pace.overhead == pytest.approx(cost_s / (cost_s + expected * 1e-3))


def test_the_distance_follows_what_exchanges_cost():
    steps = Steps(0.1, gradient_s=1e-3, quiet_s=0.0, cost_s=0.05e-3)
    steps.take(2000)
    assert steps.pace.chosen == 1
    steps.cost_s = 0.5e-3
    steps.take(5000)
    assert steps.pace.chosen == 5
    steps.cost_s = 0.05e-3
    steps.take(5000)
    assert steps.pace.chosen == 1
    assert steps.changes[-1] == 1
    assert 5 in steps.changes


def test_a_rank_kept_from_running_now_and_then_is_no_cost_of_exchanges():
    steps = Steps(0.1, gradient_s=1e-3, quiet_s=0.1e-3, cost_s=0.2e-3)
    steps.take(200)
    assert steps.pace.chosen == 2
    for number in range(2000):
        steps.cost_s = 50e-3 if number % 7 == 0 else 0.2e-3
        steps.take(1)
    assert set(steps.changes) == {2}


def test_nobody_starves_where_an_exchange_costs_more_than_the_run():
    steps = Steps(0.01, gradient_s=1e-6, quiet_s=0.0, cost_s=60.0)
    steps.take(5000)
    assert steps.take(10 * LONGEST)[0] == 10


def test_overhead_is_unknown_before_both_kinds_of_step_were_seen():
    pace = ExchangeInterval(0.1)
    assert math.isnan(pace.overhead)
    pace.record(False, 1.0, 1.0)
    assert math.isnan(pace.overhead)
    pace.record(True, 2.0, 1.0)
    assert pace.overhead == pytest.approx(1 / 3)
