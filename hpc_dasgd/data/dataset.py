"""Data set files: opened, checked, and read as far as needed."""

import os
from contextlib import ExitStack
from copy import copy
from math import prod
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.arrays.arithmetic import namespace
from hpc_dasgd.data.batches import Batch, Sampler
from hpc_dasgd.errors import ConfigError

__all__ = ["Batch", "Dataset", "Sampler", "Split", "open_dataset"]

_SHIPPED = Path(__file__).parent / "datasets"
_PIECE_BYTES = 1 << 22  # read at once while a file is converted or checked


def open_dataset(path, dtype, cache_bytes=1 << 30):
    """Open a data set file and check that it can be trained on.

    Parameters
    ----------
    path : str or path-like
        An HDF5 file in the format "Data set file", or the name of one that ships, like "digits".
    dtype : dtype
        Floating type of the features (and of float targets) that are handed out.
    cache_bytes : int
        An array (features or targets of one split) that takes no more than this, as handed out, is
        held in memory, after a check that it is finite. A larger one is read from the file batch by
        batch.

    Returns
    -------
    dataset : Dataset

    Raises
    ------
    ConfigError
        If there is no such file or it breaks a rule of the format.
    """
    path, dtype = _find(path), np.dtype(dtype)
    with ExitStack() as on_failure:
        try:
            file = on_failure.enter_context(h5py.File(path, "r"))
            dataset = Dataset(path, file, dtype, cache_bytes)
        except ConfigError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            # h5py raises any of these on a damaged file, or on a type that NumPy does not know.
            rule = "`data.path` must be a readable HDF5 file"
            raise ConfigError(f"{rule}, got {path}: {error}") from error
        on_failure.pop_all()
    return dataset


def _find(path):
    """Return the file that `path` means."""
    given = Path(os.path.expanduser(path))  # unlike Path.expanduser, no error where there is no such user
    shipped = _SHIPPED / f"{path}.h5"
    if os.path.isfile(given):  # unlike Path.is_file, no error where a folder may not be searched
        return given
    if given.name == str(path) and os.path.isfile(shipped):
        return shipped
    names = ", ".join(sorted(file.stem for file in _SHIPPED.glob("*.h5")))
    raise ConfigError(f"`data.path` must be a data set file or the name of one that ships ({names}), got {str(path)!r}")


class Dataset:
    """An open data set file; `open_dataset` makes one.

    Attributes
    ----------
    train, test : Split
        The examples to train on (at least one) and to evaluate on (perhaps none).
    feature_shape : tuple of int
        Shape of the features of one example.
    n_features : int
        Their number.
    n_classes : int or None
        Number of classes; None where the targets are floats.
    n_targets : int or None
        Length of one example's target; None where the targets are classes.
    attributes : dict
        The file's attributes, as h5py gives them.
    path : Path
        The file.
    """

    def __init__(self, path, file, dtype, cache_bytes):
        self._file = file
        self.path = path
        self.attributes = dict(file.attrs)
        scale = self._scale(dtype)
        train, test = (self._split(name) for name in ("train", "test"))
        self._check_agreement(train, test)
        self.feature_shape = train[0].shape[1:]
        self.n_features = prod(self.feature_shape)
        if train[1].ndim == 2:
            self.n_classes, self.n_targets = None, train[1].shape[1]
        else:
            self.n_classes, self.n_targets = self._count_classes(train[1], test[1]), None
        self.train, self.test = (Split(x, y, dtype, scale, cache_bytes) for x, y in (train, test))

    def close(self):
        """Close the file; what is held in memory stays usable."""
        self._file.close()

    def on(self, device):
        """Return this data set with what is held in memory held by a `Host` or `Gpu`; itself where it is there."""
        if device.on_host:
            return self
        other = copy(self)
        other.train, other.test = self.train.on(device), self.test.on(device)
        return other

    def _require(self, condition, what, rule, value):
        if not condition:
            raise ConfigError(f"`{what}` of {self.path} must {rule}, got {value}")

    def _scale(self, dtype):
        value = np.asarray(self.attributes.get("scale", 1.0))
        rule = f"be a positive, finite {dtype}"
        self._require(value.size == 1 and value.dtype.kind in "iuf", "scale", rule, value)
        scale = float(value.item())
        least, most = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
        self._require(least <= scale <= most, "scale", rule, scale)
        return scale

    def _split(self, name):
        """Return the data sets x and y of one split, each right in itself and of equal length."""
        x, y = (self._numeric(f"/{name}/{part}") for part in "xy")
        filled = x.ndim >= 1 and 0 not in x.shape[1:]
        self._require(filled, x.name, "have shape (n, ...) with no empty dimension", x.shape)
        classes = y.ndim == 1 and y.dtype.kind in "iub"
        floats = y.ndim == 2 and y.dtype.kind == "f" and y.shape[1] > 0
        rule = "hold (n,) integers or (n, k) floats"
        self._require(classes or floats, y.name, rule, f"{y.shape} {y.dtype}")
        self._require(len(y) == len(x), y.name, f"have {len(x)} rows, as x has", len(y))
        return x, y

    def _numeric(self, name):
        item = self._file.get(name)
        present = isinstance(item, h5py.Dataset)
        self._require(present, name, "be a data set", "nothing" if item is None else item)
        numeric = item.shape is not None and item.dtype.kind in "iufb"
        self._require(numeric, name, "hold numbers", f"{item.dtype} of shape {item.shape}")
        return item

    def _check_agreement(self, train, test):
        self._require(len(train[0]) > 0, "/train/x", "have at least 1 row", 0)
        for one, other in zip(train, test, strict=True):
            shape = one.shape[1:]
            rule = f"have rows of shape {shape}, as {one.name} has"
            self._require(other.shape[1:] == shape, other.name, rule, other.shape[1:])

    def _count_classes(self, *labels):
        """Return the number of classes; every label is within it."""
        ranges = {y.name: _range(y) for y in labels if len(y)}
        n_classes = 1 + max(high for _, high in ranges.values())
        if "classes" in self.attributes:
            given = np.asarray(self.attributes["classes"])
            valid = given.size == 1 and given.dtype.kind in "iu" and given.item() > 0
            self._require(valid, "classes", "be a positive integer", given)
            n_classes = given.item()
        for name, (low, high) in ranges.items():
            wrong = low if low < 0 else high
            self._require(0 <= wrong < n_classes, name, f"be in 0..{n_classes - 1}", wrong)
        return n_classes


def _range(dataset):
    """Return the least and the largest element, as Python ints; reads in pieces."""
    lows, highs = [], []
    for lo, hi in _bounds(dataset):
        piece = dataset[lo:hi]
        lows.append(int(piece.min()))
        highs.append(int(piece.max()))
    return min(lows), max(highs)


def _bounds(dataset):
    """Yield ``(lo, hi)``: runs of rows of about `_PIECE_BYTES` that cover the data set."""
    n_rows = len(dataset)
    step = max(1, _PIECE_BYTES // max(1, dataset.dtype.itemsize * prod(dataset.shape[1:])))
    for lo in range(0, n_rows, step):
        yield lo, min(lo + step, n_rows)


class Split:
    """The examples for one purpose.

    Parameters
    ----------
    x : h5py.Dataset, shape (n_rows, ...)
        Features.
    y : h5py.Dataset, shape (n_rows,) or (n_rows, k)
        Integer classes or float targets.
    dtype : numpy.dtype
        Type of the features and float targets handed out; classes are int64.
    scale : float
        Factor of the features.
    cache_bytes : int
        Largest array to hold in memory.
    """

    def __init__(self, x, y, dtype, scale, cache_bytes):
        self.n_rows = len(x)
        self._x = _column(x, dtype, scale, cache_bytes)
        self._y = _column(y, dtype if y.dtype.kind == "f" else np.dtype(np.int64), 1.0, cache_bytes)

    def rows(self, indices):
        """Return ``(x, y)`` of some examples, in the order asked for.

        Parameters
        ----------
        indices : ndarray of int, shape (n,)
            Each in ``0 .. n_rows - 1``; repetitions are fine.
        """
        return tuple(column.take(namespace(column).asarray(indices), axis=0) for column in (self._x, self._y))

    def on(self, device):
        """Return these examples with what is held in memory held by `device`, where rows are then drawn."""
        other = copy(self)
        other._x, other._y = (
            device.to_device(column) if isinstance(column, np.ndarray) else column for column in (self._x, self._y)
        )
        return other

    def pieces(self, n_rows):
        """Yield the whole split in order, as batches of `n_rows` examples (the last has the rest)."""
        for lo in range(0, self.n_rows, n_rows):
            yield Batch(self._x[lo : lo + n_rows], self._y[lo : lo + n_rows])


def _column(dataset, dtype, scale, cache_bytes):
    """Return `dataset` converted: a finite array where it fits in `cache_bytes`, else a `_FileColumn`."""
    column = _FileColumn(dataset, dtype, scale)
    if dtype.itemsize * prod(dataset.shape) > cache_bytes:
        return column
    array = np.empty(dataset.shape, dtype)
    for lo, hi in _bounds(dataset):
        array[lo:hi] = column[lo:hi]
        finite = np.isfinite(array[lo:hi])
        if not finite.all():
            row, *rest = np.argwhere(~finite)[0].tolist()
            where = (lo + row, *rest)
            rule = f"`{dataset.name}` of {dataset.file.filename} must be finite as {dtype}"
            raise ConfigError(f"{rule}, got {dataset[where]} at {where}")
    return array


class _FileColumn:
    """Rows of an HDF5 data set, read when asked for, with the two array methods that `Split` uses."""

    def __init__(self, dataset, dtype, scale):
        self._dataset = dataset
        self._dtype = dtype
        self._scale = scale

    def __getitem__(self, rows):
        with np.errstate(over="ignore"):  # what overflows becomes infinite, which is checked for elsewhere
            array = self._dataset[rows].astype(self._dtype, copy=False)
            if self._scale != 1.0:
                array *= self._dtype.type(self._scale)
        return array

    def take(self, indices, axis):
        # HDF5 selects rows only in increasing order and once each.
        rows, back = np.unique(indices, return_inverse=True)
        return self[rows].take(back, axis=axis)
