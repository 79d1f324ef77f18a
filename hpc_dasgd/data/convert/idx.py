"""Reader of MNIST's format IDX: a file of examples and a file of labels, each a header and raw big-endian values."""

import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from hpc_dasgd.arrays.types import AnyArray
from hpc_dasgd.data.convert.source import BLOCK_BYTES, BinaryReader, Examples, Source
from hpc_dasgd.errors import ConfigError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SPLITS = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = "images{}idx3-ubyte", "labels{}idx1-ubyte"


def recognize(path: Path) -> Source | None:
    """Return the source if `path` is a directory with MNIST's files, or a file of images with its labels; else None."""
    if path.is_dir():
        candidates = {split: _pair(path, prefix) for split, prefix in _SPLITS.items()}
    else:
        candidates = {"train": _with_labels(path)}
    pairs = {split: pair for split, pair in candidates.items() if pair is not None}
    if "train" not in pairs:
        return None
    splits: list[tuple[str, int, Iterator[Examples]]] = []
    attributes: dict[str, object] = {"description": "examples from IDX files"}
    for split, (images, labels) in pairs.items():
        n_rows, dtype = _check(images, labels)
        if dtype == ">u1":
            attributes["scale"] = 1 / 255
        splits.append((split, n_rows, _examples(images, labels)))
    return Source(path, splits, attributes)


def _pair(folder: Path, prefix: str) -> tuple[Path, Path] | None:
    """Return the files of images and labels of one split in a directory; None if there are none."""
    for separator in "-.":
        for suffix in ("", ".gz"):
            images, labels = (folder / f"{prefix}-{name.format(separator)}{suffix}" for name in (_IMAGES, _LABELS))
            if images.is_file() and labels.is_file():
                return images, labels
            if images.is_file() or labels.is_file():
                missing = labels if images.is_file() else images
                raise ConfigError(f"{folder} must hold {missing.name} too, and does not")
    return None


def _with_labels(images: Path) -> tuple[Path, Path] | None:
    """Return a file of images and that of its labels; None if the name is not one of a file of images."""
    for separator in "-.":
        name = _IMAGES.format(separator)
        if name in images.name:
            labels = images.with_name(images.name.replace(name, _LABELS.format(separator)))
            if not labels.is_file():
                raise ConfigError(f"{images} must have its labels in the same folder, as {labels.name}")
            return images, labels
    return None


def _check(images: Path, labels: Path) -> tuple[int, str]:
    """Return the number and the dtype of the examples, after a check that both headers agree."""
    with BinaryReader(images) as first, BinaryReader(labels) as second:
        dtype, shape = _header(first)
        label_dtype, label_shape = _header(second)
    if len(label_shape) != 1 or np.dtype(label_dtype).kind == "f":
        raise ConfigError(f"{labels} must hold one integer per example, got {label_dtype[1:]} of shape {label_shape}")
    if label_shape[0] != shape[0]:
        raise ConfigError(f"{labels} must hold {shape[0]} labels, as many as {images.name}, got {label_shape[0]}")
    return shape[0], dtype


def _header(reader: BinaryReader) -> tuple[str, tuple[int, ...]]:
    """Read the dtype and the shape of the values that follow."""
    zero, code, n_dimensions = struct.unpack(">HBB", reader.read(4, "magic number"))
    if zero or code not in _DTYPES or not n_dimensions:
        reader.offset = 0
        raise reader.error("begin with the magic number of IDX: 0, 0, type, dimensions")
    shape = struct.unpack(f">{n_dimensions}I", reader.read(4 * n_dimensions, "dimensions"))
    return _DTYPES[code], shape


def _examples(images: Path, labels: Path) -> Iterator[Examples]:
    with BinaryReader(images) as first, BinaryReader(labels) as second:
        (dtype, shape), (label_dtype, _) = _header(first), _header(second)
        row_bytes = np.dtype(dtype).itemsize * prod(shape[1:])
        label_bytes = np.dtype(label_dtype).itemsize
        n_block = max(1, BLOCK_BYTES // max(1, row_bytes))
        for lo in range(0, shape[0], n_block):
            n = min(n_block, shape[0] - lo)
            x = np.frombuffer(first.read(n * row_bytes, f"examples {lo} to {lo + n - 1}"), dtype)
            y = np.frombuffer(second.read(n * label_bytes, f"labels {lo} to {lo + n - 1}"), label_dtype)
            yield Examples(_native(x).reshape(n, *shape[1:]), _native(y))
        first.require_end()
        second.require_end()


def _native(values: AnyArray) -> AnyArray:
    """Return `values` in native byte order."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)
