"""Data set files: opening and checking them, and reading as much as is needed."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from copy import copy
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpc_dasgd.arrays.arithmetic import namespace
from hpc_dasgd.arrays.devices import Device
from hpc_dasgd.arrays.types import AnyArray, Array, DType
from hpc_dasgd.data.batches import Batch, Sampler
from hpc_dasgd.errors import ConfigError

__all__ = ["Batch", "Dataset", "Sampler", "Split", "open_dataset"]

_SHIPPED = Path(__file__).parent / "datasets"
_BLOCK_BYTES = 1 << 22  # read at once while a file is converted or checked


def open_dataset(path: str | os.PathLike[str], dtype: DType, cache_bytes: int = 1 << 30) -> "Dataset":
    """Open a data set file and check that it can be used for training. Not collective.

    Parameters
    ----------
    path : str or path-like
        An HDF5 file as described in ``docs/file-format.md``, or the name of a data set that ships with the package,
        such as "digits".
    dtype : dtype
        Floating dtype in which features and float targets are returned.
    cache_bytes : int
        An array (features or targets of one split) of at most this size in memory is read at once and kept, after a
        check that it is finite. Larger arrays are read from the file batch by batch.

    Returns
    -------
    dataset : Dataset

    Raises
    ------
    ConfigError
        If there is no such file or it violates a rule of the format.
    """
    path, dtype = _find(path), np.dtype(dtype)
    with ExitStack() as on_failure:
        try:
            file = on_failure.enter_context(h5py.File(path, "r"))
            dataset = Dataset(path, file, dtype, cache_bytes)
        except ConfigError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            # h5py raises any of these for a damaged file, or for a type that NumPy does not have.
            rule = "`data.path` must be a readable HDF5 file"
            raise ConfigError(f"{rule}, got {path}: {error}") from error
        on_failure.pop_all()
    return dataset


def _find(path: str | os.PathLike[str]) -> Path:
    """Return the file that the setting ``data.path`` refers to."""
    given = Path(os.path.expanduser(path))  # unlike Path.expanduser, no error if there is no such user
    shipped = _SHIPPED / f"{path}.h5"
    if os.path.isfile(given):  # unlike Path.is_file, no error if the directory may not be searched
        return given
    if given.name == str(path) and os.path.isfile(shipped):
        return shipped
    names = ", ".join(sorted(file.stem for file in _SHIPPED.glob("*.h5")))
    raise ConfigError(
        f"`data.path` must be a data set file or the name of an included one ({names}), got {str(path)!r}"
    )


class Dataset:
    """An open data set file; use `open_dataset` to create one.

    Attributes
    ----------
    train, test : Split
        Examples for training (at least one) and for evaluation (possibly none).
    feature_shape : tuple of int
        Shape of the features of one example.
    n_features : int
        Number of features of one example.
    n_classes : int or None
        Number of classes; None if the targets are floats.
    n_targets : int or None
        Length of one example's target; None if the targets are classes.
    attributes : dict
        Attributes of the file, as h5py returns them.
    path : Path
        The file.
    """

    def __init__(self, path: Path, file: h5py.File, dtype: np.dtype[Any], cache_bytes: int):
        self._file = file
        self.path = path
        self.attributes: dict[str, Any] = dict(file.attrs)
        scale = self._scale(dtype)
        train, test = (self._split(name) for name in ("train", "test"))
        self._check_agreement(train, test)
        self.feature_shape: tuple[int, ...] = train[0].shape[1:]
        self.n_features = prod(self.feature_shape)
        self.n_classes: int | None = None
        self.n_targets: int | None = None
        if train[1].ndim == 2:
            self.n_targets = train[1].shape[1]
        else:
            self.n_classes = self._count_classes(train[1], test[1])
        self.train, self.test = (Split(x, y, dtype, scale, cache_bytes) for x, y in (train, test))

    def close(self) -> None:
        """Close the file; arrays held in memory remain usable."""
        self._file.close()

    def to_device(self, device: Device) -> "Dataset":
        """Return this data set with the arrays held in memory moved to `device`; itself if that is the host."""
        if device.on_host:
            return self
        other = copy(self)
        other.train, other.test = self.train.to_device(device), self.test.to_device(device)
        return other

    def _require(self, condition: bool, what: str, rule: str, value: object) -> None:
        if not condition:
            raise ConfigError(f"`{what}` of {self.path} must {rule}, got {value}")

    def _scale(self, dtype: np.dtype[Any]) -> float:
        value = np.asarray(self.attributes.get("scale", 1.0))
        rule = f"be a positive, finite {dtype}"
        self._require(value.size == 1 and value.dtype.kind in "iuf", "scale", rule, value)
        scale = float(value.item())
        least, most = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
        self._require(least <= scale <= most, "scale", rule, scale)
        return scale

    def _split(self, name: str) -> tuple[h5py.Dataset, h5py.Dataset]:
        """Return the data sets x and y of one split, each valid by itself and of equal length."""
        x, y = (self._numeric(f"/{name}/{part}") for part in "xy")
        filled = x.ndim >= 1 and 0 not in x.shape[1:]
        self._require(filled, x.name, "have shape (n, ...) with no empty dimension", x.shape)
        classes = y.ndim == 1 and y.dtype.kind in "iub"
        floats = y.ndim == 2 and y.dtype.kind == "f" and y.shape[1] > 0
        rule = "hold (n,) integers or (n, k) floats"
        self._require(classes or floats, y.name, rule, f"{y.shape} {y.dtype}")
        self._require(len(y) == len(x), y.name, f"have {len(x)} rows, as x has", len(y))
        return x, y

    def _numeric(self, name: str) -> h5py.Dataset:
        item = self._file.get(name)
        present = isinstance(item, h5py.Dataset)
        self._require(present, name, "be a data set", "nothing" if item is None else item)
        numeric = item.shape is not None and item.dtype.kind in "iufb"
        self._require(numeric, name, "hold numbers", f"{item.dtype} of shape {item.shape}")
        return item

    def _check_agreement(
        self, train: tuple[h5py.Dataset, h5py.Dataset], test: tuple[h5py.Dataset, h5py.Dataset]
    ) -> None:
        self._require(len(train[0]) > 0, "/train/x", "have at least 1 row", 0)
        for one, other in zip(train, test, strict=True):
            shape = one.shape[1:]
            rule = f"have rows of shape {shape}, as {one.name} has"
            self._require(other.shape[1:] == shape, other.name, rule, other.shape[1:])

    def _count_classes(self, *labels: h5py.Dataset) -> int:
        """Return the number of classes, after a check that every label is below it."""
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


def _range(dataset: h5py.Dataset) -> tuple[int, int]:
    """Return the smallest and the largest element as Python ints; reads block by block."""
    lows, highs = [], []
    for lo, hi in _blocks(dataset):
        block = dataset[lo:hi]
        lows.append(int(block.min()))
        highs.append(int(block.max()))
    return min(lows), max(highs)


def _blocks(dataset: h5py.Dataset) -> Iterator[tuple[int, int]]:
    """Yield ``(lo, hi)``: consecutive ranges of rows of about `_BLOCK_BYTES` that cover the data set."""
    n_rows = len(dataset)
    step = max(1, _BLOCK_BYTES // max(1, dataset.dtype.itemsize * prod(dataset.shape[1:])))
    for lo in range(0, n_rows, step):
        yield lo, min(lo + step, n_rows)


class Split:
    """Examples of one split of a data set, ``train`` or ``test``.

    Parameters
    ----------
    x : h5py.Dataset, shape (n_rows, ...)
        Features.
    y : h5py.Dataset, shape (n_rows,) or (n_rows, k)
        Integer classes or float targets.
    dtype : numpy.dtype
        Dtype in which features and float targets are returned; classes are int64.
    scale : float
        Factor by which features are multiplied.
    cache_bytes : int
        Size of the largest array that is kept in memory.

    Attributes
    ----------
    n_rows : int
        Number of examples.
    """

    def __init__(self, x: h5py.Dataset, y: h5py.Dataset, dtype: np.dtype[Any], scale: float, cache_bytes: int):
        self.n_rows = len(x)
        self._x: Array = _column(x, dtype, scale, cache_bytes)
        self._y: Array = _column(y, dtype if y.dtype.kind == "f" else np.dtype(np.int64), 1.0, cache_bytes)

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> tuple[Array, Array]:
        """Return ``(x, y)`` of some examples, in the order of `indices`.

        Parameters
        ----------
        indices : ndarray of int, shape (n,)
            Each in ``0 .. n_rows - 1``; may repeat.

        Returns
        -------
        x : array, shape (n, ...)
            Features, in the dtype of the split.
        y : array, shape (n,) of int64 or (n, k) in the dtype of the split
            Classes or targets.
        """
        x, y = (column.take(namespace(column).asarray(indices), axis=0) for column in (self._x, self._y))
        return x, y

    def to_device(self, device: Device) -> "Split":
        """Return these examples with the arrays held in memory copied to `device`, on which rows are then selected."""
        other = copy(self)
        other._x, other._y = (
            device.to_device(column) if isinstance(column, np.ndarray) else column for column in (self._x, self._y)
        )
        return other

    def batches(self, n_rows: int) -> Iterator[Batch]:
        """Yield all examples in order as batches of `n_rows`; the last batch may be smaller."""
        for lo in range(0, self.n_rows, n_rows):
            yield Batch(self._x[lo : lo + n_rows], self._y[lo : lo + n_rows])


def _column(dataset: h5py.Dataset, dtype: np.dtype[Any], scale: float, cache_bytes: int) -> "AnyArray | _FileColumn":
    """Return `dataset` converted: a finite array if it fits in `cache_bytes`, otherwise a `_FileColumn`."""
    column = _FileColumn(dataset, dtype, scale)
    if dtype.itemsize * prod(dataset.shape) > cache_bytes:
        return column
    array = np.empty(dataset.shape, dtype)
    for lo, hi in _blocks(dataset):
        array[lo:hi] = column[lo:hi]
        finite = np.isfinite(array[lo:hi])
        if not finite.all():
            row, *rest = np.argwhere(~finite)[0].tolist()
            position = (lo + row, *rest)
            rule = f"`{dataset.name}` of {dataset.file.filename} must be finite as {dtype}"
            raise ConfigError(f"{rule}, got {dataset[position]} at {position}")
    return array


class _FileColumn:
    """Rows of an HDF5 data set, read when indexed, with the two array methods that `Split` uses."""

    def __init__(self, dataset: h5py.Dataset, dtype: np.dtype[Any], scale: float):
        self._dataset = dataset
        self._dtype = dtype
        self._scale = scale

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> AnyArray:
        with np.errstate(over="ignore"):  # values that overflow become infinite, which is checked elsewhere
            array = self._dataset[rows].astype(self._dtype, copy=False)
            if self._scale != 1.0:
                array *= self._dtype.type(self._scale)
        return array

    def take(self, indices: npt.NDArray[np.integer[Any]], axis: int) -> AnyArray:
        """Return rows in the order of `indices`; `axis` must be 0."""
        # HDF5 selects rows in increasing order only, and each only once.
        rows, inverse = np.unique(indices, return_inverse=True)
        return self[rows].take(inverse, axis=axis)
