"""Staleness of a run as tables for the terminal."""

import math
from itertools import pairwise
from typing import Any

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.console.formats import number_text
from hpc_dasgd.console.tables import Column, table_lines
from hpc_dasgd.theory.staleness import Staleness

_MAX_RANKS = 32  # largest number of rows of the table of ranks
_BAR_WIDTH = 40  # characters


def staleness_text(run: Run) -> str:
    """Return the staleness of a run as text, with its warnings. Raises like `Run.staleness`."""
    notes = [f"note: {warning}" for warning in run.warnings]
    return "\n".join([f"staleness of {run.directory}: {staleness_table(run.staleness())}", *notes])


def staleness_table(staleness: Staleness) -> str:
    """Return a summary, a histogram and a table of at most the first 32 ranks as text."""
    numbers = staleness.as_dict()
    percentiles = [f"{percent} % {value:.4g}" for percent, value in numbers["percentiles"].items()]
    lines = [
        f"{numbers['gradients']} gradients on {numbers['n_ranks']} ranks",
        "  ".join(f"{name} {numbers[name]:.4g}" for name in ("S_avg", "S_rms", "S_max", "W_max")),
        "between models: mean {mean:.4g}, max {max}".format(**numbers["between_models"]),
        f"percentiles: {', '.join(percentiles)}",
        "",
        *_histogram_lines(numbers),
        "",
        *_rank_lines(numbers["per_rank"][:_MAX_RANKS]),
    ]
    if numbers["n_ranks"] > _MAX_RANKS:
        lines.append(f" ...  {numbers['n_ranks'] - _MAX_RANKS} more ranks in the JSON form")
    return "\n".join(lines)


def _histogram_lines(numbers: dict[str, Any]) -> list[str]:
    edges, counts = numbers["histogram"]["edges"], numbers["histogram"]["counts"]
    rows = [
        (
            str(first) if end == first + 1 else f"{first}-{end - 1}",
            str(count),
            f"{count / numbers['measured']:.1%}",
            "#" * math.ceil(_BAR_WIDTH * count / max(counts)),
        )
        for (first, end), count in zip(pairwise(edges), counts, strict=True)
    ]
    return table_lines([Column("staleness"), Column("gradients"), Column(""), Column("", numeric=False)], rows)


def _rank_lines(per_rank: list[dict[str, Any]]) -> list[str]:
    headings = {
        "rank": "rank",
        "gradients": "gradients",
        "S_avg": "S_avg",
        "S_rms": "S_rms",
        "S_max": "S_max",
        "missed_by_others": "missed by others",
    }
    rows = [[number_text(numbers[name]) for name in headings] for numbers in per_rank]
    return table_lines([Column(heading) for heading in headings.values()], rows)
