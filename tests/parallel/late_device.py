"""A simulated device with asynchronous copies, as those of a GPU, whose arrays cannot be mixed with host memory.

Its arrays are in host memory. A copy completes some polls after its start: only then is the source read, and until then
the destination contains nan. So tests fail if they read the destination, or change the source, of a pending copy.
"""

import numpy as np


class FarArray(np.ndarray):
    """An array of the device: arithmetic with arrays of the host is an error, as in CuPy."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        host_arrays = [
            value for value in (*inputs, *out) if isinstance(value, np.ndarray) and not isinstance(value, FarArray)
        ]
        if any(value.ndim for value in host_arrays):
            raise TypeError(f"{ufunc.__name__} of arrays on the device and in host memory")
        arrays = [np.asarray(value) if isinstance(value, FarArray) else value for value in inputs]
        if out:
            options["out"] = tuple(np.asarray(value) for value in out)
        result = getattr(ufunc, method)(*arrays, **options)
        return out[0] if out else np.asarray(result).view(FarArray)


class LateCopy:
    """A copy of `source` into `out` that completes at the poll number `n_polls`."""

    def __init__(self, source, out, n_polls):
        self._source, self._out, self._n_left = source, out, n_polls
        out[...] = np.nan
        self._before = np.array(out)

    def done(self):
        if self._n_left == 0:
            return True
        self._n_left -= 1
        if self._n_left == 0:
            assert np.array_equal(self._before, self._out, equal_nan=True), "the destination of a copy was changed"
            np.asarray(self._out)[...] = np.asarray(self._source)
        return self._n_left == 0


class CompleteEvent:
    """An event that is done, since this device computes at once."""

    def done(self):
        return True


class LateDevice:
    """A `hpc_dasgd.arrays.devices.Device` whose copies complete after 1 to `most_polls` polls.

    ``n_registered`` is the number of registered memories, and ``n_uploads`` and ``n_downloads`` those of copies.
    """

    xp, name, on_host = np, "late", False

    def __init__(self, seed=0, most_polls=7, piece_bytes=256):
        self._rng, self._most_polls, self.piece_bytes = np.random.default_rng(seed), most_polls, piece_bytes
        self.n_registered = self.n_uploads = self.n_downloads = 0

    def to_device(self, array):
        return np.array(array).view(FarArray)

    def zeros(self, size, dtype):
        return np.zeros(size, dtype).view(FarArray)

    def to_host(self, array):
        return np.array(array)

    def host_zeros(self, n_bytes):
        return np.zeros(n_bytes, np.uint8)

    def register(self, memory):
        self.n_registered += 1
        return True

    def unregister(self, memory):
        assert memory is not None
        self.n_registered -= 1

    def record_event(self):
        return CompleteEvent()

    def wait(self):
        pass

    def upload(self, source, out, after):
        assert isinstance(out, FarArray) and not isinstance(source, FarArray) and after.done()
        self.n_uploads += 1
        return self._copy(source, out)

    def download(self, source, out, after):
        assert isinstance(source, FarArray) and not isinstance(out, FarArray) and after.done()
        self.n_downloads += 1
        return self._copy(source, out)

    def poll_until_done(self, work):
        for _ in range(int(self._rng.integers(0, 4))):
            work()

    def _copy(self, source, out):
        return LateCopy(source, out, int(self._rng.integers(1, self._most_polls + 1)))
