"""Choice of a stepsize from the convergence bounds, before a run (``docs/theory.md``, "Stepsizes from a bound")."""

from collections.abc import Mapping

from hpc_dasgd.arrays.types import Floats
from hpc_dasgd.data.batches import Sampler
from hpc_dasgd.theory.bounds import Bound, Constants, Delays, bound_a, bound_b
from hpc_dasgd.theory.constants import Differentiable, Estimate, estimate, probe

CONSTANT_NAMES = Constants._fields
REACH_MARGIN = 4  # factor for the reach in a probe or a simulation, where extreme delays are rarer than in a run


def choose_stepsize(
    objective: Differentiable, batches: Sampler, x0: Floats, delays: Delays, n_gradients: int
) -> tuple[str, float, Constants]:
    """Choose the stepsize that minimizes the lower one of bounds A and B, with constants estimated at `x0`.

    Parameters
    ----------
    objective : Differentiable
    batches : Sampler
        Batches for the estimates, from `constants.probe_sampler`.
    x0 : ndarray, shape (n_params,), float32 or float64
        Parameters at the start of the run.
    delays : Delays
        Staleness in a probe or a simulation. ``W_max`` is multiplied by `REACH_MARGIN`, which halves the largest
        stepsize of bound B. If it is infinite, only bound A is used.
    n_gradients : int
        Number of gradients of all ranks in the run.

    Returns
    -------
    name : {"A", "B"}
        Name of the bound.
    stepsize : float
    constants : Constants
        Estimated constants.

    Raises
    ------
    ValueError
        If an estimate is not finite or out of range.
    """
    constants = constant_values(estimate(objective, batches, [x0], [probe(objective, batches, x0)]))
    bounds = both_bounds(constants, delays._replace(W_max=REACH_MARGIN * delays.W_max), n_gradients)
    usable = {name: bound for name, bound in bounds.items() if bound.largest_stepsize > 0}
    return *lowest_bound(usable), constants


def lowest_bound(bounds: Mapping[str, Bound]) -> tuple[str, float]:
    """Return the name of the bound with the lowest minimum, and the stepsize of this minimum."""
    stepsizes = {name: bound.best_stepsize() for name, bound in bounds.items()}
    name = min(stepsizes, key=lambda name: bounds[name].value(stepsizes[name]))
    return name, stepsizes[name]


def both_bounds(constants: Constants, delays: Delays, n_gradients: int) -> dict[str, Bound]:
    """Return bounds A and B by name; parameters and errors as for `bounds.bound_a`."""
    return {"A": bound_a(constants, delays, n_gradients), "B": bound_b(constants, delays, n_gradients)}


def constant_values(estimates: Mapping[str, Estimate]) -> Constants:
    """Return the values of the estimates of ``L``, ``sigma``, ``Q`` and ``F_0``."""
    return Constants(*(estimates[name].value for name in CONSTANT_NAMES))
