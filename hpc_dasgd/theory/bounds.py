"""Convergence bounds of stale stochastic gradients, and the stepsizes that minimize them (``theory.md``).

Bounds A and B are numbers that a run can be held against: their constants are explicit. The rates of Tosi and
Theobald (arXiv 2309.03754) are not: they say how the number of gradients grows, up to a factor that nobody
knows. Both are for SGD with a constant stepsize; never compare one with the other.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

_NEWTON_STEPS = 100
_LARGEST = 1e30  # of a constant: products of some of them have to be numbers still


class Constants(NamedTuple):
    """What the bounds take of an objective.

    Attributes
    ----------
    L : float, positive
        Smoothness: the gradient is Lipschitz with this constant.
    sigma : float, at least 0
        Root of a bound on the variance of a gradient, ``E ||g - grad f||^2 <= sigma^2``.
    Q : float, at least 0
        Root of a bound on ``E ||g||^2``; for bound A.
    F_0 : float, positive
        ``f(x_0) - f*``.
    """

    L: float
    sigma: float
    Q: float
    F_0: float


class Delays(NamedTuple):
    """What the bounds take of a run's staleness; see ``theory.md`` and `staleness`."""

    S_avg: float
    S_rms: float
    S_max: float
    W_max: float

    def times(self, factor: float) -> "Delays":
        """The delays of a run in which every staleness is `factor` times as large."""
        return Delays(self.S_avg * factor, self.S_rms * factor, self.S_max * factor, self.W_max * factor**2)


@dataclass(frozen=True)
class Bound:
    """An upper bound on the mean squared gradient norm as a function of the stepsize.

    ``value(gamma) = start / gamma + noise * gamma + staleness * gamma^2`` for ``gamma <= largest_stepsize``.

    Attributes
    ----------
    start, noise, staleness : float
        Factors of the terms.
    largest_stepsize : float
        The bound's condition.
    """

    start: float
    noise: float
    staleness: float
    largest_stepsize: float

    def terms(self, stepsize: float) -> dict[str, float]:
        """The three terms at `stepsize`, by name."""
        return {
            "start": self.start / stepsize,
            "noise": self.noise * stepsize,
            "staleness": self.staleness * stepsize**2,
        }

    def value(self, stepsize: float) -> float:
        """The sum of the terms; a bound only where the condition is met."""
        return sum(self.terms(stepsize).values())

    def condition_met(self, stepsize: float) -> bool:
        """Whether `stepsize` is one that the bound holds for."""
        return stepsize <= self.largest_stepsize

    def best_stepsize(self) -> float:
        """The stepsize of the lowest bound among those that meet the condition.

        The root of the derivative, ``2 staleness gamma^3 + noise gamma^2 = start``: a convex increasing function
        of gamma, so that Newton's method comes down to it from any larger start.
        """
        candidates = [self.largest_stepsize]
        if self.noise:
            candidates.append(math.sqrt(self.start / self.noise))
        if self.staleness:
            candidates.append((self.start / (2 * self.staleness)) ** (1 / 3))
        gamma = min(candidates)
        for _ in range(_NEWTON_STEPS):
            excess = 2 * self.staleness * gamma**3 + self.noise * gamma**2 - self.start
            if excess <= 1e-15 * self.start:
                break
            gamma -= excess / (6 * self.staleness * gamma**2 + 2 * self.noise * gamma)
        return gamma


def bound_a(constants: Constants, delays: Delays, n_gradients: int) -> Bound:
    """Bound A of ``theory.md``, for bounded gradients: ``gamma <= 1 / (2 L)``.

    Parameters
    ----------
    constants : Constants
        ``L`` positive.
    delays : Delays
    n_gradients : int, at least 1
        ``T``, of all ranks.

    Raises
    ------
    ValueError
        If a constant is not finite or out of range.
    """
    _check(constants, n_gradients)
    L, sigma, Q, F_0 = constants
    staleness = 2 * (L * Q * delays.S_rms) ** 2
    return Bound(4 * F_0 / n_gradients, 2 * L * sigma**2, staleness, 1 / (2 * L))


def bound_b(constants: Constants, delays: Delays, n_gradients: int) -> Bound:
    """Bound B of ``theory.md``, without a bound on the gradients; ``constants.Q`` is not used.

    Its condition is ``gamma <= min(1 / (4 L), 1 / (2 sqrt(2) L sqrt(W_max)))``. Otherwise as `bound_a`.
    """
    _check(constants._replace(Q=0.0), n_gradients)
    L, sigma, _, F_0 = constants
    largest = 1 / (4 * L)
    if delays.W_max:
        largest = min(largest, 1 / (2 * math.sqrt(2 * delays.W_max) * L))
    return Bound(4 * F_0 / n_gradients, 2 * L * sigma**2, (2 * L * sigma) ** 2 * delays.S_avg, largest)


def paper_rates(constants: Constants, delays: Delays, between_models: float, epsilon: float) -> dict[str, dict]:
    """The terms of both rates of Tosi and Theobald (arXiv 2309.03754, abstract), without their unknown factors.

    Gradients to reach a mean squared gradient norm of `epsilon`. Each term carries the factor ``L F_0``, which
    makes it a pure number; what is still missing is a constant. The abstract's ``sigma`` is a variance.

    Parameters
    ----------
    constants : Constants
    delays : Delays
        ``S_avg`` and ``S_max`` of the gradients stand for the abstract's looser average and maximum.
    between_models : float
        Average staleness between models.
    epsilon : float, positive

    Returns
    -------
    rates : dict
        ``bounded_gradients``: ``noise, staleness_bounded, staleness``; ``any_gradients``: ``noise, staleness``.
    """
    scale = constants.L * constants.F_0
    noise = scale * constants.sigma**2 / epsilon**2
    return {
        "bounded_gradients": {
            "noise": noise,
            "staleness_bounded": scale * constants.Q * between_models / epsilon**1.5,
            "staleness": scale * between_models / epsilon,
        },
        "any_gradients": {
            "noise": noise,
            "staleness": scale * math.sqrt(delays.S_avg * delays.S_max) / epsilon,
        },
    }


def _check(constants: Constants, n_gradients: int) -> None:
    if n_gradients < 1:
        raise ValueError(f"`n_gradients` must be at least 1, got {n_gradients}")
    for name, value in constants._asdict().items():
        positive = name in ("L", "F_0")
        if not value < _LARGEST or value < 0 or (positive and value == 0):
            rule = "positive" if positive else "at least 0"
            raise ValueError(f"`{name}` must be {rule} and below {_LARGEST:g}, got {value}")
