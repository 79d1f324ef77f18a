"""The user block of a checkpoint file: a line of text before the HDF5 content that guards it against damage.

The line states the length of the file, the CRC-32 of everything after the user block, and the header of the
checkpoint; it begins with a CRC-32 of itself. Damage is thus detected before HDF5 opens the file, and the
header can be read at the cost of one kilobyte.
"""

import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_dasgd.errors import CheckpointError

USER_BLOCK_BYTES = 1024
_MAGIC = "hpc_dasgd checkpoint"


@dataclass(frozen=True)
class UserBlock:
    """Content of a user block.

    Attributes
    ----------
    n_bytes : int
        Length of the file.
    crc32 : int
        Checksum of everything after the user block.
    header : dict
        Fields of `checkpoint_file.CheckpointHeader`.
    """

    n_bytes: int
    crc32: int
    header: dict[str, Any]

    def encode(self) -> bytes:
        """Return the user block as it is stored in the file, `USER_BLOCK_BYTES` long."""
        text = json.dumps({"bytes": self.n_bytes, "crc32": self.crc32, "header": self.header})
        line = f"{_MAGIC} {zlib.crc32(text.encode()):08x} {text}\n".encode()
        assert len(line) <= USER_BLOCK_BYTES
        return line.ljust(USER_BLOCK_BYTES, b"\0")


def display_name(path: Path) -> str:
    """Return the name of a checkpoint for messages: its directory and file name."""
    return f"{path.parent.name}/{path.name}"


def read_user_block(path: Path) -> UserBlock:
    """Read the user block of a file.

    Raises
    ------
    CheckpointError
        If it is not a checkpoint, the user block is damaged, or the file does not have its full length.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        block, n_bytes = file.read(USER_BLOCK_BYTES), os.fstat(file.fileno()).st_size
    match = re.fullmatch(rf"{_MAGIC} ([0-9a-f]{{8}}) (.*)\n\0*".encode(), block)
    if match is None or int(match[1], 16) != zlib.crc32(match[2]):
        raise CheckpointError(f"{display_name(path)} is not a checkpoint, or its user block is damaged")
    content = json.loads(match[2])
    if content["bytes"] != n_bytes:
        raise CheckpointError(f"{display_name(path)} must have {content['bytes']} bytes, got {n_bytes}")
    return UserBlock(n_bytes, content["crc32"], content["header"])
