"""Objectives, compared with finite differences, references in plain Python, and another array library."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_dasgd import objectives
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.data.dataset import open_dataset
from hpc_dasgd.errors import ConfigError

SHAPE = (2, 3)
N_ROWS = 7
CASES = [
    ("quadratic", {"dimension": 9, "L": 4.0, "mu": 0.5, "noise": 0.0}, None),
    ("logistic", {}, 2),
    ("logistic", {"l2": 0.3}, 2),
    ("softmax", {}, 4),
    ("softmax", {"l2": 0.3}, 4),
    ("mlp", {"hidden": [5]}, 4),
    ("mlp", {"hidden": [5, 3]}, 2),
    ("mlp", {"hidden": [5, 3], "activation": "tanh"}, 4),
    ("mlp", {"hidden": [5], "activation": "tanh"}, None),
    ("cnn", {"channels": [3], "convolutions": 2, "kernel": 3, "hidden": [5]}, 4),
]
LAYERED = [case for case in CASES if case[0] not in ("quadratic", "cnn")]
every_case = pytest.mark.parametrize(("kind", "options", "n_classes"), CASES)


class Split:
    """The part of a data set's split that objectives use."""

    def __init__(self, x):
        self.x, self.n_rows = x, len(x)

    def batches(self, n_rows):
        for lo in range(0, self.n_rows, n_rows):
            yield Batch(self.x[lo : lo + n_rows], None)


def dataset(n_classes=None, n_targets=3, x=None):
    return SimpleNamespace(
        n_features=math.prod(SHAPE),
        feature_shape=SHAPE,
        n_classes=n_classes,
        n_targets=n_targets if n_classes is None else None,
        train=Split(np.ones((1, *SHAPE)) if x is None else x),
    )


def build(kind, options, n_classes=None):
    return objectives.make(kind, options, dataset(n_classes))


def problem(kind, options, n_classes, dtype=np.float64, n_rows=N_ROWS):
    """Return an objective, parameters at which it is smooth, and a batch."""
    rng = np.random.default_rng(5)
    objective = build(kind, options, n_classes)
    parameters = objective.initial(rng)
    parameters += 0.3 * rng.standard_normal(parameters.size)
    x = rng.standard_normal((n_rows, *SHAPE)).astype(dtype)
    floats = rng.standard_normal((n_rows, 3)).astype(dtype)
    y = floats if n_classes is None else rng.integers(0, n_classes, n_rows)
    return objective, parameters.astype(dtype), Batch(x, y, (1, 2, 3))


def differentiate(objective, parameters, batch):
    """Return loss and gradient, whose memory was filled with nan before."""
    gradient = np.full_like(parameters, np.nan)
    return objective.loss_and_gradient(parameters, batch, gradient), gradient


@every_case
def test_gradient_agrees_with_central_differences(kind, options, n_classes):
    objective, parameters, batch = problem(kind, options, n_classes)
    scratch, step = np.empty_like(parameters), 1e-6
    numeric = []
    for k in range(parameters.size):
        ahead, behind = parameters.copy(), parameters.copy()
        ahead[k] += step
        behind[k] -= step
        rise = objective.loss_and_gradient(ahead, batch, scratch)
        rise -= objective.loss_and_gradient(behind, batch, scratch)
        numeric.append(rise / (2 * step))
    _, gradient = differentiate(objective, parameters, batch)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def affine(x, weight, bias):
    return [sum(a * w for a, w in zip(x, column, strict=True)) + b for column, b in zip(weight.T, bias, strict=True)]


def reference_loss(objective, options, parameters, batch, row_loss):
    """Return the loss, computed row by row and unit by unit."""
    arrays, lo = {}, 0
    for name, shape in objective.parameter_shapes.items():
        arrays[name] = parameters[lo : lo + math.prod(shape)].reshape(shape)
        lo += math.prod(shape)
    assert lo == parameters.size
    curve = math.tanh if options.get("activation") == "tanh" else lambda z: max(z, 0.0)
    n_layers, total = len(arrays) // 2, 0.0
    for x, y in zip(batch.x, batch.y, strict=True):
        value = list(x.ravel())
        for layer in range(1, n_layers + 1):
            value = affine(value, arrays[f"layer{layer}.weight"], arrays[f"layer{layer}.bias"])
            if layer < n_layers:
                value = [curve(z) for z in value]
        total += row_loss(value, y)
    return total / len(batch.x) + 0.5 * options.get("l2", 0.0) * sum(p * p for p in parameters)


def cross_entropy(outputs, y):
    return -math.log(math.exp(outputs[y]) / sum(map(math.exp, outputs)))


def binary_cross_entropy(outputs, y):
    right = 1 / (1 + math.exp(-outputs[0]))
    return -math.log(right if y == 1 else 1 - right)


def half_squared_error(outputs, y):
    return 0.5 * sum((o - t) ** 2 for o, t in zip(outputs, y, strict=True))


@pytest.mark.parametrize(("kind", "options", "n_classes"), LAYERED)
def test_loss_agrees_with_a_computation_row_by_row(kind, options, n_classes):
    objective, parameters, batch = problem(kind, options, n_classes)
    row_loss = {"logistic": binary_cross_entropy}.get(kind, cross_entropy)
    if n_classes is None:
        row_loss = half_squared_error
    expected = reference_loss(objective, options, parameters, batch, row_loss)
    loss, _ = differentiate(objective, parameters, batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert objective.evaluate(parameters, batch)["loss"] == pytest.approx(expected, rel=1e-12)


def test_softmax_gradient_agrees_with_the_formula():
    objective, parameters, batch = problem("softmax", {}, 4)
    weight, bias = parameters[:24].reshape(6, 4), parameters[24:]
    expected = np.zeros_like(parameters)
    for x, y in zip(batch.x.reshape(N_ROWS, 6), batch.y, strict=True):
        powers = np.exp(x @ weight + bias)
        error = powers / powers.sum() - np.eye(4)[y]
        expected += np.concatenate([np.outer(x, error).ravel(), error]) / N_ROWS
    _, gradient = differentiate(objective, parameters, batch)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@pytest.mark.parametrize(("kind", "n_classes"), [("logistic", 2), ("softmax", 4), ("mlp", 4)])
def test_accuracy_is_the_fraction_of_correct_classes(kind, n_classes):
    objective, parameters, batch = problem(kind, {}, n_classes, n_rows=1)
    results = []
    for y in range(n_classes):
        metrics = objective.evaluate(parameters, Batch(batch.x, np.array([y])))
        results.append((metrics["accuracy"], -metrics["loss"]))
    assert sorted(accuracy for accuracy, _ in results) == [0.0] * (n_classes - 1) + [1.0]
    assert max(results) == max(results, key=lambda pair: pair[1])  # the predicted class has the lowest loss
    predicted = results.index(max(results))
    rows = np.repeat(batch.x, 4, axis=0)
    y = np.array([predicted] * 3 + [(predicted + 1) % n_classes])
    assert objective.evaluate(parameters, Batch(rows, y))["accuracy"] == 0.75


def test_float_targets_are_evaluated_without_an_accuracy():
    objective, parameters, batch = problem("mlp", {}, None)
    assert set(objective.evaluate(parameters, batch)) == {"loss"}


@pytest.mark.parametrize(("kind", "n_classes"), [("logistic", 2), ("softmax", 4)])
def test_losses_and_gradients_of_large_outputs_are_finite(kind, n_classes):
    objective, parameters, batch = problem(kind, {}, n_classes, np.float32)
    loss, gradient = differentiate(objective, 3000 * parameters, batch)
    assert math.isfinite(loss) and loss > 100
    assert np.isfinite(gradient).all()


@every_case
def test_gradients_are_float32_if_the_parameters_are(kind, options, n_classes):
    """Data in float64 is converted to the dtype of the parameters."""
    objective, parameters, batch = problem(kind, options, n_classes)
    loss, gradient = differentiate(objective, parameters, batch)
    small = parameters.astype(np.float32)
    small_loss, small_gradient = differentiate(objective, small, batch)
    assert isinstance(small_loss, float) and small_gradient.dtype == np.float32
    assert small_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(small_gradient, gradient, rtol=1e-3, atol=1e-5)
    repeated = differentiate(objective, small, Batch(batch.x.astype(np.float32), batch.y, batch.source))
    assert repeated[0] == small_loss and np.array_equal(repeated[1], small_gradient)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_case
def test_loss_and_gradient_with_another_array_library_are_equal(kind, options, n_classes, dtype):
    xp = pytest.importorskip("array_api_strict")
    options = {**options, "noise": 2.0} if kind == "quadratic" else options
    objective, parameters, batch = problem(kind, options, n_classes, np.dtype(dtype))
    loss, gradient = differentiate(objective, parameters, batch)
    metrics = objective.evaluate(parameters, batch)
    there = xp.asarray(parameters)
    out = xp.zeros_like(there)
    assert objective.loss_and_gradient(there, Batch(batch.x, batch.y, batch.source), out) == pytest.approx(loss)
    assert out.dtype == getattr(xp, dtype)
    np.testing.assert_allclose(np.asarray(out), gradient, rtol=1e-5 if dtype == "float32" else 1e-13)
    assert objective.evaluate(there, batch) == pytest.approx(metrics)


@every_case
def test_arrays_and_batch_sizes_may_change_from_call_to_call(kind, options, n_classes):
    """Work arrays that are kept from step to step do not change the results."""
    used, parameters, batch = problem(kind, options, n_classes)
    short = Batch(batch.x[:3], batch.y[:3], batch.source)
    calls = [
        (parameters, batch),
        (2 * parameters, batch),
        (parameters, short),
        (parameters.astype("f4"), batch),
    ]
    for position, given in [*calls, *calls]:
        fresh = build(kind, options, n_classes)
        loss, gradient = differentiate(used, position, given)
        used.evaluate(position, short)
        expected_loss, expected = differentiate(fresh, position, given)
        assert loss == expected_loss and np.array_equal(gradient, expected)


def test_gradients_are_those_of_parameters_changed_in_place():
    objective, parameters, batch = problem("mlp", {"hidden": [5]}, 4)
    gradient = np.empty_like(parameters)
    first = objective.loss_and_gradient(parameters, batch, gradient)
    kept = parameters.copy()
    parameters -= 0.1 * gradient
    assert objective.loss_and_gradient(parameters, batch, gradient) < first
    parameters[...] = kept
    assert objective.loss_and_gradient(parameters, batch, gradient) == first


def test_initial_weights_of_mlp_have_the_variances_of_the_papers():
    data = SimpleNamespace(n_features=300, n_classes=10, n_targets=None)
    for activation, variances in [
        ("relu", (2 / 300, 2 / 200)),  # He et al.: 2 / n_in
        ("tanh", (2 / 500, 2 / 210)),  # Glorot and Bengio: 2 / (n_in + n_out)
    ]:
        options = {"hidden": [200], "activation": activation}
        objective = objectives.make("mlp", options, data)
        start = objective.initial(np.random.default_rng(1))
        assert np.array_equal(start, objective.initial(np.random.default_rng(1)))
        first, bias, second, last = np.split(start, np.cumsum([60000, 200, 2000]))
        assert not bias.any() and not last.any() and last.size == 10
        # The relative deviation of a sample variance is sqrt(2 / n): 0.6 % and 3.2 %.
        assert first.var() == pytest.approx(variances[0], rel=0.03)
        assert second.var() == pytest.approx(variances[1], rel=0.15)


def test_parameter_shapes_are_in_the_order_of_the_flat_vector():
    shapes = build("mlp", {"hidden": [5, 4]}, 3).parameter_shapes
    assert list(shapes.items()) == [
        ("layer1.weight", (6, 5)),
        ("layer1.bias", (5,)),
        ("layer2.weight", (5, 4)),
        ("layer2.bias", (4,)),
        ("layer3.weight", (4, 3)),
        ("layer3.bias", (3,)),
    ]
    assert build("quadratic", {"dimension": 4}).parameter_shapes == {"x": (4,)}


def test_quadratic_has_the_eigenvalues_of_its_constants():
    objective = build("quadratic", {"dimension": 5, "L": 16.0, "mu": 1.0, "noise": 0.0})
    spectrum = np.array([16.0, 8.0, 4.0, 2.0, 1.0])
    x = np.array([1.0, -2.0, 3.0, 0.5, -1.0])
    loss, gradient = differentiate(objective, x, Batch(None, None))
    np.testing.assert_allclose(gradient, spectrum * x, rtol=1e-14)
    assert loss == pytest.approx(0.5 * (spectrum * x**2).sum(), rel=1e-14)
    start = objective.initial(np.random.default_rng(0))
    assert objective.evaluate(start, None)["loss"] == pytest.approx(objective.constants()["F_0"], rel=1e-14)
    assert objective.evaluate(np.zeros(5), None) == {"loss": 0.0}
    assert objective.constants() == pytest.approx({"L": 16.0, "mu": 1.0, "sigma": 0.0, "F_0": 15.5})


def test_quadratic_of_one_dimension_has_the_largest_eigenvalue():
    objective = build("quadratic", {"dimension": 1, "L": 3, "mu": 0.5, "noise": 0})
    assert objective.evaluate(np.array([2.0]), None) == {"loss": 6.0}
    assert objective.constants() == {"L": 3.0, "mu": 3.0, "sigma": 0.0, "F_0": 1.5}


def test_quadratic_noise_is_normal_with_the_given_variance():
    dimension, n_draws, sigma = 40, 2000, 3.0
    objective = build("quadratic", {"dimension": dimension, "noise": sigma})
    exact = build("quadratic", {"dimension": dimension, "noise": 0.0})
    x = np.linspace(-1, 1, dimension)
    loss, gradient = differentiate(exact, x, Batch(None, None))
    noise = np.empty((n_draws, dimension))
    for version in range(n_draws):
        noisy_loss, noisy = differentiate(objective, x, Batch(None, None, (7, 0, version)))
        assert noisy_loss == loss
        noise[version] = noisy - gradient
    # Standard deviations over 80000 normal numbers: of the mean 1/283, of the variance sqrt(2)/283, of the
    # fourth moment sqrt(96)/283; five of each.
    unit = noise * math.sqrt(dimension) / sigma
    assert abs(unit.mean()) < 0.018
    assert (unit**2).mean() == pytest.approx(1, abs=0.025)
    assert (unit**4).mean() == pytest.approx(3, abs=0.18)
    assert (noise**2).sum(axis=1).mean() == pytest.approx(sigma**2, rel=0.025)
    assert abs((unit[1:] * unit[:-1]).mean()) < 0.018  # versions are independent


def test_quadratic_noise_depends_on_the_batch_only():
    objective = build("quadratic", {"dimension": 6})
    x = np.ones(6)
    first = differentiate(objective, x, Batch(None, None, (1, 2, 3)))[1]
    assert np.array_equal(first, differentiate(objective, x, Batch(None, None, (1, 2, 3)))[1])
    for source in [(0, 2, 3), (1, 0, 3), (1, 2, 0)]:
        assert not np.isclose(first, differentiate(objective, x, Batch(None, None, source))[1]).any()


@pytest.mark.parametrize(("kind", "n_classes", "curvature"), [("logistic", 2, 0.25), ("softmax", 4, 0.5)])
def test_constants_of_linear_classifiers_bound_their_gradients(kind, n_classes, curvature):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5000, *SHAPE))
    objective = objectives.make(kind, {"l2": 0.125}, dataset(n_classes, x=x))
    constants = objective.constants()
    mean_square = 1 + (x**2).sum() / 5000
    assert constants == pytest.approx({"L": curvature * mean_square + 0.125, "mu": 0.125, "F_0": math.log(n_classes)})
    # The constants bound the smoothness and the monotonicity of the gradient on the whole set.
    batch = Batch(x, rng.integers(0, n_classes, 5000))
    start = objective.initial(rng)
    loss, gradient = differentiate(objective, start, batch)
    assert loss == pytest.approx(constants["F_0"], rel=1e-12)
    for _ in range(5):
        step = 0.1 * rng.standard_normal(start.size)
        change = differentiate(objective, start + step, batch)[1] - gradient
        assert np.linalg.norm(change) <= constants["L"] * np.linalg.norm(step)
        assert change @ step >= constants["mu"] * (step @ step)


def test_softmax_learns_the_digits():
    with_data = open_dataset("digits", "float32")
    objective = objectives.make("softmax", {}, with_data)
    parameters = objective.initial(np.random.default_rng(0)).astype(np.float32)
    (everything,) = with_data.train.batches(with_data.train.n_rows)
    before = objective.evaluate(parameters, everything)
    gradient = np.empty_like(parameters)
    stepsize = 1 / objective.constants()["L"]
    for _ in range(200):
        objective.loss_and_gradient(parameters, everything, gradient)
        parameters -= np.float32(stepsize) * gradient
    with_data.close()
    after = objective.evaluate(parameters, everything)
    assert before["loss"] == pytest.approx(math.log(10), rel=1e-5)
    assert after["loss"] < before["loss"] / 2 and after["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        ("quadratic", {"dimenson": 3}, ["unknown key `objective.dimenson`", "kind, dimension, L, mu, noise"]),
        ("mlp", {"l2": 0.1}, ["unknown key `objective.l2`", "kind, hidden, activation"]),
        ("mlp", {"data": 1}, ["unknown key `objective.data`"]),
        ("quadratic", {"dimension": 0}, ["`objective.dimension` must be a positive integer", "0"]),
        ("quadratic", {"dimension": 2.5}, ["`objective.dimension`", "2.5"]),
        ("quadratic", {"L": -1.0}, ["`objective.L` must be a positive number", "-1.0"]),
        ("quadratic", {"mu": 0}, ["`objective.mu` must be a positive number", "0"]),
        ("quadratic", {"mu": 2.0}, ["`objective.mu` must be at most `objective.L` = 1.0", "2.0"]),
        ("quadratic", {"noise": float("nan")}, ["`objective.noise`", "nan"]),
        ("logistic", {"l2": -0.5}, ["`objective.l2`", "-0.5"]),
        ("softmax", {"l2": "much"}, ["`objective.l2`", "'much'"]),
        ("mlp", {"hidden": 5}, ["`objective.hidden` must be a list", "5"]),
        ("mlp", {"hidden": []}, ["`objective.hidden`", "[]"]),
        ("mlp", {"hidden": [4, 0]}, ["`objective.hidden`", "[4, 0]"]),
        ("mlp", {"activation": "gelu"}, ['`objective.activation` must be one of "relu", "tanh"', "'gelu'"]),
        ("mlp", {"activation": ["relu"]}, ["`objective.activation`", "['relu']"]),
        ("cubic", {}, ["`objective.kind`", "quadratic, logistic, softmax, mlp, cnn", "'cubic'"]),
        ("my module:it", {}, ["`objective.kind`", "'my module:it'"]),
        (".sibling:it", {}, ["`objective.kind`", "'.sibling:it'"]),
        ("no_such_package.module:it", {}, ["`objective.kind`", "imported", "'no_such_package.module:it'"]),
        ("math:no_such_name", {}, ["`objective.kind`", "of math", "'math:no_such_name'"]),
        ("math:pi", {}, ["`objective.kind`", "'math:pi'"]),
    ],
)
def test_an_error_names_the_invalid_setting_and_its_value(kind, options, parts, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ConfigError) as caught:
        build(kind, options, 2)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("kind", ["logistic", "softmax", "mlp", "cnn"])
def test_an_objective_on_data_without_a_data_set_is_an_error(kind):
    with pytest.raises(ConfigError, match=rf'`data\.path` must be set for `objective\.kind` = "{kind}"'):
        objectives.make(kind, {}, None)


def test_a_classifier_on_other_targets_is_an_error():
    for kind in ("logistic", "softmax", "cnn"):
        with pytest.raises(ConfigError, match=r"`data\.path` must hold classes"):
            build(kind, {}, None)
    with pytest.raises(ConfigError, match=r"exactly 2 classes .*, got 3"):
        build("logistic", {}, 3)


USERS = """
import {imported}

class Linear:
    def __init__(self, data, scale, shift=0.0):
        self.data, self.scale, self.shift = data, scale, shift
    def initial(self, rng):
        return rng.standard_normal(2)
    def loss_and_gradient(self, parameters, batch, out):
        out[...] = self.scale
        return self.scale * float(parameters.sum()) + self.shift

def anything(data, **options):
    return Linear(data, **options)

def nothing(data):
    return object()
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    """Yield a function that writes a module of a package in the current directory; remove the module afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "users_package").mkdir()

    def write(imported="math"):
        (tmp_path / "users_package" / "mine.py").write_text(USERS.format(imported=imported))

    yield write
    for name in ("users_package.mine", "users_package"):
        sys.modules.pop(name, None)


def test_a_factory_of_a_user_is_imported_from_the_current_directory(users_module):
    users_module()
    data = dataset(2)
    for name in ("Linear", "anything"):
        objective = objectives.make(f"users_package.mine:{name}", {"scale": 2.0}, data)
        loss, gradient = differentiate(objective, np.array([1.0, 2.0]), None)
        assert objective.data is data and loss == 6.0 and gradient.tolist() == [2.0, 2.0]
    assert objectives.make("users_package.mine:Linear", {"scale": 1}, None).data is None


def test_options_that_a_factory_of_a_user_does_not_take_are_errors(users_module):
    users_module()
    for name, options, message in [
        ("Linear", {"scale": 1, "size": 2}, r"unknown key `objective\.size`; one of: kind, scale, shift"),
        ("Linear", {"shift": 2}, r"`objective\.scale` must be set"),
        ("nothing", {}, r"`objective\.kind` must make an object with initial and loss_and_gradient"),
        ("absent", {}, r"`objective\.kind` must name a function or class of users_package\.mine"),
    ]:
        with pytest.raises(ConfigError, match=message):
            objectives.make(f"users_package.mine:{name}", options, None)
    with pytest.raises(ConfigError, match=r"`objective\.kind` must name a module"):
        objectives.make("users_package.yours:Linear", {}, None)


def test_an_import_error_inside_a_module_of_a_user_is_raised(users_module):
    users_module(imported="no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        objectives.make("users_package.mine:Linear", {"scale": 1}, None)


def test_describe_lists_every_option_with_its_default():
    lines = objectives.describe()
    assert list(lines) == ["quadratic", "logistic", "softmax", "mlp", "cnn"]
    assert all(line and "\n" not in line for line in lines.values())
    assert lines["quadratic"].endswith("dimension = 100, L = 1.0, mu = 0.01, noise = 1.0")
    assert lines["softmax"].endswith("l2 = 0.0")
    assert lines["mlp"].endswith('hidden = [128, 128], activation = "relu"')
    assert lines["cnn"].endswith(
        'size = "lenet", image, channel_axis = "first", channels, convolutions, kernel, hidden'
    )
