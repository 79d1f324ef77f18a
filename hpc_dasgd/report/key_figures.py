"""Key figures of a run and of its ranks, as text for the HTML page."""

import math

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.console.formats import UNKNOWN, number_text
from hpc_dasgd.report import timeline
from hpc_dasgd.report.facts import hosts_and_devices, known_number


def key_figures(run: Run) -> list[tuple[str, str]]:
    """Return names and values of the key figures of a run; unknown values are left out."""
    seconds, n_gradients, last = run.seconds, int(run.counts.sum()), run.evaluation[-1:]
    loss, accuracy = (float(last[name][0]) if last.size else math.nan for name in ("loss", "accuracy"))
    staleness = run.staleness().as_dict() if run.has_versions else {}
    dropped = run.attributes.get("dropped_reads")
    figures = [
        ("gradients", f"{n_gradients:,}"),
        ("gradients/s", _rate(n_gradients, seconds)),
        ("seconds", f"{seconds:,.1f}"),
        ("final loss", known_number(loss)),
        ("accuracy", None if math.isnan(accuracy) else f"{accuracy:.2%}"),
        ("S_avg", known_number(staleness.get("S_avg"))),
        ("S_max", known_number(staleness.get("S_max"))),
        ("drift", known_number(run.attributes.get("drift"), digits=2)),
        ("dropped reads", None if dropped is None else f"{dropped:,}"),
    ]
    return [(name, value) for name, value in figures if value is not None]


def rank_rows(run: Run) -> list[dict[str, str]]:
    """Return, for each rank, its host and numbers by heading."""
    busy = timeline.busy_shares(run)
    staleness = run.staleness().as_dict()["per_rank"] if run.has_versions else [{}] * run.n_ranks
    return [
        {
            "rank": str(rank),
            "gradients": f"{run.counts[rank]:,}",
            "gradients/s": _rate(int(run.counts[rank]), run.seconds),
            "computing": UNKNOWN if math.isnan(busy[rank]) else f"{busy[rank]:.0%}",
            "S_avg": number_text(numbers.get("S_avg")),
            "S_max": number_text(numbers.get("S_max")),
            "host": host,
        }
        for rank, (host, numbers) in enumerate(zip(hosts_and_devices(run), staleness, strict=False))
    ]


def _rate(count: int, seconds: float) -> str:
    """Return ``count / seconds`` as text without unit, with thousands separators from 1,000 on."""
    if seconds <= 0:
        return UNKNOWN
    rate = count / seconds
    return f"{rate:.4g}" if rate < 1000 else f"{rate:,.0f}"
