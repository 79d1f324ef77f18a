"""What the readers of all formats hand over, and reading a file without more than is there."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hpc_dasgd.errors import ConfigError

PIECE_BYTES = 1 << 22


class Piece(NamedTuple):
    """Some examples: `x` (n, ...) of any numeric dtype, `y` (n,) of integers or (n, k) of floats."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Source:
    """A recognized source.

    Attributes
    ----------
    path : Path
    splits : list of (name, number of examples or 0, pieces)
        ``train`` first; ``test`` where the source has one.
    attributes : dict
        Of the data set file.
    """

    path: Path
    splits: list[tuple[str, int, Iterator[Piece]]]
    attributes: dict = field(default_factory=dict)


class Reader:
    """A binary file, compressed where its name ends in ``.gz``; a context manager.

    Errors say where: offsets are those in the uncompressed content.
    """

    def __init__(self, path: Path):
        self.path, self.offset = path, 0
        self._file: BinaryIO

    def __enter__(self):
        self._file = gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb")
        return self

    def __exit__(self, *_):
        self._file.close()

    def take(self, n_bytes: int, what: str) -> bytes:
        """Read exactly so many bytes.

        Raises
        ------
        ConfigError
            If there are fewer, or they cannot be uncompressed.
        """
        try:
            content = self._file.read(n_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"be whole gzip data: {error}") from None
        if len(content) < n_bytes:
            raise self.error(f"hold {n_bytes} bytes of {what}, got {len(content)}")
        self.offset += n_bytes
        return content

    def end(self) -> None:
        """Raise `ConfigError` if anything is left."""
        try:
            more = self._file.read(1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"be whole gzip data: {error}") from None
        if more:
            raise self.error("end here, got more bytes")

    def error(self, rule: str) -> ConfigError:
        return ConfigError(f"{self.path} must at offset {self.offset} {rule}")
