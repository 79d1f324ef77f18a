"""What happens to files: cut short, a bit flipped, gone, another one in their place, no room on the disk."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

_TMPFS_BYTES = 48 << 20


def cut(path: Path, rng: np.random.Generator) -> None:
    with path.open("r+b") as file:
        file.truncate(int(rng.integers(path.stat().st_size)))


def flip(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def remove(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A small tmpfs in an empty folder; needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def may_mount(folder: Path) -> bool:
    """Whether `small_disk` works here."""
    folder.mkdir()
    try:
        with small_disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        folder.rmdir()


def fill(path: Path) -> None:
    """Make a file that takes all the room there is on its disk."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for n_bytes in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(bytes(n_bytes))
