"""Plots of a run over time: when ranks computed, how fast they were, and how many gradients their replicas lacked."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.arrays.types import AnyArray, Float64s
from hpc_dasgd.report import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LAG_RANKS = 1024
"""Largest number of ranks for which `replica_lag` is drawn: the version vectors of all replicas must fit in memory."""

_MAX_POINTS = 2000  # per line: more than the width of a plot in pixels
_MAX_LINES = 16  # with more ranks than this, only a sample of the ranks is drawn
_MAX_BAR_ROWS = 32  # with more ranks than this, only a sample of the ranks is drawn
_MAX_HIGH_RANKS = 64  # number of ranks up to which the height of a plot grows
_SHOWN_STEPS = 32  # steps of a typical rank in the part of the timeline that is shown
_TIME_BINS = 80
_MIN_GRADIENTS_PER_BIN = 4  # gradients of a rank; with fewer, bins would alternate between 0 and 1 gradient
_TIMES_PER_BIN = 15  # samples of the lag per bin; a single one could fall into a pause of a rank
_MAX_ENTRIES = 1 << 22  # largest number of entries of the version vectors that are looked up


def gradients_in_the_middle(run: Run, figure: "Figure") -> None:
    """Draw each gradient as a bar, in a short time in the middle of the run; the colour shows its staleness."""
    ranks = plotting.sample_ranks(run.counts, _MAX_BAR_ROWS)
    begin, end = _middle(run)
    unit, scale = ("s", 1.0) if end - begin > 5 else ("ms", 1e3)
    figure.set_size_inches(2 * figure.get_figwidth(), 1.3 + 0.27 * max(4, ranks.size))
    axes = figure.add_subplot()
    staleness = _staleness_by_row(run)
    largest, bars = 1.0, []
    for y, rank in enumerate(ranks.tolist()):
        own = run.gradients[run.rows(rank)]
        shown = (own["t_end_s"] > begin) & (own["t_start_s"] < end)
        begins, durations = (
            (own["t_start_s"][shown] - begin) * scale,
            (own["t_end_s"] - own["t_start_s"])[shown] * scale,
        )
        spans = list(zip(begins.tolist(), durations.tolist(), strict=True))
        bars.append(axes.broken_barh(spans, (y - 0.4, 0.8), facecolor="C0", edgecolor="white", linewidth=0.4))
        if staleness is not None:
            own_staleness = staleness[run.rows(rank)][shown]
            bars[-1].set_array(own_staleness)
            largest = max(largest, float(own_staleness.filled(0).max(initial=0)))
    if staleness is not None:
        for bar in bars:
            bar.set(cmap=plotting.heat_colormap(), clim=(0, largest))
        figure.colorbar(bars[0], label="staleness (gradients missed)", pad=0.01)
    axes.set_xlim(0, (end - begin) * scale)
    axes.set_ylim(ranks.size - 0.4, -0.6)
    axes.set_yticks(range(ranks.size), ranks)
    axes.set_xlabel(f"time since {begin:.4g} s ({unit}); bars: gradients, gaps: exchanges and other work")
    axes.set_ylabel("rank")


def activity(run: Run, figure: "Figure") -> None:
    """Draw for the whole run the rate of each rank, and the share of time in which it computed gradients."""
    n_bins = int(np.clip(run.counts.max() // _MIN_GRADIENTS_PER_BIN, 1, _TIME_BINS))
    edges = plotting.time_edges(run.gradients["t_start_s"].min(), run.gradients["t_end_s"].max(), n_bins)
    rate, busy = np.empty((2, run.n_ranks, n_bins))
    for rank in range(run.n_ranks):
        own = run.gradients[run.rows(rank)]
        rate[rank] = np.histogram(own["t_end_s"], edges)[0] / np.diff(edges)
        busy[rank] = _busy_seconds(own, edges) / np.diff(edges)
    _adjust_height(figure, run.n_ranks, 2)
    panels = figure.subplots(2, 1, sharex=True)
    _heat_map(figure, panels[0], rate, edges, "gradients/s", vmin=0)
    _heat_map(figure, panels[1], busy, edges, "share of time computing", vmin=0, vmax=1)
    panels[1].set_xlabel(plotting.TIME_LABEL)


def replica_lag(run: Run, figure: "Figure") -> None:
    """Draw how many completed gradients were missing from each replica, averaged over short times."""
    from matplotlib.colors import Normalize, SymLogNorm

    n_times = int(np.clip(_MAX_ENTRIES // run.n_ranks**2, 2, _TIME_BINS * _TIMES_PER_BIN))
    n_bins = min(_TIME_BINS, n_times)
    edges = plotting.time_edges(run.gradients["t_start_s"].min(), run.gradients["t_end_s"].max(), n_bins)
    fine_edges = plotting.time_edges(edges[0], edges[-1], n_times // n_bins * n_bins)
    times_s = (fine_edges[:-1] + fine_edges[1:]) / 2
    ends = [run.gradients["t_end_s"][run.rows(rank)] for rank in range(run.n_ranks)]
    completed = np.stack([np.searchsorted(own, times_s, side="right") for own in ends], axis=-1)
    missing = np.maximum(completed[:, np.newaxis] - run.version_vectors_at(times_s), 0).sum(axis=-1).T
    # Unknown after a rank's last gradient: the log has no later vector. A generation may have fewer ranks.
    unknown = np.stack([times_s > own[-1] if own.size else np.full(times_s.size, True) for own in ends])
    unknown |= np.arange(run.n_ranks)[:, np.newaxis] >= run.n_ranks_at(times_s)
    means = np.ma.array(missing, mask=unknown).reshape(run.n_ranks, n_bins, -1).mean(axis=-1)
    known = means.compressed()
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    is_wide = high > 20 * max(1, low)
    norm = SymLogNorm(linthresh=1, vmin=low, vmax=high) if is_wide else Normalize(low, max(low + 1, high))
    _adjust_height(figure, run.n_ranks, 1)
    axes = figure.add_subplot()
    _heat_map(figure, axes, means, edges, "missing gradients (mean)", norm=norm)
    axes.set_xlabel(plotting.TIME_LABEL)


def progress(run: Run, figure: "Figure") -> None:
    """Draw the number of gradients of each rank against time."""
    axes = figure.add_subplot()
    for i, rank in enumerate(plotting.sample_ranks(run.counts, _MAX_LINES).tolist()):
        ends = run.gradients["t_end_s"][run.rows(rank)]
        shown = np.unique(np.linspace(0, ends.size - 1, _MAX_POINTS).astype(int))
        axes.plot(ends[shown], shown + 1, **plotting.thin_line(i), label=f"rank {rank}")
    axes.grid(alpha=0.3)
    axes.set_xlabel(plotting.TIME_LABEL)
    axes.set_ylabel("gradients of the rank")
    axes.legend(loc="upper left", fontsize="x-small", ncols=2)


def busy_shares(run: Run) -> Float64s:
    """Return the share of time that each rank computed gradients, from its first gradient to its last.

    Returns
    -------
    shares : ndarray, shape (n_ranks,), float64
        Between 0 and 1; nan for a rank without gradients.
    """
    shares = np.full(run.n_ranks, np.nan)
    for rank in np.flatnonzero(run.counts).tolist():
        own = run.gradients[run.rows(rank)]
        span = own["t_end_s"][-1] - own["t_start_s"][0]
        shares[rank] = (own["t_end_s"] - own["t_start_s"]).sum() / span if span > 0 else np.nan
    return shares


def _middle(run: Run) -> tuple[float, float]:
    """Return the start and the end, in s, of a short time in the middle of the run that contains gradients."""
    starts = run.gradients["t_start_s"]
    middle = np.partition(starts, starts.size // 2)[starts.size // 2]
    steps = [np.median(np.diff(starts[run.rows(rank)])) for rank in np.flatnonzero(run.counts > 1).tolist()]
    span = _SHOWN_STEPS * np.median(steps) if steps else np.ptp(run.gradients["t_end_s"])
    span = max(float(span), float((run.gradients["t_end_s"] - starts)[starts == middle][0]), 1e-6)
    return max(0.0, float(middle - span / 2)), float(middle + span / 2)


def _staleness_by_row(run: Run) -> "np.ma.MaskedArray[Any, Any] | None":
    """Return the staleness for each row of `Run.gradients`, masked if unknown; None without version vectors."""
    if not run.has_versions:
        return None
    rows, staleness = run.staleness_by_row()
    by_row = np.ma.array(np.zeros(run.gradients.size), mask=True)
    by_row[rows] = staleness
    return by_row


def _busy_seconds(own: AnyArray, edges: Float64s) -> Float64s:
    """Return the time in s that a rank computed gradients in each bin.

    Parameters
    ----------
    own : structured ndarray, shape (n_gradients,)
        Gradients of the rank, as in `Run.gradients`.
    edges : ndarray, shape (n_bins + 1,), float64, s
    """
    if not own.size:
        return np.zeros(edges.size - 1)
    times = np.column_stack([own["t_start_s"], own["t_end_s"]]).ravel()
    seconds = np.zeros(times.size)
    seconds[1::2] = np.cumsum(own["t_end_s"] - own["t_start_s"])
    seconds[2::2] = seconds[1:-1:2]
    return np.diff(np.interp(edges, times, seconds))


def _adjust_height(figure: "Figure", n_ranks: int, n_panels: int) -> None:
    """Make a figure higher if the rows of many ranks would be too thin to see."""
    figure.set_figheight(max(figure.get_figheight(), n_panels * (1 + 0.035 * min(n_ranks, _MAX_HIGH_RANKS))))


def _heat_map(figure: "Figure", axes: "Axes", values: AnyArray, edges: Float64s, label: str, **scale: Any) -> None:
    """Draw values, shape (n_ranks, n_bins), as colours."""
    image = axes.imshow(
        values,
        extent=(edges[0], edges[-1], len(values) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
        cmap=plotting.heat_colormap(),
        **scale,
    )
    plotting.use_integer_ticks(axes.yaxis)
    axes.set_ylabel("rank")
    figure.colorbar(image, ax=axes, label=label, pad=0.01)
