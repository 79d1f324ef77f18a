"""Plots of the results of a run: loss, accuracy, staleness, and which gradients ranks missed."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.arrays.types import AnyArray, Float64s, Int64s
from hpc_dasgd.report import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTHED_POINTS = 200  # number of points of a smoothed loss
_MAX_LINES = 16  # with more ranks than this, only a sample of the ranks is drawn
_FEW_RANKS = 8  # up to this number, a crowded plot has a line for each rank, and a matrix shows its values
_STALENESS_BINS = 60
_TIME_BINS = 50

PositionOfTime: TypeAlias = Callable[[Float64s], AnyArray]
"""Function from times in s to positions on the horizontal axis."""


def loss_over_seconds(run: Run, figure: "Figure") -> None:
    """Draw the loss, and the accuracy if it was evaluated, against time."""
    _draw_learning(run, figure, lambda seconds: seconds, run.evaluation["t_s"], plotting.TIME_LABEL)


def loss_over_gradients(run: Run, figure: "Figure") -> None:
    """Draw the loss, and the accuracy if it was evaluated, against the number of gradients of all ranks."""
    ends = np.sort(run.gradients["t_end_s"])

    def n_completed(seconds: Float64s) -> Int64s:
        return np.searchsorted(ends, seconds)

    _draw_learning(run, figure, n_completed, run.evaluation["gradients"], "gradients of all ranks")


def staleness_histogram(run: Run, figure: "Figure") -> None:
    """Draw a histogram of the staleness of gradients."""
    axes = figure.add_subplot()
    staleness = run.staleness()
    numbers = staleness.as_dict()
    edges, counts = staleness.histogram(_STALENESS_BINS)
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", edgecolor="white", linewidth=0.3, log=True)
    for name, color in (("S_avg", "C1"), ("S_rms", "C3")):
        # The bar of staleness s covers [s, s + 1).
        axes.axvline(numbers[name] + 0.5, color=color, label=f"{name} {numbers[name]:.4g}")
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"staleness (gradients missed), at most {numbers['S_max']}")
    axes.set_ylabel("number of gradients")
    axes.legend(loc="upper right")


def staleness_over_time(run: Run, figure: "Figure") -> None:
    """Draw percentiles of the staleness over time, and for few ranks the mean of each."""
    axes = figure.add_subplot()
    rows, staleness = run.staleness_by_row()
    gradients = run.gradients[rows]
    starts = gradients["t_start_s"]
    edges = plotting.time_edges(starts.min(), starts.max(), _TIME_BINS)
    bins = np.minimum(np.searchsorted(edges, starts, side="right") - 1, _TIME_BINS - 1)
    middles = (edges[:-1] + edges[1:]) / 2
    filled, (low, median, high, largest) = _percentiles(bins, staleness, (10, 50, 90, 100))
    x = middles[filled]
    axes.fill_between(x, low, high, color="0.85", linewidth=0, label="10 to 90 %")
    axes.plot(x, median, "k", linewidth=2, label="median")
    axes.plot(x, largest, "k.", markersize=2.5, label="largest")
    if 1 < run.n_ranks <= _FEW_RANKS:
        for i, rank in enumerate(np.unique(gradients["rank"])):
            own = gradients["rank"] == rank
            counts = np.bincount(bins[own], minlength=middles.size)
            means = np.bincount(bins[own], staleness[own], middles.size)[counts > 0] / counts[counts > 0]
            axes.plot(middles[counts > 0], means, **plotting.thin_line(i), label=f"mean of rank {rank}")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel(plotting.TIME_LABEL)
    axes.set_ylabel("staleness (gradients missed)")
    figure.legend(loc="outside lower center", fontsize="small", ncols=4, frameon=False)


def missed_by_pair(run: Run, figure: "Figure") -> None:
    """Draw the mean number of gradients of each rank that a gradient of each other rank missed."""
    axes = figure.add_subplot()
    missed = run.staleness().missed
    n_measured = np.bincount(missed.rank, minlength=run.n_ranks)[:, np.newaxis]
    unknown = np.eye(run.n_ranks, dtype=bool) | (n_measured == 0)
    means = np.ma.array(missed.per_pair / np.maximum(n_measured, 1), mask=unknown)
    image = axes.imshow(means, cmap=plotting.heat_colormap(), vmin=0, interpolation="nearest", aspect="equal")
    if run.n_ranks <= _FEW_RANKS:
        middle = means.max() / 2
        for i, j in np.argwhere(~unknown).tolist():
            color = "white" if means[i, j] > middle else "black"
            axes.text(j, i, f"{means[i, j]:.2g}", ha="center", va="center", color=color)
    for axis in (axes.xaxis, axes.yaxis):
        plotting.use_integer_ticks(axis)
    axes.set_xlabel("rank whose gradients were missed")
    axes.set_ylabel("rank that missed them")
    figure.colorbar(image, label="gradients missed (mean)")


def _draw_learning(run: Run, figure: "Figure", position: PositionOfTime, evaluation_x: AnyArray, x_label: str) -> None:
    """Draw loss and accuracy; `position` maps the end times of gradients to x; evaluations are at `evaluation_x`."""
    has_accuracy = np.isfinite(run.evaluation["accuracy"])
    if has_accuracy.any():
        loss, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        accuracy.plot(evaluation_x[has_accuracy], run.evaluation["accuracy"][has_accuracy], "k.-", linewidth=1.5)
        accuracy.grid(alpha=0.3)
        accuracy.set_ylabel("accuracy")
        accuracy.set_xlabel(x_label)
    else:
        loss = figure.add_subplot()
        loss.set_xlabel(x_label)
    _draw_loss(run, loss, position, evaluation_x)
    figure.legend(loc="outside lower center", fontsize="small", ncols=5, frameon=False)


def _draw_loss(run: Run, axes: "Axes", position: PositionOfTime, evaluation_x: AnyArray) -> None:
    """Draw the smoothed loss of each rank's batches, and the loss of the evaluation set."""
    lowest = math.inf
    for i, rank in enumerate(plotting.sample_ranks(run.counts, _MAX_LINES).tolist()):
        gradients = run.gradients[run.rows(rank)]
        seconds, loss = (_block_means(gradients[name], _SMOOTHED_POINTS) for name in ("t_end_s", "loss"))
        lowest = min(lowest, float(loss.min()))
        axes.plot(position(seconds), loss, **plotting.thin_line(i), alpha=0.7, label=f"rank {rank}")
    is_finite = np.isfinite(run.evaluation["loss"])
    if is_finite.any():
        loss = run.evaluation["loss"][is_finite]
        lowest = min(lowest, float(loss.min()))
        axes.plot(evaluation_x[is_finite], loss, "k.-", linewidth=1.5, label="evaluation set")
    if lowest > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.set_ylabel("loss")


def _percentiles(bins: Int64s, values: Int64s, percents: tuple[int, ...]) -> tuple[Int64s, Float64s]:
    """Return the bins that contain values, and the percentiles of each, shape (n_percents, n_filled_bins)."""
    order = np.argsort(bins, kind="stable")
    filled, begins = np.unique(bins[order], return_index=True)
    parts = np.split(values[order], begins[1:])
    return filled, np.array([np.percentile(part, percents) for part in parts]).T


def _block_means(values: Float64s, n_blocks: int) -> Float64s:
    """Return the means of `values` over at most `n_blocks` blocks of nearly equal length."""
    begins = np.linspace(0, values.size, min(n_blocks, values.size), endpoint=False).astype(int)
    means: Float64s = np.add.reduceat(values, begins) / np.diff(begins, append=values.size)
    return means
