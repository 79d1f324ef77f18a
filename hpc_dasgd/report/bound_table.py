"""Comparison of a run with its convergence bounds as text for the terminal."""

from typing import Any

from hpc_dasgd.analysis.bound_report import BoundReport
from hpc_dasgd.console.formats import number_text
from hpc_dasgd.console.tables import Column, table_lines

_TERMS = ("start", "noise", "staleness")
_METHODS = {
    "log": "logged norms less the known variance",
    "replay": "at recomputed replicas",
    "upper": "upper estimate: it contains the variance of gradients, which --replay removes",
}


def bound_table(report: BoundReport) -> str:
    """Return the bounds with their terms, the constants, the staleness, the rates of the paper, and warnings."""
    numbers = report.as_dict()
    lines = [
        f"measured mean squared gradient norm: {report.measured:.4g} +- {report.measured_error:.2g} "
        f"({_METHODS[report.measured_by]}); {report.n_gradients} gradients at stepsize {report.stepsize:.4g}",
        "",
        *_bound_lines(report, numbers),
        *(_advice(report, numbers, name) for name in report.bounds),
        "",
        *_constant_lines(report),
        "",
        "  ".join(f"{name} {value:.4g}" for name, value in numbers["staleness"].items()),
    ]
    if numbers["paper"]:
        lines += ["", "rates of arXiv 2309.03754, up to a constant factor: gradients to reach the measured norm"]
        for name in ("bounded_gradients", "any_gradients"):
            terms = "  ".join(f"{term} {value:.3g}" for term, value in numbers["paper"][name].items())
            lines.append(f"{name.replace('_', ' ')}: {terms}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report.warnings)])


def _bound_lines(report: BoundReport, numbers: dict[str, Any]) -> list[str]:
    rows = []
    for name, bound in report.bounds.items():
        values = (numbers[name]["value"], *(numbers[name]["terms"][term] for term in _TERMS))
        met = "met" if numbers[name]["condition_met"] else "NOT met: this is no bound on the run"
        condition = f"stepsize at most {bound.largest_stepsize:.4g}: {met}"
        rows.append([name, *(f"{value:.4g}" for value in values), condition])
    headings = [Column("bound", numeric=False), Column("value"), *map(Column, _TERMS)]
    return table_lines([*headings, Column("condition", numeric=False)], rows)


def _advice(report: BoundReport, numbers: dict[str, Any], name: str) -> str:
    """Return a line with the dominant term of a bound, its best stepsize, and its value with twice the ranks."""
    bound, twice = report.bounds[name], numbers["twice_the_ranks"][name]
    best = bound.best_stepsize()
    return (
        f"{name}: {numbers[name]['dominant']} dominates; lowest value {bound.value(best):.4g} at stepsize {best:.4g}; "
        f"with twice the ranks, staleness and gradients in the same time: {sum(twice.values()):.4g}"
    )


def _constant_lines(report: BoundReport) -> list[str]:
    rows = [
        [name, f"{constant.value:.4g}", number_text(constant.error, 2), constant.source]
        for name, constant in report.constants.items()
    ]
    headings = [Column("constant", numeric=False), Column("value"), Column("error")]
    return table_lines([*headings, Column("how it is known", numeric=False)], rows)
