"""A run at a glance: a summary for the terminal, plots as PNG, a page. Needs no MPI."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np

from hpc_dasgd.analysis import bound_report
from hpc_dasgd.analysis.run import Run
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.report import page, pictures, plotting, timeline
from hpc_dasgd.report.diagnosis import warnings

PAGE = "report.html"
_TABLE_RANKS = 32
_PATIENCE_S = 20  # for estimating what the bounds take of an objective
_STATUS = {
    "complete": "complete",
    "stopped": "stopped by a signal",
    "running": "running, or ended before its end",
}
_INTERRUPTED = {"complete": "after its end", "stopped": "stopped by a signal", "running": "killed"}


def summary(run: Run, held: dict | None = None) -> str:
    """Return what a run was and what it came to, as text for the terminal.

    Parameters
    ----------
    run : Run
    held : dict, optional
        What ``bound --json`` prints; its warnings are shown.
    """
    lines = [f"{name + ':':<15}{value}" for name, value in _facts(run)]
    return "\n".join([*lines, "", *_rank_table(run), *(f"warning: {text}" for text in warnings(run, held))])


def write_plots(run: Run, directory: Path) -> list[Path]:
    """Write the plots of a run as PNG files; those that its log has nothing for are left out.

    Parameters
    ----------
    run : Run
    directory : Path
        Made with its parents where it does not exist.

    Returns
    -------
    paths : list of Path
        ``loss_seconds.png`` and others, in the order of the page.

    Raises
    ------
    ConfigError
        If the directory cannot be written to.
    """
    directory = Path(directory)
    with plotting.writing_to(directory):
        return [_write(directory / name, draw, run) for name, draw in _plots(run).items()]


def write_page(run: Run, paths: list[Path], directory: Path, held: dict | None = None) -> Path:
    """Write ``report.html``: all there is to see of a run, in one file that needs no other.

    Parameters
    ----------
    run : Run
    paths : list of Path
        The plots, as `write_plots` returned them.
    directory : Path
        Where the page goes; there already, or made with its parents.
    held : dict, optional
        What ``bound --json`` prints.

    Raises
    ------
    ConfigError
        If the directory cannot be written to.
    """
    path = Path(directory) / PAGE
    content = page.Content(
        name=run.directory.resolve().name,
        status=run.status,
        lead=_lead(run),
        warnings=warnings(run, held),
        figures=_figures(run),
        facts=_facts(run) + _versions(run),
        ranks=_rank_rows(run),
        settings=run.attributes["config"],
        bound=held,
    )
    with plotting.writing_to(path.parent):
        pictures = {plot.stem: plot.read_bytes() for plot in paths}
        path.write_text(page.html(content, pictures), encoding="utf-8")
    return path


def bounds(run: Run) -> tuple[dict | None, str | None]:
    """Hold a run against the bounds, as far as that can be done here and quickly.

    Returns
    -------
    bound : dict or None
        As ``bound --json`` prints it.
    reason : str or None
        Why there is none; None also where nobody would ask.
    """
    if not run.has_versions or not traits_in(run.settings.get("exchange", {})).whole_updates:
        return None, None
    gradient_s = float(np.median(run.gradients["t_end_s"] - run.gradients["t_start_s"]))
    if gradient_s * bound_report.GRADIENTS > _PATIENCE_S:
        return None, f"would take about {gradient_s * bound_report.GRADIENTS:.0f} s"
    try:
        return bound_report.compare_with_bounds(run).as_dict(), None
    except ConfigError as error:
        return None, str(error)
    except Exception as error:  # of the user's objective, without which all else can be shown
        return None, f"{type(error).__name__}: {error}"


def _plots(run: Run) -> dict:
    """What draws the plots that the log of a run has something for, by file name."""
    if not run.counts.any():
        return {}
    known, several = run.has_versions, run.n_ranks > 1
    drawn = {
        "loss_seconds.png": pictures.loss_over_seconds,
        "loss_gradients.png": pictures.loss_over_gradients,
        "staleness.png": pictures.staleness_histogram if known else None,
        "staleness_time.png": pictures.staleness_over_time if known else None,
        "missed.png": pictures.missed_by_pair if known and several else None,
        "behind.png": timeline.behind if known and 1 < run.n_ranks <= timeline.BEHIND_RANKS else None,
        "timeline.png": timeline.gradients_in_the_middle,
        "activity.png": timeline.activity,
        "progress.png": timeline.progress,
    }
    return {name: draw for name, draw in drawn.items() if draw}


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was run and what it came to, in words."""
    attributes = run.attributes
    seconds = run.seconds
    n_gradients = int(run.counts.sum())
    rows = [
        ("run", f"{run.directory} ({_STATUS[run.status]})"),
        ("started", attributes.get("started")),
        ("ranks", f"{run.n_ranks} on {_hosts(attributes.get('hosts', []))}"),
        ("generations", _generations(run)),
        ("MPI", attributes.get("mpi_library")),
        ("gradients", f"{n_gradients} in {seconds:.1f} s, {_rate(n_gradients, seconds)}"),
        *_evaluation_rows(run),
        ("stepsize", _chosen_stepsize(run)),
        *_staleness_rows(run),
        ("drift", _number(attributes.get("drift"))),
        ("dropped reads", _number(attributes.get("dropped_reads"))),
        ("consensus", _number(attributes.get("consensus_distance"), " (root mean squared distance from the mean)")),
        ("transferred", _transferred(run)),
        ("exchanges", _pace(run)),
        ("clock error", _number(attributes.get("clock_error_s"), " s")),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _versions(run: Run) -> list[tuple[str, str]]:
    """With what a run was made, as far as it is not in `_facts`."""
    suffix = "_version"
    versions = {name.removesuffix(suffix): value for name, value in run.attributes.items() if name.endswith(suffix)}
    rows = [
        ("command", run.attributes.get("command")),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items()) or None),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _lead(run: Run) -> str:
    """Say in one line what a run did."""
    objective, exchange = (run.settings.get(name, {}) for name in ("objective", "exchange"))
    parts = [
        f"{run.n_ranks} rank{'' if run.n_ranks == 1 else 's'} on {_hosts(run.attributes.get('hosts', []))}",
        f"objective {objective['kind']}" if "kind" in objective else "",
        f"exchange {exchange['kind']}" if "kind" in exchange else "",
        f"topology {exchange['topology']}" if traits_in(exchange).chooses_topology and "topology" in exchange else "",
        run.attributes.get("started", ""),
    ]
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def _figures(run: Run) -> list[tuple[str, str]]:
    """Key figures of a run and their names; those that are not known are left out."""
    seconds, n_gradients, last = run.seconds, int(run.counts.sum()), run.evaluation[-1:]
    loss, accuracy = (float(last[name][0]) if last.size else math.nan for name in ("loss", "accuracy"))
    staleness = run.staleness().as_dict() if run.has_versions else {}
    figures = [
        ("gradients", f"{n_gradients:,}"),
        ("gradients/s", _with_commas(_rate(n_gradients, seconds))),
        ("seconds", f"{seconds:,.1f}"),
        ("final loss", _number(loss)),
        ("accuracy", None if math.isnan(accuracy) else f"{accuracy:.2%}"),
        ("S_avg", _number(staleness.get("S_avg"))),
        ("S_max", _number(staleness.get("S_max"))),
        ("drift", None if (drift := run.attributes.get("drift")) is None or math.isnan(drift) else f"{drift:.2g}"),
        ("dropped reads", f"{dropped:,}" if (dropped := run.attributes.get("dropped_reads")) is not None else None),
    ]
    return [(name, value) for name, value in figures if value is not None]


def _generations(run: Run) -> str | None:
    """When and why a run was interrupted, and what that cost."""
    if len(run.generations) == 1:
        return None
    interruptions = []
    for generation, child, n_lost in zip(run.generations, run.generations[1:], run.lost_work(), strict=False):
        ranks = f", on with {child.n_ranks} ranks" if child.n_ranks != generation.n_ranks else ""
        cost = f"{_INTERRUPTED[generation.status]}, {n_lost} gradients lost{ranks}"
        interruptions.append(f"at {child.begun_s:.1f} s ({cost})")
    return f"{len(run.generations)}, interrupted {', '.join(interruptions)}"


def _rate(count: int, seconds: float) -> str:
    if seconds <= 0:
        return "-"
    rate = count / seconds
    return f"{rate:.4g}/s" if rate < 1000 else f"{rate:.0f}/s"


def _with_commas(rate: str) -> str:
    """A rate as a number alone."""
    number = rate.removesuffix("/s")
    return f"{int(number):,}" if number.isdigit() else number


def _number(value, unit: str = "") -> str | None:
    return None if value is None or math.isnan(value) else f"{value:.4g}{unit}"


def _chosen_stepsize(run: Run) -> str | None:
    """What chose the stepsize, where it was not the user."""
    chosen = json.loads(run.attributes.get("stepsize_chosen") or "null")
    if chosen is None:
        return None
    seen = ", ".join(f"{name} {chosen['delays'][name]:.4g}" for name in ("S_avg", "W_max"))
    known = ", ".join(f"{name} {value:.4g}" for name, value in chosen["constants"].items())
    return f"{chosen['stepsize']:.4g}, by bound {chosen['bound']} before the run: {known}; {seen} in a probe"


def _transferred(run: Run) -> str | None:
    """What a rank read from and sent to others, on average; not where MPI's collectives hide it."""
    by_rank = run.attributes.get("transferred_bytes", [0])
    return f"{np.mean(by_rank) / 1e6:.4g} MB by a rank" if any(by_rank) else None


def _pace(run: Run) -> str | None:
    """How far apart exchanges were at the end, where that was adapted."""
    if run.pace is None:
        return None
    last = {int(change["rank"]): change for change in run.pace}
    every = [int(last[rank]["every"]) if rank in last else 1 for rank in range(run.n_ranks)]
    overhead = max((change["overhead"] for change in last.values()), default=math.nan)
    return f"every {min(every)} to {max(every)} steps at the end, overhead at most {overhead:.1%} when last changed"


def _hosts(hosts: list[str]) -> str:
    counts = Counter(hosts)
    if len(counts) > 3:
        return f"{len(counts)} nodes: {hosts[0]} ... {hosts[-1]}"
    return ", ".join(f"{host} ({count})" for host, count in counts.items()) or "unknown hosts"


def _evaluation_rows(run: Run):
    evaluation = run.evaluation
    for name, best_of in (("loss", np.nanargmin), ("accuracy", np.nanargmax)):
        if not np.isnan(evaluation[name]).all():
            best = evaluation[best_of(evaluation[name])]
            yield name, f"{evaluation[name][-1]:.4g}, best {best[name]:.4g} after {best['t_s']:.1f} s"


def _staleness_rows(run: Run):
    if run.has_versions:
        result = run.staleness().as_dict()
        yield "staleness", "  ".join(f"{name} {result[name]:.4g}" for name in ("S_avg", "S_rms", "S_max"))


def _places(run: Run) -> list[str]:
    """By rank its host, and its GPU if it had one."""
    hosts = run.attributes.get("hosts") or [""] * run.n_ranks
    devices = run.attributes.get("devices") or ["cpu"] * len(hosts)
    return [host if device == "cpu" else f"{host}, {device}" for host, device in zip(hosts, devices, strict=False)]


def _rank_rows(run: Run) -> list[dict]:
    """By rank its host and numbers, as text by heading."""
    busy = timeline.busy_shares(run)
    staleness = run.staleness().as_dict()["per_rank"] if run.has_versions else [{}] * run.n_ranks
    return [
        {
            "rank": str(rank),
            "gradients": f"{run.counts[rank]:,}",
            "gradients/s": _with_commas(_rate(run.counts[rank], run.seconds)),
            "computing": "-" if math.isnan(busy[rank]) else f"{busy[rank]:.0%}",
            "S_avg": _number(numbers.get("S_avg")) or "-",
            "S_max": _number(numbers.get("S_max")) or "-",
            "host": host,
        }
        for rank, (host, numbers) in enumerate(zip(_places(run), staleness, strict=False))
    ]


def _rank_table(run: Run) -> list[str]:
    seconds = run.seconds
    lines = [f"{'rank':>6} {'gradients':>11} {'rate':>11}  host"]
    for rank, (count, host) in enumerate(zip(run.counts[:_TABLE_RANKS], _places(run), strict=False)):
        lines.append(f"{rank:>6} {count:>11} {_rate(count, seconds):>11}  {host}".rstrip())
    if run.n_ranks > _TABLE_RANKS:
        rest = run.counts[_TABLE_RANKS:]
        lines.append(f"{'...':>6} {rest.size} more ranks, of {rest.min()} to {rest.max()} gradients")
    return lines


def _write(path: Path, draw, run: Run) -> Path:
    figure = plotting.blank_figure(6.4, 4.4)
    figure.suptitle(run.directory.resolve().name, parse_math=False, fontsize="medium")
    draw(run, figure)
    figure.savefig(path)
    return path
