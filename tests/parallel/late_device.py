"""A device whose copies take their time, as those of a GPU do: arrays that do not mix with host memory, in host memory.

What is copied is what stands there when the copy is through, some polls after it was begun; until then the place where
it goes holds nonsense. Whoever looks at a copy, or changes what is copied, before it is through, is found out.
"""

import numpy as np


class FarArray(np.ndarray):
    """An array of the device: arithmetic with arrays of the host is an error, as CuPy has it."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        near = [value for value in (*inputs, *out) if isinstance(value, np.ndarray) and not isinstance(value, FarArray)]
        if any(value.ndim for value in near):
            raise TypeError(f"{ufunc.__name__} of arrays on the device and in host memory")
        arrays = [np.asarray(value) if isinstance(value, FarArray) else value for value in inputs]
        if out:
            options["out"] = tuple(np.asarray(value) for value in out)
        result = getattr(ufunc, method)(*arrays, **options)
        return out[0] if out else np.asarray(result).view(FarArray)


class LateCopy:
    """A copy of `source` into `out` that takes `n_polls` polls."""

    def __init__(self, source, out, n_polls, nonsense):
        self._source, self._out, self._left = source, out, n_polls
        if nonsense:
            out[...] = np.nan
        self.before = np.array(out)

    def done(self):
        if self._left == 0:
            return True
        self._left -= 1
        if self._left == 0:
            assert np.array_equal(self.before, self._out, equal_nan=True), "nobody else stores where a copy goes"
            np.asarray(self._out)[...] = np.asarray(self._source)
        return self._left == 0


class Told:
    """A mark; nothing is computed late here."""

    def done(self):
        return True


class LateDevice:
    """See `hpc_dasgd.arrays.devices.Host` for the attributes and methods; ``n_registered`` counts host memory."""

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
        return Told()

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
        return LateCopy(source, out, int(self._rng.integers(1, self._most_polls + 1)), nonsense=True)
