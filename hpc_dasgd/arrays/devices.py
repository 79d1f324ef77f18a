"""Devices: what a rank computes with, its processor or a GPU of its node.

`Host` and ``gpu.Gpu`` are the two kinds of `Device`. An *event* stands for all work that was given to the device before
it was recorded, a *copy* for one transfer between host memory and the device; both are a `Completion`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from hpc_dasgd.arrays.arithmetic import ALIGNMENT_BYTES, aligned_copy, aligned_part
from hpc_dasgd.arrays.types import AnyArray, Array, Bytes, DType, Namespace
from hpc_dasgd.errors import ConfigError

KINDS = ("cpu", "gpu", "auto")
"""Values of the setting ``device.kind``."""


class Completion(Protocol):
    """Work that may not be complete yet: an event of a device, or a copy."""

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

        `array` must not change while it is copied, which may take longer than this call if it is page-locked.
        """

    def zeros(self, size: int, dtype: DType) -> Array:
        """Return a vector of zeros on the device; waits until they are stored, so that MPI and copies may use it."""

    def to_host(self, array: Array) -> AnyArray:
        """Return an array of the device in host memory; not a copy if it already is there."""

    def host_zeros(self, n_bytes: int) -> Bytes:
        """Return zeroed host memory, aligned to 64 bytes, page-locked if the device copies from it."""

    def register(self, memory: Bytes) -> bool:
        """Page-lock host memory that something else allocated. Returns True if that succeeded."""

    def unregister(self, memory: Bytes) -> None:
        """Undo `register`, before the memory is freed."""

    def record_event(self) -> Completion:
        """Return an event that is done when all work given to the device so far is done."""

    def wait(self) -> None:
        """Wait until all work given to the device so far is done."""

    def upload(self, source: AnyArray, out: Array, after: Completion) -> Completion:
        """Start to copy `source`, in host memory, into `out`, on the device, after the event `after`.

        Until the copy is done, `source` must not change and `out` must not be used. `after` must be an event of this
        device.
        """

    def download(self, source: Array, out: AnyArray, after: Completion) -> Completion:
        """Start to copy `source`, on the device, into `out`, in host memory, after the event `after`.

        Until the copy is done, `source` must not change and `out` must not be used. `after` must be an event of this
        device.
        """

    def poll_until_done(self, work: Callable[[], None]) -> None:
        """Call `work` repeatedly, at least once, until all work given to the device so far is done.

        The processor has done its work already, so it never calls `work`.
        """


class Done:
    """An event or a copy that is complete."""

    def done(self) -> bool:
        """Return True."""
        return True


class Host:
    """The processor, with NumPy; every operation is complete when its call returns. See `Device`."""

    xp: Namespace = np
    name = "cpu"
    on_host = True
    piece_bytes: int | None = None
    pageable_bytes = 0

    def to_device(self, array: AnyArray) -> AnyArray:
        """Return an aligned copy; see `Device`."""
        return aligned_copy(array)

    def zeros(self, size: int, dtype: DType) -> AnyArray:
        """Return an aligned vector of zeros; see `Device`."""
        return aligned_copy(np.zeros(size, dtype))

    def to_host(self, array: AnyArray) -> AnyArray:
        """Return `array` itself; see `Device`."""
        return array

    def host_zeros(self, n_bytes: int) -> Bytes:
        """Return zeroed, aligned memory; see `Device`."""
        return aligned_part(np.zeros(n_bytes + ALIGNMENT_BYTES, np.uint8), n_bytes)

    def register(self, memory: Bytes) -> bool:
        """Return True, since nothing needs to be page-locked; see `Device`."""
        return True

    def unregister(self, memory: Bytes) -> None:
        """Do nothing; see `Device`."""

    def record_event(self) -> Done:
        """Return an event that is done; see `Device`."""
        return Done()

    def wait(self) -> None:
        """Do nothing; see `Device`."""

    def upload(self, source: AnyArray, out: AnyArray, after: Completion) -> Done:
        """Copy `source` into `out`; see `Device`."""
        out[...] = source
        return Done()

    def download(self, source: AnyArray, out: AnyArray, after: Completion) -> Done:
        """Copy `source` into `out`; see `Device`."""
        out[...] = source
        return Done()

    def poll_until_done(self, work: Callable[[], None]) -> None:
        """Do nothing, since the processor has computed already; see `Device`."""


def choose(kind: str, local_rank: int = 0, tf32: bool = False) -> Device:
    """Return the device of a rank.

    Parameters
    ----------
    kind : {"cpu", "gpu", "auto"}
        The setting ``device.kind``. "auto" selects a GPU if there is one that CuPy can use, and else the processor.
    local_rank : int
        Number of the rank among the ranks of its node. They use the visible GPUs of the node in turn.
    tf32 : bool
        Whether matrix products of float32 may round their factors to TF32. It applies to the whole process.

    Returns
    -------
    device : Host or Gpu

    Raises
    ------
    ConfigError
        If `kind` is unknown, or "gpu" and CuPy can use no GPU.
    """
    if kind not in KINDS:
        raise ConfigError(f"`device.kind` must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "cpu" or (kind == "auto" and not n_device_files()):
        return Host()
    visible, problem = _find_gpus()
    if visible:
        from hpc_dasgd.arrays.gpu import Gpu

        try:
            return Gpu(local_rank % len(visible), tf32)
        except Exception as error:  # CuPy, CUDA and the kernels' compiler raise errors without a common base class
            problem = f"a CuPy that works on it ({_first_line(error)})"
    if kind == "auto":
        return Host()
    raise ConfigError(f'`device.kind` = "gpu" needs {problem}; "cpu" and "auto" need no GPU')


def gpus() -> list[tuple[str, str]] | None:
    """Return the name and the PCI bus ID of each GPU that CuPy can use; None if CuPy cannot be imported."""
    return _find_gpus()[0]


def n_device_files() -> int:
    """Return the number of GPUs for which the node's driver shows a device file; loads no library."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _find_gpus() -> tuple[list[tuple[str, str]] | None, str]:
    """Return the result of `gpus`, and what is missing if there are none."""
    try:
        from hpc_dasgd.arrays.gpu import visible_gpus
    except ImportError as error:
        reason = _first_line(error)
        return (
            None,
            f"CuPy, which cannot be imported ({reason}): pip install cupy-cuda13x, or the CuPy for the node's CUDA",
        )
    visible, reason = visible_gpus()
    return visible, f"a GPU, and CuPy sees none ({reason})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
