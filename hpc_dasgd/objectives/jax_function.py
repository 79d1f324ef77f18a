"""A JAX function as an objective."""

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from hpc_dasgd.arrays.arithmetic import namespace
from hpc_dasgd.arrays.types import Array, Float64s, UInt32s
from hpc_dasgd.data.batches import Batch
from hpc_dasgd.errors import ConfigError


def from_jax(
    loss_fn: Callable[..., Any], example_parameters: Any, accuracy: Callable[..., Any] | None = None
) -> "JaxObjective":
    """Return the objective `loss_fn`, a JAX function that is minimized over a tree of parameters.

    The function and its gradient are compiled once for each shape of a batch. Parameters are passed without a copy; the
    gradient is copied once, since JAX stores it in memory of its own. `loss_fn` must not keep the parameters after it
    returns: JAX treats arrays as immutable, but the memory of these is overwritten at the next step.

    XLA starts a thread for each core that the process may use. Bind ranks to cores, as ``srun`` does, or set
    ``NPROC=1`` before JAX is imported.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(parameters, x, y)`` returns a scalar, the mean over the rows of a batch. If it has a parameter `key`,
        it is passed a random key that depends on the batch only, so that dropout repeats in a replay, and None in
        evaluations.
    example_parameters : tree of floating arrays
        Lists, tuples, dicts and other trees of JAX. Its values are the initial parameters. In training, all of them
        have the dtype ``device.dtype``.
    accuracy : callable, optional
        ``accuracy(parameters, x, y)`` returns a scalar, the mean accuracy over the rows of a batch, for evaluations.

    Returns
    -------
    objective : JaxObjective

    Raises
    ------
    ConfigError
        If the tree has no leaves, or a leaf that is not a floating array.
    """
    return JaxObjective(loss_fn, example_parameters, accuracy)


class JaxObjective:
    """Objective of a JAX function; see `from_jax`.

    Attributes
    ----------
    parameter_shapes : dict of str to tuple of int
        Shapes of the leaves, by their path in the tree, such as ``layers.0.weight``.
    """

    def __init__(
        self, loss_fn: Callable[..., Any], example_parameters: Any, accuracy: Callable[..., Any] | None = None
    ) -> None:
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(example_parameters)
        self._leaves = {_name(path): np.asarray(leaf) for path, leaf in leaves}
        if not self._leaves:
            raise ConfigError("`example_parameters` must have at least one leaf, got none")
        for name, leaf in self._leaves.items():
            if not jax.dtypes.issubdtype(leaf.dtype, np.floating):
                raise ConfigError(f"`example_parameters` must be floating, got {leaf.dtype} at {name}")
        self.parameter_shapes = {name: leaf.shape for name, leaf in self._leaves.items()}
        self._loss_fn, self._accuracy = loss_fn, accuracy
        self._takes_key = "key" in inspect.signature(loss_fn).parameters
        self._differentiate, self._measure = jax.jit(self._loss_and_gradients), jax.jit(self._metrics)
        self._out: Array = None
        self._gradients: list[Array] = []

    @property
    def on_gpu(self) -> bool:
        """Whether JAX computes on a GPU; see `ComputesOnGpu`."""
        return jax.default_backend() == "gpu"

    def initial(self, rng: np.random.Generator) -> Float64s:
        """Return the values of ``example_parameters``; see `Objective`."""
        return np.concatenate([leaf.astype(np.float64).ravel() for leaf in self._leaves.values()])

    def loss_and_gradient(self, parameters: Array, batch: Batch, out: Array) -> float:
        """Return the loss of the batch and fill `out` with its gradient; see `Objective`."""
        if out is not self._out:
            self._out, self._gradients = out, self._views(out)
        key_data = np.array([batch.seed >> 32, batch.seed & 0xFFFFFFFF], np.uint32) if self._takes_key else None
        with _precision(parameters):
            # The parameters may change as soon as this method returns, so JAX must be done with them.
            loss, gradients = jax.block_until_ready(
                self._differentiate(_as_jax_input(parameters), *_examples(batch), key_data)
            )
            for view, leaf in zip(self._gradients, jax.tree.leaves(gradients), strict=True):
                view[...] = np.asarray(leaf) if isinstance(out, np.ndarray) else namespace(out).from_dlpack(leaf)
            return float(loss)

    def evaluate(self, parameters: Array, batch: Batch | None) -> dict[str, float]:
        """Return the loss and, if a function for it was given, the accuracy; see `Evaluates`."""
        with _precision(parameters):
            metrics = jax.block_until_ready(self._measure(_as_jax_input(parameters), *_examples(batch)))
            return {name: float(value) for name, value in metrics.items()}

    def _loss_and_gradients(self, flat: Array, x: Array, y: Array, key_data: UInt32s | None) -> Any:
        key = {} if key_data is None else {"key": jax.random.wrap_key_data(key_data, impl="threefry2x32")}
        return jax.value_and_grad(self._loss_fn)(self._unflatten(flat), x, y, **key)

    def _metrics(self, flat: Array, x: Array, y: Array) -> dict[str, Any]:
        tree = self._unflatten(flat)
        metrics = {"loss": self._loss_fn(tree, x, y, **({"key": None} if self._takes_key else {}))}
        return metrics if self._accuracy is None else {**metrics, "accuracy": self._accuracy(tree, x, y)}

    def _unflatten(self, flat: Array) -> Any:
        return jax.tree.unflatten(self._tree, self._views(flat))

    def _views(self, flat: Array) -> list[Array]:
        """Return the parts of `flat` with the shapes of the leaves, as views if its library has them."""
        views, lo = [], 0
        for shape in self.parameter_shapes.values():
            hi = lo + math.prod(shape)
            views.append(flat[lo:hi].reshape(shape))
            lo = hi
        return views


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "parameters"


def _as_jax_input(array: Array) -> Array:
    """Return `array` in a form that JAX uses without a copy.

    NumPy's arrays are passed unchanged, which is faster than DLPack. JAX copies memory whose address is not a multiple
    of 64 bytes; the address of a replica is one.
    """
    return array if array is None or isinstance(array, np.ndarray) else jax.dlpack.from_dlpack(array)


def _examples(batch: Batch | None) -> tuple[Array, Array]:
    return (None, None) if batch is None else (_as_jax_input(batch.x), _as_jax_input(batch.y))


def _precision(parameters: Array) -> AbstractContextManager[Any]:
    """Return a context in which JAX computes in float64 if the parameters are float64."""
    return jax.enable_x64(True) if parameters.dtype.itemsize == 8 else nullcontext()
