"""Pictures, made without pyplot, which would choose the backend and the settings of a notebook."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hpc_dasgd.errors import ConfigError

# Petroff, arXiv:2107.02270: ten colours that are told apart with every kind of colour vision.
_COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
_MARKERS = "os^DvPX*<>"
_DASHES = ("-", "--", ":", "-.")  # one for each ten lines


def blank_figure(width: float, height: float):
    """Return an empty Matplotlib ``Figure`` of so many inches that ``savefig`` can write."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> dict:
    """Return how to draw line `index` of several, told apart by colour and marker, beyond ten by dashes too."""
    tens, i = divmod(index, len(_COLORS))
    dashes = _DASHES[tens % len(_DASHES)]
    return {"color": _COLORS[i], "marker": _MARKERS[i], "linestyle": dashes, "markersize": 5, "linewidth": 1.5}


def thin_line(index: int) -> dict:
    """Return how to draw line `index` of several that are long or lie close together: without markers."""
    return line_style(index) | {"marker": None, "linewidth": 1}


def heat():
    """Return the colours of values from little, pale, to much, dark; grey where there is none."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("heat", colormaps["YlGnBu"](np.linspace(0.1, 1, 64))).with_extremes(
        bad="0.9"
    )


def some_ranks(counts: np.ndarray, at_most: int) -> np.ndarray:
    """Return the ranks that have gradients by `counts`, or a sample of them that a plot has room for."""
    ranks = np.flatnonzero(counts)
    if ranks.size <= at_most:
        return ranks
    return ranks[np.linspace(0, ranks.size - 1, at_most).round().astype(int)]


def time_edges(first: float, last: float, n_bins: int) -> np.ndarray:
    """Return the bounds of `n_bins` equal spans of time, of some length where it all took none."""
    return np.linspace(first, max(last, first + 1e-6), n_bins + 1)


@contextmanager
def writing_to(directory: Path):
    """Make `directory` with its parents; `ConfigError` where it, or a plot within the context, cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"cannot write plots to {directory}: {error.strerror or error}") from None
