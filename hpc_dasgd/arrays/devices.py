"""Devices: what a rank computes with, its processor or a GPU of its node.

`Host` and ``gpu.Gpu`` are the two kinds of `Device`. An *event* stands for all work that was given to the device before
it was recorded, a *copy* for one transfer between host memory and the device; both are a `Completion`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from hpc_dasgd.arrays.arithmetic import ALIGNMENT_BYTES, aligned_copy
from hpc_dasgd.arrays.types import AnyArray, Array, Bytes, DType, Namespace
from hpc_dasgd.errors import ConfigError

KINDS = ("cpu", "gpu", "auto")


class Completion(Protocol):
    """Work that may still be going on: an event of a device, or a copy."""

    def done(self) -> bool:
        """Return whether the work is complete; never waits."""


class Device(Protocol):
    """What a rank computes with.

    Attributes
    ----------
    xp : module
        Array namespace of the device's arrays.
    name : str
        Processor or model of the GPU, as files and reports show it.
    on_host : bool
        Whether its arrays are NumPy arrays in host memory.
    piece_bytes : int or None
        Size of the pieces in which other ranks' memory is read, so that the device can be polled between two of
        them; None to read all at once.
    pageable_bytes : int
        Size of the host memory that `register` could not page-lock.
    """

    xp: Namespace
    name: str
    on_host: bool
    piece_bytes: int | None
    pageable_bytes: int

    def to_device(self, array: AnyArray) -> Array:
        """Return a copy of a NumPy array on the device, aligned to 64 bytes.

        `array` must not change while it is copied, which may take longer than this call where it is page-locked.
        """

    def zeros(self, size: int, dtype: DType) -> Array:
        """Return a vector of zeros on the device. Waits until they are stored: MPI and copies may use it at once."""

    def to_host(self, array: Array) -> AnyArray:
        """Return an array of the device in host memory; not a copy where it already is there."""

    def host_zeros(self, n_bytes: int) -> Bytes:
        """Return zeroed host memory, aligned to 64 bytes, page-locked where the device copies from it."""

    def register(self, memory: Bytes) -> bool:
        """Page-lock host memory that something else allocated. Returns True if that succeeded."""

    def unregister(self, memory: Bytes) -> None:
        """Undo `register`, before the memory is freed."""

    def record_event(self) -> Completion:
        """Return an event that is done when all work given to the device so far is done."""

    def wait(self) -> None:
        """Wait until all work given to the device so far is done."""

    def upload(self, source: AnyArray, out: Array, after: Completion) -> Completion:
        """Start to copy `source`, in host memory, into `out` once `after` is done; both belong to the copy until then.

        `after` must be an event of this device.
        """

    def download(self, source: Array, out: AnyArray, after: Completion) -> Completion:
        """Start to copy `source` into `out`, in host memory, once `after` is done; both belong to the copy until then.

        `after` must be an event of this device.
        """

    def poll_until_done(self, work: Callable[[], None]) -> None:
        """Call `work` again and again, at least once, while the device computes what it was given.

        A processor computes before it returns: there `work` is never called.
        """


class Done:
    """An event or a copy that is complete."""

    def done(self) -> bool:
        """Return True."""
        return True


class Host:
    """The processor, with NumPy. All is done when the call returns.

    Attributes
    ----------
    xp : module
        Array namespace.
    name : str
    on_host : bool
        Whether its arrays are NumPy's.
    piece_bytes : int or None
        In pieces of which size other ranks' memory is read, so that something else can be done between two.
    pageable_bytes : int
        Of memory that `register` could not help.
    """

    xp, name, on_host = np, "cpu", True
    piece_bytes = None
    pageable_bytes = 0

    def to_device(self, array: np.ndarray):
        """Return a copy of `array` on the device, beginning at a multiple of 64 bytes.

        `array` may not change while it is copied, which may take longer than this where it is page-locked.
        """
        return aligned_copy(array)

    def zeros(self, size: int, dtype):
        """Return a vector of zeros on the device, which are there: MPI and copies may use it at once. Waits."""
        return aligned_copy(np.zeros(size, dtype))

    def to_host(self, array) -> np.ndarray:
        """Return an array of the device in host memory; not a copy where it is there."""
        return array

    def host_zeros(self, n_bytes: int) -> np.ndarray:
        """Return host memory, uint8, aligned to 64 bytes, that copies to and from the device are fast with."""
        memory = np.zeros(n_bytes + ALIGNMENT_BYTES, np.uint8)
        lo = -memory.ctypes.data % ALIGNMENT_BYTES
        return memory[lo : lo + n_bytes]

    def register(self, memory: np.ndarray) -> bool:
        """Make host memory of somebody else such as that of `host_zeros`; whether that was to be had."""
        return True

    def unregister(self, memory: np.ndarray) -> None:
        """Take back what `register` did, before the memory is given back."""

    def record_event(self):
        """Set a mark."""
        return Done()

    def wait(self) -> None:
        """Wait until all is done that the device was told."""

    def upload(self, source: np.ndarray, out, after):
        """Begin to copy `source` into `out`, of the device, once the mark `after` is done; both are the copy's."""
        out[...] = source
        return Done()

    def download(self, source, out: np.ndarray, after):
        """Begin to copy `source`, of the device, into `out` once the mark `after` is done; both are the copy's."""
        out[...] = source
        return Done()

    def poll_until_done(self, work: Callable[[], None]) -> None:
        """Call `work` again and again, at least once, while the device computes what it was told. Here, never."""


def choose(kind: str, local_rank: int = 0, tf32: bool = False):
    """Return the device of a rank.

    Parameters
    ----------
    kind : {"cpu", "gpu", "auto"}
        The setting ``device.kind``. "auto": a GPU where there is one and CuPy can use it.
    local_rank : int
        Number of the rank among those of its node, which take its visible GPUs in turn.
    tf32 : bool
        Whether matrix products of float32 may round their factors to TF32, which CuPy is told once per process.

    Returns
    -------
    device : Host or Gpu

    Raises
    ------
    ConfigError
        If `kind` is unknown or cannot be had.
    """
    if kind not in KINDS:
        raise ConfigError(f"`device.kind` must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "cpu" or (kind == "auto" and not n_device_files()):
        return Host()
    found, problem = _look_for_gpus()
    if found:
        from hpc_dasgd.arrays.gpu import Gpu

        try:
            return Gpu(local_rank % len(found), tf32)
        except Exception as error:  # of CuPy, CUDA or the compiler of its kernels, which have no base in common
            problem = f"a CuPy that can compute there ({_first_line(error)})"
    if kind == "auto":
        return Host()
    raise ConfigError(f'`device.kind` = "gpu" needs {problem}; "cpu" or "auto" go without')


def gpus() -> list[tuple[str, str]] | None:
    """Return name and PCI bus of each GPU that CuPy sees; None where there is no CuPy."""
    return _look_for_gpus()[0]


def n_device_files() -> int:
    """How many GPUs the driver of this node shows; asks nobody, and loads nothing."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _look_for_gpus() -> tuple[list[tuple[str, str]] | None, str]:
    """As `gpus`; and what is missing."""
    try:
        from hpc_dasgd.arrays.gpu import visible_gpus
    except ImportError as error:
        reason = _first_line(error)
        return None, f"CuPy, which cannot be imported ({reason}): pip install cupy-cuda13x, or that of the node's CUDA"
    found, reason = visible_gpus()
    return found, f"a GPU, and CuPy sees none ({reason})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
