"""Convergence bounds for a report, computed only if this takes little time."""

from typing import Any

import numpy as np

from hpc_dasgd.analysis.bound_report import MAX_GRADIENTS, compare_with_bounds
from hpc_dasgd.analysis.run import Run
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.errors import ConfigError

_MAX_SECONDS = 20  # expected time to estimate the constants of an objective


def quick_bounds(run: Run) -> tuple[dict[str, Any] | None, str | None]:
    """Compare a run with its convergence bounds, unless that would take long or is not possible here.

    Returns
    -------
    bound : dict or None
        The object that ``bound --json`` prints.
    reason : str or None
        Why there is no bound; None if the bounds do not apply to this kind of run.
    """
    if not run.has_versions or not traits_in(run.settings.get("exchange", {})).whole_updates:
        return None, None
    gradient_s = float(np.median(run.gradients["t_end_s"] - run.gradients["t_start_s"]))
    if gradient_s * MAX_GRADIENTS > _MAX_SECONDS:
        return None, f"would take about {gradient_s * MAX_GRADIENTS:.0f} s"
    try:
        return compare_with_bounds(run).as_dict(), None
    except ConfigError as error:
        return None, str(error)
    except Exception as error:  # from the user's objective; the rest of the report does not need the bounds
        return None, f"{type(error).__name__}: {error}"
