"""Pictures of what a run came to: loss, accuracy, staleness, and what ranks missed. See `timeline` for when."""

import math

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.report import plotting

_SMOOTHED = 200  # points of a smoothed loss
_PLOTTED_RANKS = 16  # whose lines are told apart; beyond, a sample of the ranks is drawn
_FEW_RANKS = 8  # that have room for a line over others, or a number in a table
_STALENESS_BINS = 60
_TIME_BINS = 50


def loss_over_seconds(run: Run, figure) -> None:
    """Draw loss, and accuracy where there is one, against time."""
    _learning(run, figure, lambda seconds: seconds, run.evaluation["t_s"], "time since the start (s)")


def loss_over_gradients(run: Run, figure) -> None:
    """Draw loss, and accuracy where there is one, against the gradients of all ranks."""
    ends = np.sort(run.gradients["t_end_s"])
    x = run.evaluation["gradients"]
    _learning(run, figure, lambda seconds: np.searchsorted(ends, seconds), x, "gradients of all ranks")


def staleness_histogram(run: Run, figure) -> None:
    """Draw how many gradients were how stale."""
    axes = figure.add_subplot()
    staleness = run.staleness()
    numbers = staleness.as_dict()
    edges, counts = staleness.histogram(_STALENESS_BINS)
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", edgecolor="white", linewidth=0.3, log=True)
    for name, color in (("S_avg", "C1"), ("S_rms", "C3")):
        # Bar of staleness s covers [s, s + 1).
        axes.axvline(numbers[name] + 0.5, color=color, label=f"{name} {numbers[name]:.4g}")
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"staleness (gradients missed), at most {numbers['S_max']}")
    axes.set_ylabel("gradients")
    axes.legend(loc="upper right")


def staleness_over_time(run: Run, figure) -> None:
    """Draw the spread of the staleness by span of time, and of few ranks the mean of each."""
    axes = figure.add_subplot()
    positions, staleness = run.measured()
    measured = run.gradients[positions]
    starts = measured["t_start_s"]
    edges = plotting.time_edges(starts.min(), starts.max(), _TIME_BINS)
    spans = np.minimum(np.searchsorted(edges, starts, side="right") - 1, _TIME_BINS - 1)
    middles = (edges[:-1] + edges[1:]) / 2
    filled, low, median, high, largest = _percentiles(spans, staleness, (10, 50, 90, 100))
    x = middles[filled]
    axes.fill_between(x, low, high, color="0.85", linewidth=0, label="10 to 90 %")
    axes.plot(x, median, "k", linewidth=2, label="median")
    axes.plot(x, largest, "k.", markersize=2.5, label="largest")
    if 1 < run.n_ranks <= _FEW_RANKS:
        for i, rank in enumerate(np.unique(measured["rank"])):
            own = measured["rank"] == rank
            counts = np.bincount(spans[own], minlength=middles.size)
            means = np.bincount(spans[own], staleness[own], middles.size)[counts > 0] / counts[counts > 0]
            axes.plot(middles[counts > 0], means, **plotting.thin_line(i), label=f"mean of rank {rank}")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("time since the start (s)")
    axes.set_ylabel("staleness (gradients missed)")
    figure.legend(loc="outside lower center", fontsize="small", ncols=4, frameon=False)


def missed_by_pair(run: Run, figure) -> None:
    """Draw how many gradients of each rank a gradient of each rank missed on average."""
    axes = figure.add_subplot()
    missed = run.staleness().missed
    n_measured = np.bincount(missed.rank, minlength=run.n_ranks)[:, np.newaxis]
    shares = np.ma.masked_where(np.eye(run.n_ranks, dtype=bool) | (n_measured == 0), missed.per_pair)
    shares = shares / np.maximum(n_measured, 1)
    image = axes.imshow(shares, cmap=plotting.heat(), vmin=0, interpolation="nearest", aspect="equal")
    if run.n_ranks <= _FEW_RANKS:
        middle = shares.max() / 2
        for (i, j), share in np.ma.ndenumerate(shares):
            axes.text(j, i, f"{share:.2g}", ha="center", va="center", color="white" if share > middle else "black")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("whose gradients were missed (rank)")
    axes.set_ylabel("by a gradient of rank")
    figure.colorbar(image, label="gradients missed, mean")


def _learning(run: Run, figure, position, evaluation_x: np.ndarray, label: str) -> None:
    """Draw loss and accuracy against `position`, a function of seconds."""
    accurate = np.isfinite(run.evaluation["accuracy"])
    if accurate.any():
        loss, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        accuracy.plot(evaluation_x[accurate], run.evaluation["accuracy"][accurate], "k.-", linewidth=1.5)
        accuracy.grid(alpha=0.3)
        accuracy.set_ylabel("accuracy")
        accuracy.set_xlabel(label)
    else:
        loss = figure.add_subplot()
        loss.set_xlabel(label)
    _plot_loss(run, loss, position, evaluation_x)
    figure.legend(loc="outside lower center", fontsize="small", ncols=5, frameon=False)


def _plot_loss(run: Run, axes, position, evaluation_x: np.ndarray) -> None:
    """Draw the loss against `position`: smoothed by rank, and as evaluated."""
    lowest = math.inf
    for i, rank in enumerate(plotting.some_ranks(run.counts, _PLOTTED_RANKS)):
        gradients = run.gradients[run.rows(rank)]
        seconds, loss = (_block_means(gradients[name], _SMOOTHED) for name in ("t_end_s", "loss"))
        lowest = min(lowest, loss.min())
        axes.plot(position(seconds), loss, **plotting.thin_line(i), alpha=0.7, label=f"rank {rank}")
    evaluated = np.isfinite(run.evaluation["loss"])
    if evaluated.any():
        loss = run.evaluation["loss"][evaluated]
        lowest = min(lowest, loss.min())
        axes.plot(evaluation_x[evaluated], loss, "k.-", linewidth=1.5, label="evaluation set")
    if lowest > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.set_ylabel("loss")


def _percentiles(bins: np.ndarray, values: np.ndarray, percents: tuple) -> tuple[np.ndarray, ...]:
    """Return the bins that hold values, and their percentiles, one array for each of `percents`."""
    order = np.argsort(bins, kind="stable")
    filled, begins = np.unique(bins[order], return_index=True)
    parts = np.split(values[order], begins[1:])
    return filled, *np.array([np.percentile(part, percents) for part in parts]).T


def _block_means(values: np.ndarray, n_blocks: int) -> np.ndarray:
    """Means of `values` over at most `n_blocks` blocks of nearly equal length."""
    begins = np.linspace(0, values.size, min(n_blocks, values.size), endpoint=False).astype(int)
    return np.add.reduceat(values, begins) / np.diff(begins, append=values.size)
