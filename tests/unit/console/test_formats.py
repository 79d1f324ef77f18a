"""Numbers as text: rounding, units, plurals and lists of ranks."""

import math

import numpy as np
import pytest

from hpc_dasgd.console.formats import bytes_text, count_text, number_text, ranks_text, rate_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (2.0, "2"),
        (0.12346, "0.1235"),
        (-0.12344, "-0.1234"),
        (1234.5678, "1235"),
        (9999.4, "9999"),
        (9999.7, "10000"),
        (10_000.0, "10000"),
        (12_345.6, "12346"),
        (-12_345.6, "-12346"),
        (1.5e-7, "1.5e-07"),
        (1e12, "1000000000000"),
        (math.inf, "inf"),
        (7, "7"),
        (123_456_789, "123456789"),
        (np.int64(1234), "1234"),
        (np.float32(0.25), "0.25"),
        (np.float64(12_345.6), "12346"),
        ("tree", "tree"),
    ],
)
def test_a_float_has_four_significant_digits_unless_it_is_large(value, expected):
    assert number_text(value) == expected


def test_the_number_of_significant_digits_can_be_chosen():
    assert number_text(0.123456, digits=2) == "0.12"
    assert number_text(1234.5678, digits=6) == "1234.57"
    assert number_text(9999.75, digits=6) == "9999.75"
    assert number_text(123.4, digits=2) == "123"
    assert number_text(99.6, digits=2) == "100"


@pytest.mark.parametrize("value", [None, math.nan, np.float64("nan"), np.float32("nan")])
def test_an_unknown_number_is_a_dash(value):
    assert number_text(value) == "-"


@pytest.mark.parametrize(("count", "expected"), [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks"), (1000, "1000 ranks")])
def test_a_noun_is_in_the_plural_unless_the_count_is_one(count, expected):
    assert count_text(count, "rank") == expected


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1500, "1.5 kB"),
        (12_340, "12.3 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (12_360_000, "12.4 MB"),
        (2_500_000_000, "2.5 GB"),
        (3_000_000_000_000, "3 TB"),
        (1_234_000_000_000_000, "1234 TB"),
    ],
)
def test_bytes_have_three_significant_digits_and_a_decimal_unit(n_bytes, expected):
    assert bytes_text(n_bytes) == expected


@pytest.mark.parametrize(
    ("count", "seconds", "expected"),
    [
        (10, 4.0, "2.5/s"),
        (1, 3.0, "0.3333/s"),
        (9994, 10.0, "999.4/s"),
        (10_000, 10.0, "1000/s"),
        (123_456, 10.0, "12346/s"),
        (0, 1.0, "0/s"),
        (5, 0.0, "-"),
        (5, -1.0, "-"),
    ],
)
def test_a_rate_is_a_count_per_second(count, seconds, expected):
    assert rate_text(count, seconds) == expected


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([3], "rank 3"),
        ([0, 2], "ranks 0, 2"),
        (range(8), "ranks 0, 1, 2, 3, 4, 5, 6, 7"),
        (range(9), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 1 more"),
        (np.array([5, 1]), "ranks 5, 1"),
    ],
)
def test_at_most_eight_ranks_are_listed(ranks, expected):
    assert ranks_text(ranks) == expected


def test_the_number_of_listed_ranks_can_be_chosen():
    assert ranks_text(iter(range(10)), most=2) == "ranks 0, 1 and 8 more"
