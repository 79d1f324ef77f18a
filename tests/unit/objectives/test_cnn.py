"""Convolutional networks, compared with finite differences, a reference pixel by pixel, and PyTorch."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_dasgd import objectives
from hpc_dasgd.data.batches import Batch, Sampler
from hpc_dasgd.data.dataset import open_dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives import cnn

N_CLASSES = 3
CASES = {
    "one channel": ((4, 4), {"channels": [2], "convolutions": 1, "kernel": 3, "hidden": [4]}),
    "odd, not square": ((2, 5, 7), {"channels": [3], "convolutions": 1, "kernel": 3, "hidden": [4]}),
    "odd after the first block": ((2, 6, 10), {"channels": [3, 2], "convolutions": 1, "kernel": 3, "hidden": [4]}),
    "without pooling between": ((3, 4, 5), {"channels": [2], "convolutions": 3, "kernel": 3, "hidden": [4]}),
    "more channels below": ((5, 4, 6), {"channels": [4, 2], "convolutions": 2, "kernel": 3, "hidden": [5, 4]}),
    "kernel larger than the image": ((2, 3, 2), {"channels": [3], "convolutions": 2, "kernel": 5, "hidden": [4]}),
    "kernel of one pixel": ((2, 4, 4), {"channels": [3, 2], "convolutions": 1, "kernel": 1, "hidden": [4]}),
    "channels last": ((5, 7, 2), {"channels": [3], "kernel": 3, "hidden": [4], "channel_axis": "last"}),
}
every_case = pytest.mark.parametrize(("shape", "options"), CASES.values(), ids=CASES)


def build(shape, options, n_classes=N_CLASSES):
    data = SimpleNamespace(n_classes=n_classes, feature_shape=shape, n_features=math.prod(shape))
    return objectives.make("cnn", options, data)


def problem(shape, options, n_rows=5):
    """Return an objective, parameters with biases that are not zero, and a batch."""
    rng = np.random.default_rng(3)
    objective = build(shape, options)
    parameters = objective.initial(rng)
    parameters += 0.1 * rng.standard_normal(parameters.size)
    return objective, parameters, Batch(rng.standard_normal((n_rows, *shape)), rng.integers(0, N_CLASSES, n_rows))


def differentiate(objective, parameters, batch):
    """Return loss and gradient, whose memory was filled with nan before."""
    gradient = np.full_like(parameters, np.nan)
    return objective.loss_and_gradient(parameters, batch, gradient), gradient


def central_differences(objective, parameters, batch, step=1e-6):
    numeric, scratch = np.empty_like(parameters), np.empty_like(parameters)
    for k in range(parameters.size):
        ahead, behind = parameters.copy(), parameters.copy()
        ahead[k] += step
        behind[k] -= step
        rise = objective.loss_and_gradient(ahead, batch, scratch)
        numeric[k] = (rise - objective.loss_and_gradient(behind, batch, scratch)) / (2 * step)
    return numeric


def arrays(objective, flat):
    """Return the (weight, bias) of each layer."""
    parts, lo = [], 0
    for shape in objective.parameter_shapes.values():
        parts.append(flat[lo : lo + math.prod(shape)].reshape(shape))
        lo += math.prod(shape)
    assert lo == flat.size
    return list(zip(parts[::2], parts[1::2], strict=True))


def by_channel(x, options):
    """Return images as (n, channels, height, width)."""
    if options.get("channel_axis") == "last":
        return x.transpose(0, 3, 1, 2)
    return x[:, None] if x.ndim == 3 else x


def reference_convolution(image, weight, bias):
    """Return the convolution of an image with a margin of zeros, computed pixel by pixel."""
    _, height, width = image.shape
    reach = weight.shape[2] // 2
    value = np.zeros((len(weight), height, width))
    for f, y, x in np.ndindex(value.shape):
        value[f, y, x] = bias[f]
        for c, i, j in np.ndindex(weight.shape[1:]):
            at_y, at_x = y + i - reach, x + j - reach
            if 0 <= at_y < height and 0 <= at_x < width:
                value[f, y, x] += weight[f, c, i, j] * image[c, at_y, at_x]
    return np.maximum(value, 0)


def reference_pooling(image):
    pooled = np.zeros((len(image), image.shape[1] // 2, image.shape[2] // 2))
    for c, y, x in np.ndindex(pooled.shape):
        pooled[c, y, x] = max(image[c, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1))
    return pooled


@every_case
def test_gradient_agrees_with_central_differences(shape, options):
    objective, parameters, batch = problem(shape, options)
    _, gradient = differentiate(objective, parameters, batch)
    assert all(by_weight.any() for by_weight, _ in arrays(objective, gradient))
    np.testing.assert_allclose(gradient, central_differences(objective, parameters, batch), rtol=1e-5, atol=1e-8)


@every_case
def test_loss_agrees_with_a_computation_pixel_by_pixel(shape, options):
    objective, parameters, batch = problem(shape, options, n_rows=2)
    n_convolutions, total, n_correct = options.get("convolutions", 1), 0.0, 0
    for image, y in zip(by_channel(batch.x, options), batch.y, strict=True):
        layers = arrays(objective, parameters)
        for _ in options["channels"]:
            for _ in range(n_convolutions):
                image = reference_convolution(image, *layers.pop(0))
            image = reference_pooling(image)
        value = image.ravel()
        for k, (weight, bias) in enumerate(layers, start=1):
            value = weight.T @ value + bias
            value = value if k == len(layers) else np.maximum(value, 0)
        total -= math.log(math.exp(value[y]) / sum(map(math.exp, value)))
        n_correct += int(value.argmax() == y)
    loss, _ = differentiate(objective, parameters, batch)
    assert loss == pytest.approx(total / 2, rel=1e-12)
    assert objective.evaluate(parameters, batch) == pytest.approx(
        {"loss": total / 2, "accuracy": n_correct / 2}, rel=1e-12
    )


def torch_network(torch, objective, parameters, options):
    """Return the same network as PyTorch modules, with the same weights."""
    nn, modules, layers = torch.nn, [], arrays(objective, parameters)
    for _ in options["channels"]:
        for _ in range(options.get("convolutions", 1)):
            n_out, n_in, kernel, _ = layers[len(modules) // 2][0].shape
            modules += [nn.Conv2d(n_in, n_out, kernel, padding="same"), nn.ReLU()]
        modules[-1] = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    n_convolutions = len(modules) // 2
    for weight, _ in layers[n_convolutions:]:
        modules += [nn.Linear(*weight.shape), nn.ReLU()]
    network = nn.Sequential(*modules[: 2 * n_convolutions], nn.Flatten(), *modules[2 * n_convolutions : -1]).double()
    own = list(network.parameters())
    with torch.no_grad():
        for (weight, bias), weight_there, bias_there in zip(layers, own[::2], own[1::2], strict=True):
            weight_there[...] = torch.from_numpy(weight.T if weight.ndim == 2 else weight)
            bias_there[...] = torch.from_numpy(bias)
    return network


@every_case
def test_loss_and_gradient_agree_with_pytorch(shape, options):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    objective, parameters, batch = problem(shape, options)
    network = torch_network(torch, objective, parameters, options)
    images = torch.from_numpy(np.ascontiguousarray(by_channel(batch.x, options)))
    expected = torch.nn.functional.cross_entropy(network(images), torch.from_numpy(batch.y))
    expected.backward()
    gradients = [p.grad.numpy().T if p.ndim == 2 else p.grad.numpy() for p in network.parameters()]
    loss, gradient = differentiate(objective, parameters, batch)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, np.concatenate([g.ravel() for g in gradients]), rtol=1e-9, atol=1e-13)


def test_the_gradient_of_a_maximum_goes_to_one_of_equal_values():
    """On images of one colour all four values are equal, also after a change of a weight."""
    options = {"channels": [4, 4], "convolutions": 1, "kernel": 1, "hidden": [5]}
    objective, parameters, batch = problem((2, 6, 6), options)
    batch = Batch(np.broadcast_to(batch.x[:, :, :1, :1], batch.x.shape), batch.y)
    _, gradient = differentiate(objective, parameters, batch)
    assert all(by_weight.any() for by_weight, _ in arrays(objective, gradient))
    np.testing.assert_allclose(gradient, central_differences(objective, parameters, batch), rtol=1e-5, atol=1e-8)


def test_the_position_of_the_channels_does_not_change_the_gradient():
    options = {"channels": [3], "kernel": 3, "hidden": [4]}
    objective, parameters, batch = problem((2, 4, 6), options)
    expected_loss, expected = differentiate(objective, parameters, batch)
    last = np.ascontiguousarray(batch.x.transpose(0, 2, 3, 1))
    flat = batch.x.reshape(len(batch.x), -1)
    for shape, more, x in [
        ((4, 6, 2), {"channel_axis": "last"}, last),
        ((48,), {"image": [2, 4, 6]}, flat),
        ((48,), {"image": [4, 6, 2], "channel_axis": "last"}, last.reshape(len(last), -1)),
    ]:
        loss, gradient = differentiate(build(shape, options | more), parameters, Batch(x, batch.y))
        assert loss == expected_loss and np.array_equal(gradient, expected)


@pytest.mark.parametrize("numbers", [1, 2000])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole_batch(monkeypatch, numbers):
    shape, options = CASES["odd, not square"]
    objective, parameters, batch = problem(shape, options, n_rows=11)
    loss, gradient = differentiate(objective, parameters, batch)
    metrics = objective.evaluate(parameters, batch)
    monkeypatch.setattr(cnn, "_MAX_PATCH_VALUES", numbers)
    pieces = objective._pieces(batch)
    assert len(pieces) == {1: 11, 2000: 6}[numbers]  # 945 values in the patches of an image
    in_pieces, gradient_in_pieces = differentiate(objective, parameters, batch)
    assert in_pieces == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(gradient_in_pieces, gradient, rtol=1e-10, atol=1e-15)
    assert objective.evaluate(parameters, batch) == pytest.approx(metrics, rel=1e-13)


def test_pieces_have_equal_sizes_if_that_takes_few_more_of_them(monkeypatch):
    shape, options = CASES["odd after the first block"]
    objective, _, batch = problem(shape, options, n_rows=16)
    n_values = sum(layer.n_patch_values for layer in objective._layers)
    monkeypatch.setattr(cnn, "_MAX_PATCH_VALUES", 6 * n_values)
    assert [len(piece.y) for _, piece in objective._pieces(batch)] == [4, 4, 4, 4]
    monkeypatch.setattr(cnn, "_MAX_PATCH_VALUES", 15 * n_values)
    assert [len(piece.y) for _, piece in objective._pieces(batch)] == [8, 8]
    _, _, batch = problem(shape, options, n_rows=13)
    assert [len(piece.y) for _, piece in objective._pieces(batch)] == [13]
    monkeypatch.setattr(cnn, "_MAX_PATCH_VALUES", 6 * n_values)
    assert [len(piece.y) for _, piece in objective._pieces(batch)] == [5, 5, 3]


def test_parameter_shapes_of_lenet_and_deep():
    lenet = build((28, 28), {}, n_classes=10).parameter_shapes
    assert list(lenet.items()) == [
        ("layer1.weight", (6, 1, 5, 5)),
        ("layer1.bias", (6,)),
        ("layer2.weight", (16, 6, 5, 5)),
        ("layer2.bias", (16,)),
        ("layer3.weight", (784, 120)),
        ("layer3.bias", (120,)),
        ("layer4.weight", (120, 84)),
        ("layer4.bias", (84,)),
        ("layer5.weight", (84, 10)),
        ("layer5.bias", (10,)),
    ]
    deep = build((3, 32, 32), {"size": "deep"}, n_classes=10).parameter_shapes
    channels = [deep[f"layer{k}.weight"][:2] for k in range(1, 7)]
    assert channels == [(32, 3), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128)]
    assert deep["layer7.weight"] == (128 * 4 * 4, 128) and deep["layer8.weight"] == (128, 10) and len(deep) == 16


def test_initial_weights_have_the_variances_of_the_paper():
    objective = build((3, 32, 32), {"size": "deep"})
    start = objective.initial(np.random.default_rng(1))
    assert np.array_equal(start, objective.initial(np.random.default_rng(1)))
    for weight, bias in arrays(objective, start)[:-1]:
        n_in = math.prod(weight.shape[1:]) if weight.ndim == 4 else weight.shape[0]
        # The relative deviation of a sample variance is sqrt(2 / n); five of them.
        assert weight.var() == pytest.approx(2 / n_in, rel=5 * math.sqrt(2 / weight.size))
        assert not bias.any()


def test_a_convolutional_network_learns_the_digits():
    data = open_dataset("digits", "float32")
    objective = objectives.make("cnn", {"image": [8, 8]}, data)
    parameters = objective.initial(np.random.default_rng(0)).astype(np.float32)
    gradient, sampler = np.empty_like(parameters), Sampler(0, 0, data.train, 32)
    for version in range(400):
        objective.loss_and_gradient(parameters, sampler.batch(version), gradient)
        parameters -= np.float32(0.1) * gradient
    (everything,) = data.test.batches(data.test.n_rows)
    data.close()
    assert objective.evaluate(parameters, everything)["accuracy"] > 0.95


@pytest.mark.parametrize(
    ("shape", "options", "parts"),
    [
        ((28, 28), {"size": "vgg"}, ['`objective.size` must be one of "lenet", "deep"', "'vgg'"]),
        ((28, 28), {"channel_axis": 1}, ['`objective.channel_axis` must be one of "first", "last"', "got 1"]),
        ((28, 28), {"channels": []}, ["`objective.channels` must be a list of at least one", "[]"]),
        ((28, 28), {"channels": 6}, ["`objective.channels`", "got 6"]),
        ((28, 28), {"hidden": [0]}, ["`objective.hidden`", "[0]"]),
        ((28, 28), {"convolutions": 0}, ["`objective.convolutions` must be a positive integer", "0"]),
        ((28, 28), {"kernel": 4}, ["`objective.kernel` must be an odd positive integer", "4"]),
        ((28, 28), {"kernel": -1}, ["`objective.kernel`", "-1"]),
        ((28, 28), {"image": 28}, ["`objective.image` must be a list", "28"]),
        ((28, 28), {"image": [28, 27]}, ["`objective.image` must", "784 numbers", "[28, 27]"]),
        ((28, 28), {"image": [784]}, ["`objective.image` must have 2 or 3 dimensions", "[784]"]),
        ((64,), {}, ["`objective.image` must be set", "(64,)"]),
        ((2, 3, 8, 8), {}, ["`objective.image` must be set", "(2, 3, 8, 8)"]),
        ((3, 28), {}, ["`objective.image` must be at least 4 high and wide for 2 blocks", "3 x 28, channels 1"]),
        ((7, 8), {"size": "deep"}, ["at least 8 high and wide for 3 blocks", "7 x 8"]),
        ((32, 32, 3), {}, ["32 x 3, channels 32", "`objective.channel_axis`"]),
    ],
)
def test_an_error_names_the_invalid_setting_and_its_value(shape, options, parts):
    with pytest.raises(ConfigError) as caught:
        build(shape, options)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []
