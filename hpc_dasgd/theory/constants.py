"""What the bounds of ``theory.md`` take of an objective: known by it, or estimated by probing gradients."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpc_dasgd.data.batches import Sampler

KNOWN = "known by the objective"
_PROBE_RANK = 1 << 63  # whose batches no rank of a run draws
_GROUPS, _GROUP = 8, 8  # batches whose gradients a variance is estimated from
_CURVATURE_BATCHES = 8
_CURVATURE_STEPS, _CURVATURE_TOLERANCE = 40, 0.01
MAX_GRADIENTS_PER_POINT = _GROUPS * _GROUP + 2 * _CURVATURE_BATCHES * _CURVATURE_STEPS  # taken at a point, at most
_DIFFERENCE = 1e-5  # of a finite difference, relative to the norm of the parameters


class Estimate(NamedTuple):
    """A constant, and how it is known.

    Attributes
    ----------
    value : float
    error : float
        Standard error, or what the method was still off by; 0 of what is known, nan where nobody can tell.
    source : str
        Where it comes from, in words.
    """

    value: float
    error: float
    source: str


class Probe(NamedTuple):
    """Gradients of many batches at one point.

    Attributes
    ----------
    variance, variance_error : float
        Of a gradient, ``E ||g - grad f||^2``, and its standard error.
    mean_square : float
        ``||grad f||^2``: the squared norm of the mean gradient, less what its variance adds.
    largest_norm : float
    loss, loss_error : float
        Mean over the batches, and its standard error.
    smallest_loss : float
    """

    variance: float
    variance_error: float
    mean_square: float
    largest_norm: float
    loss: float
    loss_error: float
    smallest_loss: float


def known_constants(objective) -> dict[str, Estimate]:
    """What the objective itself says; see `objectives.Objective`."""
    constants = getattr(objective, "constants", dict)()
    return {name: Estimate(float(value), 0.0, KNOWN) for name, value in constants.items()}


def probe_sampler(seed: int, split, batch_size: int) -> Sampler:
    """Return the batches to probe with, other than those of any rank."""
    return Sampler(seed, _PROBE_RANK, split, batch_size)


def probe(objective, batches: Sampler, point: np.ndarray) -> Probe:
    """Take the gradients of 64 batches at `point`, in float64; `ValueError` where one is not finite.

    The variance is the mean over eight groups of the unbiased estimate from a group's eight gradients; its error
    is the standard error of that mean.
    """
    point = np.asarray(point, np.float64)
    gradient = np.empty_like(point)
    variances, losses, squares, mean = [], [], [], np.zeros_like(point)
    for group in range(_GROUPS):
        total = np.zeros_like(point)
        first = len(squares)
        for version in range(group * _GROUP, (group + 1) * _GROUP):
            losses.append(objective.loss_and_gradient(point, batches.batch(version), gradient))
            squares.append(float(gradient @ gradient))
            if not (math.isfinite(losses[-1]) and math.isfinite(squares[-1])):
                raise ValueError("loss and gradient must be finite where they are probed")
            total += gradient
        mean += total / (_GROUPS * _GROUP)
        variances.append((sum(squares[first:]) - float(total @ total) / _GROUP) / (_GROUP - 1))
    variance = max(0.0, float(np.mean(variances)))
    return Probe(
        variance=variance,
        variance_error=_standard_error(variances),
        mean_square=float(mean @ mean) - variance / (_GROUPS * _GROUP),
        largest_norm=math.sqrt(max(squares)),
        loss=float(np.mean(losses)),
        loss_error=_standard_error(losses),
        smallest_loss=min(losses),
    )


def curvature(objective, batches: Sampler, point: np.ndarray) -> Estimate:
    """Estimate the largest curvature at `point`: power iteration on differences of gradients.

    The Hessian of the mean loss of eight batches, times a vector, from the gradients on both sides of the point.
    A lower bound of ``L``, which is the largest curvature anywhere.
    """
    point = np.asarray(point, np.float64)
    step = _DIFFERENCE * max(1.0, float(np.linalg.norm(point)))
    direction = np.random.default_rng(0).standard_normal(point.size)
    direction /= np.linalg.norm(direction)
    value, change = 0.0, math.inf
    for _ in range(_CURVATURE_STEPS):
        ahead, behind = (_mean_gradient(objective, batches, point + sign * step * direction) for sign in (1, -1))
        product = (ahead - behind) / (2 * step)
        before, value = value, float(np.linalg.norm(product))
        change = abs(value - before)
        if value == 0 or change <= _CURVATURE_TOLERANCE * value:
            break
        direction = product / value
    return Estimate(value, change, "power iteration on differences of gradients; a lower estimate")


def estimate(objective, batches: Sampler, points: Sequence[np.ndarray], probes: Sequence[Probe]) -> dict[str, Estimate]:
    """Find ``L``, ``sigma``, ``Q`` and ``F_0``; what the objective does not know is estimated at `points`.

    Parameters
    ----------
    objective : Objective
    batches : Sampler
        From `sampler`.
    points : sequence of ndarray, shape (n_params,)
        Where to look for curvature.
    probes : sequence of Probe
        The first at the start of the run.

    Returns
    -------
    constants : dict
        By name. Of several points the largest value counts. ``F_0`` is the loss at the start, less 0 for its
        minimum, or less the smallest loss seen where that is negative.
    """
    found = known_constants(objective)
    where = f"64 batches at {len(probes)} points" if len(probes) > 1 else "64 batches at the start"
    if "sigma" not in found:
        largest = max(probes, key=lambda taken: taken.variance)
        sigma = math.sqrt(largest.variance)
        error = largest.variance_error / (2 * sigma) if sigma else 0.0
        found["sigma"] = Estimate(sigma, error, f"variance of gradients, {where}")
    if "Q" not in found:
        found["Q"] = Estimate(max(taken.largest_norm for taken in probes), math.nan, f"largest norm, {where}")
    if "F_0" not in found:
        lowest = min(0.0, *(taken.smallest_loss for taken in probes))
        rule = "less the smallest loss seen" if lowest else "taken to have the minimum 0"
        found["F_0"] = Estimate(probes[0].loss - lowest, probes[0].loss_error, f"loss at the start, {rule}")
    if "L" not in found:
        found["L"] = max(curvature(objective, batches, point) for point in points)
    return found


def _mean_gradient(objective, batches: Sampler, point: np.ndarray) -> np.ndarray:
    gradient, total = np.empty_like(point), np.zeros_like(point)
    for version in range(_CURVATURE_BATCHES):
        objective.loss_and_gradient(point, batches.batch(version), gradient)
        total += gradient
    return total / _CURVATURE_BATCHES


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
