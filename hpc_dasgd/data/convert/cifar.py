"""Reader of CIFAR-10's binary batches: records of one label and 3 x 32 x 32 bytes, one colour channel after another."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpc_dasgd.data.convert.source import BLOCK_BYTES, BinaryReader, Examples, Source
from hpc_dasgd.errors import ConfigError

_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32
_CLASSES = 10
_TRAIN, _TEST = "data_batch_*.bin", "test_batch.bin"


def recognize(path: Path) -> Source | None:
    """Return the source if `path` is a directory with the batches, or one batch; None otherwise."""
    if path.is_dir():
        train, test = sorted(path.glob(_TRAIN)), [path / _TEST] if (path / _TEST).is_file() else []
    else:
        train, test = [path] if path.match(_TRAIN) or path.match(_TEST) else [], []
    if not train:
        return None
    files = {"train": train, "test": test}
    splits = [(name, sum(map(_n_records, paths)), _examples(paths)) for name, paths in files.items() if paths]
    return Source(path, splits, {"description": "CIFAR-10", "classes": _CLASSES, "scale": 1 / 255})


def _n_records(path: Path) -> int:
    n_bytes = path.stat().st_size
    if n_bytes % _RECORD_BYTES:
        end = n_bytes - n_bytes % _RECORD_BYTES
        raise ConfigError(f"{path} must at offset {end} hold a record of {_RECORD_BYTES} bytes, got {n_bytes - end}")
    return n_bytes // _RECORD_BYTES


def _examples(paths: list[Path]) -> Iterator[Examples]:
    n_block = BLOCK_BYTES // _RECORD_BYTES
    for path in paths:
        n_records = _n_records(path)
        with BinaryReader(path) as reader:
            for lo in range(0, n_records, n_block):
                n = min(n_block, n_records - lo)
                begin = reader.offset
                records = np.frombuffer(reader.read(n * _RECORD_BYTES, "records"), np.uint8).reshape(n, -1)
                wrong = np.flatnonzero(records[:, 0] >= _CLASSES)
                if wrong.size:
                    reader.offset = begin + int(wrong[0]) * _RECORD_BYTES
                    raise reader.error(f"hold a label below {_CLASSES}, got {records[wrong[0], 0]}")
                yield Examples(records[:, 1:].reshape(n, *_SHAPE), records[:, 0].copy())
