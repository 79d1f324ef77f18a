"""Runs with models of PyTorch and JAX, started with settings only or from Python."""

import sys

import h5py
import numpy as np
import pytest

import hpc_dasgd
from hpc_dasgd.analysis import replay
from hpc_dasgd.analysis.export import export_parameters

USERS_MODULE = """
import hpc_dasgd


def torch_net(data, dropout=0.0):
    import torch

    hidden = torch.nn.Linear(data.n_features, 16)
    last = torch.nn.Linear(16, data.n_classes)
    layers = [torch.nn.Flatten(), hidden, torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(dropout), last]
    return hpc_dasgd.objectives.from_torch(torch.nn.Sequential(*layers), torch.nn.functional.cross_entropy)


def jax_net(data, hidden=16):
    import jax
    import numpy as np

    def outputs(parameters, x):
        x = jax.numpy.tanh(x.reshape(len(x), -1) @ parameters["hidden"])
        return x @ parameters["last"]

    def loss(parameters, x, y):
        return -jax.numpy.mean(jax.numpy.take_along_axis(jax.nn.log_softmax(outputs(parameters, x)), y[:, None], 1))

    rng = np.random.default_rng(0)
    first = {"hidden": rng.normal(0, 0.1, (data.n_features, hidden)), "last": np.zeros((hidden, data.n_classes))}
    return hpc_dasgd.objectives.from_jax(loss, first, lambda p, x, y: (outputs(p, x).argmax(1) == y).mean())
"""
SETTINGS = """
[data]
path = "digits"
[objective]
kind = "{kind}"
{options}
[optimizer]
stepsize = 0.05
[budget]
gradients = 1200
"""


@pytest.fixture
def start(comm, tmp_path, monkeypatch):
    """Return a function that trains with settings only, given a module of a user in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def train(kind, options="", overrides=()):
        (tmp_path / "users_nets.py").write_text(USERS_MODULE)
        settings = tmp_path / "settings.toml"
        settings.write_text(SETTINGS.format(kind=kind, options=options))
        return hpc_dasgd.train(settings, comm=comm, run=tmp_path / "run", progress=False, overrides=overrides)

    yield train
    sys.modules.pop("users_nets", None)


def equal_on_all_ranks(comm, values):
    return len({bytes(each) for each in comm.allgather(np.ascontiguousarray(values).tobytes())}) == 1


@pytest.mark.parallel([2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_torch_module_named_in_the_settings_learns_and_is_replayed(comm, start, tmp_path, dtype):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    result = start("users_nets:torch_net", "dropout = 0.2", [f"device.dtype={dtype}"])
    assert result.accuracy > 0.85
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        replayed = replay.replay(run)
        assert replayed.differences == [] and replayed.agrees
        assert list(run.running_statistics) == ["2.running_mean", "2.running_var"]
        assert run.running_statistics["2.running_mean"].dtype == dtype
        export_parameters(run, tmp_path / "all.npz")
        with np.load(tmp_path / "all.npz") as arrays:
            assert arrays["1.weight"].shape == (16, 64) and arrays["2.running_var"].all()
            assert sorted(arrays) == sorted([*run.parameter_shapes, *run.running_statistics])


@pytest.mark.parallel([2])
def test_a_jax_function_named_in_the_settings_learns_and_is_replayed(comm, start):
    pytest.importorskip("jax", reason="JAX is not installed")
    result = start("users_nets:jax_net", "hidden = 20")
    assert result.accuracy > 0.85
    if comm.rank == 0:
        run = hpc_dasgd.open_run(result.run)
        replayed = replay.replay(run)
        assert replayed.differences == [] and replayed.agrees
        assert {name: tuple(shape) for name, shape in run.parameter_shapes.items()} == {
            "hidden": (64, 20),
            "last": (20, 10),
        }
        assert run.running_statistics == {}


@pytest.mark.parallel([2])
def test_a_resumed_run_continues_with_its_running_statistics(comm, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    config = {"data": {"path": "digits"}, "objective": {"kind": "softmax"}, "budget": {"gradients": 400}}

    def train(**options):
        layers = [torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10)]
        module = torch.nn.Sequential(*layers)
        objective = hpc_dasgd.objectives.from_torch(module, torch.nn.functional.cross_entropy)
        options |= {"objective": objective, "comm": comm, "run": tmp_path / "run", "progress": False}
        return module, hpc_dasgd.train(config, **options)

    first, result = train()
    folder = comm.bcast(str(result.run), root=0)
    before = hpc_dasgd.open_run(folder).running_statistics["1.running_mean"]
    again, resumed = train(resume=True)  # its budget is spent, so hardly any gradients change the statistics
    assert resumed.gradients <= result.gradients + 2 * comm.size
    change = np.abs(again[1].running_mean.numpy() - before).max()
    assert np.array_equal(first[1].running_mean.numpy(), before)
    assert change <= 0.5 * np.abs(before).max()
    if comm.rank == 0:
        assert resumed.accuracy == pytest.approx(result.accuracy, abs=0.05)


@pytest.mark.parallel([3])
@pytest.mark.parametrize("exchange", [{}, {"survive": True}, {"kind": "allreduce"}, {"kind": "none"}])
def test_a_torch_module_has_the_final_parameters(comm, tmp_path, exchange):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10)]
    module = torch.nn.Sequential(*layers)
    config = {"data": {"path": "digits"}, "exchange": exchange, "budget": {"gradients": 60}}
    objective = hpc_dasgd.objectives.from_torch(module, torch.nn.functional.cross_entropy)
    result = hpc_dasgd.train(config, objective=objective, comm=comm, run=tmp_path / "run", progress=False)
    parameters = np.concatenate([parameter.detach().numpy().ravel() for parameter in module.parameters()])
    assert parameters.tobytes() == result.parameters.tobytes()
    assert module[1].weight.data_ptr() == result.parameters.ctypes.data
    combined = exchange.get("kind") != "none"
    mean = module[2].running_mean.numpy()
    assert equal_on_all_ranks(comm, parameters) == combined
    assert equal_on_all_ranks(comm, mean) == combined
    if comm.rank == 0:
        with h5py.File(result.run / "run.h5") as file:
            assert np.array_equal(file["running_statistics"][:10], mean)
