"""Losses of a model's outputs, as means over the rows of a batch, with their gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hpc_dasgd.arrays.arithmetic import compute_into, float_or_gpu_scalar, namespace
from hpc_dasgd.arrays.types import Array, DType


class Loss(NamedTuple):
    """A loss of outputs, shape (n, k), for given targets.

    Attributes
    ----------
    differentiate : callable
        ``differentiate(outputs, targets)`` returns the loss, a float or an array of shape () on a GPU, and overwrites
        the outputs with its gradient.
    accuracy : callable or None
        ``accuracy(outputs, targets)`` returns the fraction of rows whose class is predicted correctly; None if the
        targets are not classes.
    curvature : float
        Upper bound of the eigenvalues of the Hessian of one row's loss with respect to that row's outputs.
    """

    differentiate: Callable[[Array, Array], Any]
    accuracy: Callable[[Array, Array], float] | None
    curvature: float


def _cross_entropy(outputs: Array, y: Array) -> Any:
    """Compute ``mean over rows of log sum_j exp(o_j) - o_y`` for classes `y`, shape (n,)."""
    xp = namespace(outputs)
    classes = xp.arange(outputs.shape[1], dtype=y.dtype)
    target = xp.asarray(y[:, None] == classes, dtype=outputs.dtype)
    # Subtracting the maximum prevents an overflow of exp.
    compute_into(outputs, xp.subtract, outputs, xp.max(outputs, axis=1, keepdims=True))
    chosen = xp.sum(outputs * target, axis=1)
    compute_into(outputs, xp.exp, outputs)
    total = xp.sum(outputs, axis=1, keepdims=True)
    loss = float_or_gpu_scalar(xp.mean(xp.log(total[:, 0]) - chosen))
    compute_into(outputs, xp.divide, outputs, total)
    compute_into(outputs, xp.subtract, outputs, target)
    compute_into(outputs, xp.divide, outputs, outputs.shape[0])
    return loss


def _binary_cross_entropy(outputs: Array, y: Array) -> Any:
    """Compute ``mean over rows of log(1 + exp(o)) - y o`` for `y` in {0, 1}, shape (n,), and outputs (n, 1)."""
    xp = namespace(outputs)
    target = xp.asarray(y[:, None], dtype=outputs.dtype)
    softplus = xp.logaddexp(outputs, xp.zeros_like(outputs))
    loss = float_or_gpu_scalar(xp.mean(softplus - target * outputs))
    compute_into(outputs, xp.subtract, xp.exp(outputs - softplus), target)
    compute_into(outputs, xp.divide, outputs, outputs.shape[0])
    return loss


def _half_squared_error(outputs: Array, y: Array) -> Any:
    """Compute ``mean over rows of 1/2 sum_j (o_j - y_j)**2`` for targets `y`, shape (n, k)."""
    xp = namespace(outputs)
    compute_into(outputs, xp.subtract, outputs, xp.asarray(y, dtype=outputs.dtype))
    loss = 0.5 * float_or_gpu_scalar(xp.sum(outputs * outputs)) / outputs.shape[0]
    compute_into(outputs, xp.divide, outputs, outputs.shape[0])
    return loss


def _fraction(correct: Array, dtype: DType) -> float:
    xp = namespace(correct)
    return float(xp.mean(xp.asarray(correct, dtype=dtype)))


def _accuracy_of_largest(outputs: Array, y: Array) -> float:
    return _fraction(namespace(outputs).argmax(outputs, axis=1) == y, outputs.dtype)


def _accuracy_of_sign(outputs: Array, y: Array) -> float:
    return _fraction((outputs[:, 0] > 0) == (y == 1), outputs.dtype)


# The curvature of log-sum-exp: Böhning, Annals of the Institute of Statistical Mathematics 44 (1992).
CROSS_ENTROPY = Loss(_cross_entropy, _accuracy_of_largest, curvature=0.5)
BINARY_CROSS_ENTROPY = Loss(_binary_cross_entropy, _accuracy_of_sign, curvature=0.25)
HALF_SQUARED_ERROR = Loss(_half_squared_error, None, curvature=1.0)
