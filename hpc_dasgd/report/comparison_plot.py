"""Comparison of several runs as a plot: evaluation loss against time and gradients, and distribution of staleness."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_dasgd.console.formats import number_text
from hpc_dasgd.report import plotting
from hpc_dasgd.report.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_NAME = "compare.png"
_MAX_MARKERS = 12  # per line


def write_plot(comparison: Comparison, directory: Path) -> Path:
    """Plot evaluation loss and staleness of the runs into ``compare.png``.

    Parameters
    ----------
    comparison : Comparison
    directory : Path
        Created with its parents if it does not exist.

    Returns
    -------
    path : Path
        The file.

    Raises
    ------
    ConfigError
        If the directory cannot be written to.
    """
    path = Path(directory) / FILE_NAME
    with plotting.writing_to(path.parent):
        comparison_figure(comparison).savefig(path)
    return path


def comparison_figure(comparison: Comparison) -> "Figure":
    """Return the figure: three panels, and a legend in which each run has one colour."""
    from matplotlib.lines import Line2D

    figure = plotting.blank_figure(15, 5.5)
    over_seconds, over_gradients, staleness = panels = figure.subplots(1, 3)
    _plot_loss(comparison, over_seconds, "t_s", plotting.TIME_LABEL)
    _plot_loss(comparison, over_gradients, "gradients", "gradients of all ranks")
    _plot_staleness(comparison, staleness)
    for axes in panels:
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")
    handles = [
        Line2D([], [], **plotting.line_style(i), label=f"{row['label']}: {number_text(row['exchange'])}")
        for i, row in enumerate(comparison.rows)
    ]
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=3).get_texts():
        text.set_parse_math(False)  # A path may contain dollar signs.
    return figure


def _plot_loss(comparison: Comparison, axes: "Axes", x_name: str, x_label: str) -> None:
    evaluations = [run.evaluation[np.isfinite(run.evaluation["loss"])] for run in comparison.runs]
    for i, evaluation in enumerate(evaluations):
        if evaluation.size:
            marker_step = max(1, evaluation.size // _MAX_MARKERS)
            axes.plot(evaluation[x_name], evaluation["loss"], markevery=marker_step, **plotting.line_style(i))
    if axes.lines and all((evaluation["loss"] > 0).all() for evaluation in evaluations):
        axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel("evaluation loss")


def _plot_staleness(comparison: Comparison, axes: "Axes") -> None:
    """Plot, for each run, the fraction of its gradients with at least a given staleness."""
    for i, (run, row) in enumerate(zip(comparison.runs, comparison.rows, strict=True)):
        if row["S_avg"] is None:
            continue
        values, counts = np.unique(run.staleness().missed.staleness, return_counts=True)
        fractions = np.cumsum(counts[::-1])[::-1] / counts.sum()
        # The line starts at staleness 0, where the fraction is 1; the marker is at the largest staleness.
        values, fractions = np.append(0, values), np.append(1, fractions)
        axes.plot(values, fractions, drawstyle="steps-pre", markevery=[-1], **plotting.line_style(i))
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.set_xlabel("staleness (gradients missed)")
    axes.set_ylabel("fraction of gradients at least as stale")
