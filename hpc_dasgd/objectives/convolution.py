"""Layers of convolutions over images, by matrix products.

Images lie as (channels, height, width, rows): so windows are copied in long runs, and a matrix product reads and
writes the values of a whole batch as they lie. What a step needs is kept for the next one.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from hpc_dasgd.arrays.arithmetic import into, namespace, sliding_patches, split_maximum


class Layer(NamedTuple):
    """A convolution that keeps height and width, a bias per channel, pooling if asked for, and relu.

    Images have a margin of zeros, and the kernel, which is odd, moves by one. Pooling takes the largest of 2 x 2
    values, and leaves out a last odd row or column.
    """

    n_in: int
    n_out: int
    kernel: int
    height: int
    width: int
    pools: bool

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int]]:
        """Shapes of weight and bias."""
        return (self.n_out, self.n_in, self.kernel, self.kernel), (self.n_out,)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the values."""
        halved = 2 if self.pools else 1
        return self.n_out, self.height // halved, self.width // halved

    @property
    def n_patches(self) -> int:
        """Numbers in the windows of one image, or of its gradient if that is more: most of what a step needs."""
        return max(self.n_in, self.n_out) * self.kernel**2 * self.height * self.width


class Convolutions:
    """Layers one after another, and their work arrays for batches of one size.

    Parameters
    ----------
    layers : sequence of Layer
        Each for the values of the one before.
    xp : module
        Array namespace.
    dtype : dtype
    n_rows : int
        Images in a batch.

    Attributes
    ----------
    images : array, shape (n_in, height, width, n_rows)
        Of the first layer; to be filled before `forward`.
    features : array, shape (n_features, n_rows)
        Values of the last layer.
    by_features : array, shape (n_features, n_rows)
        Gradient by the features; to be filled before `backward`.
    """

    def __init__(self, layers: Sequence[Layer], xp, dtype, n_rows: int):
        self._layers = [_Work(layer, xp, dtype, n_rows, layer is layers[0]) for layer in layers]
        n_features = prod(layers[-1].out_shape)
        self.features = xp.empty((n_features, n_rows), dtype=dtype)
        self.by_features = xp.empty((n_features, n_rows), dtype=dtype)
        shape = (*layers[-1].out_shape, n_rows)
        self.images = self._layers[0].images
        self._values = [*(work.images for work in self._layers[1:]), xp.reshape(self.features, shape)]
        self._deltas = [*(work.by_images for work in self._layers[1:]), xp.reshape(self.by_features, shape)]

    def forward(self, parameters) -> None:
        """Fill `features`, given the (weight, bias) of each layer."""
        for work, (weight, bias), value in zip(self._layers, parameters, self._values, strict=True):
            work.forward(weight, bias, value)

    def backward(self, parameters, gradients) -> None:
        """Fill the gradients by weight and bias of each layer; once for every `forward`."""
        steps = zip(self._layers, parameters, gradients, self._values, self._deltas, strict=True)
        for work, (weight, _), (by_weight, by_bias), value, delta in reversed(list(steps)):
            work.backward(value, delta, by_weight, by_bias)
            if work is not self._layers[0]:
                work.differentiate_by_images(weight)


class _Work:
    """One layer with its arrays; nobody asks for the gradient by the images of the first.

    `_sums`, `_wide` and the patches hold values on the way up, and gradients on the way down.
    """

    def __init__(self, layer: Layer, xp, dtype, n_rows: int, first: bool):
        n_in, n_out, kernel, height, width, self._pools = layer
        area = (height, width, n_rows)
        self._kernel = kernel
        self._padded, self.images = _with_margin(xp, dtype, (n_in, *area), kernel // 2)
        n_patched = n_in if first else max(n_in, n_out)
        patches = xp.empty((n_patched * kernel**2, prod(area)), dtype=dtype)
        self._patches = patches[: n_in * kernel**2, :]
        if not first:
            self._delta_patches = patches[: n_out * kernel**2, :]
            self.by_images = xp.empty((n_in, *area), dtype=dtype)
            self._padded_delta, self._delta = _with_margin(xp, dtype, (n_out, *area), kernel // 2)
        self._sums = xp.empty((n_out, *area), dtype=dtype)
        self._by_relu = self._sums
        if self._pools:
            self._wide = xp.empty((n_out, height, width // 2, n_rows), dtype=dtype)
            self._by_relu = xp.empty((*layer.out_shape, n_rows), dtype=dtype)
            even, half = width // 2 * 2, height // 2 * 2
            self._columns = self._sums[:, :, 0:even:2, :], self._sums[:, :, 1:even:2, :]
            self._rows = self._wide[:, 0:half:2, :, :], self._wide[:, 1:half:2, :, :]
            edges = self._sums[:, :, even:, :], self._wide[:, half:, :, :]
            self._left_out = [edge for edge in edges if prod(edge.shape)]

    def forward(self, weight, bias, value) -> None:
        xp = namespace(weight)
        self._gather(self._patches, self._padded)
        into(_rows(self._sums), xp.matmul, _rows(weight), self._patches)
        sums = self._sums
        if self._pools:
            into(self._wide, xp.maximum, *self._columns)
            into(value, xp.maximum, *self._rows)
            sums = value
        into(value, xp.add, sums, xp.reshape(bias, (-1, 1, 1, 1)))
        into(value, xp.maximum, value, 0)

    def backward(self, value, delta, by_weight, by_bias) -> None:
        """Fill the gradients by weight and bias, given `delta`, the one by `value`."""
        xp = namespace(value)
        into(self._by_relu, xp.greater, value, 0)
        into(self._by_relu, xp.multiply, self._by_relu, delta)
        into(by_bias, xp.sum, self._by_relu, axis=(1, 2, 3))
        if self._pools:
            split_maximum(self._by_relu, *self._rows)
            for edge in self._left_out:
                edge[...] = 0
            split_maximum(self._wide, *self._columns)
        into(_rows(by_weight), xp.matmul, _rows(self._sums), self._patches.T)

    def differentiate_by_images(self, weight) -> None:
        """Fill `by_images`: the convolution of the gradient with the turned kernel, which is faster than adding
        up what falls on a pixel from every window that holds it.
        """
        xp = namespace(weight)
        self._delta[...] = self._sums
        self._gather(self._delta_patches, self._padded_delta)
        turned = xp.moveaxis(xp.flip(weight, axis=(2, 3)), 0, 1)
        into(_rows(self.by_images), xp.matmul, _rows(turned), self._delta_patches)

    def _gather(self, patches, padded) -> None:
        """Copy the window around every pixel of every image into a column of `patches`."""
        found = sliding_patches(padded, self._kernel)
        namespace(patches).reshape(patches, found.shape)[...] = found


def _with_margin(xp, dtype, shape, margin: int):
    """Return images of zeros with a margin on all sides, and the view of them without it."""
    n_channels, height, width, n_rows = shape
    padded = xp.zeros((n_channels, height + 2 * margin, width + 2 * margin, n_rows), dtype=dtype)
    return padded, padded[:, margin : margin + height, margin : margin + width, :]


def _rows(array):
    """Return `array` as a matrix whose rows are its first axis."""
    return namespace(array).reshape(array, (array.shape[0], -1))
