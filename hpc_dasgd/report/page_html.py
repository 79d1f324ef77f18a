"""HTML of the page of a run, from the templates in ``templates/``. The page contains its plots and loads nothing."""

import base64
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hpc_dasgd.report.bound_view import bound_view

_MAX_UNFOLDED_RANKS = 16  # with more ranks, the table of ranks is folded


class _Caption(NamedTuple):
    heading: str
    caption: str
    is_wide: bool = False


# Captions of the plots, by section and by file name without suffix.
SECTIONS: dict[str, dict[str, _Caption]] = {
    "Learning": {
        "loss_seconds": _Caption("Against time", "Smoothed loss of each rank's batches, and of the evaluation set."),
        "loss_gradients": _Caption("Against gradients", "The same against the number of gradients of all ranks."),
    },
    "Staleness": {
        "staleness_time": _Caption("Over time", "Number of gradients of other ranks that a gradient missed."),
        "staleness": _Caption("Distribution", "All gradients whose version vector was logged."),
        "behind": _Caption(
            "Missing gradients of each replica",
            "Number of completed gradients that a rank's replica did not contain; an upper estimate if not every "
            "version vector was logged. Grey: the rank had stopped.",
        ),
        "missed": _Caption("Missed gradients by pair of ranks", "Mean over the gradients of a rank, by source."),
    },
    "Ranks": {
        "timeline": _Caption(
            "A short time in the middle of the run",
            "Each bar is a gradient from its start to its end. The darker the bar, the more gradients it missed; "
            "grey: not logged. Gaps are exchanges and other work.",
            is_wide=True,
        ),
        "activity": _Caption("The whole run", "Rate of each rank, and share of time in which it computed gradients."),
        "progress": _Caption("Progress", "Number of gradients of each rank; where a line is flat, the rank was idle."),
    },
}


@dataclass(frozen=True, kw_only=True)
class Content:
    """Content of a page as plain text.

    Attributes
    ----------
    name, status, lead : str
        Name and status of the run, and one line that describes it.
    warnings : list of str
    figures : list of (name, value)
        Key figures, shown large.
    facts : list of (name, value)
        All other facts.
    ranks : list of dict of str to str
        One row for each rank, by heading.
    settings : str
        TOML text.
    bound : dict or None
        The object that ``bound --json`` prints.
    """

    name: str
    status: str
    lead: str
    warnings: list[str]
    figures: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    ranks: list[dict[str, str]]
    settings: str
    bound: dict[str, Any] | None = None


class _Figure(NamedTuple):
    """A plot in the page; `base64` is its PNG file in Base64 encoding."""

    heading: str
    caption: str
    is_wide: bool
    base64: str


class _Section(NamedTuple):
    heading: str
    figures: list[_Figure]


def html(content: Content, pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    content : Content
        All texts are escaped.
    pictures : mapping of str to bytes
        PNG files by name without suffix. Missing plots, and sections without plots, are left out.

    Returns
    -------
    page : str
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hpc_dasgd.report"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html.jinja").render(
        content=content,
        has_pictures=bool(pictures),
        sections=_sections(pictures),
        unfold_ranks=len(content.ranks) <= _MAX_UNFOLDED_RANKS,
        rank_rows=[row.values() for row in content.ranks],
        bound=None if content.bound is None else bound_view(content.bound),
        settings_blocks=_settings_blocks(content.settings),
    )


def _sections(pictures: Mapping[str, bytes]) -> list[_Section]:
    """Return the sections that have plots, and that of the ranks, which has a table."""
    sections = []
    for heading, captions in SECTIONS.items():
        figures = [
            _Figure(*caption, base64.b64encode(pictures[name]).decode("ascii"))
            for name, caption in captions.items()
            if name in pictures
        ]
        if figures or heading == "Ranks":
            sections.append(_Section(heading, figures))
    return sections


def _settings_blocks(toml: str) -> list[str]:
    """Return the settings in blocks, one for each section; in one block if they are not valid TOML."""
    try:
        tomllib.loads(toml)
    except tomllib.TOMLDecodeError:
        return [toml.strip()]
    return [block.strip() for block in toml.split("\n\n") if block.strip()]
