"""Plots of a run as PNG files."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.report import pictures, plotting, timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw: TypeAlias = "Callable[[Run, Figure], None]"
"""A function that draws a run into an empty figure."""


def write_plots(run: Run, directory: Path) -> list[Path]:
    """Write the plots of a run as PNG files, except those for which its log has no data.

    Parameters
    ----------
    run : Run
    directory : Path
        Created with its parents if it does not exist.

    Returns
    -------
    paths : list of Path
        ``loss_seconds.png`` and others, in the order of the HTML page.

    Raises
    ------
    ConfigError
        If the directory cannot be written to.
    """
    directory = Path(directory)
    with plotting.writing_to(directory):
        return [_write(directory / name, draw, run) for name, draw in available_plots(run).items()]


def available_plots(run: Run) -> "dict[str, Draw]":
    """Return, by file name, the functions that draw the plots for which the log of a run has data."""
    if not run.counts.any():
        return {}
    plots: dict[str, Draw] = {
        "loss_seconds.png": pictures.loss_over_seconds,
        "loss_gradients.png": pictures.loss_over_gradients,
    }
    if run.has_versions:
        plots |= {
            "staleness.png": pictures.staleness_histogram,
            "staleness_time.png": pictures.staleness_over_time,
        }
        if run.n_ranks > 1:
            plots["missed.png"] = pictures.missed_by_pair
        if 1 < run.n_ranks <= timeline.MAX_LAG_RANKS:
            plots["behind.png"] = timeline.replica_lag
    return plots | {
        "timeline.png": timeline.gradients_in_the_middle,
        "activity.png": timeline.activity,
        "progress.png": timeline.progress,
    }


def _write(path: Path, draw: "Draw", run: Run) -> Path:
    figure = plotting.blank_figure(6.4, 4.4)
    figure.suptitle(run.directory.resolve().name, parse_math=False, fontsize="medium")
    draw(run, figure)
    figure.savefig(path)
    return path
