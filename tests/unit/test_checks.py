"""Checks of arguments: what passes, as what, and what the messages say."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dasgd import checks

REALS = [checks.real, checks.positive_real, checks.non_negative_real]
INFINITE = [float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("check", REALS)
@given(value=st.one_of(st.floats(1e-300, 1e300), st.integers(1, 10**300), st.fractions(Fraction(1, 10**9))))
def test_positive_numbers_pass_every_check_as_floats(check, value):
    checked = check("a", value)
    assert type(checked) is float and checked == float(value)


@pytest.mark.parametrize("check", REALS)
@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(2)])
def test_numpy_scalars_are_numbers(check, value):
    assert type(check("a", value)) is float and check("a", value) == value


@pytest.mark.parametrize(
    ("check", "rule", "refused"),
    [
        (checks.real, "finite", INFINITE),
        (checks.positive_real, "positive and finite", [*INFINITE, 0, 0.0, -1e-300, -3]),
        (checks.non_negative_real, "at least 0 and finite", [*INFINITE, -1e-300, -3]),
    ],
)
def test_numbers_out_of_range_are_named(check, rule, refused):
    for value in refused:
        with pytest.raises(ValueError) as caught:
            check("stepsize", value)
        assert str(caught.value) == f"`stepsize` must be {rule}, got {value!r}"


@pytest.mark.parametrize("check", [checks.real, checks.non_negative_real])
def test_zero_passes(check):
    assert check("a", 0) == 0.0


def test_real_passes_negative_numbers():
    assert checks.real("a", -2) == -2.0


def test_real_takes_a_rule_of_the_callers():
    assert checks.real("a", 2, "even", lambda number: number % 2 == 0) == 2.0
    with pytest.raises(ValueError, match="`a` must be even, got 3"):
        checks.real("a", 3, "even", lambda number: number % 2 == 0)


@pytest.mark.parametrize("check", REALS)
@pytest.mark.parametrize("value", [True, False, "1", None, 1j, [1.0], Decimal(1)])
def test_what_is_no_number_is_named(check, value):
    with pytest.raises(TypeError) as caught:
        check("stepsize", value)
    assert str(caught.value) == f"`stepsize` must be a number, got {value!r}"


@given(low=st.integers(-5, 5), size=st.integers(1, 5), value=st.integers(-12, 12))
def test_integers_lie_within_their_range(low, size, value):
    if low <= value < low + size:
        assert checks.integer("n", value, low, low + size) == value
    else:
        with pytest.raises(ValueError, match=rf"`n` must be .*, got {value}"):
            checks.integer("n", value, low, low + size)


def test_integers_without_an_upper_end():
    assert checks.integer("n", 10**30, 0) == 10**30


def test_integers_become_pythons():
    assert type(checks.integer("n", np.uint8(7), 0)) is int


def test_bounds_of_integers_are_named():
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        checks.integer("n", 0, 1)
    with pytest.raises(ValueError, match="`n` must be below 4, got 4"):
        checks.integer("n", 4, 0, 4)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, np.float64(1), Fraction(1)])
def test_what_is_no_integer_is_named(value):
    with pytest.raises(TypeError) as caught:
        checks.integer("n", value, 0)
    assert str(caught.value) == f"`n` must be an integer, got {value!r}"
