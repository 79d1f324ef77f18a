"""A strongly convex quadratic function whose constants are all known."""

import numpy as np

from hpc_dasgd.arrays.arithmetic import compute_into, float_or_gpu_scalar, namespace
from hpc_dasgd.arrays.types import Array, Float64s
from hpc_dasgd.config.rules import NOT_NEGATIVE, POSITIVE, POSITIVE_INTEGER
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.errors import ConfigError


class Quadratic:
    """Quadratic with known constants and Gaussian gradient noise, without data.

    The function is ``f(x) = 1/2 sum_k lambda_k x_k**2``, whose eigenvalues decrease from `L` to `mu` in a geometric
    sequence; its minimum is 0, at the origin. A stochastic gradient is
    ``lambda_k x_k + sigma / sqrt(dimension) xi_k`` with standard normal ``xi_k``, so that the expected squared norm of
    the noise is ``sigma**2`` for every dimension and batch size. The losses are values of ``f`` without noise. All
    parameters start at one.

    Parameters
    ----------
    data : object
        Ignored.
    dimension : int
        Number of parameters. If it is 1, the eigenvalue is `L`.
    L, mu : float, ``0 < mu <= L``
        Largest and smallest eigenvalue, which are the constants of smoothness and strong convexity.
    noise : float, at least 0
        ``sigma``, the square root of the expected squared norm of the gradient noise.

    Attributes
    ----------
    parameter_shapes : dict of str to tuple of int
        The vector ``x``; see `HasParameterShapes`.
    on_gpu : bool
        True; see `ComputesOnGpu`.

    Raises
    ------
    ConfigError
        If an option is out of range.
    """

    on_gpu = True

    def __init__(
        self, data: object, *, dimension: int = 100, L: float = 1.0, mu: float = 0.01, noise: float = 1.0
    ) -> None:
        POSITIVE_INTEGER.check("objective.dimension", dimension)
        POSITIVE.check("objective.L", L)
        POSITIVE.check("objective.mu", mu)
        if mu > L:
            raise ConfigError(f"`objective.mu` must be at most `objective.L` = {L!r}, got {mu!r}")
        self._sigma = float(NOT_NEGATIVE.check("objective.noise", noise))
        self._spectrum: Float64s = np.geomspace(L, mu, dimension)
        self.parameter_shapes = {"x": (dimension,)}

    def initial(self, rng: np.random.Generator) -> Float64s:
        """Return the vector of ones; see `Objective`."""
        return np.ones_like(self._spectrum)

    def loss_and_gradient(self, parameters: Array, batch: Batch, out: Array) -> float:
        """Return the exact loss and fill `out` with a noisy gradient; see `Objective`."""
        xp = namespace(parameters)
        compute_into(out, xp.multiply, xp.asarray(self._spectrum, dtype=parameters.dtype), parameters)
        loss = 0.5 * float_or_gpu_scalar(parameters @ out)
        if self._sigma:
            noise = batch.rng.standard_normal(self._spectrum.size)
            noise *= self._sigma / self._spectrum.size**0.5
            compute_into(out, xp.add, out, xp.asarray(noise, dtype=parameters.dtype))
        return loss

    def evaluate(self, parameters: Array, batch: Batch | None) -> dict[str, float]:
        """Return the exact loss; `batch` is ignored. See `Evaluates`."""
        xp = namespace(parameters)
        curvature = xp.asarray(self._spectrum, dtype=parameters.dtype)
        return {"loss": 0.5 * float(parameters @ (curvature * parameters))}

    def constants(self) -> dict[str, float]:
        """Return ``L``, ``mu``, ``sigma`` and ``F_0``, all exact; see `HasConstants`."""
        return {
            "L": float(self._spectrum[0]),
            "mu": float(self._spectrum[-1]),
            "sigma": self._sigma,
            "F_0": 0.5 * float(self._spectrum.sum()),
        }
