"""A PyTorch module as an objective: its parameters and gradients are views of the flat vectors."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hpc_dasgd.arrays.types import AnyArray, Array, Float64s
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.errors import ConfigError


def from_torch(module: torch.nn.Module, loss_fn: Callable[..., Any]) -> "TorchObjective":
    """Return the objective ``loss_fn(module(x), y)``, minimized over the parameters of a PyTorch module.

    The parameters of the module become views of the replica, and their ``.grad`` views of the gradient, by DLPack.
    Nothing is copied on the processor or a GPU, and after the training the module has the final parameters.

    - Parameters with ``requires_grad = False`` are not trained and are not part of the parameter vector. They and all
      buffers start with the values that each rank's own module has. PyTorch's generator has the same seed in every
      process, so the values agree between ranks unless the program sets other seeds. To change them, call
      ``torch.manual_seed`` before the module is created.
    - The module is trained in its current mode, which is ``train()`` for a new module, and evaluated in ``eval()``.
    - Each rank has its own buffers, such as running means of batch normalization. Floating buffers are averaged over
      ranks at the end, or when a signal stops the run, and a resumed run continues with these means. Checkpoints do
      not contain them, so they start anew after a crash. A replay repeats a run whose gradients do not depend on the
      buffers; gradients of batch normalization in the mode ``train()`` do not.
    - PyTorch's generators are seeded at each step with the seed of the batch, so that dropout repeats in a replay.
    - PyTorch uses as many threads per rank as ``OMP_NUM_THREADS`` states, or one if that is not set. To change this,
      call ``torch.set_num_threads`` after this function.

    Parameters
    ----------
    module : torch.nn.Module
        A module with at least one floating parameter to train. It is converted to ``device.dtype`` and moved to the
        device.
    loss_fn : callable
        ``loss_fn(outputs, y)`` returns a scalar tensor, the mean over the rows of a batch. For classes, `y` is an int64
        tensor of shape (n,); for float targets, it has shape (n, k) and the dtype of the parameters and features.

    Returns
    -------
    objective : TorchObjective

    Raises
    ------
    ConfigError
        If the module has no parameter to train, or one that is not an initialized floating tensor.
    """
    return TorchObjective(module, loss_fn)


class TorchObjective:
    """Objective of a PyTorch module; see `from_torch`.

    Attributes
    ----------
    module : torch.nn.Module
        The module, whose parameters are views of the replica.
    parameter_shapes : dict of str to tuple of int
        Shapes of the trained parameters by their names in ``named_parameters``; shared parameters are listed once.
    """

    def __init__(self, module: torch.nn.Module, loss_fn: Callable[..., Any]) -> None:
        self.module, self._loss_fn = module, loss_fn
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not trained:
            raise ConfigError("`from_torch` needs a module with parameters to train, got none with `requires_grad`")
        for name, parameter in trained.items():
            if torch.nn.parameter.is_lazy(parameter) or not parameter.is_floating_point():
                kind = "an uninitialized one" if torch.nn.parameter.is_lazy(parameter) else str(parameter.dtype)
                raise ConfigError(f"`from_torch` needs initialized floating parameters, got {kind}: {name}")
        self._trained = list(trained.values())
        self.parameter_shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
        self._parameters: Array = None
        self._out: Array = None
        self._gradient: torch.Tensor = None
        self._gradients: tuple[torch.Tensor, ...] = ()
        # Ranks of one node share its cores. PyTorch may have been imported before the environment was changed.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]))

    @property
    def on_gpu(self) -> bool:
        """Whether PyTorch can use a GPU; see `ComputesOnGpu`."""
        return torch.cuda.is_available()

    def initial(self, rng: np.random.Generator) -> Float64s:
        """Return a copy of the current parameters of the module; see `Objective`."""
        flat = [parameter.detach().reshape(-1).to("cpu", torch.float64) for parameter in self._trained]
        return torch.cat(flat).numpy()

    def loss_and_gradient(self, parameters: Array, batch: Batch, out: Array) -> Any:
        """Return the loss of the batch and fill `out` with its gradient; see `Objective`."""
        self._use_memory(parameters)
        if out is not self._out:
            self._gradient = torch.from_dlpack(out)
            self._out, self._gradients = out, self._views(self._gradient)
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient  # at every step, since `zero_grad` may have been called
        self._gradient.zero_()
        loss, _, _ = self._forward(batch)
        loss.backward()
        return loss.detach() if loss.is_cuda else loss.item()

    def evaluate(self, parameters: Array, batch: Batch | None) -> dict[str, float]:
        """Return the loss and, for outputs of shape (n, k) and classes of shape (n,), the accuracy; see `Evaluates`."""
        self._use_memory(parameters)
        with torch.no_grad(), _evaluating(self.module):
            loss, outputs, y = self._forward(batch)
        metrics = {"loss": loss.item()}
        if y.ndim == 1 and torch.is_tensor(outputs) and outputs.ndim == 2 and outputs.shape[1] > 1:
            metrics["accuracy"] = (outputs.argmax(1) == y).double().mean().item()
        return metrics

    def running_statistics(self) -> dict[str, AnyArray]:
        """Return copies of the floating buffers, by name; see `HasRunningStatistics`."""
        return {name: buffer.detach().cpu().numpy().copy() for name, buffer in self._floating_buffers()}

    def load_running_statistics(self, statistics: dict[str, AnyArray]) -> None:
        """Overwrite the floating buffers; see `HasRunningStatistics`."""
        with torch.no_grad():
            for name, buffer in self._floating_buffers():
                buffer.copy_(torch.from_numpy(statistics[name]))

    def _floating_buffers(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, buffer) for name, buffer in self.module.named_buffers() if buffer.is_floating_point()]

    def _use_memory(self, parameters: Array) -> None:
        """Make the module's parameters views of `parameters`, and move its buffers to that device and dtype."""
        if parameters is self._parameters:  # no other array can have its address, since a reference to it is kept
            return
        flat = torch.from_dlpack(parameters)
        if flat.is_cuda:
            torch.cuda.set_device(flat.device)
        self.module.to(flat.device, flat.dtype)
        for parameter, view in zip(self._trained, self._views(flat), strict=True):
            parameter.grad = None  # its dtype may differ
            parameter.data = view
        self._parameters = parameters

    def _views(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes = self.parameter_shapes.values()
        parts = flat.split([math.prod(shape) for shape in shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def _forward(self, batch: Batch | None) -> tuple[torch.Tensor, Any, torch.Tensor]:
        if batch is None or batch.x is None:
            raise ConfigError("`data.path` must be set for an objective of `from_torch`")
        first = self._trained[0]
        torch.default_generator.manual_seed(batch.seed)  # `torch.manual_seed` takes a hundred times as long
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
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Set all parts of a module to the mode for evaluation, and each to its own mode again afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
