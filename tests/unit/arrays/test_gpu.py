"""A GPU: copies during computation, sums and updates with the bits of NumPy, and gradients up to rounding errors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_dasgd import objectives
from hpc_dasgd.arrays import arithmetic, devices
from hpc_dasgd.data.batches import Batch, Sampler
from hpc_dasgd.data.dataset import open_dataset
from hpc_dasgd.optim import optimizers
from hpc_dasgd.storage.checkpoint_file import RankState
from hpc_dasgd.storage.checkpoint_writer import CheckpointSchedule, CheckpointWriter

pytestmark = pytest.mark.gpu

CASES = {
    "quadratic": ("quadratic", {"dimension": 50}, (4,), None),
    "logistic": ("logistic", {"l2": 0.1}, (2, 3), 2),
    "softmax": ("softmax", {"l2": 0.1}, (2, 3), 4),
    "mlp": ("mlp", {"hidden": [17, 9]}, (2, 3), 4),
    "tanh": ("mlp", {"hidden": [17], "activation": "tanh"}, (6,), 4),
    "regression": ("mlp", {"hidden": [17]}, (6,), None),
    "cnn": ("cnn", {"channels": [3, 5], "convolutions": 2, "kernel": 3, "hidden": [8]}, (3, 9, 8), 4),
    "channels last": ("cnn", {"channels": [3], "kernel": 5, "hidden": [8], "channel_axis": "last"}, (9, 8, 2), 4),
}


@pytest.fixture(scope="module")
def gpu():
    return devices.choose("gpu")


def wait(copy):
    while not copy.done():
        pass


def problem(name, n_rows=33):
    """Return an objective, parameters and a batch, in NumPy's float64."""
    kind, options, shape, n_classes = CASES[name]
    rng = np.random.default_rng(3)
    n_targets = None if n_classes else 2
    data = SimpleNamespace(
        n_classes=n_classes, n_targets=n_targets, feature_shape=shape, n_features=math.prod(shape), train=None
    )
    if kind in ("logistic", "softmax"):
        data.train = SimpleNamespace(n_rows=n_rows, pieces=lambda n: iter([Batch(rng.random((n_rows, *shape)), None)]))
    objective = objectives.make(kind, options, data)
    parameters = objective.initial(rng) + 0.1 * rng.standard_normal(objective.initial(rng).size)
    y = rng.integers(0, n_classes, n_rows) if n_classes else rng.standard_normal((n_rows, 2))
    return objective, parameters, Batch(rng.standard_normal((n_rows, *shape)), y, (1, 2, 3))


def test_ranks_take_the_visible_gpus_in_turn(gpu):
    (name, bus), *others = devices.gpus()
    assert gpu.name == f"{name} (PCI {bus})" and not gpu.on_host
    assert devices.choose("gpu", local_rank=1 + len(others)).name == gpu.name
    assert devices.choose("auto").name == gpu.name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_terms", [1, 2, 3, 16, 17, 40])
def test_sums_have_the_bits_of_numpy(gpu, dtype, n_terms):
    rng = np.random.default_rng(0)
    terms = [rng.standard_normal(10_001).astype(dtype) for _ in range(n_terms)]
    expected, out = np.empty_like(terms[0]), gpu.zeros(10_001, dtype)
    arithmetic.add_up(terms, expected)
    arithmetic.add_up([gpu.to_device(term) for term in terms], out)
    assert gpu.to_host(out).tobytes() == expected.tobytes()
    first = gpu.to_device(terms[0])
    arithmetic.add_up([first, *(gpu.to_device(term) for term in terms[1:])], first)
    assert gpu.to_host(first).tobytes() == expected.tobytes()


def test_gradients_of_a_maximum_have_the_bits_of_numpy(gpu):
    rng = np.random.default_rng(2)
    pairs, delta = rng.integers(-2, 3, (40, 50)).astype("f4"), rng.standard_normal((40, 25)).astype("f4")
    placed = gpu.to_device(pairs)
    arithmetic.backpropagate_maximum(gpu.to_device(delta), placed[:, ::2], placed[:, 1::2])
    arithmetic.backpropagate_maximum(delta, pairs[:, ::2], pairs[:, 1::2])
    assert gpu.to_host(placed).tobytes() == pairs.tobytes()


def test_copies_start_after_the_work_before_their_event(gpu):
    """The source is the result of work that takes long."""
    n = 1 << 22
    source, out = gpu.zeros(n, "f4"), gpu.host_zeros(4 * n).view("f4")
    for _ in range(200):
        source += 1
    copy = gpu.download(source, out, after=gpu.record_event())
    wait(copy)
    assert out.min() == out.max() == 200
    back = gpu.zeros(n, "f4")
    wait(gpu.upload(out, back, after=gpu.record_event()))
    assert float(back.min()) == float(back.max()) == 200


def test_copies_run_during_later_work(gpu):
    """The copy completes before work that was given to the GPU earlier, but after the event of the copy."""
    n = 1 << 22
    a = gpu.xp.ones((4096, 4096), "f4")
    a @ a
    source, out, event = gpu.zeros(n, "f4"), gpu.host_zeros(4 * n).view("f4"), gpu.record_event()
    for _ in range(200):
        a = a @ a * 0
    work = gpu.record_event()
    wait(gpu.download(source, out, after=event))
    assert not work.done()
    turns = []
    gpu.poll_until_done(lambda: turns.append(1))
    assert work.done() and turns


def test_memory_is_registered_once_and_unregistered(gpu):
    memory = np.zeros(1 << 20, np.uint8)
    assert gpu.register(memory)
    wait(gpu.upload(memory, gpu.xp.ones(1 << 20, "u1"), after=gpu.record_event()))
    gpu.unregister(memory)
    assert gpu.register(memory)
    assert not gpu.register(memory) and gpu.pageable_bytes == memory.nbytes  # CUDA registers memory only once
    gpu.unregister(memory)
    gpu.pageable_bytes = 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_gradients_agree_with_those_of_the_processor(gpu, name, dtype, tolerance):
    objective, parameters, batch = problem(name)
    expected = np.empty_like(parameters)
    loss = objective.loss_and_gradient(parameters, batch, expected)
    objective, _, _ = problem(name)
    placed, out = gpu.to_device(parameters.astype(dtype)), gpu.zeros(parameters.size, dtype)
    for x in (batch.x, batch.x.astype(dtype), gpu.to_device(batch.x.astype(dtype))):
        y = batch.y if isinstance(x, np.ndarray) else gpu.to_device(batch.y)
        out.fill(math.nan)
        found = objective.loss_and_gradient(placed, Batch(x, y, batch.source), out)
        assert float(found) == pytest.approx(loss, rel=tolerance)
        difference = gpu.to_host(out) - expected
        assert np.linalg.norm(difference) <= tolerance * np.linalg.norm(expected)
    metrics = objective.evaluate(placed, batch)
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["loss"] == pytest.approx(problem(name)[0].evaluate(parameters, batch)["loss"], rel=tolerance)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_updates_have_the_bits_of_numpy(gpu, kind):
    rng = np.random.default_rng(1)
    here, there = (optimizers.make_optimizer(kind, 1000, np.dtype("f4"), xp) for xp in (np, gpu.xp))
    for _ in range(5):
        gradient = rng.standard_normal(1000).astype("f4")
        expected, out = np.empty(1000, "f4"), gpu.zeros(1000, "f4")
        here.update(gradient, 0.1)(0, 1000, expected)
        there.update(gpu.to_device(gradient), 0.1)(0, 1000, out)
        assert gpu.to_host(out).tobytes() == expected.tobytes()


def test_batches_are_drawn_on_the_gpu(gpu):
    data = open_dataset("digits", "float32")
    here, there = (Sampler(1, 2, each.train, 16).batch(3) for each in (data, data.to_device(gpu)))
    assert type(there.x).__module__ == type(there.y).__module__ == "cupy"
    assert gpu.to_host(there.x).tobytes() == here.x.tobytes() and gpu.to_host(there.y).tolist() == here.y.tolist()
    assert sum(len(batch.y) for batch in data.to_device(gpu).test.batches(100)) == data.test.n_rows


def test_checkpoints_contain_arrays_of_the_gpu(gpu, tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointSchedule(1.0, 2), warn=pytest.fail)
    state = RankState(
        np.zeros(1, np.int64), gpu.to_device(np.arange(5.0)), {"velocity": gpu.to_device(np.ones(5)), "step": 3}
    )
    copied = writer._copied(state)
    assert isinstance(copied.contribution, np.ndarray) and copied.contribution.tolist() == [0, 1, 2, 3, 4]
    assert copied.optimizer_state["velocity"].tolist() == [1] * 5 and copied.optimizer_state["step"] == 3


def test_a_torch_module_has_views_of_memory_of_the_gpu(gpu):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is without CUDA")
    from hpc_dasgd.objectives import from_torch

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batch = Batch(rng.standard_normal((8, 5)).astype("f4"), rng.integers(0, 3, 8), (0, 0, 0))
    layers = torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3)
    objective = from_torch(torch.nn.Sequential(*layers), torch.nn.functional.cross_entropy)
    start = objective.initial(rng).astype("f4")
    expected = np.empty_like(start)
    loss = objective.loss_and_gradient(start, batch, expected)
    placed, out = gpu.to_device(start), gpu.zeros(start.size, "f4")
    found = objective.loss_and_gradient(placed, batch, out)
    assert float(found) == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(gpu.to_host(out), expected, rtol=1e-3, atol=1e-5)
    first = next(iter(objective.module.parameters()))
    assert first.data_ptr() == placed.data.ptr and first.grad.data_ptr() == out.data.ptr
    assert all(isinstance(values, np.ndarray) for values in objective.running_statistics().values())
    assert set(objective.evaluate(placed, batch)) == {"loss", "accuracy"}


def test_a_jax_function_accepts_arrays_of_the_gpu(gpu):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX is without CUDA")
    from hpc_dasgd.objectives import from_jax

    def loss_fn(parameters, x, y):
        return ((x @ parameters["w"] - y) ** 2).mean()

    rng = np.random.default_rng(0)
    objective = from_jax(loss_fn, {"w": np.ones((4, 1))})
    batch = Batch(rng.standard_normal((8, 4)).astype("f4"), rng.standard_normal((8, 1)).astype("f4"), (0, 0, 0))
    placed, out = gpu.to_device(np.ones(4, "f4")), gpu.zeros(4, "f4")
    loss = objective.loss_and_gradient(placed, batch, out)
    residual = batch.x @ np.ones((4, 1)) - batch.y
    assert float(loss) == pytest.approx(float((residual**2).mean()), rel=1e-3)
    np.testing.assert_allclose(gpu.to_host(out), (2 * batch.x.T @ residual / 8).ravel(), rtol=1e-2, atol=1e-3)
