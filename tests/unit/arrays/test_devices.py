"""The choice of a device, and the processor as a device; `test_gpu` tests the GPU."""

import sys
from types import ModuleType

import numpy as np
import pytest

from hpc_dasgd.arrays import arithmetic, devices
from hpc_dasgd.errors import ConfigError


@pytest.fixture
def without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it is an error now
    monkeypatch.delitem(sys.modules, "hpc_dasgd.arrays.gpu", raising=False)


def test_the_kind_cpu_selects_the_processor():
    chosen = devices.choose("cpu", local_rank=3, tf32=True)
    assert isinstance(chosen, devices.Host) and chosen.name == "cpu" and chosen.xp is np


def test_auto_does_not_search_for_gpus_without_device_files(monkeypatch):
    monkeypatch.setattr(devices, "n_device_files", lambda: 0)
    monkeypatch.setattr(devices, "_find_gpus", lambda: pytest.fail("GPUs were searched for"))
    assert devices.choose("auto").on_host


def test_auto_selects_the_processor_without_cupy(monkeypatch, without_cupy):
    monkeypatch.setattr(devices, "n_device_files", lambda: 2)
    assert devices.choose("auto").on_host
    assert devices.gpus() is None


def test_the_kind_gpu_without_cupy_is_an_error(without_cupy):
    with pytest.raises(ConfigError, match=r'^`device\.kind` = "gpu" needs CuPy, which cannot be imported \(.+\): pip'):
        devices.choose("gpu")


def test_the_kind_gpu_without_a_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(devices, "_find_gpus", lambda: ([], "a GPU, and CuPy sees none"))
    with pytest.raises(ConfigError, match=r'^`device\.kind` = "gpu" needs a GPU, and CuPy sees none; "cpu" and "auto"'):
        devices.choose("gpu")
    monkeypatch.setattr(devices, "n_device_files", lambda: 1)
    assert devices.choose("auto").on_host


def test_an_error_of_cupy_is_named_if_gpus_were_found(monkeypatch):
    gpu = ModuleType("hpc_dasgd.arrays.gpu")
    gpu.Gpu = lambda number, tf32: 1 / number
    monkeypatch.setitem(sys.modules, "hpc_dasgd.arrays.gpu", gpu)
    monkeypatch.setattr(devices, "_find_gpus", lambda: ([("H200", "1")], ""))
    with pytest.raises(ConfigError, match=r"needs a CuPy that works on it \(float division by zero\)|division"):
        devices.choose("gpu", local_rank=3)
    monkeypatch.setattr(devices, "n_device_files", lambda: 1)
    assert devices.choose("auto").on_host


@pytest.mark.parametrize("kind", ["tpu", "", None, "CPU"])
def test_an_error_names_an_unknown_kind(kind):
    with pytest.raises(ConfigError, match=r"`device\.kind` must be one of cpu, gpu, auto, got " + repr(kind)):
        devices.choose(kind)


def test_operations_of_the_processor_are_complete_when_they_return():
    host = devices.Host()
    source = np.arange(5.0)
    placed = host.to_device(source)
    assert placed is not source and placed.tolist() == source.tolist()
    assert host.to_host(placed) is placed
    memory = host.host_zeros(100)
    assert memory.dtype == np.uint8 and memory.size == 100 and memory.ctypes.data % 64 == 0 and not memory.any()
    out = host.zeros(5, np.float64)
    assert host.upload(source, out, after=host.record_event()).done() and out.tolist() == source.tolist()
    assert host.download(out * 2, source, after=host.record_event()).done() and source.tolist() == [0, 2, 4, 6, 8]
    assert host.register(memory)
    host.unregister(memory)
    host.poll_until_done(lambda: pytest.fail("the processor has computed already"))


@pytest.mark.parametrize("n_terms", [1, 2, 5])
def test_terms_are_added_from_left_to_right(n_terms):
    rng = np.random.default_rng(0)
    terms = [rng.standard_normal(100).astype("f4") * 10.0**k for k in range(n_terms)]
    expected = terms[0].copy()
    for term in terms[1:]:
        expected = expected + term
    out = np.full(100, np.nan, "f4")
    arithmetic.add_up(terms, out)
    assert out.tobytes() == expected.tobytes()
    first = terms[0].copy()
    arithmetic.add_up([first, *terms[1:]], first)  # in place
    assert first.tobytes() == expected.tobytes()


@pytest.mark.parametrize("library", ["numpy", "array_api_strict"])
def test_the_gradient_of_a_maximum_goes_to_the_larger_or_the_first_argument(library):
    xp = pytest.importorskip(library)
    pairs = xp.asarray([[1.0, 2.0, 5.0, 3.0], [4.0, 4.0, -1.0, 0.0]])
    arithmetic.backpropagate_maximum(xp.asarray([[10.0, 20.0], [30.0, 40.0]]), pairs[:, 0::2], pairs[:, 1::2])
    assert np.asarray(pairs).tolist() == [[0, 10, 20, 0], [30, 0, 0, 40]]


def test_terms_of_another_array_library_are_added():
    xp = pytest.importorskip("array_api_strict")
    out = xp.zeros(3)
    arithmetic.add_up([xp.ones(3), xp.asarray([1.0, 2.0, 3.0]), xp.ones(3)], out)
    assert np.asarray(out).tolist() == [3, 4, 5]


def test_an_array_is_copied_into_host_memory():
    out = np.empty(3)
    arithmetic.copy_to_host(np.arange(3.0), out)
    assert out.tolist() == [0, 1, 2]
    assert isinstance(arithmetic.float_or_gpu_scalar(np.float32(1.5)), float)
