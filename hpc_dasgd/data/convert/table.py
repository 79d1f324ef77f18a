"""Reader of ``.csv`` files with one row of numbers per example.

The target is the column named label, class, target or y, or the last column.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.data.convert.source import BLOCK_BYTES, Examples, Source
from hpc_dasgd.errors import ConfigError

_TARGETS = ("label", "class", "target", "y")
_NUMBER_BYTES = 8
_LARGEST_CLASS = 1 << 20


def recognize(path: Path) -> Source | None:
    """Return the source if `path` is a file whose name ends in ``.csv``; None otherwise."""
    if path.suffix != ".csv" or not path.is_file():
        return None
    classes = _are_classes(path)
    return Source(path, [("train", 0, _examples(path, classes))], {"description": f"rows of {path.name}"})


def _rows(path: Path) -> Iterator[tuple[int, list[float], float]]:
    """Yield the line number, the features and the target of each row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        column, width = -1, None
        try:
            for row in reader:
                if not row:
                    continue
                if width is None:
                    width = len(row)
                    if width < 2:
                        raise ConfigError(f"{path} must have at least 2 columns in line {reader.line_num}")
                    if not _is_numbers(row):
                        names = [name.strip().lower() for name in row]
                        column = next((names.index(name) for name in _TARGETS if name in names), width - 1)
                        continue
                    column = width - 1
                if len(row) != width:
                    raise ConfigError(f"{path} must have {width} columns in line {reader.line_num}, got {len(row)}")
                numbers = _numbers(path, reader.line_num, row)
                yield reader.line_num, numbers[:column] + numbers[column + 1 :], numbers[column]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} must be text in columns, in line {reader.line_num + 1}: {error}") from None


def _is_numbers(row: list[str]) -> bool:
    try:
        return bool([float(cell) for cell in row])
    except ValueError:
        return False


def _numbers(path: Path, line: int, row: list[str]) -> list[float]:
    numbers = []
    for number, cell in enumerate(row, start=1):
        try:
            numbers.append(float(cell))
        except ValueError:
            raise ConfigError(f"{path} must hold a number in line {line}, column {number}, got {cell!r}") from None
    return numbers


def _are_classes(path: Path) -> bool:
    """Return whether every target is an integer of at least 0 and below `_LARGEST_CLASS`."""
    return all(target.is_integer() and 0 <= target < _LARGEST_CLASS for _, _, target in _rows(path))


def _examples(path: Path, classes: bool) -> Iterator[Examples]:
    x: list[list[float]] = []
    y: list[float] = []
    for _, features, target in _rows(path):
        x.append(features)
        y.append(target)
        if len(x) * len(features) * _NUMBER_BYTES >= BLOCK_BYTES:
            yield _block(x, y, classes)
            x, y = [], []
    if x:
        yield _block(x, y, classes)


def _block(x: list[list[float]], y: list[float], classes: bool) -> Examples:
    targets: AnyArray = np.array(y, np.int64) if classes else np.array(y)[:, np.newaxis]
    return Examples(np.array(x), targets)
