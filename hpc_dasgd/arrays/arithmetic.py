"""Arithmetic on arrays of any library: NumPy's, CuPy's, or another that follows the array API standard.

`device` has what a rank computes with; `gpu` alone imports CuPy.
"""

import sys

import numpy

ALIGNMENT_BYTES = 64
_WITH_OUT = ("numpy", "cupy")


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient of two integers, rounded up.

    Examples
    --------
    >>> ceil_div(7, 2), ceil_div(6, 2)
    (4, 3)
    """
    return -(-numerator // denominator)


def aligned_copy(array):
    """Return a copy of a NumPy array that begins at a multiple of 64 bytes, as JAX wants of what it does not copy."""
    memory = numpy.empty(array.nbytes + ALIGNMENT_BYTES, numpy.uint8)
    lo = -memory.ctypes.data % ALIGNMENT_BYTES
    copy = memory[lo : lo + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def copy_to_host(array, out):
    """Copy an array of any library, dtype and shape as those of `out`, into the NumPy array `out`; waits."""
    if type(array).__module__ == "cupy":
        array.get(out=out)
    else:
        numpy.copyto(out, array)


def namespace(array):
    """Return the array namespace of `array`; NumPy where it does not say (NumPy 1.26)."""
    if type(array).__module__ == "cupy":  # whose arrays do not say either
        return sys.modules["cupy"]
    describe = getattr(array, "__array_namespace__", None)
    return numpy if describe is None else describe()


def scalar(value):
    """Return an array of shape () as a Python float; on a GPU as it is, which is not waited for."""
    return value if type(value).__module__ == "cupy" else float(value)


def into(out, function, *arguments, **options):
    """Write ``function(*arguments, **options)`` into `out`.

    Without a temporary in NumPy and CuPy. The array API standard knows no ``out=``; elsewhere the
    result is assigned. Truth values become 0 and 1.

    Parameters
    ----------
    out : array
        Overwritten; shape and dtype of the result, or floating where that is boolean.
    function : callable
        A function of the namespace of `out`.
    *arguments, **options
        Passed on.
    """
    xp = namespace(out)
    if xp.__name__ in _WITH_OUT:
        function(*arguments, out=out, **options)
    else:
        out[...] = xp.astype(function(*arguments, **options), out.dtype, copy=False)


def add_up(terms, out):
    """Store ``((terms[0] + terms[1]) + terms[2]) + ...`` into `out`; on a GPU all at once, the same bits.

    Parameters
    ----------
    terms : sequence of array, at least one
        Of the shape and dtype of `out`, which may be among them as the first.
    out : array
    """
    if isinstance(out, numpy.ndarray):
        if len(terms) == 1:
            numpy.copyto(out, terms[0])
            return
        numpy.add(terms[0], terms[1], out=out)
        for term in terms[2:]:
            numpy.add(out, term, out=out)
    elif type(out).__module__ == "cupy":
        from hpc_dasgd.arrays.gpu import add_up as at_once

        at_once(terms, out)
    else:
        out[...] = sum(terms[1:], start=terms[0])


def split_maximum(delta, first, second):
    """Overwrite the arguments of a maximum with its gradient by them, given `delta`; of equals the first counts.

    Parameters
    ----------
    delta : array
        The gradient by the maximum.
    first, second : array like `delta`
        They may interleave, as the even and odd columns of an image do.
    """
    xp = namespace(delta)
    if xp.__name__ == "cupy":  # which would copy what interleaves, three times
        from hpc_dasgd.arrays.gpu import split_maximum as at_once

        at_once(delta, first, second)
        return
    into(first, xp.greater_equal, first, second)
    into(first, xp.multiply, first, delta)
    into(second, xp.subtract, delta, first)


def sliding_patches(images, size):
    """Return all square windows of images: a view in NumPy and CuPy, not to be written to, elsewhere a copy.

    Parameters
    ----------
    images : array, shape (n_channels, height, width, n_rows)
    size : int
        Height and width of a window, no more than those of the images.

    Returns
    -------
    windows : array, shape (n_channels, size, size, height - size + 1, width - size + 1, n_rows)
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
