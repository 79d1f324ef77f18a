"""A GPU, with CuPy: computing on it, and copies to and from it at the same time."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from hpc_dasgd.arrays.devices import Completion
from hpc_dasgd.arrays.types import AnyArray, Array, Bytes, DType, Namespace

_SUCCESS, _NOT_READY = 0, 600  # status codes of CUDA
_TERMS_PER_KERNEL = 16
_PIECE_BYTES = 1 << 20  # a processor copies it in a tenth of a millisecond
_LARGE_BYTES = 256 << 20


def visible_gpus() -> tuple[list[tuple[str, str]], str]:
    """Return the name and the PCI bus ID of each visible GPU, and the message of CUDA if there are none."""
    try:
        devices = range(runtime.getDeviceCount())
        return [(_name(device), runtime.deviceGetPCIBusId(device)) for device in devices], ""
    except runtime.CUDARuntimeError as error:
        return [], str(error)


def _name(device: int) -> str:
    return runtime.getDeviceProperties(device)["name"].decode()


class Event:
    """A point in the work of a stream: done when all work given to the stream before is done.

    Parameters
    ----------
    stream : cupy.cuda.Stream
        The stream.
    buffers : tuple of array
        Arrays that the work uses, whose memory must not be freed before it is done.

    Attributes
    ----------
    event : cupy.cuda.Event
    """

    def __init__(self, stream: Any, buffers: tuple[Array, ...] = ()) -> None:
        self.event = cupy.cuda.Event(disable_timing=True)
        self.event.record(stream)
        self._buffers = buffers

    def done(self) -> bool:
        """Return whether the work is done; never waits."""
        status = runtime.eventQuery(self.event.ptr)
        if status not in (_SUCCESS, _NOT_READY):
            raise runtime.CUDARuntimeError(status)
        return status == _SUCCESS


class Gpu:
    """A GPU, which becomes the current device of the thread that creates the object. See `Device`.

    It computes in CUDA's default stream, which is also that of PyTorch, so that the work of both libraries is done in
    order. Copies in each direction have a stream of their own.

    Parameters
    ----------
    number : int
        Number of the GPU among the visible ones.
    tf32 : bool
        Whether matrix products of float32 may round their factors to TF32; see `devices.choose`.
    """

    xp: Namespace = cupy
    on_host = False
    piece_bytes: int | None = _PIECE_BYTES

    def __init__(self, number: int, tf32: bool = False) -> None:
        os.environ["CUPY_TF32"] = str(int(tf32))  # CuPy reads it before its first matrix product
        cupy.cuda.Device(number).use()
        self.name = f"{_name(number)} (PCI {runtime.deviceGetPCIBusId(number)})"
        self.pageable_bytes = 0
        self._compute = cupy.cuda.Stream.null
        self._up, self._down = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        add_up([self.zeros(1, np.float32)] * 2, self.zeros(1, np.float32))  # an incomplete CuPy fails here

    def to_device(self, array: AnyArray) -> Array:
        """Return a copy on the GPU; see `Device`."""
        copy = cupy.array(array)
        if array.nbytes > _LARGE_BYTES:  # CuPy copies by way of page-locked memory, and would keep it
            cupy.get_default_pinned_memory_pool().free_all_blocks()
        return copy

    def zeros(self, size: int, dtype: DType) -> Array:
        """Return a vector of zeros; waits until they are stored, see `Device`."""
        zeros = cupy.zeros(size, dtype)
        self.wait()  # MPI and the streams of copies do not wait for the default stream
        return zeros

    def to_host(self, array: Array) -> AnyArray:
        """Return a copy in host memory; waits for it, see `Device`."""
        return cupy.asnumpy(array)

    def host_zeros(self, n_bytes: int) -> Bytes:
        """Return zeroed, page-locked memory; see `Device`."""
        # Not from CuPy's pool, which rounds sizes up to powers of two.
        pinned = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(max(1, n_bytes)), 0)
        memory = np.frombuffer(pinned, np.uint8, n_bytes)
        memory[:] = 0
        return memory

    def register(self, memory: Bytes) -> bool:
        """Page-lock memory, and add its size to `pageable_bytes` if that failed; see `Device`."""
        try:
            runtime.hostRegister(memory.ctypes.data, memory.nbytes, 0)
        except runtime.CUDARuntimeError:
            self.pageable_bytes += memory.nbytes
            return False
        return True

    def unregister(self, memory: Bytes) -> None:
        """Undo `register`; see `Device`."""
        runtime.hostUnregister(memory.ctypes.data)

    def record_event(self) -> Event:
        """Return an event of the default stream; see `Device`."""
        return Event(self._compute)

    def wait(self) -> None:
        """Wait for the default stream; see `Device`."""
        self._compute.synchronize()

    def upload(self, source: AnyArray, out: Array, after: Completion) -> Event:
        """Start a copy to the GPU; see `Device`."""
        assert isinstance(after, Event)
        self._up.wait_event(after.event)
        addresses = out.data.ptr, source.ctypes.data
        runtime.memcpyAsync(*addresses, source.nbytes, runtime.memcpyHostToDevice, self._up.ptr)
        return Event(self._up, (source, out))

    def download(self, source: Array, out: AnyArray, after: Completion) -> Event:
        """Start a copy from the GPU; see `Device`."""
        assert isinstance(after, Event)
        self._down.wait_event(after.event)
        addresses = out.ctypes.data, source.data.ptr
        runtime.memcpyAsync(*addresses, out.nbytes, runtime.memcpyDeviceToHost, self._down.ptr)
        return Event(self._down, (source, out))

    def poll_until_done(self, work: Callable[[], None]) -> None:
        """Call `work` until the default stream has done its work; see `Device`."""
        event = self.record_event()
        while True:
            work()
            if event.done():
                break
            os.sched_yield()  # there may be more ranks than cores


def add_up(terms: Sequence[Array], out: Array) -> None:
    """Store the sum of the terms, added from left to right, into `out`; see `arithmetic.add_up`."""
    terms = list(terms)
    while terms:
        first_terms, terms = terms[:_TERMS_PER_KERNEL], terms[_TERMS_PER_KERNEL:]
        _sum_kernel(len(first_terms))(*first_terms, out)
        if terms:
            terms.insert(0, out)


def backpropagate_maximum(by_maximum: Array, first: Array, second: Array) -> None:
    """Overwrite the arguments of a maximum with their gradients; see `arithmetic.backpropagate_maximum`."""
    _maximum_kernel()(by_maximum, first, second)


@cache
def _maximum_kernel() -> Any:
    """Return the kernel of `backpropagate_maximum`."""
    operation = "T by_first = T(first >= second) * by_maximum; second = by_maximum - by_first; first = by_first"
    return cupy.ElementwiseKernel("T by_maximum", "T first, T second", operation, "backpropagate_maximum")


@cache
def _sum_kernel(n_terms: int) -> Any:
    """Return a kernel that adds `n_terms` arrays from left to right."""
    terms = [f"x{k}" for k in range(n_terms)]
    return cupy.ElementwiseKernel(", ".join(f"T {term}" for term in terms), "T y", f"y = {' + '.join(terms)}", "add_up")
