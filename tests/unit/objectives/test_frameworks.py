"""Models of PyTorch and JAX as objectives, compared with these libraries alone and with the network of the package."""

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_dasgd import objectives
from hpc_dasgd.arrays.arithmetic import aligned_copy
from hpc_dasgd.config.exchange_traits import traits_of
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.training import running_statistics

N_ROWS, N_FEATURES, N_CLASSES = 12, 6, 4


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="JAX is not installed")


def batch_of(dtype="float32", version=3):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((N_ROWS, N_FEATURES)).astype(dtype)
    return Batch(x, rng.integers(0, N_CLASSES, N_ROWS), (1, 2, version))


def differentiate(objective, parameters, batch):
    """Return loss and gradient, whose memory was filled with nan before."""
    gradient = np.full_like(parameters, np.nan)
    return objective.loss_and_gradient(parameters, batch, gradient), gradient


def own_network(dtype):
    """Return the network of the package with 5 hidden units, its parameter vector, and the arrays of the vector."""
    data = SimpleNamespace(n_features=N_FEATURES, n_classes=N_CLASSES, n_targets=None)
    network = objectives.make("mlp", {"hidden": [5]}, data)
    flat = network.initial(np.random.default_rng(1)).astype(dtype)
    lengths = np.cumsum([math.prod(shape) for shape in network.parameter_shapes.values()])
    parts = np.split(flat, lengths[:-1])
    return network, flat, [part.reshape(s) for part, s in zip(parts, network.parameter_shapes.values(), strict=True)]


def torch_mlp(torch, dropout=0.0):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(N_FEATURES, 5), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(5, N_CLASSES)
    )


def torch_reference(torch, module, batch, loss_fn):
    """Return the loss and the gradients of a module, computed by PyTorch alone."""
    loss = loss_fn(module(torch.tensor(batch.x)), torch.tensor(batch.y))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    return loss.item(), np.concatenate([gradient.numpy().ravel() for gradient in gradients])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_objective_has_the_gradient_of_torch_alone(torch, dtype):
    cross_entropy = torch.nn.functional.cross_entropy
    module, twin, batch = torch_mlp(torch), torch_mlp(torch), batch_of(dtype)
    objective = objectives.from_torch(module, cross_entropy)
    parameters = objective.initial(None).astype(dtype)
    expected_loss, expected = torch_reference(torch, twin.to(getattr(torch, dtype)), batch, cross_entropy)
    for _ in range(2):  # gradients do not accumulate
        loss, gradient = differentiate(objective, parameters, batch)
        assert loss == expected_loss
        assert gradient.tobytes() == expected.tobytes()
    assert list(objective.parameter_shapes.items()) == [
        ("0.weight", (5, N_FEATURES)),
        ("0.bias", (5,)),
        ("3.weight", (N_CLASSES, 5)),
        ("3.bias", (N_CLASSES,)),
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_objective_agrees_with_the_network_of_the_package(torch, dtype):
    network, flat, (weight1, bias1, weight2, bias2) = own_network(dtype)
    objective, batch = objectives.from_torch(torch_mlp(torch), torch.nn.functional.cross_entropy), batch_of(dtype)
    there = np.concatenate([part.ravel() for part in (weight1.T, bias1, weight2.T, bias2)])
    expected_loss, expected = differentiate(network, flat, batch)
    loss, gradient = differentiate(objective, there, batch)
    error = 1e-5 if dtype == "float32" else 1e-13
    assert loss == pytest.approx(expected_loss, rel=error)
    weight1, bias1, weight2, bias2 = np.split(gradient, [30, 35, 55])
    back = [weight1.reshape(5, 6).T.ravel(), bias1, weight2.reshape(4, 5).T.ravel(), bias2]
    np.testing.assert_allclose(np.concatenate(back), expected, rtol=10 * error, atol=error)
    assert objective.evaluate(there, batch) == pytest.approx(network.evaluate(flat, batch), rel=error)


def test_torch_parameters_and_gradients_are_views_of_the_vectors(torch):
    module = torch_mlp(torch)
    objective = objectives.from_torch(module, torch.nn.functional.cross_entropy)
    parameters = objective.initial(None).astype(np.float32)
    gradient = np.empty_like(parameters)
    for version in range(3):
        objective.loss_and_gradient(parameters, batch_of(version=version), gradient)
        offset = 0
        for parameter in module.parameters():
            assert parameter.data_ptr() == parameters.ctypes.data + offset
            assert parameter.grad.data_ptr() == gradient.ctypes.data + offset
            offset += 4 * parameter.numel()
        assert offset == parameters.nbytes
        module.zero_grad()  # as the program of a user may do
    parameters[:] = 0
    assert all(not parameter.any() for parameter in module.parameters())


def test_torch_objective_accepts_other_arrays_at_each_call(torch):
    objective = objectives.from_torch(torch_mlp(torch), torch.nn.functional.cross_entropy)
    batch, start = batch_of(), objective.initial(None)
    calls = [start.astype("f4"), 2 * start, start.astype("f4") / 3, start]
    for parameters in [*calls, *calls]:
        fresh = objectives.from_torch(torch_mlp(torch), torch.nn.functional.cross_entropy)
        loss, gradient = differentiate(objective, parameters, batch)
        objective.evaluate(start, batch)
        expected_loss, expected = differentiate(fresh, parameters, batch)
        assert loss == expected_loss and np.array_equal(gradient, expected)


def test_torch_modules_may_have_shared_frozen_unused_and_strided_parameters(torch):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.first = torch.nn.Linear(N_FEATURES, N_FEATURES, bias=False)
            self.again = torch.nn.Linear(N_FEATURES, N_FEATURES)
            self.again.weight = self.first.weight
            self.frozen = torch.nn.Linear(N_FEATURES, N_FEATURES).requires_grad_(False)
            self.unused = torch.nn.Parameter(torch.ones(2))
            self.strided = torch.nn.Parameter(torch.randn(N_FEATURES, N_CLASSES).t())
            self.scalar = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.scalar * (self.frozen(self.again(torch.tanh(self.first(x)))) @ self.strided.t())

    module, twin, batch = Odd(), Odd(), batch_of()
    cross_entropy = torch.nn.functional.cross_entropy
    objective = objectives.from_torch(module, cross_entropy)
    assert dict(objective.parameter_shapes) == {
        "unused": (2,),
        "strided": (N_CLASSES, N_FEATURES),
        "scalar": (),
        "first.weight": (N_FEATURES, N_FEATURES),
        "again.bias": (N_FEATURES,),
    }
    frozen = module.frozen.weight.clone()
    loss, gradient = differentiate(objective, objective.initial(None).astype("f4"), batch)
    expected_loss = cross_entropy(twin(torch.tensor(batch.x)), torch.tensor(batch.y))
    expected_loss.backward()
    assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
    expected = [twin.strided.grad, twin.scalar.grad, twin.first.weight.grad, twin.again.bias.grad]
    flat = np.concatenate([np.zeros(2), *(part.numpy().ravel() for part in expected)])
    np.testing.assert_allclose(gradient, flat, rtol=1e-5, atol=1e-7)
    assert module.again.weight is module.first.weight
    assert module.frozen.weight.equal(frozen) and module.frozen.weight.grad is None


def test_torch_sparse_gradients_are_written_into_the_dense_vector(torch):
    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(9, N_CLASSES, sparse=True)

        def forward(self, x):
            return self.embedding(x.abs().long().clamp(max=8)).sum(1)

    objective, batch = objectives.from_torch(Words(), torch.nn.functional.cross_entropy), batch_of()
    _, gradient = differentiate(objective, objective.initial(None).astype("f4"), batch)
    used = np.unique(np.abs(batch.x).astype(int))
    assert np.isfinite(gradient).all()
    assert np.flatnonzero(gradient.reshape(9, -1).any(axis=1)).tolist() == used.tolist()


def test_torch_dropout_depends_on_the_batch_only(torch):
    objective = objectives.from_torch(torch_mlp(torch, dropout=0.5), torch.nn.functional.cross_entropy)
    parameters = objective.initial(None).astype("f4")
    first, repeated = (differentiate(objective, parameters, batch_of()) for _ in range(2))
    assert first[0] == repeated[0] and np.array_equal(first[1], repeated[1])
    assert differentiate(objective, parameters, batch_of(version=4))[0] != first[0]
    plain = objectives.from_torch(torch_mlp(torch), torch.nn.functional.cross_entropy)
    assert objective.evaluate(parameters, batch_of()) == plain.evaluate(parameters, batch_of())
    assert objective.module.training and objective.module[2].training


def batch_norm_objective(torch):
    module = torch.nn.Sequential(
        torch.nn.BatchNorm1d(N_FEATURES), torch.nn.Linear(N_FEATURES, N_CLASSES), torch.nn.BatchNorm1d(N_CLASSES)
    )
    module[2].eval()  # a part that its user has set to evaluation
    return objectives.from_torch(module, torch.nn.functional.cross_entropy)


def test_torch_batch_norm_has_running_statistics(torch):
    objective, batch = batch_norm_objective(torch), batch_of()
    parameters = objective.initial(None).astype("f4")
    _, gradient = differentiate(objective, parameters, batch)
    statistics = objective.running_statistics()
    assert list(statistics) == ["0.running_mean", "0.running_var", "2.running_mean", "2.running_var"]
    np.testing.assert_allclose(statistics["0.running_mean"], 0.1 * batch.x.mean(axis=0), rtol=1e-5, atol=1e-7)
    expected = 0.9 + 0.1 * batch.x.var(axis=0, ddof=1)
    np.testing.assert_allclose(statistics["0.running_var"], expected, rtol=1e-5)
    assert not statistics["2.running_mean"].any() and (statistics["2.running_var"] == 1).all()
    before = objective.evaluate(parameters, batch)
    assert objective.running_statistics()["0.running_mean"].tolist() == statistics["0.running_mean"].tolist()
    assert [part.training for part in objective.module] == [True, True, False]
    statistics["0.running_mean"] += 5
    objective.load_running_statistics(statistics)
    assert objective.evaluate(parameters, batch)["loss"] != before["loss"]
    # The gradient depends on the statistics of the batch only, so that a replay repeats it.
    assert np.array_equal(differentiate(objective, parameters, batch)[1], gradient)


class Ranks:
    """The part of an exchange that `average_over_ranks` uses, on the first of several ranks with given values."""

    made = 1

    def __init__(self, *others):
        self._others, self._at = others, 0

    def allgather(self, value):
        lo, self._at = self._at, self._at + value.size
        return [value, *(None if other is None else other[lo : lo + value.size] for other in self._others)]


class ObjectiveWithStatistics:
    def __init__(self, **arrays):
        self.statistics = arrays

    def running_statistics(self):
        return self.statistics

    def load_running_statistics(self, statistics):
        self.statistics = statistics


def test_running_statistics_become_the_mean_over_ranks():
    rng = np.random.default_rng(0)
    third = np.full(3, 1 / 3)
    objective = ObjectiveWithStatistics(a=rng.random((50, 60)).astype("f4"), b=np.array([-np.inf, *third]))
    mine = np.concatenate([values.astype(float).ravel() for values in objective.statistics.values()])
    other = mine.copy()
    other[:3000] += 2
    mean = running_statistics.average_over_ranks(objective, Ranks(other, None, other), traits_of("read"))
    assert mean is objective.statistics and mean["a"].dtype == np.float32 and mean["a"].shape == (50, 60)
    np.testing.assert_allclose(mean["a"].ravel(), mine[:3000] + 4 / 3, rtol=1e-6)
    assert mean["b"].tolist() == [-np.inf, *third]  # equal values on all ranks are not rounded
    assert running_statistics.average_over_ranks(object(), Ranks(), traits_of("read")) == {}
    assert running_statistics.average_over_ranks(objective, Ranks(), traits_of("none")) is mean


def test_a_torch_module_that_cannot_be_trained_is_an_error(torch):
    cross_entropy = torch.nn.functional.cross_entropy
    for module, message in [
        (torch.nn.ReLU(), "needs a module with parameters to train"),
        (torch.nn.Linear(2, 2).requires_grad_(False), "none with `requires_grad`"),
        (torch.nn.LazyLinear(3), "an uninitialized one: weight"),
        (torch.nn.Linear(2, 2, dtype=torch.complex64), r"torch\.complex64: weight"),
    ]:
        with pytest.raises(ConfigError, match=message):
            objectives.from_torch(module, cross_entropy)
    objective = objectives.from_torch(torch_mlp(torch), cross_entropy)
    for call in (
        lambda: objective.evaluate(objective.initial(None), None),
        lambda: differentiate(objective, objective.initial(None), Batch(None, None)),
    ):
        with pytest.raises(ConfigError, match=r"`data\.path` must be set"):
            call()
    rows = objectives.from_torch(torch_mlp(torch), torch.nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(ConfigError, match=rf"`loss_fn` must return a scalar.*\({N_ROWS},\)"):
        differentiate(rows, rows.initial(None), batch_of("float64"))


def test_torch_float_targets_are_evaluated_without_an_accuracy(torch):
    batch = batch_of()
    targets = np.random.default_rng(0).standard_normal((N_ROWS, N_CLASSES))
    objective = objectives.from_torch(torch_mlp(torch), torch.nn.functional.mse_loss)
    parameters = objective.initial(None).astype("f4")
    metrics = objective.evaluate(parameters, Batch(batch.x, targets))
    outputs = objective.module(torch.tensor(batch.x)).detach().numpy()
    assert metrics == {"loss": pytest.approx(((outputs - targets) ** 2).mean(), rel=1e-5)}


def jax_tree(parts):
    return [{"weight": weight, "bias": bias} for weight, bias in zip(parts[::2], parts[1::2], strict=True)]


def jax_outputs(parameters, x):
    import jax

    *hidden, last = parameters
    for layer in hidden:
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
    return x @ last["weight"] + last["bias"]


def jax_loss(parameters, x, y):
    import jax

    return -jax.numpy.mean(jax.numpy.take_along_axis(jax.nn.log_softmax(jax_outputs(parameters, x)), y[:, None], 1))


def jax_accuracy(parameters, x, y):
    return (jax_outputs(parameters, x).argmax(1) == y).mean()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_jax_objective_agrees_with_jax_alone_and_with_the_network_of_the_package(jax, dtype):
    network, flat, parts = own_network(dtype)
    batch = batch_of(dtype)
    objective = objectives.from_jax(jax_loss, jax_tree(parts), accuracy=jax_accuracy)
    assert dict(objective.parameter_shapes) == {
        "0.bias": (5,),
        "0.weight": (N_FEATURES, 5),
        "1.bias": (N_CLASSES,),
        "1.weight": (5, N_CLASSES),
    }
    start = aligned_copy(objective.initial(None).astype(dtype))
    loss, gradient = differentiate(objective, start, batch)
    with jax.enable_x64(dtype == "float64"):
        alone = jax.grad(jax_loss)(jax_tree(parts), batch.x, batch.y)
        leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(alone)]
    error = 1e-5 if dtype == "float32" else 1e-13
    assert gradient.dtype == dtype and np.concatenate(leaves).dtype == dtype
    np.testing.assert_allclose(gradient, np.concatenate(leaves), rtol=error, atol=error / 10)
    expected_loss, expected = differentiate(network, flat, batch)
    assert loss == pytest.approx(expected_loss, rel=error)
    weight1, bias1, weight2, bias2 = np.split(expected, [30, 35, 55])
    expected = np.concatenate([bias1, weight1, bias2, weight2])
    np.testing.assert_allclose(gradient, expected, rtol=10 * error, atol=error)
    assert objective.evaluate(start, batch) == pytest.approx(network.evaluate(flat, batch), rel=max(error, 1e-7))
    assert not jax.config.jax_enable_x64


def test_jax_gradients_are_those_of_parameters_changed_in_place(jax):
    """JAX does not use values that the memory of the parameters contained before."""
    _, _, parts = own_network("float32")
    objective, twin = (objectives.from_jax(jax_loss, jax_tree(parts)) for _ in range(2))
    batch = batch_of()
    parameters = aligned_copy(objective.initial(None).astype("f4"))
    gradient = np.empty_like(parameters)
    assert jax.dlpack.from_dlpack(parameters, copy=False).unsafe_buffer_pointer() == parameters.ctypes.data
    for _ in range(20):
        loss = objective.loss_and_gradient(parameters, batch, gradient)
        expected_loss, expected = differentiate(twin, parameters.copy(), batch)
        assert loss == expected_loss and np.array_equal(gradient, expected)
        parameters -= 0.1 * gradient
    assert objective.evaluate(parameters, batch) == {"loss": pytest.approx(loss, rel=0.1)}


def test_jax_key_depends_on_the_batch_only(jax):
    def noisy(parameters, x, y, key):
        noise = 0.0 if key is None else jax.random.normal(key, parameters.shape)
        return ((parameters + noise) ** 2).sum()

    objective = objectives.from_jax(noisy, np.ones(3))
    assert objective.parameter_shapes == {"parameters": (3,)}
    parameters = objective.initial(None).astype("f4")
    first, repeated, other = (differentiate(objective, parameters, batch_of(version=v)) for v in (3, 3, 4))
    assert first[0] == repeated[0] and np.array_equal(first[1], repeated[1])
    assert not np.isclose(first[1], other[1]).any()
    assert objective.evaluate(parameters, None) == {"loss": 3.0}


def test_a_jax_tree_that_cannot_be_trained_is_an_error(jax):
    for tree, message in [({}, "at least one leaf"), ({"a": [np.ones(2), np.arange(3)]}, r"got int64 at a\.1")]:
        with pytest.raises(ConfigError, match=message):
            objectives.from_jax(jax_loss, tree)


SCRIPT = """
import sys
import hpc_dasgd.objectives
assert not {"torch", "jax"} & set(sys.modules)
sys.modules[sys.argv[1]] = None  # importing it is an error now
try:
    getattr(hpc_dasgd.objectives, "from_" + sys.argv[1])
except hpc_dasgd.ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_frameworks_are_imported_at_first_use_and_named_if_missing(package):
    done = subprocess.run([sys.executable, "-c", SCRIPT, package], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"`from_{package}` needs the package {package}, which is not installed: pip install {package}\n"
    )


@pytest.mark.parametrize(("setting", "n_threads"), [(None, 1), ("2", 2)])
def test_torch_uses_the_number_of_threads_of_the_environment(torch, monkeypatch, setting, n_threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if setting is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", setting)
        objectives.from_torch(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
