"""Which array library a rank computes with, and writing results in place in any of them."""

import numpy

from hpc_dasgd.errors import ConfigError

KINDS = ("cpu", "gpu", "auto")
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


def namespace(array):
    """Return the array namespace of `array`; NumPy where it does not say (NumPy 1.26)."""
    describe = getattr(array, "__array_namespace__", None)
    return numpy if describe is None else describe()


def into(out, function, *arguments, **options):
    """Write ``function(*arguments, **options)`` into `out`.

    Without a temporary in NumPy and CuPy. The array API standard knows no ``out=``; elsewhere the
    result is assigned.

    Parameters
    ----------
    out : array
        Overwritten; shape and dtype of the result.
    function : callable
        A function of the namespace of `out`.
    *arguments, **options
        Passed on.
    """
    if namespace(out).__name__ in _WITH_OUT:
        function(*arguments, out=out, **options)
    else:
        out[...] = function(*arguments, **options)
