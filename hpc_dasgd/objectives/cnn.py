"""Convolutional networks on images."""

from collections.abc import Sequence
from math import prod, sqrt
from typing import NamedTuple

import numpy as np

from hpc_dasgd.arrays.arithmetic import into, namespace
from hpc_dasgd.config.rules import ODD, POSITIVE_INTEGER, WIDTHS, one_of
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.convolution import Convolutions, Layer
from hpc_dasgd.objectives.linear import require_classes
from hpc_dasgd.objectives.losses import CROSS_ENTROPY
from hpc_dasgd.objectives.network import ACTIVATIONS, Network, Views, layer_names, pairs

_PIECE_NUMBERS = 1 << 26  # in the windows of images at once, 256 MiB in float32; a larger batch is taken in pieces


class _Size(NamedTuple):
    channels: Sequence[int]
    convolutions: int
    kernel: int
    hidden: Sequence[int]


_SIZES = {
    "lenet": _Size(channels=(6, 16), convolutions=1, kernel=5, hidden=(120, 84)),
    "deep": _Size(channels=(32, 64, 128), convolutions=2, kernel=3, hidden=(128,)),
}
_SIZE, _CHANNEL_AXIS = one_of(*_SIZES), one_of("first", "last")


def cnn(
    data,
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

    Blocks of convolutions, each with relu and a margin of zeros, so that it keeps the size of an image; a block
    ends by taking the largest of 2 x 2 values. Then fully connected layers with relu, and the cross-entropy of
    their softmax. Weights start normally distributed after He et al. (arXiv 1502.01852), biases at zero.

    Parameters
    ----------
    data : Dataset
        With classes.
    size : {"lenet", "deep"}
        What the sizes below are where they are not set. "lenet", after LeCun et al. (Proceedings of the IEEE 86,
        1998), for small grey images: channels 6 and 16, 1 convolution, kernel 5, hidden 120 and 84. "deep", for
        images as in CIFAR-10: channels 32, 64 and 128, 2 convolutions, kernel 3, hidden 128.
    image : sequence of int, optional
        Shape of an image, (height, width) or with channels; that of the data set's examples unless set. It must be
        set where these are flat, like the digits: [8, 8].
    channel_axis : {"first", "last"}
        Where the channels of an image with three dimensions stand: (channels, height, width), as `convert` writes
        CIFAR-10, or (height, width, channels). An image with two dimensions has one channel.
    channels : sequence of int, at least one
        Channels of each block.
    convolutions : int
        Convolutions in each block.
    kernel : int, odd
        Height and width of the kernels.
    hidden : sequence of int, at least one
        Widths of the fully connected hidden layers.

    Raises
    ------
    ConfigError
        If `data` has no classes, an option is out of range, or images are too small to be halved in each block.
    """
    require_classes(data, "cnn")
    given = {"channels": channels, "convolutions": convolutions, "kernel": kernel, "hidden": hidden}
    rules = {"channels": WIDTHS, "convolutions": POSITIVE_INTEGER, "kernel": ODD, "hidden": WIDTHS}
    chosen = {name: rules[name].check(f"objective.{name}", value) for name, value in given.items() if value is not None}
    sizes = _SIZES[_SIZE.check("objective.size", size)]._replace(**chosen)
    shape = _image_shape(data, image)
    channels_last = _CHANNEL_AXIS.check("objective.channel_axis", channel_axis) == "last" and len(shape) == 3
    layers = _layers(shape, channels_last, sizes)
    widths = (prod(layers[-1].out_shape), *sizes.hidden, data.n_classes)
    head = Network(widths, CROSS_ENTROPY, ACTIVATIONS["relu"])
    return ConvolutionalNetwork(shape, channels_last, layers, head)


def _image_shape(data, image) -> tuple[int, ...]:
    if image is None:
        shape = tuple(data.feature_shape)
        if len(shape) not in (2, 3):
            rule = "`objective.image` must be set, [height, width] or with channels, where examples are no images"
            raise ConfigError(f"{rule}, got examples of shape {shape}")
        return shape
    WIDTHS.check("objective.image", image)
    if len(image) not in (2, 3) or prod(image) != data.n_features:
        rule = f"have 2 or 3 dimensions with {data.n_features} numbers, as the examples have"
        raise ConfigError(f"`objective.image` must {rule}, got {list(image)}")
    return tuple(image)


def _layers(shape, channels_last: bool, sizes: _Size) -> list[Layer]:
    *before, height, width = (shape[-1], *shape[:-1]) if channels_last else shape
    n_in, layers = before[0] if before else 1, []
    least = 2 ** len(sizes.channels)
    if min(height, width) < least:
        rule = f"at least {least} high and wide for {len(sizes.channels)} blocks, each of which halves it"
        advice = "; see `objective.channel_axis`" if before else ""
        raise ConfigError(f"`objective.image` must be {rule}, got {height} x {width}, channels {n_in}{advice}")
    for n_out in sizes.channels:
        for convolution in range(1, sizes.convolutions + 1):
            layers.append(Layer(n_in, n_out, sizes.kernel, height, width, convolution == sizes.convolutions))
            n_in, height, width = layers[-1].out_shape
    return layers


class ConvolutionalNetwork:
    """Convolutions, and a fully connected network of what they find.

    Parameters
    ----------
    shape : tuple of int
        Of an image in a batch.
    channels_last : bool
        Whether its channels come last; they come first, or there is one, otherwise.
    layers : list of Layer
    head : Network

    Attributes
    ----------
    parameter_shapes : dict of str to tuple of int
        ``layer1.weight`` (n_out, n_in, kernel, kernel), ``layer1.bias`` (n_out,), ...; then those of `head`,
        whose features are in the order (channel, height, width).
    """

    on_gpu = True

    def __init__(self, shape: tuple[int, ...], channels_last: bool, layers: list[Layer], head: Network):
        self._shape, self._channels_last, self._layers, self._head = shape, channels_last, layers, head
        shapes = [part for layer in layers for part in layer.shapes]
        of_head = head.parameter_shapes.values()
        self.parameter_shapes = layer_names([*shapes, *of_head])
        self._view_shapes = (*shapes, (sum(map(prod, of_head)),))
        self._parameters, self._gradients = Views(self._view_shapes), Views(self._view_shapes)
        self._key, self._convolutions = None, None

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Return normally distributed weights and zero biases, float64; see `Objective`."""
        parameters = np.zeros(sum(map(prod, self._view_shapes)))
        *views, head = Views(self._view_shapes).of(parameters)
        for weight in views[::2]:
            weight[...] = sqrt(2 / prod(weight.shape[1:])) * rng.standard_normal(weight.shape)
        head[...] = self._head.initial(rng)
        return parameters

    def loss_and_gradient(self, parameters, batch, out) -> float:
        """Return the mean loss over the batch and fill `out` with its gradient; see `Objective`."""
        (share, first), *others = self._pieces(batch)
        loss = share * self._differentiate(parameters, first, out)
        if others:
            xp = namespace(out)
            into(out, xp.multiply, out, share)
            gradient = xp.empty_like(out)
            for share, piece in others:
                loss += share * self._differentiate(parameters, piece, gradient)
                into(out, xp.add, out, share * gradient)
        return loss

    def evaluate(self, parameters, batch) -> dict[str, float]:
        """Return the mean loss over the batch and the accuracy; see `Objective`."""
        means, convolutions = {}, None
        *views, head = self._parameters.of(parameters)
        for share, piece in self._pieces(batch):
            if convolutions is None or convolutions.images.shape[-1] != len(piece.y):
                convolutions = self._make(parameters, len(piece.y))
            self._forward(convolutions, pairs(views), piece)
            for name, mean in self._head.evaluate(head, Batch(convolutions.features.T, piece.y)).items():
                means[name] = means.get(name, 0.0) + share * mean
        return means

    def _pieces(self, batch) -> list[tuple[float, Batch]]:
        """Return parts of the batch that fit in memory, each with its share of the rows."""
        n_rows = len(batch.y)
        most = max(1, _PIECE_NUMBERS // sum(layer.n_patches for layer in self._layers))
        least = -(-n_rows // most)
        # Of one size if they can be, since work arrays are kept for that of the last piece alone.
        step = -(-n_rows // next((n for n in range(least, least * 3 // 2 + 1) if n_rows % n == 0), least))
        bounds = [(lo, min(lo + step, n_rows)) for lo in range(0, n_rows, step)]
        return [((hi - lo) / n_rows, Batch(batch.x[lo:hi, ...], batch.y[lo:hi])) for lo, hi in bounds]

    def _differentiate(self, parameters, batch, out) -> float:
        n_rows = len(batch.y)
        key = (namespace(parameters), parameters.dtype, n_rows)
        if key != self._key:
            self._key, self._convolutions = key, self._make(parameters, n_rows)
        convolutions = self._convolutions
        *views, head = self._parameters.of(parameters)
        *gradients, by_head = self._gradients.of(out)
        self._forward(convolutions, pairs(views), batch)
        found = Batch(convolutions.features.T, batch.y)
        loss = self._head.loss_and_gradient(head, found, by_head, convolutions.by_features)
        convolutions.backward(pairs(views), pairs(gradients))
        return loss

    def _make(self, parameters, n_rows: int) -> Convolutions:
        return Convolutions(self._layers, namespace(parameters), parameters.dtype, n_rows)

    def _forward(self, convolutions: Convolutions, parameters, batch) -> None:
        images = convolutions.images
        xp = namespace(images)
        x = xp.reshape(xp.asarray(batch.x, dtype=images.dtype), (images.shape[-1], *self._shape))
        x = xp.moveaxis(x, 0, -1)
        images[...] = xp.moveaxis(x, 2, 0) if self._channels_last else xp.reshape(x, images.shape)
        convolutions.forward(parameters)
