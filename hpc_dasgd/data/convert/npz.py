"""NumPy's archives, with arrays under the names that Keras and others use."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path

import numpy as np

from hpc_dasgd.data.convert.pieces import PIECE_BYTES, Piece, Source
from hpc_dasgd.errors import ConfigError

_NAMES = {
    "train": (("x_train", "y_train"), ("train_x", "train_y"), ("train_images", "train_labels"), ("x", "y"), ("X", "y")),
    "test": (("x_test", "y_test"), ("test_x", "test_y"), ("test_images", "test_labels")),
}


def recognize(path: Path) -> Source | None:
    """A file whose name ends in ``.npz``; None for anything else."""
    if path.suffix != ".npz" or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{path} must be an archive of NumPy: {error}") from None
    splits, attributes = [], {"description": f"arrays of {path.name}"}
    for split, choices in _NAMES.items():
        pair = next((pair for pair in choices if set(pair) <= names), None)
        if pair is not None:
            with _Member(path, pair[0]) as x, _Member(path, pair[1]) as y:
                if x.shape[0] != y.shape[0]:
                    raise ConfigError(f"`{pair[1]}` of {path} must have {x.shape[0]} rows, got {y.shape[0]}")
                if x.dtype == np.uint8:
                    attributes["scale"] = 1 / 255
                splits.append((split, x.shape[0], _pieces(path, *pair)))
    if not splits or splits[0][0] != "train":
        wanted = " or ".join(", ".join(pair) for pair in _NAMES["train"])
        raise ConfigError(f"{path} must hold arrays named {wanted}, got {', '.join(sorted(names))}")
    return Source(path, splits, attributes)


class _Member:
    """One array of an archive, read from its beginning on."""

    def __init__(self, path: Path, name: str):
        self._path, self._name = path, name

    def __enter__(self):
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
            self.shape, by_columns, self.dtype = read(self._file)
        except (ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise self._error(f"be an array of NumPy: {error}") from None
        if self.dtype.kind not in "iufb" or not self.shape or (by_columns and len(self.shape) > 1):
            order = "Fortran" if by_columns else "C"
            raise self._error(f"hold rows of numbers in C order, got {self.dtype}, shape {self.shape}, {order} order")

    def __exit__(self, *_):
        self._file.close()
        self._archive.close()

    def take(self, n_rows: int) -> np.ndarray:
        n_bytes = n_rows * self.dtype.itemsize * prod(self.shape[1:])
        try:
            content = self._file.read(n_bytes)
        except (zlib.error, zipfile.BadZipFile, EOFError) as error:
            raise self._error(f"be whole: {error}") from None
        if len(content) < n_bytes:
            raise self._error(f"hold {self.shape[0]} rows, and ends before")
        values = np.frombuffer(content, self.dtype).reshape(n_rows, *self.shape[1:])
        return values.astype(self.dtype.newbyteorder("="), copy=False)

    def _error(self, rule: str) -> ConfigError:
        return ConfigError(f"`{self._name}` of {self._path} must {rule}")


def _pieces(path: Path, x_name: str, y_name: str) -> Iterator[Piece]:
    with _Member(path, x_name) as x, _Member(path, y_name) as y:
        n_piece = max(1, PIECE_BYTES // max(1, x.dtype.itemsize * prod(x.shape[1:])))
        for lo in range(0, x.shape[0], n_piece):
            n = min(n_piece, x.shape[0] - lo)
            yield Piece(x.take(n), _targets(y.take(n)))


def _targets(values: np.ndarray) -> np.ndarray:
    """Classes as they are, also where they stand in a column; floats as (n, k)."""
    if values.dtype.kind in "iub":
        return values.reshape(len(values)) if values.size == len(values) else values.astype(np.float32)
    return values.reshape(len(values), -1)
