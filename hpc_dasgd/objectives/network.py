"""Fully connected networks over a flat vector of parameters.

A step costs little more than its matrix products: gradients are written straight into the flat vector, and
activations into arrays that are kept from step to step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from hpc_dasgd.arrays.arithmetic import into, namespace, scalar
from hpc_dasgd.objectives.losses import Loss


class Activation(NamedTuple):
    """A nonlinearity between layers.

    `apply` overwrites its argument; `slope` returns the derivative, given the value of the function; `spread`
    is the standard deviation of a layer's first weights, given its numbers of inputs and outputs.
    """

    apply: Callable[[Any], None]
    slope: Callable[[Any], Any]
    spread: Callable[[int, int], float]


def _relu(array) -> None:
    into(array, namespace(array).maximum, array, 0)


def _relu_slope(value):
    # A cast, since the array API standard multiplies no booleans; NumPy's `sign` costs three times as much.
    return namespace(value).asarray(value > 0, dtype=value.dtype)


def _tanh(array) -> None:
    into(array, namespace(array).tanh, array)


def _tanh_slope(value):
    return 1 - value * value


# First weights: He et al. (arXiv 1502.01852) for relu; Glorot and Bengio (AISTATS 2010) for tanh.
ACTIVATIONS = {
    "relu": Activation(_relu, _relu_slope, lambda n_in, n_out: sqrt(2 / n_in)),
    "tanh": Activation(_tanh, _tanh_slope, lambda n_in, n_out: sqrt(2 / (n_in + n_out))),
}


class Network:
    """Affine layers with an activation between them, and a loss of the last one's outputs.

    Parameters
    ----------
    widths : sequence of int
        Numbers of features, of each hidden layer's units, and of outputs.
    loss : Loss
        Of the outputs.
    activation : Activation or None
        None for a network without hidden layers: its first weights are zero.
    l2 : float
        Factor of half the squared norm of all parameters, which is added to every loss.
    constants : callable
        () -> dict: what is known of the function.

    Attributes
    ----------
    parameter_shapes : dict of str to tuple of int
        ``layer1.weight`` (n_in, n_out), ``layer1.bias`` (n_out,), ``layer2.weight``, ...
    """

    def __init__(
        self,
        widths: Sequence[int],
        loss: Loss,
        activation: Activation | None = None,
        l2: float = 0.0,
        constants: Callable[[], dict[str, float]] = dict,
    ):
        self._widths, self._loss, self._activation, self._l2 = tuple(widths), loss, activation, l2
        self.constants = constants
        self.parameter_shapes = layer_names([part for shape in pairwise(self._widths) for part in (shape, shape[1:])])
        self._parameters = Views(self.parameter_shapes.values())
        self._gradients = Views(self.parameter_shapes.values())
        self._activations = _Buffers(self._widths[1:])
        self._deltas = _Buffers(self._widths[1:-1])

    on_gpu = True

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Return normally distributed weights and zero biases, float64; see `Objective`."""
        parameters = np.zeros(sum(map(prod, self.parameter_shapes.values())))
        if self._activation is not None:
            for weight in Views(self.parameter_shapes.values()).of(parameters)[::2]:
                weight[...] = self._activation.spread(*weight.shape) * rng.standard_normal(weight.shape)
        return parameters

    def loss_and_gradient(self, parameters, batch, out, by_features=None) -> float:
        """Return the mean loss over the batch and fill `out` with its gradient; see `Objective`.

        `by_features`, shape (n_features, n), is overwritten with the gradient by the features where it is given.
        """
        x, y = self._on(parameters, batch)
        activations = self._activations.like(parameters, x.shape[0])
        self._forward(parameters, x, activations)
        loss = self._loss.differentiate(activations[-1], y)
        self._backward(parameters, x, activations, out, by_features)
        if self._l2:
            into(out, namespace(out).add, out, self._l2 * parameters)
        return loss + self._penalty(parameters)

    def evaluate(self, parameters, batch) -> dict[str, float]:
        """Return the mean loss over the batch and, for classes, the accuracy; see `Objective`."""
        x, y = self._on(parameters, batch)
        activations = _Buffers(self._widths[1:]).like(parameters, x.shape[0])
        self._forward(parameters, x, activations)
        accuracy = self._loss.accuracy
        metrics = {} if accuracy is None else {"accuracy": accuracy(activations[-1], y)}
        loss = self._loss.differentiate(activations[-1], y) + self._penalty(parameters)
        return {"loss": float(loss), **metrics}

    def _on(self, parameters, batch):
        """Return features, shape (n, n_features), and targets, where `parameters` are; copied if need be."""
        xp = namespace(parameters)
        x = xp.asarray(batch.x, dtype=parameters.dtype)
        return xp.reshape(x, (x.shape[0], self._widths[0])), xp.asarray(batch.y)

    def _penalty(self, parameters) -> float:
        return 0.5 * self._l2 * scalar(parameters @ parameters) if self._l2 else 0.0

    def _forward(self, parameters, x, activations) -> None:
        xp = namespace(parameters)
        for (weight, bias), value in zip(pairs(self._parameters.of(parameters)), activations, strict=True):
            into(value, xp.matmul, x, weight)
            into(value, xp.add, value, bias)
            if value is not activations[-1]:
                self._activation.apply(value)
            x = value

    def _backward(self, parameters, x, activations, out, by_features) -> None:
        """Fill `out`, given the values of the hidden layers and the loss's gradient by the outputs."""
        xp = namespace(parameters)
        weights, gradients = self._parameters.of(parameters)[::2], pairs(self._gradients.of(out))
        deltas = [*self._deltas.like(parameters, x.shape[0]), activations[-1]]
        inputs = [x, *activations[:-1]]
        for layer in reversed(range(len(inputs))):
            delta, (weight_gradient, bias_gradient) = deltas[layer], gradients[layer]
            into(weight_gradient, xp.matmul, inputs[layer].T, delta)
            into(bias_gradient, xp.sum, delta, axis=0)
            if layer:
                below = deltas[layer - 1]
                into(below, xp.matmul, delta, weights[layer].T)
                into(below, xp.multiply, below, self._activation.slope(inputs[layer]))
        if by_features is not None:  # it costs a matrix product
            into(by_features, xp.matmul, weights[0], deltas[0].T)


def layer_names(shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weight, bias, weight, bias, ... under their names, from ``layer1.weight`` on."""
    return {f"layer{k // 2 + 1}.{('weight', 'bias')[k % 2]}": shape for k, shape in enumerate(shapes)}


def pairs(views) -> list[tuple]:
    """Return the (weight, bias) of each layer."""
    return list(zip(views[::2], views[1::2], strict=True))


class Views:
    """Views of a flat vector under some shapes, kept for as long as the vector is the same."""

    def __init__(self, shapes):
        self._shapes = tuple(shapes)
        self._flat, self._views = None, ()

    def of(self, flat) -> tuple:
        if flat is not self._flat:  # the reference that is kept rules out another array at the same address
            views, lo = [], 0
            for shape in self._shapes:
                hi = lo + prod(shape)
                views.append(namespace(flat).reshape(flat[lo:hi], shape))
                lo = hi
            self._flat, self._views = flat, tuple(views)
        return self._views


class _Buffers:
    """One uninitialized array per width, kept while number of rows, dtype and namespace stay the same."""

    def __init__(self, widths):
        self._widths = tuple(widths)
        self._key, self._arrays = None, ()

    def like(self, parameters, n_rows: int) -> tuple:
        xp = namespace(parameters)
        key = (xp, parameters.dtype, n_rows)
        if key != self._key:
            arrays = tuple(xp.empty((n_rows, width), dtype=parameters.dtype) for width in self._widths)
            self._key, self._arrays = key, arrays
        return self._arrays
