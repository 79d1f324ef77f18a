"""Comparison of several runs: their results and the settings in which they differ. Needs no MPI.

`hpc_dasgd.report.comparison_table` and `hpc_dasgd.report.comparison_plot` show a comparison.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.report.run_labels import run_labels
from hpc_dasgd.storage.run_settings import config_sections

# Runs that differ in one of these sections differ in more than their exchanges.
_COMPARED_SECTIONS = ("data", "objective", "optimizer")

Settings: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Comparison of several runs. Made by `compare`.

    Attributes
    ----------
    loss : float or None
        Evaluation loss for which the time to reach it is given; None if no run was evaluated.
    rows : list of dict
        For each run its ``label``, a description of its ``exchange``, its results and ``warnings``: the list ``runs``
        of ``compare --json``. Unknown values are None.
    differences : dict of str to dict
        For each setting in which the runs differ, except settings of the exchange: its value by label.
    runs : list of Run
        The runs, in the order of `rows`.
    """

    loss: float | None
    rows: list[dict[str, Any]]
    differences: dict[str, dict[str, Any]]
    runs: list[Run]

    def as_dict(self) -> dict[str, Any]:
        """Return all results as numbers, lists and dicts: the object that ``compare --json`` prints."""
        return {"loss": self.loss, "runs": self.rows, "differences": self.differences}


def compare(runs: Sequence[Run], loss: float | None = None) -> Comparison:
    """Compare runs, in the given order.

    Parameters
    ----------
    runs : sequence of Run
        Runs that are complete, still running, or were killed.
    loss : float, optional
        Evaluation loss for which to give the time to reach it. By default the largest of the lowest losses of the
        runs, which every evaluated run has reached.

    Returns
    -------
    comparison : Comparison

    Raises
    ------
    ConfigError
        If a run is given twice, or the loss is not finite.

    Examples
    --------
    >>> runs = [open_run("runs/read"), open_run("runs/allreduce")]     # doctest: +SKIP
    >>> compare(runs).as_dict()["runs"][0]["gradients_per_s"]          # doctest: +SKIP
    812.5
    """
    if loss is not None and not math.isfinite(loss):
        raise ConfigError(f"`loss` must be finite, got {loss}")
    if loss is None:
        losses = [run.evaluation["loss"] for run in runs]
        loss = max((float(x[np.isfinite(x)].min()) for x in losses if np.isfinite(x).any()), default=None)
    rows, settings = [], {}
    for label, run in zip(run_labels([run.directory for run in runs]), runs, strict=True):
        warnings = list(run.warnings)
        settings[label] = _readable_settings(run, warnings)
        # Even if this version cannot read the settings as a whole, they may name the exchange.
        exchange = (settings[label] or run.settings).get("exchange", {})
        rows.append({"label": label, **_numbers(run, exchange, loss, warnings), "warnings": warnings})
    n_ranks = {row["label"]: row["n_ranks"] for row in rows}
    return Comparison(loss, rows, _differences(settings, n_ranks), list(runs))


def _readable_settings(run: Run, warnings: list[str]) -> dict[str, dict[str, Any]]:
    """Return all sections of a run's settings with their defaults.

    If this version cannot read them, add a warning and return an empty dict.
    """
    try:
        return config_sections(run.config.to_toml())
    except ConfigError as error:
        warnings.append(str(error))
        return {}


def _numbers(run: Run, exchange: Settings, loss: float | None, warnings: list[str]) -> dict[str, Any]:
    n_gradients, seconds = int(run.counts.sum()), run.seconds
    last = run.evaluation[-1] if run.evaluation.size else {"loss": math.nan, "accuracy": math.nan}
    return {
        "run": str(run.directory),
        "status": run.status,
        "exchange": traits_in(exchange).described(exchange) if "kind" in exchange else None,
        "n_ranks": run.n_ranks,
        "gradients": n_gradients,
        "seconds": seconds,
        "gradients_per_s": n_gradients / seconds if seconds > 0 else None,
        **{name: float(last[name]) if np.isfinite(last[name]) else None for name in ("loss", "accuracy")},
        **_staleness(run, exchange, warnings),
        **_time_to_loss(run, loss),
    }


def _staleness(run: Run, exchange: Settings, warnings: list[str]) -> dict[str, Any]:
    names = ("S_avg", "S_max")
    if run.has_versions and traits_in(exchange).measures_staleness:
        try:
            numbers = run.staleness().as_dict()
            return {name: numbers[name] for name in names}
        except ConfigError as error:  # The log is damaged: the other runs can still be compared.
            warnings.append(str(error))
    return dict.fromkeys(names)


def _time_to_loss(run: Run, loss: float | None) -> dict[str, Any]:
    """Return the time and gradients of the first evaluation with a loss of at most `loss`, without interpolation."""
    reached = np.flatnonzero(run.evaluation["loss"] <= (math.nan if loss is None else loss))
    if not reached.size:
        return dict.fromkeys(("seconds_to_loss", "gradients_to_loss"))
    first = run.evaluation[reached[0]]
    return {"seconds_to_loss": float(first["t_s"]), "gradients_to_loss": int(first["gradients"])}


def _differences(
    settings: Mapping[str, dict[str, dict[str, Any]]], n_ranks: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Return the settings that differ between runs, with their values by label."""
    values: dict[str, dict[str, Any]] = {"n_ranks": n_ranks}
    readable = {label: sections for label, sections in settings.items() if sections}
    for section in _COMPARED_SECTIONS:
        by_label = {label: sections.get(section, {}) for label, sections in readable.items()}
        for name in dict.fromkeys(name for table in by_label.values() for name in table):
            values[f"{section}.{name}"] = {label: table.get(name) for label, table in by_label.items()}
    return {key: by_label for key, by_label in values.items() if len(set(map(json.dumps, by_label.values()))) > 1}
