"""Interface of the readers of all source formats, and reading of binary files with checks.

A reader is a module with a function ``recognize(path) -> Source | None``.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, cast

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.errors import ConfigError

BLOCK_BYTES = 1 << 22
"""Size of the blocks in which readers read features."""


class Examples(NamedTuple):
    """A block of consecutive examples.

    Attributes
    ----------
    x : ndarray, shape (n, ...), numeric
        Features.
    y : ndarray, shape (n,) of integers or (n, k) of floats
        Classes or targets.
    """

    x: AnyArray
    y: AnyArray


@dataclass(frozen=True)
class Source:
    """A recognized source.

    Attributes
    ----------
    path : Path
    splits : list of (str, int, iterator of Examples)
        Name, number of examples (0 if unknown) and examples of ``train`` and, if the source has one, ``test``.
    attributes : dict
        Attributes of the data set file.
    """

    path: Path
    splits: list[tuple[str, int, Iterator[Examples]]]
    attributes: dict[str, Any] = field(default_factory=dict)


class BinaryReader:
    """A binary file, decompressed if its name ends in ``.gz``; a context manager.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    offset : int
        Offset of the next byte in the uncompressed content; errors state it.
    """

    def __init__(self, path: Path):
        self.path, self.offset = path, 0
        self._file: BinaryIO

    def __enter__(self) -> Self:
        is_compressed = self.path.suffix == ".gz"
        self._file = cast(BinaryIO, gzip.open(self.path)) if is_compressed else self.path.open("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, n_bytes: int, what: str) -> bytes:
        """Read exactly `n_bytes` bytes; `what` names them in the message.

        Raises
        ------
        ConfigError
            If the file has fewer, or they cannot be decompressed.
        """
        content = self._read(n_bytes)
        if len(content) < n_bytes:
            raise self.error(f"hold {n_bytes} bytes of {what}, got {len(content)}")
        self.offset += n_bytes
        return content

    def require_end(self) -> None:
        """Raise `ConfigError` if the file has more bytes."""
        if self._read(1):
            raise self.error("end here, got more bytes")

    def error(self, rule: str) -> ConfigError:
        """Return an error that states the file, the current offset and the rule that is violated there."""
        return ConfigError(f"{self.path} must at offset {self.offset} {rule}")

    def _read(self, n_bytes: int) -> bytes:
        try:
            return self._file.read(n_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"be complete gzip data: {error}") from None
