"""Pictures of a run over time: when ranks computed, how fast, and how far their replicas were behind."""

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.report import plotting

_POINTS = 2000  # per line: more than its width in pixels
_PLOTTED_RANKS = 16
_BAR_RANKS = 32  # that have room for bars; beyond, a sample of the ranks is drawn
_HIGH_RANKS = 64  # for which a picture is made higher
_SHOWN_STEPS = 32  # of a middling rank, in the part of the timeline that is shown
_TIME_BINS = 80
_PER_BIN = 4  # gradients that a rank has in a bin at the least, so that its rate is not 0 or 1 by turns
_MOMENTS = 15  # per bin; one alone may find a rank that the system has put to sleep
BEHIND_RANKS = 1024  # beyond, a look at all replicas takes too much memory
_LOOKED_UP = 1 << 22  # entries of version vectors


def gradients_in_the_middle(run: Run, figure) -> None:
    """Draw a short time in the middle of the run: each gradient as a bar, coloured by what it missed."""
    ranks = plotting.some_ranks(run.counts, _BAR_RANKS)
    begin, end = _middle(run)
    unit, scale = ("s", 1) if end - begin > 5 else ("ms", 1e3)
    figure.set_size_inches(2 * figure.get_figwidth(), 1.3 + 0.27 * max(4, ranks.size))
    axes = figure.add_subplot()
    missed = _missed(run)
    bars = []
    for y, rank in enumerate(ranks):
        own = run.gradients[run.rows(rank)]
        shown = (own["t_end_s"] > begin) & (own["t_start_s"] < end)
        spans = np.column_stack([own["t_start_s"][shown] - begin, (own["t_end_s"] - own["t_start_s"])[shown]]) * scale
        bars.append(axes.broken_barh(spans, (y - 0.4, 0.8), facecolor="C0", edgecolor="white", linewidth=0.4))
        bars[-1].set_array(None if missed is None else missed[run.rows(rank)][shown])
    if missed is not None:
        seen = np.ma.concatenate([bar.get_array() for bar in bars])
        for bar in bars:
            bar.set(cmap=plotting.heat(), clim=(0, max(1, seen.max() if seen.count() else 1)))
        figure.colorbar(bars[0], label="gradients missed", pad=0.01)
    axes.set_xlim(0, (end - begin) * scale)
    axes.set_ylim(ranks.size - 0.4, -0.6)
    axes.set_yticks(range(ranks.size), ranks)
    axes.set_xlabel(f"{unit} from {begin:.4g} s on; bars: computing, gaps: exchanging and all else")
    axes.set_ylabel("rank")


def activity(run: Run, figure) -> None:
    """Draw over the whole run how fast each rank was, and which part of the time it computed."""
    n_bins = int(np.clip(run.counts.max() // _PER_BIN, 1, _TIME_BINS))
    edges = plotting.time_edges(run.gradients["t_start_s"].min(), run.gradients["t_end_s"].max(), n_bins)
    rate, busy = np.empty((2, run.n_ranks, n_bins))
    for rank in range(run.n_ranks):
        own = run.gradients[run.rows(rank)]
        rate[rank] = np.histogram(own["t_end_s"], edges)[0] / np.diff(edges)
        busy[rank] = _busy_seconds(own, edges) / np.diff(edges)
    _make_room(figure, run.n_ranks, 2)
    panels = figure.subplots(2, 1, sharex=True)
    _heat_map(figure, panels[0], rate, edges, "gradients/s", vmin=0)
    _heat_map(figure, panels[1], busy, edges, "share computing", vmin=0, vmax=1)
    panels[1].set_xlabel("time since the start (s)")


def behind(run: Run, figure) -> None:
    """Draw how many gradients, completed by then, each replica did not hold: means over short spans of time."""
    from matplotlib.colors import Normalize, SymLogNorm

    n_moments = int(np.clip(_LOOKED_UP // run.n_ranks**2, 2, _TIME_BINS * _MOMENTS))
    n_bins = min(_TIME_BINS, n_moments)
    edges = plotting.time_edges(run.gradients["t_start_s"].min(), run.gradients["t_end_s"].max(), n_bins)
    fine = plotting.time_edges(edges[0], edges[-1], n_moments // n_bins * n_bins)
    moments = (fine[:-1] + fine[1:]) / 2
    ends = [run.gradients["t_end_s"][run.rows(rank)] for rank in range(run.n_ranks)]
    done = np.stack([np.searchsorted(times, moments, side="right") for times in ends], axis=-1)
    lacking = np.maximum(done[:, np.newaxis] - run.replicas(moments), 0).sum(axis=-1).T
    # What a rank held after its last gradient is not in its log; in some generations there may be none of that number.
    over = np.stack([moments > times[-1] if times.size else np.full(moments.size, True) for times in ends])
    over |= np.arange(run.n_ranks)[:, np.newaxis] >= run.n_ranks_at(moments)
    means = np.ma.masked_where(over, lacking).reshape(run.n_ranks, n_bins, -1).mean(axis=-1)
    low, high = (float(means.min()), float(means.max())) if means.count() else (0.0, 0.0)
    wide = high > 20 * max(1, low)
    norm = SymLogNorm(linthresh=1, vmin=low, vmax=high) if wide else Normalize(low, max(low + 1, high))
    _make_room(figure, run.n_ranks, 1)
    axes = figure.add_subplot()
    _heat_map(figure, axes, means, edges, "gradients behind, mean", norm=norm)
    axes.set_xlabel("time since the start (s)")


def progress(run: Run, figure) -> None:
    """Draw the gradients of each rank against time."""
    axes = figure.add_subplot()
    for i, rank in enumerate(plotting.some_ranks(run.counts, _PLOTTED_RANKS)):
        ends = run.gradients["t_end_s"][run.rows(rank)]
        shown = np.unique(np.linspace(0, ends.size - 1, _POINTS).astype(int))
        axes.plot(ends[shown], shown + 1, **plotting.thin_line(i), label=f"rank {rank}")
    axes.grid(alpha=0.3)
    axes.set_xlabel("time since the start (s)")
    axes.set_ylabel("gradients of the rank")
    axes.legend(loc="upper left", fontsize="x-small", ncols=2)


def busy_shares(run: Run) -> np.ndarray:
    """Which part of its time, from its first gradient to its last, each rank computed; nan without gradients."""
    shares = np.full(run.n_ranks, np.nan)
    for rank in np.flatnonzero(run.counts):
        own = run.gradients[run.rows(rank)]
        span = own["t_end_s"][-1] - own["t_start_s"][0]
        shares[rank] = (own["t_end_s"] - own["t_start_s"]).sum() / span if span > 0 else np.nan
    return shares


def _middle(run: Run) -> tuple[float, float]:
    """Begin and end of a time in the middle of the run that holds gradients."""
    starts = run.gradients["t_start_s"]
    middle = np.partition(starts, starts.size // 2)[starts.size // 2]
    steps = [np.median(np.diff(starts[run.rows(rank)])) for rank in np.flatnonzero(run.counts > 1)]
    span = _SHOWN_STEPS * np.median(steps) if steps else np.ptp(run.gradients["t_end_s"])
    span = max(span, float((run.gradients["t_end_s"] - starts)[starts == middle][0]), 1e-6)
    return max(0.0, middle - span / 2), middle + span / 2


def _missed(run: Run) -> np.ndarray | None:
    """Staleness by row of `Run.gradients`, masked where it is not known."""
    if not run.has_versions:
        return None
    positions, staleness = run.measured()
    missed = np.ma.masked_all(run.gradients.size)
    missed[positions] = staleness
    return missed


def _busy_seconds(own: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Seconds that a rank computed between each two `edges`."""
    if not own.size:
        return np.zeros(edges.size - 1)
    times = np.column_stack([own["t_start_s"], own["t_end_s"]]).ravel()
    seconds = np.zeros(times.size)
    seconds[1::2] = np.cumsum(own["t_end_s"] - own["t_start_s"])
    seconds[2::2] = seconds[1:-1:2]
    return np.diff(np.interp(edges, times, seconds))


def _make_room(figure, n_ranks: int, n_panels: int) -> None:
    """Make a figure higher where many ranks would be thinner than they can be seen."""
    figure.set_figheight(max(figure.get_figheight(), n_panels * (1 + 0.035 * min(n_ranks, _HIGH_RANKS))))


def _heat_map(figure, axes, values: np.ndarray, edges: np.ndarray, label: str, **scale) -> None:
    """Draw `values` by rank and span of time."""
    image = axes.imshow(
        values,
        extent=(edges[0], edges[-1], len(values) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
        cmap=plotting.heat(),
        **scale,
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("rank")
    figure.colorbar(image, ax=axes, label=label, pad=0.01)
