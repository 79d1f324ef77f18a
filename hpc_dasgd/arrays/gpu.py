"""A GPU, with CuPy: what it computes, and copies to and from it that go on beside that."""

import os
from collections.abc import Callable
from functools import cache

import cupy
import numpy as np
from cupy.cuda import runtime

_SUCCESS, _NOT_READY = 0, 600  # of CUDA's answers
_TERMS_AT_ONCE = 16
_PIECE_BYTES = 1 << 20  # a tenth of a millisecond of copying by a processor
_LARGE_BYTES = 256 << 20


def visible_gpus() -> tuple[list[tuple[str, str]], str]:
    """Return name and PCI bus of each visible GPU; and where there is none, what CUDA says."""
    try:
        devices = range(runtime.getDeviceCount())
        return [(_name(device), runtime.deviceGetPCIBusId(device)) for device in devices], ""
    except runtime.CUDARuntimeError as error:
        return [], str(error)


def _name(device: int) -> str:
    return runtime.getDeviceProperties(device)["name"].decode()


class Event:
    """All that a stream was told to do before this was made."""

    def __init__(self, stream, keeps=()):
        self._event = cupy.cuda.Event(disable_timing=True)
        self._event.record(stream)
        self._keeps = keeps  # memory must not be given back under a copy

    @property
    def event(self):
        return self._event

    def done(self) -> bool:
        """Whether it is done; never waits."""
        status = runtime.eventQuery(self._event.ptr)
        if status not in (_SUCCESS, _NOT_READY):
            raise runtime.CUDARuntimeError(status)
        return status == _SUCCESS


class Gpu:
    """A GPU; see `device.Host` for the attributes and methods. The thread that makes it computes on it from then on.

    Computing is done on CUDA's default stream, which is also that of PyTorch, so that what one library computes the
    other finds. Copies have a stream for each direction.

    Parameters
    ----------
    number : int
        Among the visible ones.
    tf32 : bool
        See `device.choose`.
    """

    xp, on_host = cupy, False
    piece_bytes = _PIECE_BYTES

    def __init__(self, number: int, tf32: bool = False):
        os.environ["CUPY_TF32"] = str(int(tf32))  # which CuPy reads before its first matrix product
        cupy.cuda.Device(number).use()
        self.name = f"{_name(number)} (PCI {runtime.deviceGetPCIBusId(number)})"
        self.pageable_bytes = 0
        self._compute = cupy.cuda.Stream.null
        self._up, self._down = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        add_up([self.zeros(1, np.float32)] * 2, self.zeros(1, np.float32))  # a CuPy that is not whole fails here

    def to_device(self, array: np.ndarray):
        placed = cupy.array(array)
        if array.nbytes > _LARGE_BYTES:  # by way of page-locked memory, which CuPy would keep
            cupy.get_default_pinned_memory_pool().free_all_blocks()
        return placed

    def zeros(self, size: int, dtype):
        zeros = cupy.zeros(size, dtype)
        self.wait()  # MPI and copies do not
        return zeros

    def to_host(self, array) -> np.ndarray:
        return cupy.asnumpy(array)

    def host_zeros(self, n_bytes: int) -> np.ndarray:
        # Not from CuPy's pool, which rounds up to powers of two.
        pinned = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(max(1, n_bytes)), 0)
        memory = np.frombuffer(pinned, np.uint8, n_bytes)
        memory[:] = 0
        return memory

    def register(self, memory: np.ndarray) -> bool:
        try:
            runtime.hostRegister(memory.ctypes.data, memory.nbytes, 0)
        except runtime.CUDARuntimeError:
            self.pageable_bytes += memory.nbytes
            return False
        return True

    def unregister(self, memory: np.ndarray) -> None:
        runtime.hostUnregister(memory.ctypes.data)

    def record_event(self) -> Event:
        return Event(self._compute)

    def wait(self) -> None:
        self._compute.synchronize()

    def upload(self, source: np.ndarray, out, after: Event) -> Event:
        self._up.wait_event(after.event)
        addresses = out.data.ptr, source.ctypes.data
        runtime.memcpyAsync(*addresses, source.nbytes, runtime.memcpyHostToDevice, self._up.ptr)
        return Event(self._up, (source, out))

    def download(self, source, out: np.ndarray, after: Event) -> Event:
        self._down.wait_event(after.event)
        addresses = out.ctypes.data, source.data.ptr
        runtime.memcpyAsync(*addresses, out.nbytes, runtime.memcpyDeviceToHost, self._down.ptr)
        return Event(self._down, (source, out))

    def poll_until_done(self, work: Callable[[], None]) -> None:
        event = self.record_event()
        while True:
            work()
            if event.done():
                break
            os.sched_yield()  # there may be more ranks than cores


def add_up(terms, out) -> None:
    """See `arrays.add_up`."""
    terms = list(terms)
    while terms:
        now, terms = terms[:_TERMS_AT_ONCE], terms[_TERMS_AT_ONCE:]
        _adder(len(now))(*now, out)
        if terms:
            terms.insert(0, out)


def split_maximum(delta, first, second) -> None:
    """See `arrays.split_maximum`."""
    _splitter()(delta, first, second)


@cache
def _splitter() -> cupy.ElementwiseKernel:
    operation = "T kept = T(first >= second) * delta; second = delta - kept; first = kept"
    return cupy.ElementwiseKernel("T delta", "T first, T second", operation, "split_maximum")


@cache
def _adder(n_terms: int) -> cupy.ElementwiseKernel:
    """One kernel that adds up arrays from left to right."""
    terms = [f"x{k}" for k in range(n_terms)]
    return cupy.ElementwiseKernel(", ".join(f"T {term}" for term in terms), "T y", f"y = {' + '.join(terms)}", "add_up")
