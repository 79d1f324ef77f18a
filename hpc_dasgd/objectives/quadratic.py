"""A strongly convex function of which theory knows everything."""

import numpy as np

from hpc_dasgd.arrays.arithmetic import into, namespace, scalar
from hpc_dasgd.config.rules import NOT_NEGATIVE, POSITIVE, POSITIVE_INTEGER
from hpc_dasgd.errors import ConfigError


class Quadratic:
    """Quadratic with known constants and Gaussian gradient noise, without data.

    ``f(x) = 1/2 sum_k lambda_k x_k**2`` with eigenvalues spaced evenly in logarithm from `L` down to `mu`;
    its minimum is 0, at the origin. A stochastic gradient is ``lambda_k x_k + sigma / sqrt(dimension) xi_k``
    with standard normal ``xi_k``, so that the expected squared norm of the noise is ``sigma**2``, whatever
    the dimension and the batch size. Losses are of `f` itself, without noise. The start is the vector of
    ones.

    Parameters
    ----------
    data : object
        Ignored.
    dimension : int
        Number of parameters; with a single one the eigenvalue is `L`.
    L, mu : float, ``0 < mu <= L``
        Largest and smallest eigenvalue: smoothness and strong convexity.
    noise : float, at least 0
        ``sigma``, the root of the expected squared norm of the gradient noise.

    Raises
    ------
    ConfigError
        If an option is out of range.
    """

    on_gpu = True

    def __init__(self, data, *, dimension: int = 100, L: float = 1.0, mu: float = 0.01, noise: float = 1.0):
        POSITIVE_INTEGER.check("objective.dimension", dimension)
        POSITIVE.check("objective.L", L)
        POSITIVE.check("objective.mu", mu)
        if mu > L:
            raise ConfigError(f"`objective.mu` must be at most `objective.L` = {L!r}, got {mu!r}")
        self._sigma = float(NOT_NEGATIVE.check("objective.noise", noise))
        self._spectrum = np.geomspace(L, mu, dimension)
        self.parameter_shapes = {"x": (dimension,)}

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Return the vector of ones, float64; see `Objective`."""
        return np.ones_like(self._spectrum)

    def loss_and_gradient(self, parameters, batch, out) -> float:
        """Fill `out` with a noisy gradient and return the exact loss; see `Objective`."""
        xp = namespace(parameters)
        into(out, xp.multiply, xp.asarray(self._spectrum, dtype=parameters.dtype), parameters)
        loss = 0.5 * scalar(parameters @ out)
        if self._sigma:
            noise = batch.rng.standard_normal(self._spectrum.size)
            noise *= self._sigma / self._spectrum.size**0.5
            into(out, xp.add, out, xp.asarray(noise, dtype=parameters.dtype))
        return loss

    def evaluate(self, parameters, batch) -> dict[str, float]:
        """Return the exact loss; `batch` is ignored."""
        xp = namespace(parameters)
        curvature = xp.asarray(self._spectrum, dtype=parameters.dtype)
        return {"loss": 0.5 * float(parameters @ (curvature * parameters))}

    def constants(self) -> dict[str, float]:
        """Return ``L``, ``mu``, ``sigma`` and ``F_0``, all exact; see `Objective`."""
        return {
            "L": float(self._spectrum[0]),
            "mu": float(self._spectrum[-1]),
            "sigma": self._sigma,
            "F_0": 0.5 * float(self._spectrum.sum()),
        }
