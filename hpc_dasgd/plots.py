"""Pictures, made without pyplot, which would choose the backend and the settings of a notebook."""

from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def writing_to(directory: Path):
    """Make `directory` with its parents; `ConfigError` where it, or a plot within the context, cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"cannot write plots to {directory}: {error.strerror or error}") from None
