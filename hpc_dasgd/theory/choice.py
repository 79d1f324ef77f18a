"""Choice of a stepsize from the convergence bounds, before a run."""

from collections.abc import Mapping

import numpy as np

from hpc_dasgd.theory.bounds import Bound, Constants, Delays, bound_a, bound_b
from hpc_dasgd.theory.constants import Estimate, estimate, probe

CONSTANTS = Constants._fields


REACH_MARGIN = 4


def lowest_bound(bounds: Mapping[str, Bound]) -> tuple[str, float]:
    """The name of the bound that can be made lowest, and the stepsize that does it."""
    best = {name: bound.best_stepsize() for name, bound in bounds.items()}
    name = min(best, key=lambda name: bounds[name].value(best[name]))
    return name, best[name]


def choose_stepsize(
    objective, batches, x0: np.ndarray, delays: Delays, n_gradients: int
) -> tuple[str, float, Constants]:
    """Choose a stepsize before a run: the one of the lowest bound, with constants estimated at the start.

    Parameters
    ----------
    objective : Objective
    batches : Sampler
        From `estimation.sampler`.
    x0 : ndarray, shape (n_params,)
    delays : Delays
        Of a probe or a simulation, which see less of the extremes than a run: their reach counts `REACH_MARGIN`
        times, which halves the largest stepsize of bound B. An infinite one leaves bound A alone.
    n_gradients : int

    Returns
    -------
    name : str
        Of the bound.
    stepsize : float
    constants : Constants
    """
    found = estimate(objective, batches, [x0], [probe(objective, batches, x0)])
    constants = constant_values(found)
    bounds = both_bounds(constants, delays._replace(W_max=REACH_MARGIN * delays.W_max), n_gradients)
    return *lowest_bound({name: each for name, each in bounds.items() if each.largest_stepsize > 0}), constants


def both_bounds(values: Constants, delays: Delays, n_gradients: int) -> dict[str, Bound]:
    """Bounds A and B by name."""
    return {
        "A": bound_a(values, delays, n_gradients),
        "B": bound_b(values, delays, n_gradients),
    }


def constant_values(constants: Mapping[str, Estimate]) -> Constants:
    return Constants(*(constants[name].value for name in CONSTANTS))
