"""Which array library a rank computes with, and writing results in place in any of them."""

import numpy

from hpc_dasgd.errors import ConfigError

KINDS = ("cpu", "gpu", "auto")
ALIGNMENT_BYTES = 64
_WITH_OUT = ("numpy", "cupy")


def select(kind):
    """Return the array namespace for a device.

    Parameters
    ----------
    kind : {"cpu", "gpu", "auto"}
        The setting ``device.kind``.

    Returns
    -------
    xp : module
        An array namespace; NumPy for "cpu" and "auto".

    Raises
    ------
    ConfigError
        If `kind` is unknown or cannot be had.
    """
    if kind not in KINDS:
        raise ConfigError(f"`device.kind` must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "gpu":
        raise ConfigError('`device.kind` = "gpu" is not available yet; set "cpu" or "auto"')
    return numpy


def gpus():
    """Return the names of the GPUs that CuPy sees; None where there is no CuPy."""
    try:
        import cupy
    except ImportError:
        return None
    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
        return [cupy.cuda.runtime.getDeviceProperties(device)["name"].decode() for device in range(n_devices)]
    except cupy.cuda.runtime.CUDARuntimeError:
        return []


def aligned_copy(array):
    """Return a copy of a NumPy array that begins at a multiple of 64 bytes, as JAX wants of what it does not copy."""
    memory = numpy.empty(array.nbytes + ALIGNMENT_BYTES, numpy.uint8)
    lo = -memory.ctypes.data % ALIGNMENT_BYTES
    copy = memory[lo : lo + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def namespace(array):
    """Return the array namespace of `array`; NumPy where it does not say (NumPy 1.26)."""
    describe = getattr(array, "__array_namespace__", None)
    return numpy if describe is None else describe()


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


def windows(images, size):
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
