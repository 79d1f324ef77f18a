"""Batches, and the reproducible random numbers by which a rank draws them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
import numpy.typing as npt

from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.types import Array

if TYPE_CHECKING:
    from hpc_dasgd.data.dataset import Split

_ROWS, _NOISE = 0, 1  # streams of random numbers: rows of the examples, and `Batch.rng`
_BLOCK_NUMBERS = 1 << 16  # random numbers drawn at once, at most (0.5 MB)
_BLOCK_VERSIONS = 64


def _uint64(name: str, value: SupportsIndex) -> int:
    """Return `value` as a Python int in the range of uint64; NumPy's integers would overflow in shifts."""
    number = index(value)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"`{name}` must be in [0, 2**64), got {number}")
    return number


def _philox(seed: int, rank: int, stream: int, position: int) -> np.random.Philox:
    """Return the counter-based bit generator of one rank and stream, advanced to `position`."""
    return np.random.Philox(key=(rank << 64) + seed, counter=(stream << 192) + position)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples for one gradient.

    Attributes
    ----------
    x : array, shape (n, ...), floating, or None
        Features; None for an objective without data.
    y : array, shape (n,) of int64 or (n, k) of float, or None
        Classes or targets; None for an objective without data.
    source : tuple of int
        Seed, rank and version for which the batch was drawn; (0, 0, 0) for batches of `Split.batches`, so that
        evaluations are reproducible.
    """

    x: Array
    y: Array
    source: tuple[SupportsIndex, SupportsIndex, SupportsIndex] = (0, 0, 0)

    @cached_property
    def rng(self) -> np.random.Generator:
        """Generator of further random numbers for this batch, a function of `source` alone; created when first used."""
        seed, rank, version = map(index, self.source)
        return np.random.Generator(_philox(seed, rank, _NOISE, version << 64))

    @property
    def seed(self) -> int:
        """Seed for random numbers of other libraries, ``0 <= seed < 2**64``; a function of `source` alone.

        Takes a tenth of the time of `rng`.
        """
        text = " ".join(str(index(number)) for number in self.source)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Sampler:
    """Draws batches uniformly with replacement.

    A batch is a function of the seed, the rank, the version and the batch size alone, so that a replay draws the same
    batches. This holds across versions of NumPy: only the raw output of the bit generator is used, which NumPy
    guarantees not to change.

    Parameters
    ----------
    seed, rank : int, 0 <= value < 2**64
        Seed of the run, and rank that draws the batches.
    split : Split or None
        Examples to draw from, at least one; None for objectives without data.
    batch_size : int, at least 1
        Number of examples in a batch.
    """

    def __init__(self, seed: SupportsIndex, rank: SupportsIndex, split: "Split | None", batch_size: int):
        self._seed, self._rank = _uint64("seed", seed), _uint64("rank", rank)
        self._split = split
        self._batch_size = batch_size
        self._counts = ceil_div(self._batch_size, 4)  # Philox generates four numbers per increment of its counter
        self._n_versions = max(1, min(_BLOCK_VERSIONS, _BLOCK_NUMBERS // self._batch_size))
        self._block: int | None = None
        self._indices: npt.NDArray[np.intp] = np.empty((0, 0), np.intp)

    def batch(self, version: SupportsIndex) -> Batch:
        """Return the batch of one version, which is 0 for the rank's first gradient.

        Parameters
        ----------
        version : int, 0 <= version < 2**64
        """
        version = _uint64("version", version)
        source = (self._seed, self._rank, version)
        if self._split is None:
            return Batch(None, None, source)
        block, row = divmod(version, self._n_versions)
        if block != self._block:
            self._indices, self._block = self._draw(block, self._split.n_rows), block
        return Batch(*self._split.rows(self._indices[row]), source)

    def _draw(self, block: int, n_rows: int) -> npt.NDArray[np.intp]:
        """Return the rows of a block of versions, drawn with one generator, shape (n_versions, batch_size)."""
        start = block * self._n_versions * self._counts
        generator = _philox(self._seed, self._rank, _ROWS, start)
        raw = generator.random_raw(self._n_versions * self._counts * 4)
        raw = raw.reshape(self._n_versions, -1)[:, : self._batch_size]
        # The remainder favours some rows by less than n_rows / 2**64.
        return (raw % np.uint64(n_rows)).astype(np.intp)
