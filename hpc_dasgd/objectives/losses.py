"""Losses of a model's outputs: means over the rows of a batch, with their gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hpc_dasgd.arrays.arithmetic import into, namespace, scalar


class Loss(NamedTuple):
    """A loss of outputs, shape (n, k), against targets.

    `differentiate` returns the loss and overwrites the outputs with its gradient; `accuracy` returns the
    fraction of rows whose class is right; `curvature` bounds the eigenvalues of one row's Hessian by that
    row's outputs.
    """

    differentiate: Callable[[Any, Any], float]
    accuracy: Callable[[Any, Any], float] | None
    curvature: float


def _cross_entropy(outputs, y) -> float:
    """``mean over rows of log sum_j exp(o_j) - o_y`` for classes `y`, shape (n,)."""
    xp = namespace(outputs)
    classes = xp.arange(outputs.shape[1], dtype=y.dtype)
    target = xp.asarray(y[:, None] == classes, dtype=outputs.dtype)
    into(outputs, xp.subtract, outputs, xp.max(outputs, axis=1, keepdims=True))  # so that exp cannot overflow
    chosen = xp.sum(outputs * target, axis=1)
    into(outputs, xp.exp, outputs)
    total = xp.sum(outputs, axis=1, keepdims=True)
    loss = scalar(xp.mean(xp.log(total[:, 0]) - chosen))
    into(outputs, xp.divide, outputs, total)
    into(outputs, xp.subtract, outputs, target)
    into(outputs, xp.divide, outputs, outputs.shape[0])
    return loss


def _binary_cross_entropy(outputs, y) -> float:
    """``mean over rows of log(1 + exp(o)) - y o`` for `y` in {0, 1}, shape (n,), and outputs (n, 1)."""
    xp = namespace(outputs)
    target = xp.asarray(y[:, None], dtype=outputs.dtype)
    softplus = xp.logaddexp(outputs, xp.zeros_like(outputs))
    loss = scalar(xp.mean(softplus - target * outputs))
    into(outputs, xp.subtract, xp.exp(outputs - softplus), target)
    into(outputs, xp.divide, outputs, outputs.shape[0])
    return loss


def _half_squared_error(outputs, y) -> float:
    """``mean over rows of 1/2 sum_j (o_j - y_j)**2`` for targets `y`, shape (n, k)."""
    xp = namespace(outputs)
    into(outputs, xp.subtract, outputs, xp.asarray(y, dtype=outputs.dtype))
    loss = 0.5 * scalar(xp.sum(outputs * outputs)) / outputs.shape[0]
    into(outputs, xp.divide, outputs, outputs.shape[0])
    return loss


def _fraction(right, dtype) -> float:
    xp = namespace(right)
    return float(xp.mean(xp.asarray(right, dtype=dtype)))


def _likeliest_class(outputs, y) -> float:
    return _fraction(namespace(outputs).argmax(outputs, axis=1) == y, outputs.dtype)


def _sign(outputs, y) -> float:
    return _fraction((outputs[:, 0] > 0) == (y == 1), outputs.dtype)


# For log-sum-exp see Böhning, Annals of the Institute of Statistical Mathematics 44 (1992).
CROSS_ENTROPY = Loss(_cross_entropy, _likeliest_class, curvature=0.5)
BINARY_CROSS_ENTROPY = Loss(_binary_cross_entropy, _sign, curvature=0.25)
HALF_SQUARED_ERROR = Loss(_half_squared_error, None, curvature=1.0)
