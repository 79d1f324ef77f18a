"""The status of a run as text: one line for files, several lines for a terminal."""

import math
from typing import Any

import numpy as np

from hpc_dasgd.console.formats import number_text, rate_text
from hpc_dasgd.console.tables import Column, table_lines
from hpc_dasgd.watch.run_status import RunStatus

_COLUMNS = (
    Column("rank"),
    Column("gradients"),
    Column("rate"),
    Column("staleness"),
    Column("last written", numeric=False),
)


def status_line(status: RunStatus) -> str:
    """Return a status as one line."""
    slowest = int(status.rates.argmin())
    parts = [
        f"{status.elapsed_s:8.1f} s",
        _gradients(status),
        *_measured(status),
        f"slowest rank {slowest} ({status.rates[slowest]:.4g}/s)",
        *_end(status),
    ]
    return "  ".join(parts)


def screen_lines(status: RunStatus, n_columns: int, n_rows: int) -> list[str]:
    """Return a status as lines for a terminal.

    Parameters
    ----------
    status : RunStatus
    n_columns : int, characters
        Largest length of a line; longer ones are cut.
    n_rows : int
        Largest number of lines. If not all ranks fit, the slowest and the fastest are shown.

    Returns
    -------
    lines : list of str
    """
    limits = [f"at most {status.budget['seconds']:g} s"] if "seconds" in status.budget else []
    if "target_loss" in status.budget:
        limits.append(f"to a loss of {status.budget['target_loss']:.4g}")
    lines = [
        f"{status.directory}: {', '.join([status.status, f'{status.elapsed_s:.1f} s', *limits])}",
        "  ".join([_gradients(status), *_end(status)]),
        "  ".join(_measured(status)),
    ]
    lines += _rank_lines(status, max(2, n_rows - len(lines) - 1))
    return [line[:n_columns] for line in lines[:n_rows]]


def last_line(status: RunStatus) -> str:
    """Return the last line of the output: the result of the run, or how long no file has changed."""
    if not status.ended:
        return f"no news for {status.idle_s:.0f} s: the job was killed or hangs"
    gradients = status.summary.get("gradients", status.gradients)
    seconds = status.summary.get("seconds", status.elapsed_s)
    rate = f" ({gradients / seconds:.4g}/s)" if seconds > 0 else ""
    evaluated = f", {_evaluation(status.evaluation)}" if status.evaluation else ""
    end = "complete" if status.status == "complete" else "stopped by a signal, continue with --resume"
    return f"{end}: {gradients} gradients on {status.counts.size} ranks in {seconds:.1f} s{rate}{evaluated}"


def _rank_lines(status: RunStatus, n_shown: int) -> list[str]:
    """Return a table of ranks with a heading and at most `n_shown` lines."""
    order = np.argsort(status.rates, kind="stable")
    if order.size <= n_shown:
        return table_lines(_COLUMNS, [_rank_cells(status, rank) for rank in range(order.size)])
    n_fast = (n_shown - 1) // 2
    n_slow = n_shown - 1 - n_fast
    ranks = [*order[:n_slow], *order[order.size - n_fast :]]
    lines = table_lines(_COLUMNS, [_rank_cells(status, rank) for rank in ranks])
    lines.insert(1 + n_slow, f" ... {order.size - n_slow - n_fast} ranks between the slowest and the fastest")
    return lines


def _rank_cells(status: RunStatus, rank: int) -> tuple[str, ...]:
    unchanged_s = status.unchanged_s[rank]
    return (
        str(rank),
        str(status.counts[rank]),
        rate_text(status.rates[rank], 1.0),
        number_text(float(status.staleness[rank])),
        "not yet" if math.isnan(unchanged_s) else f"{unchanged_s:.0f} s ago",
    )


def _gradients(status: RunStatus) -> str:
    n_gradients = status.budget.get("gradients")
    total = f"/{n_gradients} ({status.gradients / n_gradients:.0%})" if n_gradients else ""
    return f"gradients {status.gradients}{total}  {status.rate:.4g}/s"


def _measured(status: RunStatus) -> list[str]:
    values = {"loss": status.loss, "staleness": status.mean_staleness}
    parts = [f"{name} {value:.4g}" for name, value in values.items() if not math.isnan(value)]
    if status.evaluation:
        parts.append(f"evaluated at {status.evaluation['t_s']:.1f} s: {_evaluation(status.evaluation)}")
    return parts


def _evaluation(evaluation: dict[str, Any]) -> str:
    values = {name: evaluation[name] for name in ("loss", "accuracy")}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if not math.isnan(value))


def _end(status: RunStatus) -> list[str]:
    running = not status.ended and not math.isnan(status.remaining_s)
    return [f"ends in {status.remaining_s:.0f} s"] if running else []
