"""The conversion: recognizes the format of a source, and writes its examples to a data set file.

    convert("mnist/", "mnist.h5")

Examples are read and written block by block, so that memory does not grow with the data. The file is written under a
temporary name, so that a failed conversion leaves no file.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.arrays.types import DType
from hpc_dasgd.data.convert import cifar, idx, npz, table
from hpc_dasgd.data.convert.source import Examples, Source
from hpc_dasgd.errors import ConfigError

TEST_SHARE = 0.2
"""Fraction of the examples that become the test split if the source has none."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a split, the number of rows read, and the number of all rows (0 if unknown)."""

_CHUNK_BYTES = 1 << 20
_KINDS = "IDX files, CIFAR-10 batches, .npz, .csv"


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    test_share: float = TEST_SHARE,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Convert a source to a data set file.

    Parameters
    ----------
    source : path
        A file, or a directory with files under their usual names.
    target : path
        Data set file to create; replaced if it exists.
    test_share : float, ``0 <= test_share < 1``
        Fraction of the examples that go to the test split, selected at random, if the source has no test split.
    progress : callable, optional
        See `Progress`.

    Returns
    -------
    n_rows : dict of str to int
        Number of examples by split.

    Raises
    ------
    ConfigError
        If the format of the source is not recognized, or the source is damaged; the message states the file, the
        position in it and the rule. Also if the target cannot be written.
    """
    source, target = Path(source), Path(target)
    recognized = _recognize(source)
    temporary = target.with_name(f".{target.name}.part")
    try:
        with h5py.File(temporary, "w") as file:
            n_rows = _write(file, recognized, test_share, progress or (lambda *_: None))
            file.attrs.update(recognized.attributes, source=str(source.resolve()))
        os.replace(temporary, target)
    except OSError as error:
        raise ConfigError(f"cannot write data set {target}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return n_rows


def _recognize(path: Path) -> Source:
    """Return the source at `path`, recognized by the names of files."""
    if not path.exists():
        raise ConfigError(f"SOURCE must be a file or folder with {_KINDS}; there is no {path}")
    for reader in (idx, cifar, npz, table):
        if (source := reader.recognize(path)) is not None:
            return source
    raise ConfigError(f"SOURCE must be a file or folder with {_KINDS} under their usual names, got {path}")


def _write(file: h5py.File, source: Source, test_share: float, progress: Progress) -> dict[str, int]:
    """Write all examples to `file`; returns their number by split."""
    splits = {name: _SplitWriter(file.create_group(name)) for name in ("train", "test")}
    for name, total, blocks in source.splits:
        rng = np.random.default_rng(0) if test_share and len(source.splits) == 1 else None
        n_read = 0
        for block in blocks:
            for split, examples in _divide(block, name, rng, test_share):
                splits[split].append(examples)
            n_read += len(block.x)
            progress(name, n_read, total)
    if not splits["train"].n_rows:
        raise ConfigError(f"{source.path} must hold at least 1 example to train on")
    splits["test"].create_like(splits["train"])
    return {name: split.n_rows for name, split in splits.items()}


def _divide(
    block: Examples, name: str, rng: np.random.Generator | None, test_share: float
) -> Iterator[tuple[str, Examples]]:
    """Yield the examples of a block by the split that they go to: `name`, or at random if `rng` is given."""
    if rng is None:
        yield name, block
        return
    tests = rng.random(len(block.x)) < test_share
    for split, rows in (("train", ~tests), ("test", tests)):
        yield split, Examples(block.x[rows], block.y[rows])


class _SplitWriter:
    """Appends examples to the data sets x and y of a split."""

    def __init__(self, group: h5py.Group):
        self._group = group
        self.n_rows = 0

    def append(self, examples: Examples) -> None:
        """Append examples; the first ones determine dtypes and shapes."""
        for name, rows in zip(("x", "y"), examples, strict=True):
            if name not in self._group:
                self._create(name, rows.shape[1:], rows.dtype)
            data_set = self._group[name]
            data_set.resize(self.n_rows + len(rows), axis=0)
            data_set[self.n_rows :] = rows
        self.n_rows += len(examples.x)

    def create_like(self, other: "_SplitWriter") -> None:
        """Create empty data sets with the shapes and dtypes of those of `other` if there are none yet."""
        for name in ("x", "y"):
            if name not in self._group:
                self._create(name, other._group[name].shape[1:], other._group[name].dtype)

    def _create(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        row_bytes = max(1, np.dtype(dtype).itemsize * math.prod(shape))
        chunk = (max(1, _CHUNK_BYTES // row_bytes), *shape)
        self._group.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk)
