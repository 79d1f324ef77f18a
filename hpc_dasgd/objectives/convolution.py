"""Convolution layers on images, computed as matrix products.

Images have the shape (channels, height, width, rows). With the rows of a batch last, patches are copied in long
contiguous runs, and a matrix product reads and writes the values of a whole batch without a transposition. Work arrays
are reused by the next step. A name ``by_x`` stands for the gradient with respect to ``x``.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from hpc_dasgd.arrays.arithmetic import backpropagate_maximum, compute_into, namespace, sliding_patches
from hpc_dasgd.arrays.types import Array, DType, Namespace

LayerArrays = Sequence[tuple[Array, Array]]
"""Weight and bias of each layer, or the gradients with respect to them."""


class LayerShape(NamedTuple):
    """Sizes of a layer: a convolution, a bias per channel, optional pooling, and relu.

    The convolution keeps height and width: the kernel moves by one pixel, and images are padded with zeros. Pooling
    takes the maximum of 2 x 2 values; the last row or column of an odd height or width is ignored.

    Attributes
    ----------
    n_in, n_out : int
        Number of channels of the images and of the values.
    kernel : int, odd
        Height and width of the kernel.
    height, width : int
        Height and width of the images.
    pools : bool
        Whether the layer has pooling.
    """

    n_in: int
    n_out: int
    kernel: int
    height: int
    width: int
    pools: bool

    @property
    def parameter_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of weight and bias."""
        return (self.n_out, self.n_in, self.kernel, self.kernel), (self.n_out,)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the values."""
        divisor = 2 if self.pools else 1
        return self.n_out, self.height // divisor, self.width // divisor

    @property
    def n_patch_values(self) -> int:
        """Number of values in the patches of one image or of its gradient, whichever are more."""
        return max(self.n_in, self.n_out) * self.kernel**2 * self.height * self.width


class Convolutions:
    """Layers one after another, with work arrays for batches of one size.

    Parameters
    ----------
    layers : sequence of LayerShape
        Each takes the values of the layer before it as its images.
    xp : module
        Array namespace.
    dtype : dtype
        Floating dtype of all arrays.
    n_rows : int
        Number of images in a batch.

    Attributes
    ----------
    images : array, shape (n_in, height, width, n_rows)
        Images of the first layer, to be filled before `forward`.
    features : array, shape (n_features, n_rows)
        Values of the last layer.
    by_features : array, shape (n_features, n_rows)
        Gradient with respect to the features, to be filled before `backward`.
    """

    def __init__(self, layers: Sequence[LayerShape], xp: Namespace, dtype: DType, n_rows: int) -> None:
        self._layers = [_Layer(layer, xp, dtype, n_rows, layer is layers[0]) for layer in layers]
        n_features = prod(layers[-1].out_shape)
        self.features = xp.empty((n_features, n_rows), dtype=dtype)
        self.by_features = xp.empty((n_features, n_rows), dtype=dtype)
        shape = (*layers[-1].out_shape, n_rows)
        self.images = self._layers[0].images
        self._values = [*(layer.images for layer in self._layers[1:]), xp.reshape(self.features, shape)]
        self._by_values = [*(layer.by_images for layer in self._layers[1:]), xp.reshape(self.by_features, shape)]

    def forward(self, parameters: LayerArrays) -> None:
        """Fill `features`, given the parameters of each layer."""
        for layer, (weight, bias), value in zip(self._layers, parameters, self._values, strict=True):
            layer.forward(weight, bias, value)

    def backward(self, parameters: LayerArrays, gradients: LayerArrays) -> None:
        """Fill the gradients of each layer; may be called at most once after each call of `forward`."""
        steps = zip(self._layers, parameters, gradients, self._values, self._by_values, strict=True)
        for layer, (weight, _), (by_weight, by_bias), value, by_value in reversed(list(steps)):
            layer.backward(value, by_value, by_weight, by_bias)
            if layer is not self._layers[0]:
                layer.backward_to_images(weight)


class _Layer:
    """One layer and its work arrays, of which the first layer needs none for the gradient of its images.

    `_sums`, `_column_maxima` and the patches contain values after `forward` and gradients after `backward`.
    """

    def __init__(self, shape: LayerShape, xp: Namespace, dtype: DType, n_rows: int, is_first: bool) -> None:
        n_in, n_out, kernel, height, width, self._pools = shape
        area = (height, width, n_rows)
        self._kernel = kernel
        self._padded, self.images = _with_margin(xp, dtype, (n_in, *area), kernel // 2)
        n_channels = n_in if is_first else max(n_in, n_out)
        patches = xp.empty((n_channels * kernel**2, prod(area)), dtype=dtype)
        self._patches = patches[: n_in * kernel**2, :]
        if not is_first:
            self._gradient_patches = patches[: n_out * kernel**2, :]
            self.by_images = xp.empty((n_in, *area), dtype=dtype)
            self._padded_by_sums, self._by_sums = _with_margin(xp, dtype, (n_out, *area), kernel // 2)
        self._sums = xp.empty((n_out, *area), dtype=dtype)
        self._by_pooled = self._sums
        if self._pools:
            self._column_maxima = xp.empty((n_out, height, width // 2, n_rows), dtype=dtype)
            self._by_pooled = xp.empty((*shape.out_shape, n_rows), dtype=dtype)
            even_width, even_height = width // 2 * 2, height // 2 * 2
            self._columns = self._sums[:, :, 0:even_width:2, :], self._sums[:, :, 1:even_width:2, :]
            maxima = self._column_maxima
            self._rows = maxima[:, 0:even_height:2, :, :], maxima[:, 1:even_height:2, :, :]
            edges = self._sums[:, :, even_width:, :], maxima[:, even_height:, :, :]
            self._unpooled = [edge for edge in edges if prod(edge.shape)]

    def forward(self, weight: Array, bias: Array, value: Array) -> None:
        """Fill `value`, given that `images` is filled."""
        xp = namespace(weight)
        self._copy_patches(self._patches, self._padded)
        compute_into(_as_matrix(self._sums), xp.matmul, _as_matrix(weight), self._patches)
        sums = self._sums
        if self._pools:
            compute_into(self._column_maxima, xp.maximum, *self._columns)
            compute_into(value, xp.maximum, *self._rows)
            sums = value
        compute_into(value, xp.add, sums, xp.reshape(bias, (-1, 1, 1, 1)))
        compute_into(value, xp.maximum, value, 0)

    def backward(self, value: Array, by_value: Array, by_weight: Array, by_bias: Array) -> None:
        """Fill `by_weight` and `by_bias`, given `by_value`."""
        xp = namespace(value)
        compute_into(self._by_pooled, xp.greater, value, 0)
        compute_into(self._by_pooled, xp.multiply, self._by_pooled, by_value)
        compute_into(by_bias, xp.sum, self._by_pooled, axis=(1, 2, 3))
        if self._pools:
            backpropagate_maximum(self._by_pooled, *self._rows)
            for edge in self._unpooled:
                edge[...] = 0
            backpropagate_maximum(self._column_maxima, *self._columns)
        compute_into(_as_matrix(by_weight), xp.matmul, _as_matrix(self._sums), self._patches.T)

    def backward_to_images(self, weight: Array) -> None:
        """Fill `by_images`, after `backward`.

        It is the convolution of the gradient with the kernel rotated by 180 degrees. This is faster than adding the
        gradients of all patches that contain a pixel.
        """
        xp = namespace(weight)
        self._by_sums[...] = self._sums
        self._copy_patches(self._gradient_patches, self._padded_by_sums)
        rotated = xp.moveaxis(xp.flip(weight, axis=(2, 3)), 0, 1)
        compute_into(_as_matrix(self.by_images), xp.matmul, _as_matrix(rotated), self._gradient_patches)

    def _copy_patches(self, out: Array, padded: Array) -> None:
        """Copy the patch around each pixel of each image into a column of `out`."""
        patches = sliding_patches(padded, self._kernel)
        namespace(out).reshape(out, patches.shape)[...] = patches


def _with_margin(xp: Namespace, dtype: DType, shape: tuple[int, int, int, int], margin: int) -> tuple[Array, Array]:
    """Return zeros of the given shape with a margin around height and width, and the view without the margin."""
    n_channels, height, width, n_rows = shape
    padded = xp.zeros((n_channels, height + 2 * margin, width + 2 * margin, n_rows), dtype=dtype)
    return padded, padded[:, margin : margin + height, margin : margin + width, :]


def _as_matrix(array: Array) -> Array:
    """Return `array` as a matrix whose first axis is that of `array`."""
    return namespace(array).reshape(array, (array.shape[0], -1))
