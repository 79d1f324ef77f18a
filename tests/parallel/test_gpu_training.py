"""Exchanges and runs on a GPU; several ranks share one if there are fewer GPUs than ranks."""

import numpy as np
import pytest

import hpc_dasgd
from hpc_dasgd.analysis import replay
from hpc_dasgd.arrays import devices
from tests.parallel.integer_updates import N_PARAMS, Updates
from tests.parallel.test_device_training import EXCHANGES, settings
from tests.parallel.test_exchange import held_by, make_read

pytestmark = pytest.mark.gpu


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("overlay", ["complete", "tree"])
@pytest.mark.parametrize("every", [1, 3])
def test_every_update_is_held_once_at_any_time(comm, overlay, every):
    device = devices.choose("gpu", local_rank=comm.rank)
    exchange = make_read(comm, overlay, every=every, device=device)
    updates = Updates(comm.rank)

    def on_device(update):
        def store(lo, hi, out):
            values = np.empty(hi - lo, "f4")
            update(lo, hi, values)
            out[...] = device.to_device(values)

        return store

    for _ in range(200):
        exchange.pull()
        np.testing.assert_array_equal(device.to_host(exchange.parameters), held_by(exchange.versions))
        device.poll_until_done(exchange.read_on)
        exchange.push(on_device(updates[exchange.made]))
        np.testing.assert_array_equal(device.to_host(exchange.parameters), held_by(exchange.versions))
    settled = exchange.settle()
    assert exchange.versions.tolist() == [200] * comm.size and settled.drift == 0.0
    np.testing.assert_array_equal(device.to_host(exchange.parameters), held_by(exchange.versions))
    assert exchange.parameters.size == N_PARAMS
    exchange.free()


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("overlay", ["complete", "tree"])
def test_every_update_is_held_once_while_the_gpu_is_busy(comm, overlay):
    """The GPU computes during every read and publication, so that the result depends on the order of its streams."""
    device, n = devices.choose("gpu", local_rank=comm.rank), 1 << 20
    exchange = make_read(comm, overlay, np.full(n, 7.0, "f4"), device=device)
    busy = device.xp.ones((2048, 2048), "f4")
    for _ in range(30):
        exchange.pull()
        assert exchange.parameters.min() == exchange.parameters.max() == 7 + exchange.versions.sum()
        for _ in range(20):
            busy = busy @ busy * 0
        device.poll_until_done(exchange.read_on)
        exchange.push(lambda lo, hi, out: out.fill(1.0))
    exchange.settle()
    assert exchange.parameters.min() == exchange.parameters.max() == 7 + 30 * comm.size
    exchange.free()


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_every_exchange_trains_on_a_gpu(comm, tmp_path, exchange):
    config = settings(exchange=exchange, device={"kind": "gpu"})
    result = hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False)
    assert result.accuracy > 0.8 and isinstance(result.parameters, np.ndarray)
    assert all("(PCI " in name for name in hpc_dasgd.open_run(result.run).attributes["devices"])


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_run_is_replayed_bit_for_bit_on_the_same_gpu(comm, tmp_path, optimizer):
    config = settings(device={"kind": "gpu"}, optimizer={"kind": optimizer, "stepsize": 0.005})
    result = hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False)
    if comm.rank == 0:
        replayed = replay.replay(hpc_dasgd.open_run(result.run))
        assert replayed.agrees, replayed.differences


@pytest.mark.parallel([2])
def test_a_convolutional_network_trains_and_is_resumed(comm, tmp_path):
    config = settings(
        device={"kind": "gpu"},
        objective={"kind": "cnn", "channels": [8], "kernel": 3, "hidden": [32]},
        checkpoint={"every_s": 0.05},
    )
    first = hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False)
    longer = config | {"budget": {"gradients": 1200}}
    second = hpc_dasgd.train(longer, comm=comm, run=first.run, resume=True, progress=False)
    assert second.gradients >= 1200 and second.accuracy > 0.8


@pytest.mark.parallel([2])
def test_ranks_with_and_without_a_gpu_train_together(comm, tmp_path, monkeypatch):
    choose = devices.choose
    monkeypatch.setattr(devices, "choose", lambda kind, local_rank, tf32: choose("gpu" if comm.rank else "cpu"))
    result = hpc_dasgd.train(settings(), comm=comm, run=tmp_path / "run", progress=False)
    names = hpc_dasgd.open_run(result.run).attributes["devices"]
    assert result.accuracy > 0.8 and names[0] == "cpu" and "(PCI " in names[1]
