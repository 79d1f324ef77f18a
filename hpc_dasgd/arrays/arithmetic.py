"""Arithmetic on arrays of any library: NumPy, CuPy, or another that follows the array API standard.

`devices` describes the devices that compute with these arrays; `gpu` is the only module that imports CuPy.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from hpc_dasgd.arrays.types import AnyArray, Array, Bytes, Namespace

ALIGNMENT_BYTES = 64
"""Alignment that JAX requires to use host memory without a copy."""

_WITH_OUT = ("numpy", "cupy")


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient of two integers, rounded up.

    Examples
    --------
    >>> ceil_div(7, 2), ceil_div(6, 2)
    (4, 3)
    """
    return -(-numerator // denominator)


def aligned_part(memory: Bytes, n_bytes: int) -> Bytes:
    """Return a view of the first `n_bytes` that begin at a multiple of `ALIGNMENT_BYTES`.

    Parameters
    ----------
    memory : ndarray of uint8, shape (n,), host memory
        At least ``n_bytes + ALIGNMENT_BYTES - 1`` bytes.
    n_bytes : int
        Length of the view.
    """
    lo = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[lo : lo + n_bytes]


def aligned_copy(array: AnyArray) -> AnyArray:
    """Return a C-contiguous copy of a NumPy array that begins at a multiple of `ALIGNMENT_BYTES`."""
    memory = aligned_part(numpy.empty(array.nbytes + ALIGNMENT_BYTES, numpy.uint8), array.nbytes)
    copy = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def copy_to_host(array: Array, out: AnyArray) -> None:
    """Copy an array of any library into a NumPy array; waits until the copy is complete.

    Parameters
    ----------
    array : array
        The source.
    out : ndarray, shape and dtype of `array`, host memory
        Overwritten.
    """
    if type(array).__module__ == "cupy":
        array.get(out=out)
    else:
        numpy.copyto(out, array)


def namespace(array: Array) -> Namespace:
    """Return the array namespace of an array; NumPy if the array does not name one, as in NumPy 1.26."""
    if type(array).__module__ == "cupy":  # CuPy's arrays do not name their namespace either
        return sys.modules["cupy"]
    describe = getattr(array, "__array_namespace__", None)
    return numpy if describe is None else describe()


def float_or_gpu_scalar(value: Array) -> Any:
    """Return an array of shape () as a Python float; an array on a GPU is returned unchanged.

    Converting an array on a GPU would wait until the GPU has computed it.
    """
    return value if type(value).__module__ == "cupy" else float(value)


def compute_into(out: Array, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Write the result of ``function(*arguments, **options)`` into `out`.

    No temporary array is made in NumPy and CuPy. The array API standard has no parameter ``out``; with other libraries
    the result is computed and then assigned. Truth values become 0 and 1.

    Parameters
    ----------
    out : array
        Overwritten; of the shape and dtype of the result, or floating if the result is boolean.
    function : callable
        A function of the array namespace of `out`.
    *arguments, **options
        Arguments of `function`.
    """
    xp = namespace(out)
    if xp.__name__ in _WITH_OUT:
        function(*arguments, out=out, **options)
    else:
        out[...] = xp.astype(function(*arguments, **options), out.dtype, copy=False)


def add_up(terms: Sequence[Array], out: Array) -> None:
    """Store ``((terms[0] + terms[1]) + terms[2]) + ...`` into `out`.

    On a GPU up to 16 terms are added in one kernel, with the same bits as on the processor.

    Parameters
    ----------
    terms : sequence of array, at least one
        Arrays of the shape and dtype of `out`. The first of them may be `out` itself.
    out : array
        Overwritten.
    """
    if isinstance(out, numpy.ndarray):
        if len(terms) == 1:
            numpy.copyto(out, terms[0])
            return
        numpy.add(terms[0], terms[1], out=out)
        for term in terms[2:]:
            numpy.add(out, term, out=out)
    elif type(out).__module__ == "cupy":
        from hpc_dasgd.arrays import gpu

        gpu.add_up(terms, out)
    else:
        out[...] = sum(terms[1:], start=terms[0])


def backpropagate_maximum(by_maximum: Array, first: Array, second: Array) -> None:
    """Overwrite the arguments of an elementwise maximum with the gradients with respect to them.

    The gradient goes to the larger argument, and to the first if both are equal.

    Parameters
    ----------
    by_maximum : array
        Gradient with respect to ``maximum(first, second)``.
    first, second : array, shape and dtype of `by_maximum`
        Arguments of the maximum, overwritten. Their memory may interleave, as the even and odd columns of an image do.
    """
    xp = namespace(by_maximum)
    if xp.__name__ == "cupy":  # CuPy's own functions would copy arguments that interleave, three times
        from hpc_dasgd.arrays import gpu

        gpu.backpropagate_maximum(by_maximum, first, second)
        return
    compute_into(first, xp.greater_equal, first, second)
    compute_into(first, xp.multiply, first, by_maximum)
    compute_into(second, xp.subtract, by_maximum, first)


def sliding_patches(images: Array, size: int) -> Array:
    """Return all square patches of images.

    The result is a view in NumPy and CuPy, which must not be written to, and a copy with other libraries.

    Parameters
    ----------
    images : array, shape (n_channels, height, width, n_rows)
        Images of a batch.
    size : int
        Height and width of a patch, at most those of the images.

    Returns
    -------
    patches : array, shape (n_channels, size, size, height - size + 1, width - size + 1, n_rows)
        Element ``[c, i, j, y, x, n]`` is ``images[c, y + i, x + j, n]``.
    """
    xp = namespace(images)
    n_channels, height, width, n_rows = images.shape
    height, width = height - size + 1, width - size + 1
    shape = (n_channels, size, size, height, width, n_rows)
    if xp.__name__ in _WITH_OUT:
        by_channel, by_y, by_x, by_row = images.strides
        return xp.lib.stride_tricks.as_strided(images, shape, (by_channel, by_y, by_x, by_y, by_x, by_row))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return xp.reshape(xp.stack([images[:, i : i + height, j : j + width, :] for i, j in shifts], axis=1), shape)
