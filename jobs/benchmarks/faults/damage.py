"""Damage to files: truncation, a flipped bit, removal, replacement by another checkpoint, and a full disk."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from hpc_dasgd.storage import checkpoint_file, layout

_TMPFS_BYTES = 48 << 20


def cut(path: Path, rng: np.random.Generator) -> None:
    """Truncate a file at a random position."""
    with path.open("r+b") as file:
        file.truncate(int(rng.integers(path.stat().st_size)))


def flip(path: Path, rng: np.random.Generator) -> None:
    """Flip a random bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def remove(path: Path, rng: np.random.Generator) -> None:
    """Remove a file."""
    path.unlink()


def swap_checkpoint(path: Path, rng: np.random.Generator) -> None:
    """Replace a checkpoint by an undamaged one of another run or of another rank."""
    if rng.random() < 0.5:
        others = [
            other for other in sorted(path.parent.glob(layout.RANK_FILE_PATTERN)) if other.name[:10] != path.name[:10]
        ]
        shutil.copyfile(others[rng.integers(len(others))], path)
        return
    with checkpoint_file.SavedCheckpoint(path) as saved, h5py.File(path) as file:
        contribution = file["contribution"][:] if "contribution" in file else None
        state = checkpoint_file.RankState(saved.versions, contribution, saved.optimizer_state)
    checkpoint_file.write_checkpoint(path, replace(checkpoint_file.read_header(path), run_id="of another run"), state)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small tmpfs on an empty folder, and unmount it on exit; needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def can_mount(folder: Path) -> bool:
    """Return True if `small_disk` works on this machine."""
    folder.mkdir()
    try:
        with small_disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        folder.rmdir()


def fill(path: Path) -> None:
    """Write a file until its disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for n_bytes in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(bytes(n_bytes))
