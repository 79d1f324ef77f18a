"""Data set files made from the formats that data comes in: MNIST's IDX, CIFAR-10's batches, ``.npz``, ``.csv``.

convert("mnist/", "mnist.h5")

Everything is read and written piece by piece, so that memory does not grow with the data. The file appears when it
is whole: what goes wrong leaves none.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.data.convert import cifar, idx, npz, table
from hpc_dasgd.data.convert.pieces import Piece, Source
from hpc_dasgd.errors import ConfigError

TEST_SHARE = 0.2
_CHUNK_BYTES = 1 << 20
_KINDS = "IDX files, CIFAR-10 batches, .npz, .csv"


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    test_share: float = TEST_SHARE,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, int]:
    """Make a data set file.

    Parameters
    ----------
    source : path
        A file, or a folder that holds files under their usual names.
    target : path
        The data set file to make; replaced where it exists.
    test_share : float, ``0 <= test_share < 1``
        Of the examples that go to the test split, drawn at random, where the source has no test split of its own.
    progress : callable, optional
        Called with the name of a split, the rows written so far and all of them (0: nobody knows yet).

    Returns
    -------
    n_rows : dict of str to int
        Examples by split.

    Raises
    ------
    ConfigError
        If the source is none of these, or damaged; the message names file, place and rule. Also if the target
        cannot be written.
    """
    source, target = Path(source), Path(target)
    found = _recognized(source)
    part = target.with_name(f".{target.name}.part")
    try:
        with h5py.File(part, "w") as file:
            n_rows = _write(file, found, test_share, progress or (lambda *_: None))
            file.attrs.update(found.attributes, source=str(source.resolve()))
        os.replace(part, target)
    except OSError as error:
        raise ConfigError(f"cannot write data set {target}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return n_rows


def _recognized(path: Path) -> Source:
    """What the path holds, by its name."""
    if not path.exists():
        raise ConfigError(f"SOURCE must be a file or folder with {_KINDS}; there is no {path}")
    for reader in (idx, cifar, npz, table):
        if (found := reader.recognize(path)) is not None:
            return found
    raise ConfigError(f"SOURCE must be a file or folder with {_KINDS} under their usual names, got {path}")


def _write(file: h5py.File, found: Source, test_share: float, progress) -> dict[str, int]:
    splits = {name: _Split(file.create_group(name)) for name in ("train", "test")}
    for name, total, pieces in found.splits:
        rng = np.random.default_rng(0) if test_share and len(found.splits) == 1 else None
        n_read = 0
        for piece in pieces:
            for split, part in _divided(piece, name, rng, test_share):
                splits[split].append(part)
            n_read += len(piece.x)
            progress(name, n_read, total)
    if not splits["train"].n_rows:
        raise ConfigError(f"{found.path} must hold at least 1 example to train on")
    splits["test"].like(splits["train"])
    return {name: split.n_rows for name, split in splits.items()}


def _divided(piece: Piece, name: str, rng, test_share: float) -> Iterator[tuple[str, Piece]]:
    """Yield the parts of a piece with the split that each goes to."""
    if rng is None:
        yield name, piece
        return
    tests = rng.random(len(piece.x)) < test_share
    for split, rows in (("train", ~tests), ("test", tests)):
        yield split, Piece(piece.x[rows], piece.y[rows])


class _Split:
    """The data sets x and y of a split, growing."""

    def __init__(self, group: h5py.Group):
        self._group = group
        self.n_rows = 0

    def append(self, piece: Piece) -> None:
        for name, rows in zip(("x", "y"), piece, strict=True):
            if name not in self._group:
                self._create(name, rows.shape[1:], rows.dtype)
            data_set = self._group[name]
            data_set.resize(self.n_rows + len(rows), axis=0)
            data_set[self.n_rows :] = rows
        self.n_rows += len(piece.x)

    def like(self, other: "_Split") -> None:
        """Make empty data sets of the same shape where there are none yet."""
        for name in ("x", "y"):
            if name not in self._group:
                self._create(name, other._group[name].shape[1:], other._group[name].dtype)

    def _create(self, name: str, shape: tuple[int, ...], dtype) -> None:
        row_bytes = max(1, np.dtype(dtype).itemsize * int(np.prod(shape)))
        chunk = (max(1, _CHUNK_BYTES // row_bytes), *shape)
        self._group.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk)
