"""Convergence bounds of stale stochastic gradients, and the stepsizes that minimize them (``docs/theory.md``).

A run can be compared with bounds A and B, because their constants are explicit. It cannot be compared with the rates
of Tosi and Theobald (arXiv 2309.03754), which give the number of gradients only up to an unknown factor. All of them
assume SGD with a constant stepsize. Bounds must not be compared with rates.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

_NEWTON_STEPS = 100
_LARGEST_CONSTANT = 1e30  # products of several constants must stay finite


class Constants(NamedTuple):
    """Constants of an objective that the bounds contain (``docs/theory.md``, "Definitions").

    Attributes
    ----------
    L : float, positive
        Smoothness: a Lipschitz constant of the gradient.
    sigma : float, at least 0
        Square root of a bound on the variance of a stochastic gradient, ``E ||g - grad f||^2 <= sigma^2``.
    Q : float, at least 0
        Square root of a bound on the second moment, ``E ||g||^2 <= Q^2``; only bound A contains it.
    F_0 : float, positive
        ``f(x_0) - f*``, where ``f*`` is a lower bound of ``f``.
    """

    L: float
    sigma: float
    Q: float
    F_0: float


class Delays(NamedTuple):
    """Staleness of a run, as the bounds contain it (``docs/theory.md``, "Definitions").

    Attributes
    ----------
    S_avg, S_rms, S_max : float
        Mean, root mean square and maximum of the staleness of the gradients.
    W_max : float
        Largest reach of a gradient; infinite if it is not known.
    """

    S_avg: float
    S_rms: float
    S_max: float
    W_max: float

    def times(self, factor: float) -> "Delays":
        """Return the delays of a run in which every staleness is `factor` times as large.

        ``W_max``, a sum of stalenesses over missed gradients, is multiplied by the square of `factor`.

        Examples
        --------
        >>> Delays(4.0, 6.0, 30.0, 800.0).times(2.0)
        Delays(S_avg=8.0, S_rms=12.0, S_max=60.0, W_max=3200.0)
        """
        return Delays(self.S_avg * factor, self.S_rms * factor, self.S_max * factor, self.W_max * factor**2)


@dataclass(frozen=True)
class Bound:
    """An upper bound on the mean squared gradient norm as a function of the stepsize.

    ``value(gamma) = start / gamma + noise * gamma + staleness * gamma^2`` for ``gamma <= largest_stepsize``.

    Attributes
    ----------
    start, noise, staleness : float
        Coefficients of the three terms.
    largest_stepsize : float
        Condition of the bound: the largest stepsize for which it holds.
    """

    start: float
    noise: float
    staleness: float
    largest_stepsize: float

    def terms(self, stepsize: float) -> dict[str, float]:
        """Return the values of the terms ``start``, ``noise`` and ``staleness`` at `stepsize`, by name."""
        return {
            "start": self.start / stepsize,
            "noise": self.noise * stepsize,
            "staleness": self.staleness * stepsize**2,
        }

    def value(self, stepsize: float) -> float:
        """Return the sum of the terms at `stepsize`; it is a bound only if the condition is met."""
        return sum(self.terms(stepsize).values())

    def condition_met(self, stepsize: float) -> bool:
        """Return True if the bound holds for `stepsize`."""
        return stepsize <= self.largest_stepsize

    def best_stepsize(self) -> float:
        """Return the stepsize that minimizes the bound among those that meet its condition.

        If the condition permits, it is the root of ``2 staleness gamma^3 + noise gamma^2 - start``. This function of
        gamma is increasing and convex, so that Newton's method decreases towards the root from any larger starting
        point (``docs/theory.md``, "Stepsizes from a bound").
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
    """Return bound A (``docs/theory.md``, "Bound A"), for gradients with bounded second moment.

    The condition is ``gamma <= 1 / (2 L)``.

    Parameters
    ----------
    constants : Constants
    delays : Delays
    n_gradients : int, at least 1
        ``T``, number of gradients of all ranks.

    Returns
    -------
    bound : Bound

    Raises
    ------
    ValueError
        If `n_gradients` is less than 1, or if a constant is not finite or out of range.

    Examples
    --------
    >>> constants, delays = Constants(L=2.0, sigma=3.0, Q=5.0, F_0=7.0), Delays(4.0, 6.0, 30.0, 800.0)
    >>> bound = bound_a(constants, delays, n_gradients=1000)
    >>> bound.largest_stepsize, round(bound.value(0.01), 6)
    (0.25, 3.88)
    """
    _check(constants, n_gradients)
    L, sigma, Q, F_0 = constants
    staleness = 2 * (L * Q * delays.S_rms) ** 2
    return Bound(4 * F_0 / n_gradients, 2 * L * sigma**2, staleness, 1 / (2 * L))


def bound_b(constants: Constants, delays: Delays, n_gradients: int) -> Bound:
    """Return bound B (``docs/theory.md``, "Bound B"), which assumes no bound on the gradients.

    The condition is ``gamma <= min(1 / (4 L), 1 / (2 sqrt(2) L sqrt(W_max)))``. ``constants.Q`` is not used; otherwise
    parameters and errors are as for `bound_a`.
    """
    _check(constants._replace(Q=0.0), n_gradients)
    L, sigma, _, F_0 = constants
    largest = 1 / (4 * L)
    if delays.W_max:
        largest = min(largest, 1 / (2 * math.sqrt(2 * delays.W_max) * L))
    return Bound(4 * F_0 / n_gradients, 2 * L * sigma**2, (2 * L * sigma) ** 2 * delays.S_avg, largest)


def paper_rates(
    constants: Constants, delays: Delays, between_models: float, epsilon: float
) -> dict[str, dict[str, float]]:
    """Return the terms of both rates of Tosi and Theobald (arXiv 2309.03754, abstract), without unknown factors.

    The rates state how many gradients are needed to reach a mean squared gradient norm of `epsilon`, up to a constant
    factor. Each term is multiplied by ``L F_0``, which makes it a pure number. The abstract's ``sigma`` is read as a
    variance (``docs/theory.md``, "Rates of the paper").

    Parameters
    ----------
    constants : Constants
    delays : Delays
        ``S_avg`` and ``S_max`` of the gradients are used in place of the looser average and maximum of the abstract.
    between_models : float
        Mean staleness between models.
    epsilon : float, positive

    Returns
    -------
    rates : dict
        ``"bounded_gradients"``, a dict of the terms ``noise``, ``staleness_bounded`` and ``staleness``, and
        ``"any_gradients"``, a dict of the terms ``noise`` and ``staleness``.
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
        if not value < _LARGEST_CONSTANT or value < 0 or (positive and value == 0):
            rule = "positive" if positive else "at least 0"
            raise ValueError(f"`{name}` must be {rule} and below {_LARGEST_CONSTANT:g}, got {value}")
