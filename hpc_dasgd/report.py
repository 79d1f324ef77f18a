"""A run at a glance: a summary for the terminal, plots as PNG. Needs no MPI."""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from hpc_dasgd import plots
from hpc_dasgd.analysis import Run

_POINTS = 2000  # per line of a plot: more than its width in pixels
_SMOOTHED = 200  # points of a smoothed loss
_TABLE_RANKS = 32
_PLOTTED_RANKS = 16  # whose lines are told apart; beyond, a sample of the ranks is drawn
_STALENESS_BINS = 60
_STATUS = {"complete": "complete", "running": "running, or ended before its end"}


def summary(run: Run) -> str:
    """Return what a run was and what it came to, as text for the terminal."""
    attributes = run.attributes
    seconds = run.seconds
    n_gradients = int(run.counts.sum())
    rows = [
        ("run", f"{run.directory} ({_STATUS[run.status]})"),
        ("started", attributes.get("started")),
        ("ranks", f"{run.n_ranks} on {_hosts(attributes.get('hosts', []))}"),
        ("MPI", attributes.get("mpi_library")),
        ("gradients", f"{n_gradients} in {seconds:.1f} s, {_rate(n_gradients, seconds)}"),
        *_evaluation_rows(run),
        *_staleness_rows(run),
        ("drift", _number(attributes.get("drift"))),
        ("dropped reads", _number(attributes.get("dropped_reads"))),
        ("consensus", _number(attributes.get("consensus_distance"), " (root mean squared distance from the mean)")),
        ("transferred", _transferred(run)),
        ("exchanges", _pace(run)),
        ("clock error", _number(attributes.get("clock_error_s"), " s")),
    ]
    lines = [f"{name + ':':<15}{value}" for name, value in rows if value is not None]
    return "\n".join([*lines, "", *_rank_table(run), *(f"warning: {warning}" for warning in run.warnings)])


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
        Of ``loss_seconds.png``, ``loss_gradients.png``, ``staleness.png``, ``progress.png``.

    Raises
    ------
    ConfigError
        If the directory cannot be written to.
    """
    drawn = {
        "loss_seconds.png": _plot_loss_over_seconds,
        "loss_gradients.png": _plot_loss_over_gradients,
        "staleness.png": _plot_staleness,
        "progress.png": _plot_progress,
    }
    if not run.counts.any():
        drawn = {}
    elif not run.versions_every:
        del drawn["staleness.png"]
    directory = Path(directory)
    with plots.writing_to(directory):
        return [_write(directory / name, plot, run) for name, plot in drawn.items()]


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.4g}/s" if seconds > 0 else "-"


def _number(value, unit: str = "") -> str | None:
    return None if value is None or math.isnan(value) else f"{value:.4g}{unit}"


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
    if run.versions_every and run.counts.any():
        result = run.staleness().as_dict()
        yield "staleness", "  ".join(f"{name} {result[name]:.4g}" for name in ("S_avg", "S_rms", "S_max"))


def _rank_table(run: Run) -> list[str]:
    hosts = run.attributes.get("hosts") or [""] * run.n_ranks
    seconds = run.seconds
    lines = [f"{'rank':>6} {'gradients':>11} {'rate':>11}  host"]
    for rank, (count, host) in enumerate(zip(run.counts[:_TABLE_RANKS], hosts, strict=False)):
        lines.append(f"{rank:>6} {count:>11} {_rate(count, seconds):>11}  {host}".rstrip())
    if run.n_ranks > _TABLE_RANKS:
        rest = run.counts[_TABLE_RANKS:]
        lines.append(f"{'...':>6} {rest.size} more ranks, of {rest.min()} to {rest.max()} gradients")
    return lines


def _write(path: Path, plot, run: Run) -> Path:
    figure = plots.blank_figure(7, 4.5)
    axes = figure.add_subplot()
    axes.set_title(run.directory.resolve().name)
    axes.grid(alpha=0.3)
    plot(run, axes)
    figure.savefig(path)
    return path


def _by_rank(run: Run):
    """Yield ``(rank, its gradients)`` of as many ranks as a plot has room for."""
    ends = np.cumsum(run.counts)
    chosen = np.flatnonzero(run.counts)
    if chosen.size > _PLOTTED_RANKS:
        chosen = chosen[np.linspace(0, chosen.size - 1, _PLOTTED_RANKS).round().astype(int)]
    for rank in chosen:
        yield rank, run.gradients[ends[rank] - run.counts[rank] : ends[rank]]


def _plot_loss(run: Run, axes, position, evaluation_x: np.ndarray) -> None:
    """Draw the loss against `position`, a function of seconds: smoothed by rank, and as evaluated."""
    lowest = math.inf
    for rank, gradients in _by_rank(run):
        seconds, loss = (_block_means(gradients[name], _SMOOTHED) for name in ("t_end_s", "loss"))
        lowest = min(lowest, loss.min())
        axes.plot(position(seconds), loss, linewidth=1, alpha=0.6, label=f"rank {rank}, batches")
    evaluated = np.isfinite(run.evaluation["loss"])
    if evaluated.any():
        loss = run.evaluation["loss"][evaluated]
        lowest = min(lowest, loss.min())
        axes.plot(evaluation_x[evaluated], loss, "k.-", linewidth=1.5, label="evaluation set")
    if lowest > 0:
        axes.set_yscale("log")
    axes.set_ylabel("loss (of batches: running mean)")
    axes.legend(loc="upper right", fontsize="x-small", ncols=2)


def _plot_loss_over_seconds(run: Run, axes) -> None:
    _plot_loss(run, axes, lambda seconds: seconds, run.evaluation["t_s"])
    axes.set_xlabel("time since the start (s)")


def _plot_loss_over_gradients(run: Run, axes) -> None:
    ends = np.sort(run.gradients["t_end_s"])
    _plot_loss(run, axes, lambda seconds: np.searchsorted(ends, seconds), run.evaluation["gradients"])
    axes.set_xlabel("gradients of all ranks")


def _plot_staleness(run: Run, axes) -> None:
    staleness = run.staleness()
    numbers = staleness.as_dict()
    edges, counts = staleness.histogram(_STALENESS_BINS)
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", edgecolor="white", linewidth=0.3, log=True)
    for name, color in (("S_avg", "C1"), ("S_rms", "C3")):
        # Bar of staleness s covers [s, s + 1).
        axes.axvline(numbers[name] + 0.5, color=color, label=f"{name} {numbers[name]:.4g}")
    axes.set_xlabel(f"staleness (gradients missed), at most {numbers['S_max']}")
    axes.set_ylabel("gradients")
    axes.legend(loc="upper right")


def _plot_progress(run: Run, axes) -> None:
    for rank, gradients in _by_rank(run):
        shown = np.unique(np.linspace(0, gradients.size - 1, _POINTS).astype(int))
        axes.plot(gradients["t_end_s"][shown], shown + 1, linewidth=1, label=f"rank {rank}")
    axes.set_xlabel("time since the start (s)")
    axes.set_ylabel("gradients of the rank")
    axes.legend(loc="upper left", fontsize="x-small", ncols=2)


def _block_means(values: np.ndarray, n_blocks: int) -> np.ndarray:
    """Means of `values` over at most `n_blocks` blocks of nearly equal length."""
    begins = np.linspace(0, values.size, min(n_blocks, values.size), endpoint=False).astype(int)
    return np.add.reduceat(values, begins) / np.diff(begins, append=values.size)
