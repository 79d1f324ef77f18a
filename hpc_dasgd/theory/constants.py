"""Constants of an objective: stated by the objective, or estimated from gradients of batches.

``docs/theory.md``, "Estimating the constants", describes the methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, SupportsFloat

import numpy as np

from hpc_dasgd.arrays.types import Array, Float64s, Floats
from hpc_dasgd.data.batches import Batch, Sampler

if TYPE_CHECKING:
    from hpc_dasgd.data.dataset import Split

KNOWN_TO_OBJECTIVE = "known by the objective"
_PROBE_RANK = 1 << 63  # no rank of a run draws the batches of this rank
_N_GROUPS, _GROUP_SIZE = 8, 8  # groups, and batches per group, from which a variance is estimated
_N_BATCHES = _N_GROUPS * _GROUP_SIZE
_N_CURVATURE_BATCHES = 8
_CURVATURE_STEPS, _CURVATURE_TOLERANCE = 40, 0.01
_RELATIVE_STEP = 1e-5  # of a finite difference, relative to the norm of the parameters
MAX_GRADIENTS_PER_POINT = _N_BATCHES + 2 * _N_CURVATURE_BATCHES * _CURVATURE_STEPS


class Differentiable(Protocol):
    """The part of an objective that estimates need; see ``hpc_dasgd/objectives/interface.py``."""

    def loss_and_gradient(self, parameters: Array, batch: Batch, out: Array, /) -> SupportsFloat:
        """Return the loss of one batch, and store its gradient in `out`."""


class Estimate(NamedTuple):
    """A constant and its origin.

    Attributes
    ----------
    value : float
    error : float
        Standard error, or the last change of an iteration; 0 if the objective states the constant, nan if no error
        is known.
    source : str
        Origin of the value, in words.
    """

    value: float
    error: float
    source: str


class Probe(NamedTuple):
    """Statistics of the gradients of many batches at one point.

    Attributes
    ----------
    variance, variance_error : float
        Variance of a gradient, ``E ||g - grad f||^2``, and the standard error of this estimate.
    mean_square : float
        ``||grad f||^2``, estimated without bias: the squared norm of the mean gradient minus its variance. May be
        negative.
    largest_norm : float
        Largest norm of a gradient.
    loss, loss_error : float
        Mean of the losses of the batches, and its standard error.
    smallest_loss : float
        Smallest loss of a batch.
    """

    variance: float
    variance_error: float
    mean_square: float
    largest_norm: float
    loss: float
    loss_error: float
    smallest_loss: float


def probe_sampler(seed: int, split: Split | None, batch_size: int) -> Sampler:
    """Return batches for estimates: the same for the same seed, and different from those of any rank of a run.

    Parameters
    ----------
    seed : int
        Seed of the run.
    split : Split or None
        Training set; None for an objective without data.
    batch_size : int
        Number of examples per batch.
    """
    return Sampler(seed, _PROBE_RANK, split, batch_size)


def probe(objective: Differentiable, batches: Sampler, point: Floats) -> Probe:
    """Compute the gradients of 64 batches at `point`, in float64, and return their statistics.

    The variance is the mean of the unbiased estimates of eight groups with eight gradients each. Its error is the
    standard error of this mean.

    Parameters
    ----------
    objective : Differentiable
    batches : Sampler
        From `probe_sampler`.
    point : ndarray, shape (n_params,), float32 or float64

    Returns
    -------
    statistics : Probe

    Raises
    ------
    ValueError
        If a loss or a gradient is not finite.
    """
    point = np.asarray(point, np.float64)
    gradient, mean = np.empty_like(point), np.zeros_like(point)
    variances: list[float] = []
    losses: list[float] = []
    squares: list[float] = []
    for group in range(_N_GROUPS):
        total = np.zeros_like(point)
        first = len(squares)
        for version in range(group * _GROUP_SIZE, (group + 1) * _GROUP_SIZE):
            losses.append(float(objective.loss_and_gradient(point, batches.batch(version), gradient)))
            squares.append(float(gradient @ gradient))
            if not (math.isfinite(losses[-1]) and math.isfinite(squares[-1])):
                raise ValueError("loss and gradient must be finite where they are probed")
            total += gradient
        mean += total / _N_BATCHES
        variances.append((sum(squares[first:]) - float(total @ total) / _GROUP_SIZE) / (_GROUP_SIZE - 1))
    variance = max(0.0, float(np.mean(variances)))
    return Probe(
        variance=variance,
        variance_error=_standard_error(variances),
        mean_square=float(mean @ mean) - variance / _N_BATCHES,
        largest_norm=math.sqrt(max(squares)),
        loss=float(np.mean(losses)),
        loss_error=_standard_error(losses),
        smallest_loss=min(losses),
    )


def curvature(objective: Differentiable, batches: Sampler, point: Floats) -> Estimate:
    """Estimate the largest curvature of the mean loss of eight batches at `point`.

    The method is power iteration with the Hessian of this mean loss; its products with vectors are central differences
    of gradients. The result is a lower estimate of the largest curvature of the mean loss of the eight batches, because
    the iteration stops early and curvature may be larger elsewhere. It is not a lower bound of ``L``: the largest
    curvature of a sample mean is on average no smaller than that of the objective, and may exceed ``L``.

    Parameters
    ----------
    objective : Differentiable
    batches : Sampler
        From `probe_sampler`; the first eight batches are used.
    point : ndarray, shape (n_params,), float32 or float64

    Returns
    -------
    estimate : Estimate
        Its error is the last change of the iteration.
    """
    point = np.asarray(point, np.float64)
    step = _RELATIVE_STEP * max(1.0, float(np.linalg.norm(point)))
    direction = np.random.default_rng(0).standard_normal(point.size)
    direction /= np.linalg.norm(direction)
    value, change = 0.0, math.inf
    for _ in range(_CURVATURE_STEPS):
        above = _mean_gradient(objective, batches, point + step * direction)
        below = _mean_gradient(objective, batches, point - step * direction)
        product = (above - below) / (2 * step)
        previous, value = value, float(np.linalg.norm(product))
        change = abs(value - previous)
        if value == 0 or change <= _CURVATURE_TOLERANCE * value:
            break
        direction = product / value
    return Estimate(value, change, "power iteration on differences of gradients; a lower estimate for 8 batches")


def estimate(
    objective: Differentiable, batches: Sampler, points: Sequence[Floats], probes: Sequence[Probe]
) -> dict[str, Estimate]:
    """Return ``L``, ``sigma``, ``Q`` and ``F_0``: stated by the objective, or estimated from `points` and `probes`.

    Parameters
    ----------
    objective : Differentiable
        Its optional method ``constants()`` states constants.
    batches : Sampler
        From `probe_sampler`.
    points : sequence of ndarray, shape (n_params,), float32 or float64
        Points at which the curvature is estimated, if ``L`` is not stated.
    probes : sequence of Probe
        The first one must be at the start of the run.

    Returns
    -------
    estimates : dict of str to Estimate
        By name. If there are several points or probes, the largest value is used. ``F_0`` is the loss at the start
        minus 0, or minus the smallest loss of any probe if that is negative. `curvature` describes in which sense
        ``L`` is a lower estimate.
    """
    estimates = _stated_constants(objective)
    where = f"{_N_BATCHES} batches at " + (f"{len(probes)} points" if len(probes) > 1 else "the start")
    if "sigma" not in estimates:
        largest = max(probes, key=lambda each: each.variance)
        sigma = math.sqrt(largest.variance)
        error = largest.variance_error / (2 * sigma) if sigma else 0.0
        estimates["sigma"] = Estimate(sigma, error, f"variance of gradients, {where}")
    if "Q" not in estimates:
        estimates["Q"] = Estimate(max(each.largest_norm for each in probes), math.nan, f"largest norm, {where}")
    if "F_0" not in estimates:
        lowest = min(0.0, *(each.smallest_loss for each in probes))
        rule = "minus the smallest loss seen" if lowest else "the minimum is assumed to be 0"
        estimates["F_0"] = Estimate(probes[0].loss - lowest, probes[0].loss_error, f"loss at the start, {rule}")
    if "L" not in estimates:
        estimates["L"] = max(curvature(objective, batches, point) for point in points)
    return estimates


def _stated_constants(objective: Differentiable) -> dict[str, Estimate]:
    """Return the constants that the objective states, if it has a method ``constants``."""
    constants: dict[str, float] = getattr(objective, "constants", dict)()
    return {name: Estimate(float(value), 0.0, KNOWN_TO_OBJECTIVE) for name, value in constants.items()}


def _mean_gradient(objective: Differentiable, batches: Sampler, point: Float64s) -> Float64s:
    gradient, total = np.empty_like(point), np.zeros_like(point)
    for version in range(_N_CURVATURE_BATCHES):
        objective.loss_and_gradient(point, batches.batch(version), gradient)
        total += gradient
    return total / _N_CURVATURE_BATCHES


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
