"""Convergence bounds of a run as text, and as texts for the HTML page."""

import math

import pytest

from hpc_dasgd.analysis.bound_report import BoundReport
from hpc_dasgd.report.bound_table import bound_table
from hpc_dasgd.report.bound_view import bound_view
from hpc_dasgd.theory.bounds import Bound, Delays
from hpc_dasgd.theory.constants import Estimate


@pytest.fixture
def report():
    return BoundReport(
        measured=0.5,
        measured_error=0.01,
        measured_by="upper",
        stepsize=0.1,
        n_gradients=1000,
        constants={
            "L": Estimate(2.0, 0.01, "power iteration"),
            "sigma": Estimate(0.5, 0.0, "given"),
            "Q": Estimate(3.0, math.nan, "log"),
            "F_0": Estimate(10.0, 0.0, "given"),
        },
        delays=Delays(1.0, 1.5, 4, 9),
        between_models=2.5,
        bounds={"A": Bound(0.04, 1.0, 50.0, 0.25), "B": Bound(0.04, 1.0, 100.0, 0.05)},
        warnings=["the bounds are for sgd"],
    )


def test_the_table_has_a_row_per_bound_and_per_constant(report):
    lines = bound_table(report).splitlines()
    assert lines[0] == (
        "measured mean squared gradient norm: 0.5 +- 0.01 (upper estimate: it contains the variance of gradients, "
        "which --replay removes); 1000 gradients at stepsize 0.1"
    )
    assert lines[2:5] == [
        "bound  value  start  noise  staleness  condition",
        "A          1    0.4    0.1        0.5  stepsize at most 0.25: met",
        "B        1.5    0.4    0.1          1  stepsize at most 0.05: NOT met: this is no bound on the run",
    ]
    assert lines[5].startswith("A: staleness dominates; lowest value ")
    start = lines.index("constant  value  error  how it is known")
    assert lines[start + 1 : start + 5] == [
        "L             2   0.01  power iteration",
        "sigma       0.5      0  given",
        "Q             3      -  log",
        "F_0          10      0  given",
    ]
    assert "S_avg 1  S_rms 1.5  S_max 4  W_max 9  between_models 2.5" in lines
    assert lines[-1] == "warning: the bounds are for sgd"


def test_the_view_for_the_page_has_the_same_numbers_and_the_shares_of_the_terms(report):
    view = bound_view(report.as_dict())
    assert view.rows == [
        ["measured, at most", "0.5", "", "", "", ""],
        ["bound A", "1", "0.4", "0.1", "0.5", "met"],
        ["bound B", "1.5", "0.4", "0.1", "1", "not met"],
    ]
    assert [part.text for part in view.bars[0].parts] == ["start 40%", "noise 10%", "staleness 50%"]


def test_a_bound_with_an_infinite_or_missing_term_has_no_bar():
    infinite = {"start": 1.0, "noise": 0.0, "staleness": math.inf}
    for terms in (
        infinite,
        {"start": 1.0},
        {"start": 1.0, "noise": None, "staleness": 1.0},
        dict.fromkeys(infinite, 0.0),
    ):
        assert bound_view({"A": {"value": None, "terms": terms}}).bars == []
