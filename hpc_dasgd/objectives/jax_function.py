"""A JAX function as an objective."""

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext

import jax
import numpy as np

from hpc_dasgd.arrays.arithmetic import namespace
from hpc_dasgd.errors import ConfigError


def from_jax(loss_fn: Callable, example_parameters, accuracy: Callable | None = None) -> "JaxObjective":
    """Return the objective `loss_fn`, a function of JAX, minimized over a tree of parameters.

    The function and its gradient are compiled once for each shape of a batch. Parameters enter without a copy; the
    gradient, which JAX puts into memory of its own, is copied once. The parameters must not be kept beyond a call:
    JAX's arrays are immutable, while these stand in memory that changes.

    XLA makes a thread for each core that the process may run on: bind ranks to cores, as ``srun`` does, or set
    ``NPROC=1`` before JAX is loaded.

    Parameters
    ----------
    loss_fn : callable
        ``(parameters, x, y) -> scalar``: the mean over the rows of a batch. One that has a parameter `key` is given a
        random key of the batch there, so that dropout repeats in a replay; None in an evaluation.
    example_parameters : tree of floating arrays
        Lists, tuples, dicts and what else JAX knows for a tree. Its values are the first parameters; all of them are
        of ``device.dtype`` in training.
    accuracy : callable, optional
        ``(parameters, x, y) -> scalar``: the mean accuracy over the rows of a batch, for evaluations.

    Raises
    ------
    ConfigError
        If the tree has no leaves, or one that is not a floating array.
    """
    return JaxObjective(loss_fn, example_parameters, accuracy)


class JaxObjective:
    """See `from_jax`.

    Attributes
    ----------
    parameter_shapes : dict of str to tuple of int
        By path in the tree, such as ``layers.0.weight``.
    """

    def __init__(self, loss_fn: Callable, example_parameters, accuracy: Callable | None = None):
        found, self._tree = jax.tree_util.tree_flatten_with_path(example_parameters)
        self._leaves = {_name(path): np.asarray(leaf) for path, leaf in found}
        if not self._leaves:
            raise ConfigError("`example_parameters` must have at least one leaf, got none")
        for name, leaf in self._leaves.items():
            if not jax.dtypes.issubdtype(leaf.dtype, np.floating):
                raise ConfigError(f"`example_parameters` must be floating, got {leaf.dtype} at {name}")
        self.parameter_shapes = {name: leaf.shape for name, leaf in self._leaves.items()}
        self._loss_fn, self._accuracy = loss_fn, accuracy
        self._takes_key = "key" in inspect.signature(loss_fn).parameters
        self._differentiate, self._measure = jax.jit(self._loss_and_gradients), jax.jit(self._metrics)
        self._out, self._gradients = None, ()

    @property
    def on_gpu(self) -> bool:
        """Whether JAX computes on a GPU."""
        return jax.default_backend() == "gpu"

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Return the example's values, float64; see `Objective`."""
        return np.concatenate([leaf.astype(np.float64).ravel() for leaf in self._leaves.values()])

    def loss_and_gradient(self, parameters, batch, out) -> float:
        """Return the loss of the batch and fill `out` with its gradient; see `Objective`."""
        if out is not self._out:
            self._out, self._gradients = out, self._views(out)
        words = np.array([batch.seed >> 32, batch.seed & 0xFFFFFFFF], np.uint32) if self._takes_key else None
        with _precision(parameters):
            # Waited for before the parameters may change.
            loss, gradients = jax.block_until_ready(self._differentiate(_given(parameters), *_data(batch), words))
            for view, leaf in zip(self._gradients, jax.tree.leaves(gradients), strict=True):
                view[...] = np.asarray(leaf) if isinstance(out, np.ndarray) else namespace(out).from_dlpack(leaf)
            return float(loss)

    def evaluate(self, parameters, batch) -> dict[str, float]:
        """Return the loss and, if a function for it was given, the accuracy; see `Objective`."""
        with _precision(parameters):
            metrics = jax.block_until_ready(self._measure(_given(parameters), *_data(batch)))
            return {name: float(value) for name, value in metrics.items()}

    def _loss_and_gradients(self, flat, x, y, words):
        key = {} if words is None else {"key": jax.random.wrap_key_data(words, impl="threefry2x32")}
        return jax.value_and_grad(self._loss_fn)(self._unflatten(flat), x, y, **key)

    def _metrics(self, flat, x, y):
        tree = self._unflatten(flat)
        metrics = {"loss": self._loss_fn(tree, x, y, **({"key": None} if self._takes_key else {}))}
        return metrics if self._accuracy is None else {**metrics, "accuracy": self._accuracy(tree, x, y)}

    def _unflatten(self, flat):
        return jax.tree.unflatten(self._tree, self._views(flat))

    def _views(self, flat) -> list:
        """Return `flat` as the leaves of the tree: views, where its library has them."""
        views, lo = [], 0
        for shape in self.parameter_shapes.values():
            hi = lo + math.prod(shape)
            views.append(flat[lo:hi].reshape(shape))
            lo = hi
        return views


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "parameters"


def _given(array):
    """Return `array` as JAX takes it without a copy: NumPy's as it is, which is faster than by DLPack.

    Memory that does not begin at a multiple of 64 bytes JAX copies all the same; that of a replica does.
    """
    return array if array is None or isinstance(array, np.ndarray) else jax.dlpack.from_dlpack(array)


def _data(batch) -> tuple:
    return (None, None) if batch is None else (_given(batch.x), _given(batch.y))


def _precision(parameters):
    """Have JAX compute in float64 where the parameters are of it."""
    return jax.enable_x64(True) if parameters.dtype.itemsize == 8 else nullcontext()
