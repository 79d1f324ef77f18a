"""Optimizers, which compute updates from gradients block by block; see `interface.Optimizer`.

Formulas are written with the parameters ``x``, the gradient ``g`` and the stepsize (learning rate). The block functions
write only `out` and the state; they make no temporary arrays.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from hpc_dasgd.arrays.arithmetic import compute_into
from hpc_dasgd.arrays.types import Array, DType, Namespace
from hpc_dasgd.config.settings import OptimizerConfig
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.optim.interface import BlockFunction, Optimizer

State = Mapping[str, Array | int]
"""State of an optimizer by name: arrays of shape (n_params,), and integers."""


class Sgd:
    """Stochastic gradient descent: ``x -= stepsize g``. It has no state.

    Parameters
    ----------
    n_params : int
        Length of gradients.
    dtype : dtype
        Floating dtype of gradients and updates.
    xp : module
        Array namespace.

    Attributes
    ----------
    state : dict
        Empty.
    """

    def __init__(self, n_params: int, dtype: DType, xp: Namespace) -> None:
        self._xp = xp
        self.state: State = {}

    def update(self, gradient: Array, stepsize: float) -> BlockFunction:
        """Return the block function of one step; see `interface.Optimizer`."""
        scale = -float(stepsize)  # unlike a float64 of NumPy, a Python float does not change float32 arrays to float64

        def block(lo: int, hi: int, out: Array) -> None:
            compute_into(out, self._xp.multiply, gradient[lo:hi], scale)

        return block

    def load_state(self, state: State) -> None:
        """Raise `ValueError` unless `state` is empty."""
        _require_names(state, ())


class Momentum:
    """Gradient descent with momentum: ``v = momentum v + g``, ``x -= stepsize v``, starting from ``v = 0``.

    These are the formulas of PyTorch's ``SGD`` without dampening.

    Parameters
    ----------
    n_params, dtype, xp
        See `Sgd`.
    momentum : float
        Factor of the previous velocity ``v``.
    """

    def __init__(self, n_params: int, dtype: DType, xp: Namespace, *, momentum: float = 0.9) -> None:
        self._xp, self._momentum = xp, float(momentum)
        self._velocity = xp.zeros((n_params,), dtype=dtype)

    def update(self, gradient: Array, stepsize: float) -> BlockFunction:
        """Return the block function of one step; see `interface.Optimizer`."""
        xp, scale = self._xp, -float(stepsize)

        def block(lo: int, hi: int, out: Array) -> None:
            velocity = self._velocity[lo:hi]
            compute_into(velocity, xp.multiply, velocity, self._momentum)
            compute_into(velocity, xp.add, velocity, gradient[lo:hi])
            compute_into(out, xp.multiply, velocity, scale)

        return block

    @property
    def state(self) -> State:
        """The array ``velocity``, shape (n_params,), which is not a copy."""
        return {"velocity": self._velocity}

    def load_state(self, state: State) -> None:
        """Copy `state` into the state of this optimizer; raise `ValueError` if names or shapes differ."""
        _require_names(state, self.state)
        _load_array(self._xp, self._velocity, "velocity", state)


class Adam:
    """Adam with bias correction, algorithm 1 of Kingma and Ba (arXiv 1412.6980).

    At step ``t = 1, 2, ...``, starting from ``m = v = 0``:
    ``m = beta1 m + (1 - beta1) g``,
    ``v = beta2 v + (1 - beta2) g**2``,
    ``x -= stepsize m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + epsilon)``.

    Parameters
    ----------
    n_params, dtype, xp
        See `Sgd`.
    beta1, beta2 : float
        Factors of the previous moments ``m`` and ``v``.
    epsilon : float
        Summand that prevents a division by zero.
    """

    def __init__(
        self,
        n_params: int,
        dtype: DType,
        xp: Namespace,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self._xp, self._beta1, self._beta2, self._epsilon = xp, float(beta1), float(beta2), float(epsilon)
        self._first = xp.zeros((n_params,), dtype=dtype)
        self._second = xp.zeros((n_params,), dtype=dtype)
        self._step = 0

    def update(self, gradient: Array, stepsize: float) -> BlockFunction:
        """Return the block function of one step; see `interface.Optimizer`."""
        xp = self._xp
        self._step += 1
        scale = -float(stepsize) / (1 - self._beta1**self._step)
        root_correction = math.sqrt(1 - self._beta2**self._step)

        def block(lo: int, hi: int, out: Array) -> None:
            g, m, v = gradient[lo:hi], self._first[lo:hi], self._second[lo:hi]
            compute_into(out, xp.multiply, g, 1 - self._beta1)
            compute_into(m, xp.multiply, m, self._beta1)
            compute_into(m, xp.add, m, out)
            compute_into(out, xp.multiply, g, g)
            compute_into(out, xp.multiply, out, 1 - self._beta2)
            compute_into(v, xp.multiply, v, self._beta2)
            compute_into(v, xp.add, v, out)
            compute_into(out, xp.sqrt, v)
            compute_into(out, xp.divide, out, root_correction)
            compute_into(out, xp.add, out, self._epsilon)
            compute_into(out, xp.divide, m, out)
            compute_into(out, xp.multiply, out, scale)

        return block

    @property
    def state(self) -> State:
        """The arrays ``first_moment`` and ``second_moment``, shape (n_params,), not copies; and the int ``step``."""
        return {"first_moment": self._first, "second_moment": self._second, "step": self._step}

    def load_state(self, state: State) -> None:
        """Copy `state` into the state of this optimizer; raise `ValueError` if names or shapes differ."""
        _require_names(state, self.state)
        _load_array(self._xp, self._first, "first_moment", state)
        _load_array(self._xp, self._second, "second_moment", state)
        self._step = int(state["step"])


_KINDS: dict[str, Any] = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}
_OPTIONS: dict[str, tuple[str, ...]] = {"sgd": (), "momentum": ("momentum",), "adam": ("beta1", "beta2", "epsilon")}


def make_optimizer(kind: str, n_params: int, dtype: DType, xp: Namespace, **options: float) -> Optimizer:
    """Return a new optimizer, whose state is zero.

    Parameters
    ----------
    kind : {"sgd", "momentum", "adam"}
        The setting ``optimizer.kind``.
    n_params : int
        Length of gradients.
    dtype : dtype
        Floating dtype of gradients, updates and state.
    xp : module
        Array namespace of gradients, updates and state.
    **options : float
        ``momentum`` for momentum; ``beta1``, ``beta2`` and ``epsilon`` for adam.

    Returns
    -------
    optimizer : Sgd, Momentum or Adam

    Raises
    ------
    ConfigError
        If `kind` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> update = make_optimizer("sgd", 2, np.float64, np).update(np.array([1.0, 2.0]), 0.5)
    >>> out = np.empty(2)
    >>> update(0, 2, out)
    >>> out
    array([-0.5, -1. ])
    """
    if kind not in _KINDS:
        raise ConfigError(f"`optimizer.kind` must be one of {', '.join(_KINDS)}, got {kind!r}")
    return _KINDS[kind](n_params, dtype, xp, **options)


def from_settings(settings: OptimizerConfig, n_params: int, dtype: DType, xp: Namespace) -> Optimizer:
    """Return the optimizer that the settings describe; see `make_optimizer`."""
    names = _OPTIONS[settings.kind]
    return make_optimizer(settings.kind, n_params, dtype, xp, **{name: getattr(settings, name) for name in names})


def _require_names(state: State, names: Collection[str]) -> None:
    if set(state) != set(names):
        raise ValueError(f"optimizer state must hold {sorted(names)}, got {sorted(state)}")


def _load_array(xp: Namespace, array: Array, name: str, state: State) -> None:
    """Copy the array of that name in `state` into `array`."""
    value = xp.asarray(state[name], dtype=array.dtype)
    if value.shape != array.shape:
        raise ValueError(f"`{name}` of the optimizer state must have shape {array.shape}, got {value.shape}")
    array[...] = value
