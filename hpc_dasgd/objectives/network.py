"""Fully connected networks over a flat vector of parameters.

The cost of a step is little more than that of its matrix products: gradients are written directly into the flat
vector, and activations into arrays that are reused by the next step.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from hpc_dasgd.arrays.arithmetic import compute_into, float_or_gpu_scalar, namespace
from hpc_dasgd.arrays.types import Array, Float64s
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.objectives.losses import Loss


class Activation(NamedTuple):
    """A nonlinearity between layers.

    Attributes
    ----------
    apply : callable
        ``apply(array)`` overwrites its argument with the value of the function.
    slope : callable
        ``slope(value)`` returns the derivative as a function of the value.
    weight_scale : callable
        ``weight_scale(n_in, n_out)`` returns the standard deviation of the initial weights of a layer.
    """

    apply: Callable[[Array], None]
    slope: Callable[[Array], Array]
    weight_scale: Callable[[int, int], float]


def _relu(array: Array) -> None:
    compute_into(array, namespace(array).maximum, array, 0)


def _relu_slope(value: Array) -> Array:
    # The cast is needed since the array API standard does not multiply booleans; `sign` takes three times as long.
    return namespace(value).asarray(value > 0, dtype=value.dtype)


def _tanh(array: Array) -> None:
    compute_into(array, namespace(array).tanh, array)


def _tanh_slope(value: Array) -> Array:
    return 1 - value * value


# Initial weights: He et al. (arXiv 1502.01852) for relu, Glorot and Bengio (AISTATS 2010) for tanh.
ACTIVATIONS = {
    "relu": Activation(_relu, _relu_slope, lambda n_in, n_out: sqrt(2 / n_in)),
    "tanh": Activation(_tanh, _tanh_slope, lambda n_in, n_out: sqrt(2 / (n_in + n_out))),
}


class Network:
    """Affine layers with an activation between them, and a loss of the outputs of the last layer.

    Parameters
    ----------
    widths : sequence of int
        Number of features, number of units of each hidden layer, and number of outputs.
    loss : Loss
        Loss of the outputs.
    activation : Activation or None
        None for a network without hidden layers, whose initial weights are zero.
    l2 : float
        Factor of half the squared norm of all parameters, which is added to the loss.
    constants : callable, optional
        Function without arguments that returns the known constants; see `HasConstants`.

    Attributes
    ----------
    parameter_shapes : dict of str to tuple of int
        ``layer1.weight`` (n_in, n_out), ``layer1.bias`` (n_out,), ``layer2.weight``, ...
    constants : callable
        The parameter of that name.
    on_gpu : bool
        True; see `ComputesOnGpu`.
    """

    on_gpu = True

    def __init__(
        self,
        widths: Sequence[int],
        loss: Loss,
        activation: Activation | None = None,
        l2: float = 0.0,
        constants: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self._widths, self._loss, self._activation, self._l2 = tuple(widths), loss, activation, l2
        self.constants = constants
        self.parameter_shapes = layer_names([part for shape in pairwise(self._widths) for part in (shape, shape[1:])])
        self._parameters = ShapedViews(self.parameter_shapes.values())
        self._gradients = ShapedViews(self.parameter_shapes.values())
        self._activations = _LayerBuffers(self._widths[1:])
        self._deltas = _LayerBuffers(self._widths[1:-1])

    def initial(self, rng: np.random.Generator) -> Float64s:
        """Return normally distributed weights and zero biases; see `Objective`."""
        parameters = np.zeros(sum(map(prod, self.parameter_shapes.values())))
        if self._activation is not None:
            for weight in ShapedViews(self.parameter_shapes.values()).of(parameters)[::2]:
                weight[...] = self._activation.weight_scale(*weight.shape) * rng.standard_normal(weight.shape)
        return parameters

    def loss_and_gradient(self, parameters: Array, batch: Batch, out: Array, by_features: Array | None = None) -> Any:
        """Return the mean loss over the batch and fill `out` with its gradient; see `Objective`.

        If `by_features`, shape (n_features, n_rows), is given, it is overwritten with the gradient with respect to the
        features, which costs one more matrix product.
        """
        x, y = self._examples(parameters, batch)
        activations = self._activations.for_rows(parameters, x.shape[0])
        self._forward(parameters, x, activations)
        loss = self._loss.differentiate(activations[-1], y)
        self._backward(parameters, x, activations, out, by_features)
        if self._l2:
            compute_into(out, namespace(out).add, out, self._l2 * parameters)
        return loss + self._penalty(parameters)

    def evaluate(self, parameters: Array, batch: Batch | None) -> dict[str, float]:
        """Return the mean loss over the batch and, for classes, the accuracy; see `Evaluates`."""
        assert batch is not None  # networks are always trained on a data set
        x, y = self._examples(parameters, batch)
        activations = _LayerBuffers(self._widths[1:]).for_rows(parameters, x.shape[0])
        self._forward(parameters, x, activations)
        accuracy = self._loss.accuracy
        metrics = {} if accuracy is None else {"accuracy": accuracy(activations[-1], y)}
        loss = self._loss.differentiate(activations[-1], y) + self._penalty(parameters)
        return {"loss": float(loss), **metrics}

    def _examples(self, parameters: Array, batch: Batch) -> tuple[Array, Array]:
        """Return features, shape (n_rows, n_features), and targets, in the memory and namespace of `parameters`."""
        xp = namespace(parameters)
        x = xp.asarray(batch.x, dtype=parameters.dtype)
        return xp.reshape(x, (x.shape[0], self._widths[0])), xp.asarray(batch.y)

    def _penalty(self, parameters: Array) -> Any:
        return 0.5 * self._l2 * float_or_gpu_scalar(parameters @ parameters) if self._l2 else 0.0

    def _forward(self, parameters: Array, x: Array, activations: Sequence[Array]) -> None:
        xp = namespace(parameters)
        for (weight, bias), value in zip(layer_pairs(self._parameters.of(parameters)), activations, strict=True):
            compute_into(value, xp.matmul, x, weight)
            compute_into(value, xp.add, value, bias)
            if self._activation is not None and value is not activations[-1]:
                self._activation.apply(value)
            x = value

    def _backward(
        self, parameters: Array, x: Array, activations: Sequence[Array], out: Array, by_features: Array | None
    ) -> None:
        """Fill `out`, given the values of the hidden layers and, last, the gradient with respect to the outputs."""
        xp = namespace(parameters)
        weights, gradients = self._parameters.of(parameters)[::2], layer_pairs(self._gradients.of(out))
        deltas = [*self._deltas.for_rows(parameters, x.shape[0]), activations[-1]]
        inputs = [x, *activations[:-1]]
        for layer in reversed(range(len(inputs))):
            delta, (weight_gradient, bias_gradient) = deltas[layer], gradients[layer]
            compute_into(weight_gradient, xp.matmul, inputs[layer].T, delta)
            compute_into(bias_gradient, xp.sum, delta, axis=0)
            if layer and self._activation is not None:
                below = deltas[layer - 1]
                compute_into(below, xp.matmul, delta, weights[layer].T)
                compute_into(below, xp.multiply, below, self._activation.slope(inputs[layer]))
        if by_features is not None:
            compute_into(by_features, xp.matmul, weights[0], deltas[0].T)


def layer_names(shapes: Iterable[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return names of the arrays of layers, given their shapes in the order weight, bias, weight, bias, ...

    Examples
    --------
    >>> layer_names([(4, 3), (3,)])
    {'layer1.weight': (4, 3), 'layer1.bias': (3,)}
    """
    return {f"layer{k // 2 + 1}.{('weight', 'bias')[k % 2]}": shape for k, shape in enumerate(shapes)}


def layer_pairs(arrays: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Return the pair (weight, bias) of each layer, given weight, bias, weight, bias, ..."""
    return list(zip(arrays[::2], arrays[1::2], strict=True))


class ShapedViews:
    """Views of consecutive parts of a flat vector, each with its shape; kept until another vector is given.

    Parameters
    ----------
    shapes : iterable of tuple of int
        Shape of each part, in C order.
    """

    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        self._shapes = tuple(shapes)
        self._flat: Array = None
        self._views: tuple[Array, ...] = ()

    def of(self, flat: Array) -> tuple[Array, ...]:
        """Return the views of `flat`."""
        if flat is not self._flat:  # no other array can have its address, since a reference to it is kept
            views, lo = [], 0
            for shape in self._shapes:
                hi = lo + prod(shape)
                views.append(namespace(flat).reshape(flat[lo:hi], shape))
                lo = hi
            self._flat, self._views = flat, tuple(views)
        return self._views


class _LayerBuffers:
    """One uninitialized array for each layer, kept until the number of rows, the dtype or the namespace changes."""

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = tuple(widths)
        self._key: tuple[Any, ...] | None = None
        self._arrays: tuple[Array, ...] = ()

    def for_rows(self, parameters: Array, n_rows: int) -> tuple[Array, ...]:
        """Return arrays of shape (n_rows, width) in the memory and dtype of `parameters`."""
        xp = namespace(parameters)
        key = (xp, parameters.dtype, n_rows)
        if key != self._key:
            self._arrays = tuple(xp.empty((n_rows, width), dtype=parameters.dtype) for width in self._widths)
            self._key = key
        return self._arrays
