"""Runs whose parameters are not in host memory, from settings to files.

The device is simulated by NumPy arrays, which are copied to and from host memory as those of a GPU are. Runs on a GPU
are tested by `test_gpu_training`.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import hpc_dasgd
from hpc_dasgd.analysis import replay
from hpc_dasgd.arrays import devices
from hpc_dasgd.report.summary import summary

EXCHANGES = {
    "read": {},
    "tree": {"topology": "tree"},
    "accumulate": {"kind": "accumulate"},
    "gossip": {"kind": "gossip", "topology": "ring"},
    "server": {"kind": "server"},
    "allreduce": {"kind": "allreduce"},
    "none": {"kind": "none"},
}


class SimulatedDevice(devices.Host):
    """A device with NumPy arrays, which are accessed by copies only."""

    name, on_host = "simulated (PCI 0)", False
    piece_bytes = 1 << 14
    n_copies = 0

    def to_device(self, array):
        SimulatedDevice.n_copies += 1
        return np.array(array)

    def to_host(self, array):
        return np.array(array)


@pytest.fixture(autouse=True)
def simulated_device(monkeypatch):
    monkeypatch.setattr(SimulatedDevice, "n_copies", 0)
    monkeypatch.setattr(devices, "choose", lambda kind, local_rank=0, tf32=False: SimulatedDevice())


def settings(**sections):
    config = {
        "data": {"path": "digits"},
        "objective": {"kind": "mlp", "hidden": [32]},
        "optimizer": {"stepsize": 0.1},
        "budget": {"gradients": 600},
        "log": {"evaluate_every_s": 0.1},
    }
    return {name: config.get(name, {}) | sections.get(name, {}) for name in {**config, **sections}}


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_every_exchange_trains_on_the_device(comm, tmp_path, exchange):
    config = settings(exchange=exchange)
    result = hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False)
    run = hpc_dasgd.open_run(result.run)
    assert list(run.attributes["devices"]) == ["simulated (PCI 0)"] * comm.size
    assert f"{run.attributes['hosts'][0]}, simulated (PCI 0)" in summary(run)
    assert result.accuracy > 0.8 and isinstance(result.parameters, np.ndarray)
    assert result.gradients >= 600 and SimulatedDevice.n_copies > 0
    if exchange.get("kind") != "none":
        assert result.parameters.tobytes() == run.final.tobytes()


@pytest.mark.parallel([1, 4])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_run_on_the_device_is_replayed_bit_for_bit(comm, tmp_path, optimizer):
    config = settings(exchange={"topology": "tree"}, optimizer={"kind": optimizer, "stepsize": 0.005})
    result = hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False)
    if comm.rank == 0:
        replayed = replay.replay(hpc_dasgd.open_run(result.run))
        assert replayed.agrees, replayed.differences


@pytest.mark.parallel([4])
def test_a_run_on_the_device_is_resumed_from_its_checkpoints(comm, tmp_path):
    config = settings(optimizer={"kind": "momentum", "stepsize": 0.01}, checkpoint={"every_s": 0.05})
    first = hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False)
    longer = config | {"budget": {"gradients": 1200}}
    second = hpc_dasgd.train(longer, comm=comm, run=first.run, resume=True, progress=False)
    run = hpc_dasgd.open_run(first.run)
    assert second.gradients >= 1200 > first.gradients and len(run.generations) == 2
    assert_allclose(run.generations[1].attributes["begun_s"], first.seconds, atol=1.0)
    if comm.rank == 0:
        assert replay.replay(run).agrees


@pytest.mark.parallel([2])
def test_the_stepsize_is_chosen_by_probing_gradients_on_the_device(comm, tmp_path):
    config = settings(optimizer={"stepsize": "bound"}, budget={"gradients": 100})
    result = hpc_dasgd.train(config, comm=comm, run=tmp_path / "run", progress=False)
    assert result.stepsize_by.startswith("bound") and result.stepsize > 0


@pytest.mark.parallel([2])
def test_a_torch_module_trains_on_the_device(comm, tmp_path):
    torch = pytest.importorskip("torch")
    from hpc_dasgd.objectives import from_torch

    objective = from_torch(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), torch.nn.functional.cross_entropy
    )
    result = hpc_dasgd.train(settings(), objective, comm=comm, run=tmp_path / "run", progress=False)
    assert result.accuracy > 0.8
