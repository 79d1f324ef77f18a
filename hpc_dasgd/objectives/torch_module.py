"""A PyTorch module as an objective: its parameters and gradients are views of the flat vectors."""

import math
import os
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch

from hpc_dasgd.errors import ConfigError


def from_torch(module: torch.nn.Module, loss_fn: Callable) -> "TorchObjective":
    """Return the objective ``loss_fn(module(x), y)``, minimized over the parameters of a PyTorch module.

    The module's parameters become views of the replica, their ``.grad`` views of the gradient, by DLPack: nothing is
    copied, on CPU or GPU, and after the training the module holds the final parameters.

    - Parameters with ``requires_grad = False`` are not trained and no part of the vector; they, and all buffers, start
      as each rank has made them. PyTorch's generator begins with the same seed in every process, so that ranks agree
      unless told otherwise; call ``torch.manual_seed`` before making the module to start elsewhere.
    - The module trains in the modes it is in (``train()`` when made) and is evaluated in ``eval()``.
    - Buffers, such as running means of batch normalization, are kept per rank. Floating ones are averaged over ranks at
      the end, or when a signal stops the run, and go on from there when it is resumed; checkpoints do not hold them, so
      that after a kill they begin anew. A replay repeats a run whose gradients do not depend on them, as those of
      batch normalization that trains do not.
    - The generators of PyTorch are seeded at each step from the batch, so that dropout repeats in a replay.
    - PyTorch computes with one thread per rank, or as many as ``OMP_NUM_THREADS`` says; ``torch.set_num_threads``
      behind this call overrules it.

    Parameters
    ----------
    module : torch.nn.Module
        With at least one floating parameter to train. It is converted to ``device.dtype`` and moved to the device.
    loss_fn : callable
        ``(outputs, y) -> scalar tensor``: the mean over the rows of a batch. `y` is an int64 tensor, shape (n,), for
        classes, else of shape (n, k) and the dtype of the parameters, as the features are.

    Raises
    ------
    ConfigError
        If the module has no parameter to train, or one that is not a floating, initialized tensor.
    """
    return TorchObjective(module, loss_fn)


class TorchObjective:
    """See `from_torch`.

    Attributes
    ----------
    module : torch.nn.Module
    parameter_shapes : dict of str to tuple of int
        As ``named_parameters`` has them, of those that are trained; a tied one once.
    """

    def __init__(self, module: torch.nn.Module, loss_fn: Callable):
        self.module, self._loss_fn = module, loss_fn
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not trained:
            raise ConfigError("`from_torch` needs a module with parameters to train, got none with `requires_grad`")
        for name, parameter in trained.items():
            if torch.nn.parameter.is_lazy(parameter) or not parameter.is_floating_point():
                kind = "an uninitialized one" if torch.nn.parameter.is_lazy(parameter) else str(parameter.dtype)
                raise ConfigError(f"`from_torch` needs floating parameters, initialized, got {kind}: {name}")
        self._trained = list(trained.values())
        self.parameter_shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
        self._parameters = self._out = self._gradient = None
        self._gradients = ()
        # Ranks of one node share its cores. What the environment says may be later than the loading of PyTorch.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]))

    @property
    def on_gpu(self) -> bool:
        """Whether this PyTorch has CUDA, and finds a GPU."""
        return torch.cuda.is_available()

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Return a copy of the module's parameters as they are, float64; see `Objective`."""
        flat = [parameter.detach().reshape(-1).to("cpu", torch.float64) for parameter in self._trained]
        return torch.cat(flat).numpy()

    def loss_and_gradient(self, parameters, batch, out) -> float:
        """Return the loss of the batch and fill `out` with its gradient; see `Objective`."""
        self._place(parameters)
        if out is not self._out:
            self._gradient = torch.from_dlpack(out)
            self._out, self._gradients = out, self._views(self._gradient)
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient  # at every step: somebody may have called `zero_grad`
        self._gradient.zero_()
        loss, _, _ = self._forward(batch)
        loss.backward()
        return loss.detach() if loss.is_cuda else loss.item()

    def evaluate(self, parameters, batch) -> dict[str, float]:
        """Return the loss and, where outputs (n, k) meet classes (n,), the accuracy; see `Objective`."""
        self._place(parameters)
        with torch.no_grad(), _evaluating(self.module):
            loss, outputs, y = self._forward(batch)
        metrics = {"loss": loss.item()}
        if y.ndim == 1 and torch.is_tensor(outputs) and outputs.ndim == 2 and outputs.shape[1] > 1:
            metrics["accuracy"] = (outputs.argmax(1) == y).double().mean().item()
        return metrics

    def running_statistics(self) -> dict[str, np.ndarray]:
        """Return copies of the floating buffers, by name; see `Objective`."""
        return {name: buffer.detach().cpu().numpy().copy() for name, buffer in self._floating_buffers()}

    def load_running_statistics(self, statistics: dict[str, np.ndarray]) -> None:
        """Overwrite the floating buffers; see `Objective`."""
        with torch.no_grad():
            for name, buffer in self._floating_buffers():
                buffer.copy_(torch.from_numpy(statistics[name]))

    def _floating_buffers(self) -> list:
        return [(name, buffer) for name, buffer in self.module.named_buffers() if buffer.is_floating_point()]

    def _place(self, parameters) -> None:
        """Make the module's parameters views of `parameters`, and move the rest of it to that device and dtype."""
        if parameters is self._parameters:  # the reference that is kept rules out another array at the same address
            return
        flat = torch.from_dlpack(parameters)
        if flat.is_cuda:
            torch.cuda.set_device(flat.device)
        self.module.to(flat.device, flat.dtype)
        for parameter, view in zip(self._trained, self._views(flat), strict=True):
            parameter.grad = None  # which may be of another dtype
            parameter.data = view
        self._parameters = parameters

    def _views(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes = self.parameter_shapes.values()
        parts = flat.split([math.prod(shape) for shape in shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def _forward(self, batch) -> tuple:
        if batch is None or batch.x is None:
            raise ConfigError("`data.path` must be set for an objective of `from_torch`")
        first = self._trained[0]
        torch.default_generator.manual_seed(batch.seed)  # `torch.manual_seed` costs a hundred times as much
        if first.is_cuda:
            torch.cuda.manual_seed(batch.seed)
        x, y = torch.as_tensor(batch.x).to(first), torch.as_tensor(batch.y)
        y = y.to(first) if y.is_floating_point() else y.to(first.device)
        outputs = self.module(x)
        loss = self._loss_fn(outputs, y)
        if loss.ndim != 0:
            raise ConfigError(f"`loss_fn` must return a scalar, the mean over rows, got shape {tuple(loss.shape)}")
        return loss, outputs, y


@contextmanager
def _evaluating(module: torch.nn.Module):
    """Have all parts of a module in the mode to evaluate, and afterwards each in its own again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
