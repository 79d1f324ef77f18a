"""The page of a run: one HTML file that holds its pictures and asks the network for nothing."""

import base64
import math
import tomllib
from dataclasses import dataclass
from html import escape

from hpc_dasgd.report.style import PAGE_CSS

_TABLE_RANKS = 16  # beyond, the table of the ranks is folded
# By section its pictures, by name of the file: heading, what it shows, whether it takes the whole width.
_SECTIONS = {
    "Learning": {
        "loss_seconds": (
            "Against time",
            "Batches of each rank, smoothed, and the evaluation set.",
            False,
        ),
        "loss_gradients": ("Against gradients", "The same by gradients of all ranks together.", False),
    },
    "Staleness": {
        "staleness_time": ("Over time", "How many gradients of other ranks a gradient missed.", False),
        "staleness": ("Distribution", "All gradients whose version vector was logged.", False),
        "behind": (
            "What each replica lacked",
            "Gradients completed by a moment that were not in the replica of a rank; too many where not every "
            "version vector was logged. Grey: the rank had stopped.",
            False,
        ),
        "missed": ("Who missed whose gradients", "Mean over the gradients of a rank, by source.", False),
    },
    "Ranks": {
        "timeline": (
            "A moment in the middle of the run",
            "Each bar is a gradient from its start to its end; the darker, the more it missed; grey: not logged. "
            "Gaps are exchanges and all else.",
            True,
        ),
        "activity": ("The whole run", "How fast each rank was, and which part of its time it computed.", False),
        "progress": ("Progress", "Gradients of each rank; a flat line is a rank that stood still.", False),
    },
}
_TERMS = ("start", "noise", "staleness")
_STEPSIZES = {"stepsize": "stepsize of the run", "best_stepsize": "best by the bound"}


@dataclass(frozen=True)
class Content:
    """What a page says, as plain text.

    Attributes
    ----------
    name, status, lead : str
        Of the run; the lead is one line.
    warnings : list of str
    figures, facts : list of (name, value)
        Key figures, shown large; all else that is known.
    ranks : list of dict of str to str
        A row for each rank, by heading.
    settings : str
        TOML text.
    bound : dict or None
        What ``bound --json`` prints.
    """

    name: str
    status: str
    lead: str
    warnings: list[str]
    figures: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    ranks: list[dict[str, str]]
    settings: str
    bound: dict | None = None


def html(content: Content, pictures: dict[str, bytes]) -> str:
    """Return the page.

    Parameters
    ----------
    content : Content
    pictures : dict of str to bytes
        PNG files by name without suffix; those that are missing, and sections of none, are left out.
    """
    name = escape(content.name)
    sections = []
    for heading, known in _SECTIONS.items():
        figures = [_figure(pictures[key], *text) for key, text in known.items() if key in pictures]
        if heading == "Ranks":
            figures.append(_ranks(content.ranks))
        if figures:
            sections.append(_section(heading, f'<div class="plots">{"".join(figures)}</div>'))
    if not pictures:
        sections.insert(0, "<p>There are no gradients yet, and so nothing to draw.</p>")
    if content.bound is not None:
        sections.append(_section("Bound on the gradient norm", _bound(content.bound)))
    sections.append(_section("What ran", _facts(content.facts) + _settings(content.settings)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}</title>
<style>{PAGE_CSS}</style>
</head>
<body>
<header>
<h1>{name} <span class="status {escape(content.status)}">{escape(content.status)}</span></h1>
<p>{escape(content.lead)}</p>
</header>
<main>
{_warnings(content.warnings)}
<div class="figures">{"".join(_card(*figure) for figure in content.figures)}</div>
{"".join(sections)}
</main>
</body>
</html>
"""


def _section(heading: str, inner: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{inner}\n</section>\n"


def _figure(picture: bytes, heading: str, caption: str, wide: bool) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
    image = f'<div class="scroll"><img src="{source}" alt="{escape(heading)}: {escape(caption)}"></div>'
    text = f"<figcaption><b>{escape(heading)}.</b> {escape(caption)}</figcaption>"
    width = "wide" if wide else "half"
    return f'<figure class="{width}">{text}{image}</figure>\n'


def _card(name: str, value: str) -> str:
    return f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"


def _warnings(texts: list[str]) -> str:
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<aside class="warnings"><b>Warnings</b><ul>{items}</ul></aside>'


def _table(headings, rows) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _ranks(ranks: list[dict[str, str]]) -> str:
    table = _table(ranks[0], [row.values() for row in ranks])
    unfolded = " open" if len(ranks) <= _TABLE_RANKS else ""
    return f'<details class="wide"{unfolded}><summary>In numbers</summary>{table}</details>'


def _facts(facts: list[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in facts)
    return f"<dl>{rows}</dl>"


def _settings(toml: str) -> str:
    """The settings, a block for each section."""
    try:
        tomllib.loads(toml)
        blocks = [block for block in toml.split("\n\n") if block.strip()]
    except tomllib.TOMLDecodeError:
        blocks = [toml]
    inner = "".join(f"<pre>{escape(block.strip())}</pre>" for block in blocks)
    return f'<details open><summary>Settings</summary><div class="settings">{inner}</div></details>'


def _bound(bound: dict) -> str:
    """The bounds against what was measured, and which of their terms weighs how much."""
    rows, bars = [], []
    for name in ("A", "B"):
        if name not in bound:
            continue
        terms = bound[name]["terms"]
        met = {True: "met", False: "not met"}.get(bound[name].get("condition_met"), "-")
        rows.append(
            [f"bound {name}", *(_text(value) for value in (bound[name]["value"], *map(terms.get, _TERMS))), met]
        )
        bars.append(_bar(name, terms))
    measured = "measured, at most" if bound.get("measured_by") == "upper" else "measured"
    rows.insert(0, [measured, _text(bound.get("measured")), *[""] * (len(_TERMS) + 1)])
    steps = [f"{label} {_text(bound[key])}" for key, label in _STEPSIZES.items() if key in bound]
    paper = [(str(name), _text(value)) for name, value in (bound.get("paper") or {}).items()]
    notes = f"<p>{escape(', '.join(steps))}</p>" if steps else ""
    rates = f"<details><summary>Rates of the paper, without their constants</summary>{_facts(paper)}</details>"
    table = _table(("mean squared norm", "value", *_TERMS, "condition"), rows)
    return table + "".join(bars) + notes + (rates if paper else "")


def _bar(name: str, terms: dict) -> str:
    """A bar of the whole width, divided as the bound is."""
    values = {term: terms.get(term) for term in _TERMS}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values.values()):
        return ""
    total = sum(values.values())
    if total <= 0:
        return ""
    parts = "".join(
        f'<i class="{term}" style="width:{100 * value / total:.2f}%">{term} {value / total:.0%}</i>'
        for term, value in values.items()
    )
    return f'<div class="terms"><b>{name}</b><div>{parts}</div></div>'


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
