"""Helpers for plots. Pyplot is not used: it would change the backend and the settings of the caller's notebook."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_dasgd.arrays.types import Float64s, Int64s
from hpc_dasgd.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

TIME_LABEL = "time since the start (s)"

# Petroff, arXiv:2107.02270: ten colours that can be told apart with every kind of colour vision.
_COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
_MARKERS = "os^DvPX*<>"
_DASHES = ("-", "--", ":", "-.")  # one style for every ten lines


def blank_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of given width and height in inches, which ``savefig`` can write."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Return keyword arguments of ``Axes.plot`` for line `index` of several.

    Lines differ in colour and marker; from the eleventh on also in their dashes.
    """
    tens, i = divmod(index, len(_COLORS))
    dashes = _DASHES[tens % len(_DASHES)]
    return {"color": _COLORS[i], "marker": _MARKERS[i], "linestyle": dashes, "markersize": 5, "linewidth": 1.5}


def thin_line(index: int) -> dict[str, Any]:
    """Return keyword arguments of ``Axes.plot`` for line `index` of several; without markers, for many points."""
    return line_style(index) | {"marker": None, "linewidth": 1}


def heat_colormap() -> "Colormap":
    """Return a colour map from pale (low values) to dark (high values); masked values are grey."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    colors = colormaps["YlGnBu"](np.linspace(0.1, 1, 64))
    return LinearSegmentedColormap.from_list("heat", colors.tolist()).with_extremes(bad="0.9")


def use_integer_ticks(axis: "Axis") -> None:
    """Place the ticks of an axis at integers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def sample_ranks(counts: Int64s, n_samples: int) -> Int64s:
    """Return the ranks that have gradients; if there are more than `n_samples`, an evenly spaced sample.

    Parameters
    ----------
    counts : ndarray, shape (n_ranks,), int64
        Number of gradients of each rank.
    n_samples : int
        Largest number of ranks to return.

    Returns
    -------
    ranks : ndarray, shape (n,), int64
        Ascending.
    """
    ranks = np.flatnonzero(counts)
    if ranks.size <= n_samples:
        return ranks
    return ranks[np.linspace(0, ranks.size - 1, n_samples).round().astype(int)]


def time_edges(first: float, last: float, n_bins: int) -> Float64s:
    """Return the ``n_bins + 1`` edges of equal bins of time; they have a positive width even if ``first == last``."""
    return np.linspace(first, max(last, first + 1e-6), n_bins + 1)


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Create a directory with its parents; raise `ConfigError` if it or a file in it cannot be written in the block."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"cannot write plots to {directory}: {error.strerror or error}") from None
