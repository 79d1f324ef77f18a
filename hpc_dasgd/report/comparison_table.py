"""Comparison of several runs as a table for the terminal."""

import json
from typing import Any

from hpc_dasgd.console.formats import count_text, number_text
from hpc_dasgd.console.tables import Column, table_lines
from hpc_dasgd.report.comparison import Comparison

# By name of a value in `Comparison.rows`.
_COLUMNS = {
    "label": Column("run", numeric=False),
    "exchange": Column("exchange", numeric=False),
    "n_ranks": Column("ranks"),
    "gradients": Column("gradients"),
    "seconds": Column("seconds"),
    "gradients_per_s": Column("gradients/s"),
    "loss": Column("loss"),
    "accuracy": Column("accuracy"),
    "S_avg": Column("S_avg"),
    "S_max": Column("S_max"),
    "seconds_to_loss": Column("s to loss"),
    "gradients_to_loss": Column("gradients to loss"),
}


def comparison_table(comparison: Comparison) -> str:
    """Return a table with one row per run, followed by differences in settings and warnings."""
    rows = [[number_text(row[name]) for name in _COLUMNS] for row in comparison.rows]
    lines = table_lines(list(_COLUMNS.values()), rows)
    notes = [f"note: {_difference(key, values)}" for key, values in comparison.differences.items()]
    if notes:
        notes.append("note: the runs differ in more than their exchanges")
    warnings = [f"warning: {row['label']}: {warning}" for row in comparison.rows for warning in row["warnings"]]
    return "\n".join([_header(comparison), "", *lines, "", *notes, *warnings]).rstrip()


def _header(comparison: Comparison) -> str:
    n_runs = count_text(len(comparison.rows), "run")
    if comparison.loss is None:
        return f"{n_runs}, not evaluated"
    return f"{n_runs}; to loss: until the evaluation loss was first <= {number_text(comparison.loss)}"


def _difference(key: str, values: dict[str, Any]) -> str:
    """Return the values of a setting, each with the labels of its runs."""
    labels_by_value: dict[str, list[str]] = {}
    for label, value in values.items():
        labels_by_value.setdefault("not set" if value is None else json.dumps(value), []).append(label)
    groups = [f"{value} in {', '.join(labels)}" for value, labels in labels_by_value.items()]
    return f"`{key}` is {'; '.join(groups)}"
