"""The networks that are timed, in this package and in PyTorch, with data for them."""

from functools import cached_property
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.data.dataset import open_dataset

N_CLASSES, N_TEST_ROWS = 10, 64


class Network(NamedTuple):
    kind: str
    options: dict[str, Any]
    image: tuple[int, ...]
    batch_size: int


NETWORKS = {
    "mlp": Network("mlp", {"hidden": [4096, 4096]}, (28, 28), 1024),
    "cnn": Network("cnn", {}, (28, 28), 256),
    "deep cnn": Network("cnn", {"size": "deep"}, (3, 32, 32), 256),
}
SMALL = {
    "mlp": Network("mlp", {"hidden": [256, 256]}, (28, 28), 128),
    "cnn": Network("cnn", {}, (28, 28), 32),
    "deep cnn": Network("cnn", {"size": "deep", "channels": [8, 16, 32], "hidden": [32]}, (3, 16, 16), 16),
}


def network(name: str, small: bool) -> Network:
    """Return the network of that name; a step of a `small` one takes milliseconds on one core."""
    return (SMALL if small else NETWORKS)[name]


def write_data(path, image: tuple[int, ...], n_rows: int) -> None:
    """Write a data set of images, each the sum of one image per class and noise."""
    rng = np.random.default_rng(0)
    of_class = rng.normal(128, 25, (N_CLASSES, *image))
    with h5py.File(path, "w") as file:
        for split, n in (("train", n_rows), ("test", N_TEST_ROWS)):
            y = rng.integers(N_CLASSES, size=n)
            file[f"{split}/x"] = np.clip(of_class[y] + rng.normal(0, 25, (n, *image)), 1, 254).astype(np.uint8)
            file[f"{split}/y"] = y
        file.attrs.update({"classes": N_CLASSES, "scale": 1 / 255})


class Problem:
    """One gradient to compute.

    Attributes
    ----------
    objective : Objective
        The network as an objective of this package.
    parameters : ndarray, shape (n_params,), float32
        The initial parameters of the objective.
    batch : Batch
        In host memory.
    """

    def __init__(self, network: Network, path):
        data = open_dataset(path, "float32")
        self.objective = objectives.make(network.kind, network.options, data)
        self.parameters = self.objective.initial(np.random.default_rng(0)).astype(np.float32)
        self.batch = Batch(*data.train.rows(np.arange(network.batch_size)))
        self._convolutions = 2 if network.options.get("size") == "deep" else 1

    @cached_property
    def gradient(self) -> np.ndarray:
        """The gradient that NumPy computes in float64 from the same parameters and batch."""
        return float64_gradient(self.objective, self.parameters, self.batch)[1]

    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the (weight, bias) of each layer."""
        shapes = list(self.objective.parameter_shapes.values())
        parts = np.split(self.parameters, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        parts = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def torch_module(self):
        """Return the same network as a PyTorch module with the same parameters."""
        import torch

        nn, modules, trained = torch.nn, [], []
        for number, (weight, _) in enumerate(self.layers()):
            if weight.ndim == 4:
                n_out, n_in, kernel, _ = weight.shape
                trained.append(nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2))
                modules += [trained[-1], nn.ReLU()]
                if number % self._convolutions == self._convolutions - 1:
                    modules.append(nn.MaxPool2d(2))
            else:
                if not any(isinstance(module, nn.Flatten) for module in modules):
                    modules.append(nn.Flatten())
                trained.append(nn.Linear(*weight.shape))
                modules += [trained[-1], nn.ReLU()]
        with torch.no_grad():
            for module, (weight, bias) in zip(trained, self.layers(), strict=True):
                module.weight[...] = torch.from_numpy(weight.T if weight.ndim == 2 else weight)
                module.bias[...] = torch.from_numpy(bias)
        return nn.Sequential(*modules[:-1])

    def torch_batch(self) -> Batch:
        """Return the batch in the shape that the PyTorch network takes, with an axis for channels."""
        x = self.batch.x
        return Batch(x.reshape(len(x), -1, *x.shape[-2:]), self.batch.y)


def from_torch_order(gradients) -> np.ndarray:
    """Return the gradients of PyTorch's parameters as one vector in the order of this package's network."""
    parts = [gradient.detach().cpu().numpy() for gradient in gradients]
    return np.concatenate([(part.T if part.ndim == 2 else part).ravel() for part in parts])


def float64_gradient(objective, parameters: np.ndarray, batch: Batch) -> tuple[float, np.ndarray]:
    """Return loss and gradient, shape (n_params,), computed by NumPy in float64."""
    parameters = parameters.astype(np.float64)
    gradient = np.empty_like(parameters)
    return objective.loss_and_gradient(parameters, Batch(batch.x.astype(np.float64), batch.y), gradient), gradient
