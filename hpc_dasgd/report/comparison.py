"""Several runs side by side: one table, one picture. Needs no MPI.

    runs = [open_run("runs/read"), open_run("runs/allreduce")]
    compare(runs).as_dict()["runs"][0]["gradients_per_s"]

Like the runs, a comparison refers to what was in the files when the runs were opened.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_dasgd.analysis.run import Run, sections
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.report import plotting

PICTURE = "compare.png"
# Runs that differ in these are no comparison of exchanges alone.
_COMPARED_SECTIONS = ("data", "objective", "optimizer")
_HEADINGS = {
    "label": "run",
    "exchange": "exchange",
    "n_ranks": "ranks",
    "gradients": "gradients",
    "seconds": "seconds",
    "gradients_per_s": "gradients/s",
    "loss": "loss",
    "accuracy": "accuracy",
    "S_avg": "S_avg",
    "S_max": "S_max",
    "seconds_to_loss": "s to loss",
    "gradients_to_loss": "gradients to loss",
}
_LEFT = ("label", "exchange")  # columns of text
_MARKED = 12  # evaluations of a line, so that it stays one


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs side by side. Made by `compare`.

    Attributes
    ----------
    loss : float or None
        Evaluation loss that the time to it is given for; None where no run was evaluated.
    rows : list of dict
        By run its `label`, `exchange` in words, numbers, and `warnings`; None where one is not known.
    differences : dict of str to dict
        By setting that the runs differ in, other than of their exchanges, its value by label.
    runs : list of Run
        What the rows are of.
    """

    loss: float | None
    rows: list[dict]
    differences: dict[str, dict]
    runs: list[Run]

    def as_dict(self) -> dict:
        """Everything in numbers, lists and dicts that JSON can hold."""
        return {"loss": self.loss, "runs": self.rows, "differences": self.differences}

    def table(self) -> str:
        """The same as text for the terminal, notes and warnings after it."""
        columns = [
            _column(name, [heading, *(_text(row[name]) for row in self.rows)]) for name, heading in _HEADINGS.items()
        ]
        lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
        notes = [f"note: {_difference(key, values)}" for key, values in self.differences.items()]
        if notes:
            notes.append("note: so they differ in more than their exchanges")
        warnings = [f"warning: {row['label']}: {warning}" for row in self.rows for warning in row["warnings"]]
        return "\n".join([self._header(), "", *lines, "", *notes, *warnings]).rstrip()

    def _header(self) -> str:
        n_runs = f"{len(self.rows)} run{'' if len(self.rows) == 1 else 's'}"
        if self.loss is None:
            return f"{n_runs}, not evaluated"
        return f"{n_runs}; to loss: until the evaluation loss was first <= {_text(self.loss)}"


def compare(runs: Sequence[Run], loss: float | None = None) -> Comparison:
    """Compare runs, in their order.

    Parameters
    ----------
    runs : sequence of Run
        Complete, going on, or killed.
    loss : float, optional
        Evaluation loss to give the time to; by default the largest of the runs' best ones, which all
        runs that were evaluated reached.

    Raises
    ------
    ConfigError
        If a run is given twice, or the loss is not finite.
    """
    if loss is not None and not math.isfinite(loss):
        raise ConfigError(f"`loss` must be finite, got {loss}")
    if loss is None:
        losses = [run.evaluation["loss"] for run in runs]
        loss = max((float(x[np.isfinite(x)].min()) for x in losses if np.isfinite(x).any()), default=None)
    rows, settings = [], {}
    for label, run in zip(_labels(runs), runs, strict=True):
        warnings = list(run.warnings)
        settings[label] = _settings(run, warnings)
        # Settings that another version wrote may still tell the exchange.
        exchange = (settings[label] or run.settings).get("exchange", {})
        rows.append({"label": label, **_numbers(run, exchange, loss, warnings), "warnings": warnings})
    n_ranks = {row["label"]: row["n_ranks"] for row in rows}
    return Comparison(loss, rows, _differences(settings, n_ranks), list(runs))


def write_plot(comparison: Comparison, directory: Path) -> Path:
    """Draw the runs' evaluation loss and staleness into ``compare.png``.

    Parameters
    ----------
    comparison : Comparison
    directory : Path
        Made with its parents where it does not exist.

    Returns
    -------
    path : Path
        Of the picture.

    Raises
    ------
    ConfigError
        If the directory cannot be written to.
    """
    directory = Path(directory)
    with plotting.writing_to(directory):
        _figure(comparison).savefig(directory / PICTURE)
    return directory / PICTURE


def _labels(runs: Sequence[Run]) -> list[str]:
    """The shortest end of each run's path that no other run's path ends with."""
    paths = [Path(os.path.abspath(run.directory)).parts for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise ConfigError(f"a run can be compared only once, got {run.directory} {paths.count(path)} times")
    return [str(Path(*_shortest_end(path, paths))) for path in paths]


def _shortest_end(path: tuple[str, ...], paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    ends = (path[-length:] for length in range(1, len(path)))
    return next((end for end in ends if sum(other[-len(end) :] == end for other in paths) == 1), path)


def _settings(run: Run, warnings: list[str]) -> dict[str, dict]:
    """All sections of a run's settings; none where this version of the package cannot read them."""
    try:
        return sections(run.config.to_toml())
    except ConfigError as error:
        warnings.append(str(error))
        return {}


def _numbers(run: Run, exchange: dict, loss: float | None, warnings: list[str]) -> dict:
    n_gradients, seconds = int(run.counts.sum()), run.seconds
    last = run.evaluation[-1] if run.evaluation.size else {"loss": math.nan, "accuracy": math.nan}
    return {
        "run": str(run.directory),
        "status": run.status,
        "exchange": _in_words(exchange),
        "n_ranks": run.n_ranks,
        "gradients": n_gradients,
        "seconds": seconds,
        "gradients_per_s": n_gradients / seconds if seconds > 0 else None,
        **{name: float(last[name]) if np.isfinite(last[name]) else None for name in ("loss", "accuracy")},
        **_staleness(run, exchange, warnings),
        **_reached(run, loss),
    }


def _in_words(exchange: dict) -> str | None:
    """The kind, and what of the other settings it uses; consistency only where it is not the usual one."""
    return traits_in(exchange).described(exchange) if "kind" in exchange else None


def _staleness(run: Run, exchange: dict, warnings: list[str]) -> dict:
    names = ("S_avg", "S_max")
    if run.has_versions and traits_in(exchange).measures_staleness:
        try:
            measured = run.staleness().as_dict()
            return {name: measured[name] for name in names}
        except ConfigError as error:  # of a damaged log, which the other runs are not to suffer from
            warnings.append(str(error))
    return dict.fromkeys(names)


def _reached(run: Run, loss: float | None) -> dict:
    """When the evaluation loss was first at most `loss`: as evaluated, nothing in between."""
    low = np.flatnonzero(run.evaluation["loss"] <= (math.nan if loss is None else loss))
    if not low.size:
        return dict.fromkeys(("seconds_to_loss", "gradients_to_loss"))
    first = run.evaluation[low[0]]
    return {"seconds_to_loss": float(first["t_s"]), "gradients_to_loss": int(first["gradients"])}


def _differences(settings: dict[str, dict], n_ranks: dict[str, int]) -> dict[str, dict]:
    values = {"n_ranks": n_ranks}
    readable = {label: sections for label, sections in settings.items() if sections}
    for section in _COMPARED_SECTIONS:
        by_label = {label: sections.get(section, {}) for label, sections in readable.items()}
        for name in dict.fromkeys(name for table in by_label.values() for name in table):
            values[f"{section}.{name}"] = {label: table.get(name) for label, table in by_label.items()}
    return {key: by_label for key, by_label in values.items() if len(set(map(json.dumps, by_label.values()))) > 1}


def _difference(key: str, values: dict) -> str:
    by_value: dict[str, list[str]] = {}
    for label, value in values.items():
        by_value.setdefault("not set" if value is None else json.dumps(value), []).append(label)
    groups = [f"{value} in {', '.join(labels)}" for value, labels in by_value.items()]
    return f"`{key}` is {'; '.join(groups)}"


def _text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    return str(value)


def _column(name: str, cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) if name in _LEFT else cell.rjust(width) for cell in cells]


def _figure(comparison: Comparison):
    from matplotlib.lines import Line2D

    figure = plotting.blank_figure(15, 5.5)
    over_seconds, over_gradients, staleness = panels = figure.subplots(1, 3)
    _plot_loss(comparison, over_seconds, "t_s", "time since the start (s)")
    _plot_loss(comparison, over_gradients, "gradients", "gradients of all ranks")
    _plot_staleness(comparison, staleness)
    for axes in panels:
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, "not known of any run", transform=axes.transAxes, ha="center")
    handles = [
        Line2D([], [], **plotting.line_style(i), label=f"{row['label']}: {_text(row['exchange'])}")
        for i, row in enumerate(comparison.rows)
    ]
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=3).get_texts():
        text.set_parse_math(False)  # a path may hold dollars
    return figure


def _plot_loss(comparison: Comparison, axes, against: str, label: str) -> None:
    shown = [run.evaluation[np.isfinite(run.evaluation["loss"])] for run in comparison.runs]
    for i, evaluation in enumerate(shown):
        if evaluation.size:
            marked = max(1, evaluation.size // _MARKED)
            axes.plot(evaluation[against], evaluation["loss"], markevery=marked, **plotting.line_style(i))
    if axes.lines and all((evaluation["loss"] > 0).all() for evaluation in shown):
        axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("evaluation loss")


def _plot_staleness(comparison: Comparison, axes) -> None:
    """Draw by run the fraction of its gradients that missed at least so many: what is left of 1 beyond each value."""
    for i, (run, row) in enumerate(zip(comparison.runs, comparison.rows, strict=True)):
        if row["S_avg"] is None:
            continue
        values, counts = np.unique(run.staleness().missed.staleness, return_counts=True)
        fractions = np.cumsum(counts[::-1])[::-1] / counts.sum()
        # From 0, which a logarithmic axis has no place for, to the largest, which is marked.
        values, fractions = np.append(0, values), np.append(1, fractions)
        axes.plot(values, fractions, drawstyle="steps-pre", markevery=[-1], **plotting.line_style(i))
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.set_xlabel("staleness (gradients missed)")
    axes.set_ylabel("fraction of gradients at least as stale")
