"""Summary of a run as text for the terminal."""

from typing import Any

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.console.formats import rate_text
from hpc_dasgd.console.tables import Column, table_lines
from hpc_dasgd.report.diagnosis import warnings
from hpc_dasgd.report.facts import facts, hosts_and_devices

_MAX_RANKS = 32  # largest number of rows of the table of ranks


def summary(run: Run, bound: dict[str, Any] | None = None) -> str:
    """Return facts about a run, a table of its ranks, and warnings.

    Parameters
    ----------
    run : Run
    bound : dict, optional
        The object that ``bound --json`` prints; used for warnings.
    """
    lines = [f"{name + ':':<15}{value}" for name, value in facts(run)]
    return "\n".join([*lines, "", *_rank_table(run), *(f"warning: {text}" for text in warnings(run, bound))])


def _rank_table(run: Run) -> list[str]:
    """Return the lines of a table of the first ranks."""
    seconds = run.seconds
    rows = [
        [str(rank), str(count), rate_text(count, seconds), host]
        for rank, (count, host) in enumerate(zip(run.counts[:_MAX_RANKS], hosts_and_devices(run), strict=False))
    ]
    columns = [Column("rank"), Column("gradients"), Column("rate"), Column("host", numeric=False)]
    lines = table_lines(columns, rows)
    if run.n_ranks > _MAX_RANKS:
        others = run.counts[_MAX_RANKS:]
        lines.append(f" ...  {others.size} more ranks with {others.min()} to {others.max()} gradients each")
    return lines
