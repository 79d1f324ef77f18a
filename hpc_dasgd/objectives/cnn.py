"""Convolutional networks on images."""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from hpc_dasgd.arrays.arithmetic import ceil_div, compute_into, namespace
from hpc_dasgd.arrays.types import Array, Float64s
from hpc_dasgd.config.rules import ODD_INTEGER, POSITIVE_INTEGER, POSITIVE_INTEGERS, one_of
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.convolution import Convolutions, LayerArrays, LayerShape
from hpc_dasgd.objectives.linear import require_classes
from hpc_dasgd.objectives.losses import CROSS_ENTROPY
from hpc_dasgd.objectives.network import ACTIVATIONS, Network, ShapedViews, layer_names, layer_pairs

_MAX_PATCH_VALUES = 1 << 26  # 256 MiB of patches in float32; a larger batch is processed in pieces


class _Size(NamedTuple):
    channels: Sequence[int]
    convolutions: int
    kernel: int
    hidden: Sequence[int]


_SIZES = {
    "lenet": _Size(channels=(6, 16), convolutions=1, kernel=5, hidden=(120, 84)),
    "deep": _Size(channels=(32, 64, 128), convolutions=2, kernel=3, hidden=(128,)),
}
_RULES = {
    "channels": POSITIVE_INTEGERS,
    "convolutions": POSITIVE_INTEGER,
    "kernel": ODD_INTEGER,
    "hidden": POSITIVE_INTEGERS,
}
_SIZE, _CHANNEL_AXIS = one_of(*_SIZES), one_of("first", "last")


def cnn(
    data: Dataset,
    *,
    size: str = "lenet",
    image: Sequence[int] | None = None,
    channel_axis: str = "first",
    channels: Sequence[int] | None = None,
    convolutions: int | None = None,
    kernel: int | None = None,
    hidden: Sequence[int] | None = None,
) -> "ConvolutionalNetwork":
    """Convolutional network on images in classes: "lenet" or "deep", whose sizes can be set one by one.

    The network consists of blocks of convolutions, each of which ends with max pooling over 2 x 2 values; then of fully
    connected layers; and of the cross-entropy of their softmax. Convolutions keep the size of the images, which are
    padded with zeros, and all hidden layers use relu. Initial weights are normally distributed, as He et al. (arXiv
    1502.01852) propose, and initial biases are zero.

    Parameters
    ----------
    data : Dataset
        A data set with classes.
    size : {"lenet", "deep"}
        Default values of the sizes below. "lenet", after LeCun et al. (Proceedings of the IEEE 86, 1998), is meant for
        small grey images: channels 6 and 16, 1 convolution, kernel 5, hidden 120 and 84. "deep" is meant for images
        such as those of CIFAR-10: channels 32, 64 and 128, 2 convolutions, kernel 3, hidden 128.
    image : sequence of int, optional
        Shape of an image, (height, width) or with channels; by default that of the examples of the data set. It must
        be set if the examples are flat, such as [8, 8] for the digits.
    channel_axis : {"first", "last"}
        Position of the channels in an image with three dimensions: (channels, height, width), as `convert` writes
        CIFAR-10, or (height, width, channels). An image with two dimensions has one channel.
    channels : sequence of int, at least one, optional
        Number of channels in each block.
    convolutions : int, optional
        Number of convolutions in each block.
    kernel : int, odd, optional
        Height and width of the kernels.
    hidden : sequence of int, at least one, optional
        Widths of the fully connected hidden layers.

    Raises
    ------
    ConfigError
        If `data` has no classes, an option is out of range, or the images are too small to be halved in each block.
    """
    n_classes = require_classes(data, "cnn")
    given = {"channels": channels, "convolutions": convolutions, "kernel": kernel, "hidden": hidden}
    changed: dict[str, Any] = {
        name: _RULES[name].check(f"objective.{name}", value) for name, value in given.items() if value is not None
    }
    sizes = _SIZES[_SIZE.check("objective.size", size)]._replace(**changed)
    shape = _image_shape(data, image)
    channels_last = _CHANNEL_AXIS.check("objective.channel_axis", channel_axis) == "last" and len(shape) == 3
    layers = _layers(shape, channels_last, sizes)
    widths = (prod(layers[-1].out_shape), *sizes.hidden, n_classes)
    head = Network(widths, CROSS_ENTROPY, ACTIVATIONS["relu"])
    return ConvolutionalNetwork(shape, channels_last, layers, head)


def _image_shape(data: Dataset, image: Sequence[int] | None) -> tuple[int, ...]:
    if image is None:
        shape = tuple(data.feature_shape)
        if len(shape) not in (2, 3):
            rule = "`objective.image` must be set, [height, width] or with channels, if the examples are not images"
            raise ConfigError(f"{rule}, got examples of shape {shape}")
        return shape
    POSITIVE_INTEGERS.check("objective.image", image)
    if len(image) not in (2, 3) or prod(image) != data.n_features:
        rule = f"have 2 or 3 dimensions with {data.n_features} numbers, as the examples have"
        raise ConfigError(f"`objective.image` must {rule}, got {list(image)}")
    return tuple(image)


def _layers(shape: tuple[int, ...], channels_last: bool, sizes: _Size) -> list[LayerShape]:
    *leading, height, width = (shape[-1], *shape[:-1]) if channels_last else shape
    n_in = leading[0] if leading else 1
    layers: list[LayerShape] = []
    minimum = 2 ** len(sizes.channels)
    if min(height, width) < minimum:
        rule = f"at least {minimum} high and wide for {len(sizes.channels)} blocks, each of which halves it"
        advice = "; see `objective.channel_axis`" if leading else ""
        raise ConfigError(f"`objective.image` must be {rule}, got {height} x {width}, channels {n_in}{advice}")
    for n_out in sizes.channels:
        for convolution in range(1, sizes.convolutions + 1):
            layers.append(LayerShape(n_in, n_out, sizes.kernel, height, width, convolution == sizes.convolutions))
            n_in, height, width = layers[-1].out_shape
    return layers


class ConvolutionalNetwork:
    """Convolution layers, whose values are the features of a fully connected network.

    Parameters
    ----------
    shape : tuple of int
        Shape of an image in a batch.
    channels_last : bool
        Whether the channels are the last axis of an image; if not, they are the first, or there is one channel.
    layers : list of LayerShape
        Sizes of the convolution layers.
    head : Network
        The fully connected network.

    Attributes
    ----------
    parameter_shapes : dict of str to tuple of int
        ``layer1.weight`` (n_out, n_in, kernel, kernel), ``layer1.bias`` (n_out,), ...; then those of `head`,
        whose features are in the order (channel, height, width).
    on_gpu : bool
        True; see `ComputesOnGpu`.
    """

    on_gpu = True

    def __init__(self, shape: tuple[int, ...], channels_last: bool, layers: list[LayerShape], head: Network) -> None:
        self._shape, self._channels_last, self._layers, self._head = shape, channels_last, layers, head
        shapes = [part for layer in layers for part in layer.parameter_shapes]
        head_shapes = head.parameter_shapes.values()
        self.parameter_shapes = layer_names([*shapes, *head_shapes])
        self._view_shapes = (*shapes, (sum(map(prod, head_shapes)),))
        self._parameters, self._gradients = ShapedViews(self._view_shapes), ShapedViews(self._view_shapes)
        self._key: tuple[Any, ...] | None = None
        self._convolutions: Convolutions

    def initial(self, rng: np.random.Generator) -> Float64s:
        """Return normally distributed weights and zero biases; see `Objective`."""
        parameters = np.zeros(sum(map(prod, self._view_shapes)))
        *views, head = ShapedViews(self._view_shapes).of(parameters)
        for weight in views[::2]:
            weight[...] = sqrt(2 / prod(weight.shape[1:])) * rng.standard_normal(weight.shape)
        head[...] = self._head.initial(rng)
        return parameters

    def loss_and_gradient(self, parameters: Array, batch: Batch, out: Array) -> Any:
        """Return the mean loss over the batch and fill `out` with its gradient; see `Objective`."""
        (share, first_piece), *others = self._pieces(batch)
        loss = share * self._differentiate(parameters, first_piece, out)
        if others:
            xp = namespace(out)
            compute_into(out, xp.multiply, out, share)
            gradient = xp.empty_like(out)
            for share, piece in others:
                loss += share * self._differentiate(parameters, piece, gradient)
                compute_into(out, xp.add, out, share * gradient)
        return loss

    def evaluate(self, parameters: Array, batch: Batch | None) -> dict[str, float]:
        """Return the mean loss over the batch and the accuracy; see `Evaluates`."""
        assert batch is not None  # networks are always trained on a data set
        means: dict[str, float] = {}
        convolutions = None
        *views, head = self._parameters.of(parameters)
        for share, piece in self._pieces(batch):
            if convolutions is None or convolutions.images.shape[-1] != len(piece.y):
                convolutions = self._new_convolutions(parameters, len(piece.y))
            self._forward(convolutions, layer_pairs(views), piece)
            for name, mean in self._head.evaluate(head, Batch(convolutions.features.T, piece.y)).items():
                means[name] = means.get(name, 0.0) + share * mean
        return means

    def _pieces(self, batch: Batch) -> list[tuple[float, Batch]]:
        """Return parts of the batch that fit in memory, each with its share of the rows."""
        n_rows = len(batch.y)
        max_rows = max(1, _MAX_PATCH_VALUES // sum(layer.n_patch_values for layer in self._layers))
        n_pieces = ceil_div(n_rows, max_rows)
        # Pieces of equal size are preferred, since work arrays are kept only for the size of the last piece.
        n_pieces = next((n for n in range(n_pieces, n_pieces * 3 // 2 + 1) if n_rows % n == 0), n_pieces)
        step = ceil_div(n_rows, n_pieces)
        bounds = [(lo, min(lo + step, n_rows)) for lo in range(0, n_rows, step)]
        return [((hi - lo) / n_rows, Batch(batch.x[lo:hi, ...], batch.y[lo:hi])) for lo, hi in bounds]

    def _differentiate(self, parameters: Array, batch: Batch, out: Array) -> Any:
        n_rows = len(batch.y)
        key = (namespace(parameters), parameters.dtype, n_rows)
        if key != self._key:
            self._key, self._convolutions = key, self._new_convolutions(parameters, n_rows)
        convolutions = self._convolutions
        *views, head = self._parameters.of(parameters)
        *gradients, head_gradient = self._gradients.of(out)
        self._forward(convolutions, layer_pairs(views), batch)
        features = Batch(convolutions.features.T, batch.y)
        loss = self._head.loss_and_gradient(head, features, head_gradient, convolutions.by_features)
        convolutions.backward(layer_pairs(views), layer_pairs(gradients))
        return loss

    def _new_convolutions(self, parameters: Array, n_rows: int) -> Convolutions:
        return Convolutions(self._layers, namespace(parameters), parameters.dtype, n_rows)

    def _forward(self, convolutions: Convolutions, parameters: LayerArrays, batch: Batch) -> None:
        images = convolutions.images
        xp = namespace(images)
        x: Array = xp.reshape(xp.asarray(batch.x, dtype=images.dtype), (images.shape[-1], *self._shape))
        x = xp.moveaxis(x, 0, -1)
        images[...] = xp.moveaxis(x, 2, 0) if self._channels_last else xp.reshape(x, images.shape)
        convolutions.forward(parameters)
