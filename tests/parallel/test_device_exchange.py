"""Exchanges whose replicas are on a device with delayed copies keep the promises of those in host memory."""

import numpy as np
import pytest

from hpc_dasgd.arrays import devices
from hpc_dasgd.arrays.devices import Host
from hpc_dasgd.config.settings import ExchangeConfig, load_config
from hpc_dasgd.errors import ConfigError, WindowError
from hpc_dasgd.exchange import registry
from hpc_dasgd.exchange.interface import ExchangeSetup
from hpc_dasgd.training import problem
from hpc_dasgd.window import gpu_memory
from hpc_dasgd.window.memory import Transfer, WindowMemory
from hpc_dasgd.window.publication import HeaderField
from tests.parallel.integer_updates import N_PARAMS, Updates
from tests.parallel.late_device import FarArray, LateDevice
from tests.parallel.test_exchange import held_by, make_read, small_blocks, step  # noqa: F401, the fixture is used

MIRRORED = {
    "accumulate": ExchangeConfig(kind="accumulate"),
    "server": ExchangeConfig(kind="server"),
    "allreduce": ExchangeConfig(kind="allreduce"),
}


def make_on_device(comm, settings, device):
    return registry.make_exchange(ExchangeSetup(comm, np.arange(N_PARAMS, dtype="f4"), settings, device=device))


def check_held(exchange):
    np.testing.assert_array_equal(np.asarray(exchange.parameters), held_by(exchange.versions))


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize(
    ("overlay", "consistency", "every"),
    [
        *(("complete", "snapshot", 1), ("complete", "snapshot", 3), ("complete", "elementwise", 1)),
        *(("tree", "snapshot", 1), ("tree", "snapshot", 3), ("tree", "elementwise", 1), ("star", "snapshot", 1)),
    ],
)
def test_every_update_is_held_once_at_any_time(comm, overlay, consistency, every):
    device = LateDevice(seed=comm.rank)
    exchange = make_read(comm, overlay, consistency=consistency, every=every, device=device)
    updates = Updates(comm.rank)
    for _ in range(60 + 10 * comm.rank):
        exchange.pull()
        if consistency == "snapshot":
            check_held(exchange)
        before = exchange.parameters.copy()
        device.poll_until_done(exchange.read_on)
        np.testing.assert_array_equal(exchange.parameters, before)  # a gradient is being computed at these parameters
        exchange.push(updates[exchange.made])
        if consistency == "snapshot":
            check_held(exchange)
    settled = exchange.settle()
    assert exchange.versions.tolist() == [60 + 10 * rank for rank in range(comm.size)]
    assert isinstance(exchange.parameters, FarArray) and settled.drift == 0.0
    check_held(exchange)
    assert device.n_downloads > 1 and (device.n_uploads > 1 or comm.size == 1)
    exchange.free()
    assert device.n_registered == 0


@pytest.mark.parallel([4])
@pytest.mark.parametrize("overlay", ["complete", "tree"])
def test_ranks_with_and_without_a_device_exchange_updates(comm, overlay):
    exchange = make_read(comm, overlay, device=LateDevice(seed=comm.rank) if comm.rank % 2 else Host())
    updates = Updates(comm.rank)
    for _ in range(40):
        step(exchange, updates)
        check_held(exchange)
    exchange.settle()
    assert exchange.versions.tolist() == [40] * comm.size
    check_held(exchange)
    exchange.free()


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize(
    ("overlay", "consistency"), [("complete", "snapshot"), ("complete", "elementwise"), ("tree", "snapshot")]
)
def test_every_update_is_held_once_with_windows_on_the_device(comm, overlay, consistency):
    device = LateDevice(seed=comm.rank)
    exchange = make_read(comm, overlay, consistency=consistency, device=device, device_windows=True)
    assert all(isinstance(slot.payload, FarArray) for slot in exchange._state.window.channels[0].slots)
    updates = Updates(comm.rank)
    for _ in range(60):
        exchange.pull()
        device.poll_until_done(exchange.read_on)
        exchange.push(updates[exchange.made])
        if consistency == "snapshot":
            check_held(exchange)
    exchange.settle()
    assert exchange.versions.tolist() == [60] * comm.size
    check_held(exchange)
    assert device.n_uploads == device.n_downloads == 0  # no payload passes through host memory
    assert exchange.transferred_bytes > 0 or comm.size == 1
    exchange.free()
    assert device.n_registered == 0


@pytest.mark.parallel([2])
def test_windows_on_the_device_are_refused_if_a_probe_reads_nothing(comm, monkeypatch):
    monkeypatch.setattr(Transfer, "done", lambda self: True)  # as if the read were complete
    monkeypatch.setattr(WindowMemory, "_get", lambda *_: iter([[]]))
    with pytest.raises(WindowError, match="a probe read nothing"):
        make_read(comm, device=LateDevice(), device_windows=True, request_reads=True)


@pytest.mark.parallel([1, 2])
def test_windows_on_a_device_need_a_device_and_a_cuda_aware_mpi(comm, monkeypatch):
    config = load_config({"data": {"path": "digits"}, "budget": {"seconds": 1}, "exchange": {"device_windows": True}})
    with pytest.raises(ConfigError, match=r"`exchange\.device_windows` = true needs a GPU, got cpu on rank 0"):
        problem.choose_device(comm, config, None)
    monkeypatch.setattr(devices, "choose", lambda *_: LateDevice())
    if not gpu_memory.is_cuda_aware(comm):
        with pytest.raises(ConfigError, match=r"needs an MPI that declares support of GPU memory, got .*MPI"):
            problem.choose_device(comm, config, None)
    monkeypatch.setattr(gpu_memory, "is_cuda_aware", lambda comm: True)
    assert problem.choose_device(comm, config, None).name == "late"


@pytest.mark.parallel([1, 2])
def test_steps_continue_while_a_publication_is_under_way(comm):
    """Its version is raised when all of it is in the window; later updates are part of the next publication."""
    device = LateDevice(most_polls=1)
    exchange = make_read(comm, device=device)
    device.download, copies = lambda source, out, after: copies.append((source, out)) or PendingCopy(), []
    updates = Updates(comm.rank)
    exchange.push(updates[0])
    channel, header = exchange._state.window.channels[0], exchange._state.window.channels[0]._header
    assert (header[HeaderField.PUBLICATION], header[HeaderField.BEGUN]) == (0, 1)
    for version in range(1, 5):
        exchange.push(updates[version])
        exchange.read_on()
    assert len(copies) == 1 and (header[HeaderField.PUBLICATION], header[HeaderField.BEGUN]) == (0, 1)
    (source, out), PendingCopy.complete = copies[0], True
    np.asarray(out)[...] = source
    exchange.pull()
    assert header[HeaderField.PUBLICATION] == 1 and channel.published.versions.tolist() == [1]
    expected = Updates(comm.rank).sum_to(1) + (np.arange(N_PARAMS) if comm.rank == 0 else 0)
    np.testing.assert_array_equal(channel.published.payload, expected)
    del device.download
    exchange.push(updates[5])
    exchange.settle()
    assert exchange.versions.tolist() == [6] * comm.size
    check_held(exchange)
    exchange.free()
    PendingCopy.complete = False


class PendingCopy:
    complete = False

    def done(self):
        return self.complete


@pytest.mark.parallel([2])
def test_independent_replicas_on_a_device_stay_independent(comm):
    exchange = make_on_device(comm, ExchangeConfig(kind="none"), LateDevice())
    for _ in range(20):
        step(exchange, Updates(comm.rank))
    exchange.settle()
    np.testing.assert_array_equal(np.asarray(exchange.parameters), np.arange(N_PARAMS) + Updates(comm.rank).sum_to(20))
    exchange.free()


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("kind", MIRRORED)
@pytest.mark.parametrize("every", [1, 3])
def test_exchanges_in_host_memory_are_mirrored_on_a_device(comm, kind, every):
    device = LateDevice(seed=comm.rank)
    exchange = make_on_device(comm, MIRRORED[kind], device)
    exchange.every = every
    updates = Updates(comm.rank)
    n_steps = 30  # the same on all ranks: allreduce is synchronous
    for _ in range(n_steps):
        exchange.pull()
        device.poll_until_done(exchange.read_on)
        exchange.push(updates[exchange.made])
    exchange.settle()
    assert exchange.versions.tolist() == [n_steps] * comm.size and isinstance(exchange.parameters, FarArray)
    total = held_by([n_steps] * comm.size) - np.arange(N_PARAMS)
    share = comm.size if kind == "allreduce" else 1
    np.testing.assert_allclose(np.asarray(exchange.parameters), np.arange(N_PARAMS) + total / share, atol=1e-3)
    exchange.free()
    assert device.n_registered == 0


@pytest.mark.parallel([4])
@pytest.mark.parametrize("mixing", ["average", "push-sum"])
def test_gossip_is_mirrored_on_a_device(comm, mixing):
    config = ExchangeConfig(kind="gossip", topology="ring", mixing=mixing)
    exchange = make_on_device(comm, config, LateDevice(seed=comm.rank))

    def towards_3(lo, hi, out):
        out[...] = 0.5 * (3.0 - exchange.parameters[lo:hi])

    for _ in range(60):
        exchange.pull()
        exchange.push(towards_3)
        comm.Barrier()
    exchange.settle()
    np.testing.assert_allclose(np.asarray(exchange.parameters), 3.0, rtol=1e-2)
    exchange.free()
