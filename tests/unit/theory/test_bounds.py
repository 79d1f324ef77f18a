"""Bounds and stepsizes, compared with the formulas of docs/theory.md written out and with searches."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dasgd.theory.bounds import Bound, Constants, Delays, bound_a, bound_b, paper_rates

CONSTANTS = Constants(L=2.0, sigma=3.0, Q=5.0, F_0=7.0)
DELAYS = Delays(S_avg=4.0, S_rms=6.0, S_max=30, W_max=800)
T, GAMMA = 1000, 0.01


def test_bound_a_agrees_with_its_formula():
    bound = bound_a(CONSTANTS, DELAYS, T)
    assert bound.terms(GAMMA) == pytest.approx(
        {
            "start": 4 * 7 / (0.01 * 1000),
            "noise": 2 * 2 * 0.01 * 9,
            "staleness": 2 * 4 * 0.01**2 * 25 * 36,
        }
    )
    assert bound.value(GAMMA) == pytest.approx(2.8 + 0.36 + 0.72)
    assert bound.largest_stepsize == 0.25


def test_bound_b_agrees_with_its_formula():
    bound = bound_b(CONSTANTS, DELAYS, T)
    assert bound.terms(GAMMA) == pytest.approx(
        {
            "start": 2.8,
            "noise": 0.36,
            "staleness": 4 * 4 * 0.01**2 * 9 * 4,
        }
    )
    assert bound.largest_stepsize == pytest.approx(1 / (2 * math.sqrt(2) * 2 * math.sqrt(800)))


def test_without_staleness_only_the_smoothness_limits_the_stepsize():
    no_delays = Delays(0, 0, 0, 0)
    assert bound_b(CONSTANTS, no_delays, T).largest_stepsize == 1 / 8
    assert bound_a(CONSTANTS, no_delays, T).terms(0.1)["staleness"] == 0


@pytest.mark.parametrize("stepsize", [0.05, 0.25, 0.3])
def test_the_condition_is_met_up_to_the_largest_stepsize(stepsize):
    assert bound_a(CONSTANTS, DELAYS, T).condition_met(stepsize) == (stepsize <= 0.25)


positive = st.floats(1e-6, 1e6)


@given(start=positive, noise=st.just(0.0) | positive, staleness=st.just(0.0) | positive, largest=positive)
def test_the_best_stepsize_has_the_lowest_bound_of_all_that_meet_the_condition(start, noise, staleness, largest):
    bound = Bound(start, noise, staleness, largest)
    best = bound.best_stepsize()
    assert 0 < best <= largest
    others = np.minimum(best * np.geomspace(0.5, 2, 41), largest)
    assert bound.value(best) <= min(map(bound.value, others)) * (1 + 1e-9)


def test_doubling_the_staleness_quadruples_the_reach():
    assert DELAYS.times(2) == Delays(8, 12, 60, 3200)


def test_the_terms_of_the_paper_rates_agree_with_the_abstract():
    rates = paper_rates(CONSTANTS, DELAYS, between_models=10.0, epsilon=0.25)
    scale = 2 * 7
    assert rates["bounded_gradients"] == pytest.approx(
        {"noise": scale * 9 * 16, "staleness_bounded": scale * 5 * 10 * 8, "staleness": scale * 10 * 4}
    )
    assert rates["any_gradients"] == pytest.approx(
        {"noise": scale * 9 * 16, "staleness": scale * math.sqrt(4 * 30) * 4}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("L", 0.0), ("L", -1.0), ("L", 1e200), ("sigma", -1.0), ("Q", math.nan), ("F_0", math.inf), ("F_0", 0.0)],
)
def test_constants_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        bound_a(CONSTANTS._replace(**{name: value}), DELAYS, T)


def test_bound_b_does_not_use_q():
    assert bound_b(CONSTANTS._replace(Q=math.nan), DELAYS, T).value(GAMMA) > 0


def test_a_bound_for_no_gradients_is_refused():
    with pytest.raises(ValueError, match="`n_gradients` must be at least 1, got 0"):
        bound_b(CONSTANTS, DELAYS, 0)
