"""Convergence bounds of a run as texts for the HTML page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hpc_dasgd.console.formats import number_text

_TERMS = ("start", "noise", "staleness")
_STEPSIZES = {"stepsize": "stepsize of the run", "best_stepsize": "best by the bound"}
_CONDITION = {True: "met", False: "not met"}


class BarPart(NamedTuple):
    """A part of a bar: the term, its share of the bar in percent, and its text."""

    term: str
    percent: str
    text: str


class Bar(NamedTuple):
    """A bar of full width that shows the shares of the terms of a bound."""

    name: str
    parts: list[BarPart]


@dataclass(frozen=True)
class BoundView:
    """Texts of the section about bounds.

    Attributes
    ----------
    headings : tuple of str
        Headings of the columns of the table.
    rows : list of list of str
        Table of the measured norm and the bounds.
    bars : list of Bar
        For each bound whose terms are finite.
    stepsizes : str
        Stepsize of the run and the best one; empty if both are unknown.
    rates : list of (name, value)
        Rates of the paper.
    """

    headings: tuple[str, ...]
    rows: list[list[str]]
    bars: list[Bar]
    stepsizes: str
    rates: list[tuple[str, str]]


def bound_view(bound: Mapping[str, Any]) -> BoundView:
    """Return the texts for the object that ``bound --json`` prints; any of its values may be missing."""
    measured = "measured, at most" if bound.get("measured_by") == "upper" else "measured"
    rows = [[measured, _value_text(bound.get("measured")), *[""] * (len(_TERMS) + 1)]]
    bars = []
    for name in ("A", "B"):
        if name in bound:
            terms = bound[name]["terms"]
            values = (bound[name]["value"], *(terms.get(term) for term in _TERMS))
            condition = _CONDITION.get(bound[name].get("condition_met"), "-")
            rows.append([f"bound {name}", *map(_value_text, values), condition])
            bars += _bars(name, terms)
    return BoundView(
        headings=("mean squared norm", "value", *_TERMS, "condition"),
        rows=rows,
        bars=bars,
        stepsizes=", ".join(f"{text} {_value_text(bound[key])}" for key, text in _STEPSIZES.items() if key in bound),
        rates=[(str(name), _value_text(value)) for name, value in (bound.get("paper") or {}).items()],
    )


def _bars(name: str, terms: Mapping[str, Any]) -> list[Bar]:
    """Return the bar of a bound; none if a term is missing or infinite, or all are zero."""
    values = {term: terms[term] for term in _TERMS if terms.get(term) is not None}
    total = sum(values.values())
    if len(values) < len(_TERMS) or not math.isfinite(total) or total <= 0:
        return []
    parts = [
        BarPart(term, f"{100 * value / total:.2f}", f"{term} {value / total:.0%}") for term, value in values.items()
    ]
    return [Bar(name, parts)]


def _value_text(value: object) -> str:
    """Return a number, or the numbers of a dict or a list, as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value_text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value_text, value))
    return number_text(value)
