"""The page of a run: one HTML file that contains everything a report shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.report import plotting
from hpc_dasgd.report.diagnosis import warnings
from hpc_dasgd.report.facts import facts, one_line_description, software_facts
from hpc_dasgd.report.key_figures import key_figures, rank_rows
from hpc_dasgd.report.page_html import Content, html

FILE_NAME = "report.html"


def write_page(run: Run, plots: Sequence[Path], directory: Path, bound: dict[str, Any] | None = None) -> Path:
    """Write ``report.html``, which contains the plots and needs no other file.

    Parameters
    ----------
    run : Run
    plots : sequence of Path
        PNG files, as `hpc_dasgd.report.plots.write_plots` returned them.
    directory : Path
        Directory of the page; created with its parents if it does not exist.
    bound : dict, optional
        The object that ``bound --json`` prints.

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
    content = Content(
        name=run.directory.resolve().name,
        status=run.status,
        lead=one_line_description(run),
        warnings=warnings(run, bound),
        figures=key_figures(run),
        facts=facts(run) + software_facts(run),
        ranks=rank_rows(run),
        settings=run.attributes["config"],
        bound=bound,
    )
    with plotting.writing_to(path.parent):
        pictures = {plot.stem: plot.read_bytes() for plot in plots}
        path.write_text(html(content, pictures), encoding="utf-8")
    return path
