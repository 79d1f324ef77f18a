"""Reader of NumPy's ``.npz`` archives, with arrays under the names that Keras and others use."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Self

import numpy as np

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.data.convert.source import BLOCK_BYTES, Examples, Source
from hpc_dasgd.errors import ConfigError

_NAMES = {
    "train": (("x_train", "y_train"), ("train_x", "train_y"), ("train_images", "train_labels"), ("x", "y"), ("X", "y")),
    "test": (("x_test", "y_test"), ("test_x", "test_y"), ("test_images", "test_labels")),
}


def recognize(path: Path) -> Source | None:
    """Return the source if `path` is a file whose name ends in ``.npz``; None otherwise."""
    if path.suffix != ".npz" or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{path} must be a NumPy archive: {error}") from None
    splits: list[tuple[str, int, Iterator[Examples]]] = []
    attributes: dict[str, object] = {"description": f"arrays of {path.name}"}
    for split, choices in _NAMES.items():
        pair = next((pair for pair in choices if set(pair) <= names), None)
        if pair is not None:
            with _Member(path, pair[0]) as x, _Member(path, pair[1]) as y:
                if x.shape[0] != y.shape[0]:
                    raise ConfigError(f"`{pair[1]}` of {path} must have {x.shape[0]} rows, got {y.shape[0]}")
                if x.dtype == np.uint8:
                    attributes["scale"] = 1 / 255
                splits.append((split, x.shape[0], _examples(path, *pair)))
    if not splits or splits[0][0] != "train":
        wanted = " or ".join(", ".join(pair) for pair in _NAMES["train"])
        raise ConfigError(f"{path} must hold arrays named {wanted}, got {', '.join(sorted(names))}")
    return Source(path, splits, attributes)


class _Member:
    """One array of an archive, read sequentially; a context manager."""

    def __init__(self, path: Path, name: str):
        self._path, self._name = path, name

    def __enter__(self) -> Self:
        with ExitStack() as on_failure:
            self._archive = on_failure.enter_context(zipfile.ZipFile(self._path))
            self._file = on_failure.enter_context(self._archive.open(f"{self._name}.npy"))
            self._read_header()
            on_failure.pop_all()
        return self

    def _read_header(self) -> None:
        try:
            version = np.lib.format.read_magic(self._file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, is_fortran, self.dtype = read(self._file)
        except (ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise self._error(f"be a NumPy array: {error}") from None
        if self.dtype.kind not in "iufb" or not self.shape or (is_fortran and len(self.shape) > 1):
            order = "Fortran" if is_fortran else "C"
            raise self._error(f"hold rows of numbers in C order, got {self.dtype}, shape {self.shape}, {order} order")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()

    def read_rows(self, n_rows: int) -> AnyArray:
        """Read the next `n_rows` rows, in native byte order; raises `ConfigError` if the array has fewer."""
        n_bytes = n_rows * self.dtype.itemsize * prod(self.shape[1:])
        try:
            content = self._file.read(n_bytes)
        except (zlib.error, zipfile.BadZipFile, EOFError) as error:
            raise self._error(f"be complete: {error}") from None
        if len(content) < n_bytes:
            raise self._error(f"hold {self.shape[0]} rows, but ends earlier")
        values = np.frombuffer(content, self.dtype).reshape(n_rows, *self.shape[1:])
        return values.astype(self.dtype.newbyteorder("="), copy=False)

    def _error(self, rule: str) -> ConfigError:
        return ConfigError(f"`{self._name}` of {self._path} must {rule}")


def _examples(path: Path, x_name: str, y_name: str) -> Iterator[Examples]:
    with _Member(path, x_name) as x, _Member(path, y_name) as y:
        n_block = max(1, BLOCK_BYTES // max(1, x.dtype.itemsize * prod(x.shape[1:])))
        for lo in range(0, x.shape[0], n_block):
            n = min(n_block, x.shape[0] - lo)
            yield Examples(x.read_rows(n), _targets(y.read_rows(n)))


def _targets(values: AnyArray) -> AnyArray:
    """Return integers of shape (n,) or (n, 1) as classes (n,), anything else as float targets (n, k)."""
    if values.dtype.kind in "iub":
        return values.reshape(len(values)) if values.size == len(values) else values.astype(np.float32)
    return values.reshape(len(values), -1)
