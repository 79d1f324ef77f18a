"""Batches, and the reproducible way in which a rank draws them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from operator import index

import numpy as np

_INDICES, _NOISE = 0, 1  # streams of random numbers: which examples, and `Batch.rng`
_BLOCK_NUMBERS = 1 << 16  # random numbers made at once, at most (0.5 MB)
_BLOCK_VERSIONS = 64


def _word(name, value):
    """Return `value` as an int that one 64-bit word holds; NumPy's integers would overflow in shifts."""
    value = index(value)
    if not 0 <= value < 1 << 64:
        raise ValueError(f"`{name}` must be in [0, 2**64), got {value}")
    return value


def _philox(seed, rank, stream, position):
    """Return the counter-based bit generator of one rank and stream, advanced to `position`."""
    return np.random.Philox(key=(rank << 64) + seed, counter=(stream << 192) + position)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples for one gradient.

    Attributes
    ----------
    x : array, shape (n, ...), or None
        Features; None for an objective without data.
    y : array, shape (n,) of int64 or (n, k) of float, or None
        Classes or targets.
    source : tuple of int
        Seed, rank and version that the batch was drawn for. Pieces of a split have (0, 0, 0), so
        that an evaluation repeats exactly.
    rng : numpy.random.Generator
        Further randomness of this batch: a function of `source` alone. Made when first asked for.
    seed : int, 0 <= seed < 2**64
        For random numbers of other libraries: likewise. Costs a tenth of `rng`.
    """

    x: object
    y: object
    source: tuple = (0, 0, 0)

    @cached_property
    def rng(self):
        seed, rank, version = map(index, self.source)
        return np.random.Generator(_philox(seed, rank, _NOISE, version << 64))

    @property
    def seed(self):
        words = " ".join(str(index(word)) for word in self.source)
        return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


class Sampler:
    """Batches drawn uniformly with replacement.

    A batch is a function of the seed, the rank, the version and the batch size alone, so a replay
    draws the same ones. That holds across versions of NumPy, since only the raw stream of the bit
    generator is used, which NumPy promises to keep.

    Parameters
    ----------
    seed, rank : int, 0 <= value < 2**64
        Whose batches.
    split : Split or None
        What to draw from, of at least one row; None for objectives without data.
    batch_size : int, at least 1
        Examples in a batch.
    """

    def __init__(self, seed, rank, split, batch_size):
        self._seed, self._rank = _word("seed", seed), _word("rank", rank)
        self._split = split
        self._batch_size = batch_size
        self._counts = -(-self._batch_size // 4)  # Philox makes four numbers per count
        self._n_versions = max(1, min(_BLOCK_VERSIONS, _BLOCK_NUMBERS // self._batch_size))
        self._block = None
        self._indices = None

    def batch(self, version):
        """Return the `Batch` of one version, 0 for the rank's first gradient."""
        version = _word("version", version)
        source = (self._seed, self._rank, version)
        if self._split is None:
            return Batch(None, None, source)
        block, row = divmod(version, self._n_versions)
        if block != self._block:
            self._indices, self._block = self._draw(block), block
        return Batch(*self._split.rows(self._indices[row]), source)

    def _draw(self, block):
        """Return the rows for a block of versions: one generator for many batches."""
        start = block * self._n_versions * self._counts
        generator = _philox(self._seed, self._rank, _INDICES, start)
        raw = generator.random_raw(self._n_versions * self._counts * 4)
        raw = raw.reshape(self._n_versions, -1)[:, : self._batch_size]
        # The remainder favours some rows by less than n_rows / 2**64.
        return (raw % np.uint64(self._split.n_rows)).astype(np.intp)
